"""Does this checkout compute what another one does, to the bit?

    python benchmarks/same_behaviour.py --before PATH           # or some of it: --before PATH VQVAE2 convert

For every family of autoencoders and priors: losses of ten seeded training steps, the state they end in, codes,
decoded and sampled codes, log-probabilities; both training loops; tokenized data sets; pipelines; and all of it for
every converted fixture. `behaviours.py` has the list. Each checkout computes it in a process of its own, both with
the fixtures of this one; a value that differs or is gone makes the exit code 1. One minute.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from checkouts import HERE, add_arguments, start


def compute(checkout, folder, words):
    """What a checkout computes, {item: {name: value}}, and the seconds it took."""
    target, started = Path(folder) / "values.json", time.monotonic()
    worker = start(checkout, "behaviours.py", HERE.parent / "tests/fixtures", target, *words)
    if worker.wait():
        raise SystemExit(f"behaviours.py failed with {checkout}")
    return json.loads(target.read_text()), time.monotonic() - started


def differences(before, after):
    """Words about every value that the second does not have as the first; what it has beside them is new."""
    errors = [
        f"{side}: {values['error']}" for side, values in (("before", before), ("after", after)) if "error" in values
    ]
    return errors or [
        f"{name}: {_shown(value)} before, {_shown(after.get(name, 'nothing there'))} after"
        for name, value in before.items()
        if after.get(name) != value
    ]


def _shown(value):
    """A loss to be read, the start of a hash, or the words of an error."""
    if not value.lstrip("-").startswith("0x"):
        return value if " " in value else value[:12]
    return f"{float.fromhex(value)!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("words", nargs="*", help="only items whose name has one of these words")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before, seconds = compute(options.before, one, options.words)
        after, others_seconds = compute(options.after, other, options.words)
    width, unequal = max(map(len, before)), 0
    for item, values in before.items():
        others = after.get(item, {})
        found, new = differences(values, others), len(others.keys() - values.keys())
        unequal += bool(found)
        losses = [float.fromhex(value) for name, value in others.items() if name.startswith("loss ")]
        course = f"  loss {losses[0]:.6f} to {losses[-1]:.6f}" if losses else ""
        more = f", {new} new" if new else ""
        print(f"{item:{width}}  {'DIFFERS' if found else 'equal'}  {len(values):3} values{more}{course}")
        for words in found:
            print(f"    {words}")
    print(f"{len(before)} items, {unequal} differ; {seconds:.0f} s before, {others_seconds:.0f} s after.")
    sys.exit(unequal > 0)


if __name__ == "__main__":
    main()

"""How many cases of every kind of silent fault are wrong, in another checkout and in this one?

    python benchmarks/silent_faults.py --before PATH [--seed 0] [--kind NAME ...]

A case is one combination of registered classes, options, sizes, types and files, drawn by a seeded generator; both
checkouts run the same ones. It is right, refused (by an error of hf_vq's own that names what is wrong) or wrong:
another result than the right one, nothing said, an error of torch or Python that tells nobody what to do, or a process
that dies. Prints a table in Markdown, and below it every case that is wrong in this checkout. Two to four minutes.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from checkouts import add_arguments, start

WORKER = "fault_cases.py"


def run(checkout, folder, seed, kinds):
    """What the cases turned out to be with a checkout, {kind: {"title": words, "cases": {name: [verdict, words]}}}."""
    target, started = Path(folder) / "verdicts.json", time.monotonic()
    with open(Path(folder) / "log", "w+", encoding="utf-8") as log:
        worker = start(checkout, WORKER, target, seed, *kinds, stdout=log, stderr=log)
        if worker.wait():
            log.seek(0)
            raise SystemExit(f"{WORKER} failed with {checkout}:\n{log.read()[-3000:]}")
    return json.loads(target.read_text()), time.monotonic() - started


def count(cases, verdict):
    return sum(found == verdict for found, _ in cases.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the generator of cases")
    parser.add_argument("--kind", nargs="*", default=[], help="only kinds of these names")
    parser.add_argument("--verbose", action="store_true", help="also list what was wrong before, and what is refused")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before, seconds = run(options.before, one, options.seed, options.kind)
        after, others_seconds = run(options.after, other, options.seed, options.kind)
    print("| kind | cases | wrong before | wrong now | refused now |\n| --- | ---: | ---: | ---: | ---: |")
    totals = [0, 0, 0, 0]
    for name, found in after.items():
        now, then = found["cases"], before[name]["cases"]
        if now.keys() != then.keys():
            raise SystemExit(f"{name}: the checkouts drew other cases: {sorted(now.keys() ^ then.keys())[:5]}")
        row = [len(now), count(then, "wrong"), count(now, "wrong"), count(now, "refused")]
        totals = [total + value for total, value in zip(totals, row, strict=True)]
        print(f"| {name}: {found['title']} | {' | '.join(map(str, row))} |")
    print(f"| all | {' | '.join(map(str, totals))} |")
    for heading, verdicts, shown in (
        ("Wrong now", after, ["wrong"]),
        *((("Wrong before", before, ["wrong"]), ("Refused now", after, ["refused"])) if options.verbose else ()),
    ):
        print(f"\n{heading}:")
        for name, found in verdicts.items():
            for case, (verdict, words) in found["cases"].items():
                if verdict in shown:
                    print(f"- {name}, {case}: {words[:300]}")
    print(f"\nSeed {options.seed}; {seconds:.0f} s before, {others_seconds:.0f} s now.")
    sys.exit(totals[2] > 0)


if __name__ == "__main__":
    main()

"""Single wrong values for every argument of every public constructor, config and call, and what becomes of them.

    python benchmarks/fuzz_arguments.py [--only VQVAE] [--sample 0.1 --seed 0] [--show]

The values that an argument may have are those of its annotation: types, and the ranges and choices in them. Of each
case one of these comes:

- refused: a ValueError or TypeError of one line that names argument and value; of a training that can run with the
  value, a DivergenceError that tells the step
- used: accepted, and works in training, coding, sampling, saving and loading
- obscure: any other error of the constructor or call
- fails: accepted, and an error when it is used
- slow: over 8 seconds, or 6 GiB more memory
- nonsense: accepted, though the annotation has no room for it, or no range for a number
"""

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import torch

from hf_vq.training.divergence import DivergenceError

VALUES = (-1, 0, 1.5, "a string", None, [], [1], {}, 10**9, math.nan, math.inf, True)
SECONDS, MEMORY = 8, 6 * 2**30
KINDS = ("refused", "used", "obscure", "fails", "slow", "nonsense")


def has_room(kind: Any, value: Any) -> bool:
    """Whether an annotation has room for a value: types, and ranges and choices within."""
    origin = get_origin(kind) or kind
    if origin is Annotated:
        base, *limits = get_args(kind)
        return has_room(base, value) and all(value in limit for limit in limits)
    if origin in (Union, types.UnionType):
        return any(has_room(part, value) for part in get_args(kind))
    if origin is Any:
        return not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, bool):
        return origin is bool
    if origin in (tuple, list, Sequence):
        parts = [part for part in get_args(kind) if part is not Ellipsis]
        return isinstance(value, list) and all(has_room(part, item) for item in value for part in parts[:1])
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if origin is float:
        return isinstance(value, Real) and math.isfinite(value)
    if origin is bool:
        return value == 0 and isinstance(value, int)
    if origin is int:
        return isinstance(value, Integral)
    return isinstance(value, type(None) if origin is None else origin)


def names(message: str, argument: str, value: Any) -> bool:
    """Whether an error of one line names argument and value."""
    if value is None and any(f"{argument} {words}" in message for words in ("missing", "is missing")):
        return True
    shown = [repr(value)] + ([repr(tuple(value)), *map(repr, value)] if isinstance(value, list) else [])
    return "\n" not in message and argument in message and any(each in message for each in shown)


def judge(target: Any, argument: str, value: Any) -> tuple[str, str]:
    """What becomes of a value, and the words for it."""
    try:
        made = target.build(**{argument: value})
    except Exception as error:
        words = f"{type(error).__name__}: {error}"
        clear = isinstance(error, ValueError | TypeError) and names(str(error), argument, value)
        return ("refused" if clear else "obscure"), words if clear else words + _last_lines(error)
    try:
        target.use(made)
    except Exception as error:
        if target.late and isinstance(error, ValueError | TypeError) and names(str(error), argument, value):
            return "refused", str(error)
        if target.late and isinstance(error, DivergenceError):
            return "refused", str(error)
        return "fails", f"{type(error).__name__}: {error}{_last_lines(error)}"
    return ("used" if has_room(target.kinds[argument], value) else "nonsense"), "accepted"


def _last_lines(error):
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    return " at " + ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)


def work(target: Any, cases: list[tuple[str, Any]], pipe: Any, folder: str) -> None:
    """In a process of its own: sends the verdict on each case, after what it begins with.

    It works in the given folder: any word may be taken for the name of an output.
    """
    os.chdir(folder)
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sink = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sink.fileno(), 2)
    for argument, value in cases:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):
            verdict = judge(target, argument, value)
        pipe.send((verdict[0], verdict[1][:400]))
    pipe.close()


def run(target: Any, cases: list[tuple[str, Any]]) -> list[tuple[str, str, float]]:
    """The verdicts on the cases of a target, with seconds; a worker that takes too long is ended and replaced."""
    verdicts: list[tuple[str, str, float]] = []
    fork = multiprocessing.get_context("fork")
    while len(verdicts) < len(cases):
        with tempfile.TemporaryDirectory(prefix="hf_vq-fuzz-", ignore_cleanup_errors=True) as folder:
            ours, theirs = fork.Pipe(duplex=False)
            worker = fork.Process(target=work, args=(target, cases[len(verdicts) :], theirs, folder))
            worker.start()
            theirs.close()
            try:
                while len(verdicts) < len(cases):
                    start = time.monotonic()
                    if not ours.poll(SECONDS):
                        verdicts.append(("slow", f"over {SECONDS} s", SECONDS))
                        break
                    kind, words = ours.recv()
                    verdicts.append((kind, words, time.monotonic() - start))
            except EOFError:  # it was killed, for memory
                verdicts.append(("slow", "the process died", 0.0))
            worker.kill()
            worker.join()
    return verdicts


def fuzz(targets: Sequence[Any], share: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    """The verdict on every value for every argument, or on a random share of them.

    Returns:
        Dicts with target, argument, value, kind, words, seconds.
    """
    generator, found = random.Random(seed), []
    for target in targets:
        cases = [(name, value) for name in target.kinds for value in VALUES if generator.random() < share]
        for (name, value), (kind, words, seconds) in zip(cases, run(target, cases), strict=True):
            found.append({"target": target.name, "argument": name, "value": repr(value), "kind": kind,
                          "words": words, "seconds": round(seconds, 2)})  # fmt: skip
    return found


def unlimited(targets: Sequence[Any]) -> list[str]:
    """Arguments that are numbers without a range."""
    return [
        f"{target.name}.{name}" for target in targets for name, kind in target.kinds.items() if _has_bare_number(kind)
    ]


def _has_bare_number(kind):
    if get_origin(kind) is Annotated:
        return False
    parts = get_args(kind)[get_origin(kind) in (dict, Mapping) :]  # keys aside
    return kind in (int, float) or any(map(_has_bare_number, parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="targets whose name has this in it")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="every case that is not as it should be")
    parser.add_argument("--output", help="all verdicts, a JSON file")
    options = parser.parse_args()
    from fuzz_targets import targets

    chosen = [target for target in targets() if options.only is None or options.only in target.name]
    start, found = time.monotonic(), []
    for target in chosen:
        verdicts = fuzz([target], options.sample, options.seed)
        found += verdicts
        counts = Counter(each["kind"] for each in verdicts)
        print(f"{target.name:45}", *(f"{counts[kind]:6} {kind}" for kind in KINDS), flush=True)
        if options.show:
            for each in verdicts:
                if each["kind"] not in ("refused", "used"):
                    print("   ", each["kind"], f"{each['argument']}={each['value']}:", each["words"], flush=True)
    counts, bare = Counter(each["kind"] for each in found), unlimited(chosen)
    print(f"{len(found)} cases of {len(chosen)} targets in {time.monotonic() - start:.0f} s:",
          ", ".join(f"{counts[kind]} {kind}" for kind in KINDS))  # fmt: skip
    print(f"{len(bare)} arguments are numbers without a range{': ' if bare else ''}{', '.join(bare[:8])}")
    if options.output:
        Path(options.output).write_text(json.dumps(found, indent=1))
    sys.exit(sum(counts[kind] for kind in KINDS[2:]) > 0)


if __name__ == "__main__":
    main()

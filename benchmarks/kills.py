"""Nothing is lost: trainings that are killed (SIGKILL) or whose disk is full go on to the bits of one that was not.

    python benchmarks/kills.py                       # 20 kills, half of them in a checkpoint's files; 10 full disks
    python benchmarks/kills.py --only adversarial    # the same of one kind of run; also flips bits

A kill "in a step" comes after an optimizer has moved its weights, one "in a turn" where another optimizer has yet to
move in the same step; one "in a checkpoint" at one of the moments at which a file of a checkpoint is opened, made,
renamed or removed. Full disks are file systems in memory, which a process mounts in a namespace of its own (Linux, as
root); another file fills them up to a few pages at one of the moments at which the run opens a file, so that a writer
of any kind is the first to fail. All files of the last checkpoint and all that is published are compared, but for
times.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from full_disks import fill, flip
from killed_runs import KINDS, Runs, child, complete, contents, differing, leftovers

PLACES = ("step", "checkpoint", "turn", "checkpoint")


def kill(runs, name, kind, where, number):
    """Kill a run, resume it, compare; a run that had no whole checkpoint starts anew."""
    output, log = runs.folder / name / kind, runs.folder / f"{name}.log"
    line = runs.line(kind, output)
    status = runs.start(child, line, log, where, number)
    had = [path.name for path in complete(output)]
    again = runs.start(child, runs.resuming(kind, output) if had else f"{line} --overwrite", f"{log}.again")
    differ, left = differing(contents(runs.whole[kind]), contents(output)), leftovers(output)
    fine = status == -signal.SIGKILL and again == 0 and not differ and not left
    error = Path(f"{log}.again.err").read_text()[-300:]
    runs.check(
        f"{kind}, killed in a {where} ({number}), resumed from {had[-1] if had else 'the start'}",
        fine,
        f"status {status}, {again}; other: {differ}; left: {left}; {error}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, started = random.Random(options.seed), time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.only)
        moments = runs.make_whole()
        trainings = runs.trainings
        print(f"{options.kills if trainings else 0} kills", flush=True)
        for number in range(options.kills if trainings else 0):
            kind, where = trainings[number % len(trainings)], PLACES[number // len(trainings) % len(PLACES)]
            kill(runs, f"kill-{number}", kind, where, draw.choice(moments[kind][where]))
        print(f"{options.disks} full disks", flush=True)
        for number in range(options.disks):
            kind = options.only[number % len(options.only)]
            fill(runs, f"disk-{number}", kind, draw.choice(moments[kind]["file"]), draw.randrange(6))
        print("flipped bits", flush=True)
        for kind in trainings:
            flip(runs, kind, draw)
    failed = f"{len(runs.failed)} failed" if runs.failed else "nothing lost"
    print(f"{failed}, {time.monotonic() - started:.0f} s")
    sys.exit(bool(runs.failed))


if __name__ == "__main__":
    main()

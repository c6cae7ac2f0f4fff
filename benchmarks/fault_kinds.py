"""Kinds of silent faults: a table of generators of cases, and what one case turned out to be.

A case is a function that raises `Wrong`, or any error, or returns. Each runs in a process of its own, with a limit of
time and of memory, so that one that hangs, dies or allocates what nobody has is a result like the others.
"""

import multiprocessing
import os
import random
import re
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import hf_vq

SECONDS, BYTES = 30, 3 * 2**30  # of a case; memory beside what importing took
RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
RAW = re.compile(r"\b(Attribute|Index|Key|Type|Assertion|NotImplemented)Error\b")  # within the words of another
OWN = (str(Path(hf_vq.__file__).parent), "/transformers/", "/diffusers/")  # whose words are for users
ERRORS = ("DivergenceError", "OutOfMemoryError")  # RuntimeErrors that `hf-vq` tells in one line
KINDS: dict[str, tuple[str, Callable[[random.Random], Iterable["Case"]]]] = {}


class Wrong(Exception):
    """What a case did in silence, in words."""


@dataclass
class Case:
    """One case of a kind.

    Attributes:
        name: what was drawn.
        run: raises `Wrong` where the result is not the right one.
        expects: "works": the right result alone will do; "honest": a clear refusal as well; "refuses": nothing else.
    """

    name: str
    run: Callable[[], object]
    expects: str = "honest"


def kind(name: str, title: str) -> Callable:
    """Registers a generator, which draws the cases of a kind with the random numbers that it is given."""

    def add(draw):
        KINDS[name] = (title, draw)
        return draw

    return add


def check(right: object, words: str) -> None:
    """Raise `Wrong` unless something holds."""
    if not right:
        raise Wrong(words)


def draw_cases(name: str, seed: int) -> list[Case]:
    """The cases of a kind, the same in every process."""
    return list(KINDS[name][1](random.Random(f"{seed} {name}")))


def judge(case: Case) -> tuple[str, str]:
    """What a case turned out to be, and in which words; of this process."""
    try:
        case.run()
    except Wrong as error:
        return WRONG, str(error)
    except BaseException as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if not is_clear(error):
            return WRONG, f"raw {text}"
        return (WRONG if case.expects == "works" else REFUSED), text
    return (WRONG, "taken without a word") if case.expects == "refuses" else (RIGHT, "")


def is_clear(error: BaseException) -> bool:
    """Whether an error is one that a command tells in one line, raised by hf_vq or the classes it is built on."""
    told = isinstance(error, ValueError | OSError) or type(error).__name__ in ERRORS
    if not told or not 10 < len(str(error)) < 1500 or RAW.search(str(error)):
        return False
    raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, OSError) or any(part in raised_by for part in OWN)


def judge_apart(case: Case) -> tuple[str, str]:
    """`judge` in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(case, sender))
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(SECONDS) else (WRONG, f"nothing after {SECONDS} seconds")
    except EOFError:
        process.join()
        found = WRONG, f"the process died ({_ending(process.exitcode)})"
    if process.is_alive():
        process.kill()
    process.join()
    return found


def _limited(case, sender):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        os.chdir(tempfile.mkdtemp(dir="."))
        sender.send(judge(case))
    except MemoryError:
        sender.send((WRONG, "out of memory"))


def _ending(code):
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

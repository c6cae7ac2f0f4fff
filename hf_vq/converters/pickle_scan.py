"""What a pickle names, read op by op: nothing is looked up, built or called."""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any

LONGEST_PICKLE = 64 * 2**20  # bytes: it holds no numbers of tensors, and a byte of it can take 64 in memory
STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
PUTS = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE")
KEEP = (
    "NEWOBJ",
    "NEWOBJ_EX",
    "REDUCE",
    "BUILD",
    "DUP",
    *(f"{op}{s}" for op in ("SETITEM", "APPEND") for s in ("", "S")),
)
MARK_ENDS = {op.name for op in pickletools.opcodes if pickletools.markobject in op.stack_before}


@dataclass
class Scan:
    """One pickle.

    Attributes:
        names: full names of the globals, as Python 3 has them.
        called: those that it calls as functions; others are classes of objects that it fills, or only mentioned.
        mapped: those whose objects it gives items, as to a dict.
        listed: those whose objects it appends to, as to a list.
        protocol: of pickle.
        numbers: all integers in it.
        modules: positions of the persistent ids by which legacy files of torch announce the class of a module: of
            the mark that starts it, and of the op that ends it.
        complete: it was read to its end.
    """

    names: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    mapped: set[str] = field(default_factory=set)
    listed: set[str] = field(default_factory=set)
    protocol: int = 0
    numbers: set[int] = field(default_factory=set)
    modules: list[tuple[int, int]] = field(default_factory=list)
    complete: bool = False


class Stack:
    """The stack of an unpickler that builds nothing: it knows of which name an object is, and None of all else."""

    def __init__(self, scan: Scan):
        self.scan = scan
        self.items: list[Any] = []
        self.memo: dict[Any, Any] = {}
        self.told = {"SETITEM": scan.mapped, "SETITEMS": scan.mapped, "APPEND": scan.listed, "APPENDS": scan.listed}

    def step(self, op: Any, argument: Any, name: str | None) -> None:
        """Follow one op; `name` is what a global names."""
        if op.name in PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.items[-1]
            return
        kept: Any = self.pop(op.stack_before)
        if name is not None:
            kept = name
            if op.name == "INST":
                self.scan.called.add(name)
        elif op.name.endswith("GET"):
            kept = self.memo.get(argument)
        elif op.name == "MARK":
            kept = pickletools.markobject
        elif op.name == "REDUCE" and kept is not None:
            self.scan.called.add(kept)
        elif op.name in self.told and kept is not None:
            self.told[op.name].add(kept)
        elif op.name not in KEEP:
            kept = None
        self.items += [kept] * len(op.stack_after)

    def pop(self, before: list) -> Any:
        """Take what an op takes; returns the first of it."""
        if pickletools.markobject in before:
            while self.items.pop() is not pickletools.markobject:
                pass
            before = before[: before.index(pickletools.markobject)]
        taken = [self.items.pop() for _ in before]
        return taken[-1] if taken else None


def scan_pickle(file: IO[bytes]) -> "Scan":
    """Scan the pickle at the position of a binary file, which stands after it then.

    Returns:
        Scan; not complete where the bytes are cut or are no pickle.

    Raises:
        ValueError: longer than `LONGEST_PICKLE`.
    """
    scan, start = Scan(), file.tell()
    strings: list[str] = []  # pushed so far
    memo: dict[Any, Any] = {}
    marks: list[list[Any]] = []  # [position, the string pushed after it]
    last: Any = None  # the string that was pushed just before
    closed: list[Any] | None = None  # the mark that was closed last
    stack = Stack(scan)
    try:
        ops: Iterable[tuple[Any, Any, Any]] = pickletools.genops(file)
        for op, argument, position in ops:
            if position - start > LONGEST_PICKLE:
                break
            name = None
            if op.name in ("GLOBAL", "INST"):
                name = _full_name(*argument.split(" ", 1))
            elif op.name == "STACK_GLOBAL":
                name = _full_name(*(["?", "?", *strings])[-2:])
            if name is not None:
                scan.names.add(name)
            stack.step(op, argument, name)
            if op.name in PUTS:
                memo[len(memo) if argument is None else argument] = last
                continue
            last = argument if op.name in STRINGS else memo.get(argument) if op.name.endswith("GET") else None
            if isinstance(last, str):
                strings.append(last)
            if marks and marks[-1][1] is None:
                marks[-1][1] = last or ""
            if op.name == "PROTO":
                scan.protocol = argument
            elif isinstance(argument, int):
                scan.numbers.add(argument)
            if op.name == "MARK":
                marks.append([position, None])
            elif op.name in MARK_ENDS and marks:
                closed = marks.pop()
            elif op.name == "BINPERSID" and closed and closed[1] == "module":
                scan.modules.append((closed[0], position))
            scan.complete = op.name == "STOP"
    except (ValueError, IndexError):  # cut, or not a pickle: its text may read as names
        scan.names = {name for name in scan.names if re.fullmatch(r"[\w.]+", name)}
    if not scan.complete and file.tell() - start > LONGEST_PICKLE:
        raise ValueError(f"its pickle is longer than {LONGEST_PICKLE:,} bytes")
    return scan


def _full_name(module, name):
    """Name in Python 3 of what a pickle for Python 2 names."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"

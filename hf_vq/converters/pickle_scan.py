"""What a pickle names, read op by op: nothing is looked up, built or called."""

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import BinaryIO

LONGEST_PICKLE = 64 * 2**20  # bytes: it holds no numbers of tensors, and a byte of it can take 64 in memory
STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
MARK_ENDS = {op.name for op in pickletools.opcodes if pickletools.markobject in op.stack_before}


@dataclass
class Scan:
    """One pickle.

    Attributes:
        names: full names of the globals, as Python 3 has them.
        protocol: of pickle.
        numbers: all integers in it.
        modules: positions of the persistent ids by which legacy files of torch announce the class of a module: of
            the mark that starts it, and of the op that ends it.
        complete: it was read to its end.
    """

    names: set[str] = field(default_factory=set)
    protocol: int = 0
    numbers: set[int] = field(default_factory=set)
    modules: list[tuple[int, int]] = field(default_factory=list)
    complete: bool = False


def scan_pickle(file: BinaryIO) -> "Scan":
    """Scan the pickle at the position of a binary file, which stands after it then.

    Returns:
        Scan; not complete where the bytes are cut or are no pickle.

    Raises:
        ValueError: longer than `LONGEST_PICKLE`.
    """
    scan, start = Scan(), file.tell()
    strings, memo, marks = [], {}, []  # strings: pushed so far; marks: [position, the string pushed after it]
    last, closed = None, None  # the string that was pushed just before; the mark that was closed last
    try:
        for op, argument, position in pickletools.genops(file):
            if position - start > LONGEST_PICKLE:
                break
            if op.name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
                memo[len(memo) if argument is None else argument] = last
                continue
            last = argument if op.name in STRINGS else memo.get(argument) if op.name.endswith("GET") else None
            if isinstance(last, str):
                strings.append(last)
            if marks and marks[-1][1] is None:
                marks[-1][1] = last or ""
            if op.name == "PROTO":
                scan.protocol = argument
            elif op.name in ("GLOBAL", "INST"):
                scan.names.add(_full_name(*argument.split(" ", 1)))
            elif op.name == "STACK_GLOBAL":
                scan.names.add(_full_name(*(["?", "?", *strings])[-2:]))
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

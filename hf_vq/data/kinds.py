"""What files of samples are, pictures or sounds: all that sources, folders and tables need to know of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FileKind:
    """A kind of files of samples.

    Attributes:
        name: of one, "image", with which options of columns begin.
        plural: of several.
        one: words for one, "an image".
        article: "a" or "an".
        feature: the class of `datasets` whose columns hold them, "Image".
        columns: usual names of such columns.
        is_one: tells a file by its path.
        open: opens a path or a binary file, as far as its header; a context manager.
        unknown: what the error of `open` says of files of other kinds.
    """

    name: str
    plural: str
    one: str
    feature: str
    columns: tuple[str, ...]
    is_one: Callable[[Path], bool]
    open: Callable[[Any], Any]
    unknown: str

    def bad(self, name: str, error: Exception) -> Exception:
        """The error for one sample, once: an error that names the sample already is returned as it is."""
        text = str(error)
        if text.startswith(f"bad {self.name} {name}: "):
            return error
        return ValueError(f"bad {self.name} {name}: {f'not {self.one}' if self.unknown in text else text}")

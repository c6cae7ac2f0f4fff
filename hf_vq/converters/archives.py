"""Zip archives that hold weights: checked by their directory before a member is read."""

import json
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch

SMALL = 64 * 2**20  # bytes that any file may unpack to
MOST = 20  # times its size: what a larger one may


def check_unpacked(unpacked: int, size: int) -> None:
    """Refuse what would take far more memory than the file has bytes.

    Args:
        unpacked: bytes of what the file declares.
        size: bytes of the file.

    Raises:
        ValueError: more than 64 MiB, and more than 20 times the file.
    """
    if unpacked > max(SMALL, MOST * size):
        raise ValueError(f"its {size:,} bytes declare {unpacked:,} bytes of content: refused as a decompression bomb")


def open_archive(path: str | Path | BinaryIO) -> zipfile.ZipFile:
    """The zip archive at a path.

    Raises:
        ValueError: cut short or damaged.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"it is a zip archive cut short or damaged: {error}") from error


def check_directory(archive: zipfile.ZipFile, stored: bool = False) -> None:
    """Check names, packing and sizes of all members.

    Args:
        archive: open zipfile.ZipFile.
        stored: members must lie there uncompressed, as `torch.save` and `torch.load` have it.

    Raises:
        ValueError: naming the member.
    """
    members, size = archive.infolist(), _size(archive)
    names = set()
    for member in members:
        name = PurePosixPath(member.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in member.orig_filename or ":" in member.filename:
            raise ValueError(f"its member {member.orig_filename!r} has a path that leads out of the archive")
        if member.filename.lower() in names:  # torch finds members whatever the case
            raise ValueError(f"its member {member.filename!r} is there twice")
        if member.flag_bits & 1:
            raise ValueError(f"its member {member.filename!r} is encrypted")
        if stored and (member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size):
            raise ValueError(f"its member {member.filename!r} is compressed: torch.save writes members uncompressed")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {member.filename!r} is compressed by method {member.compress_type}")
        names.add(member.filename.lower())
    total = sum(member.file_size for member in members)
    if stored and total > size:
        raise ValueError(f"its members overlap: {total:,} bytes of them in {size:,} bytes")
    check_unpacked(total, size)


def read_json(archive: zipfile.ZipFile, name: str) -> Any:
    """Parse a JSON member."""
    try:
        return json.loads(archive.read(name))
    except ValueError as error:
        raise ValueError(f"its member {name!r} is no JSON: {error}") from error


def read_npz(path: str | Path) -> dict[str, Any]:
    """Tensors of an .npz file by name. Arrays of strings become lists; objects, which are pickles, are refused."""
    content = {}
    with open_archive(path) as archive:
        check_directory(archive)
        for member in archive.namelist():
            name = member.removesuffix(".npy")
            try:
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                content[name] = array.tolist() if array.dtype.kind in "US" else to_tensor(array)
            except Exception as error:  # of numpy, zipfile or zlib: all on the bytes of this member
                raise ValueError(f"its array {name!r}: {str(error) or type(error).__name__}") from error
    return content


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """The tensor of a numpy array of numbers, whatever its byte order."""
    if array.dtype.kind not in "fiubc":
        raise ValueError(f"dtype {array.dtype} is no number")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))).reshape(array.shape)


def _size(archive):
    archive.fp.seek(0, 2)
    return archive.fp.tell()

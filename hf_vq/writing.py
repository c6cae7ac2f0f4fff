"""What all writers share: whole files or none, one line where the disk is full, and one run at a time in a folder."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

PARTIAL_SUFFIX = ".incomplete"
FILES = f".files{PARTIAL_SUFFIX}"  # in a folder, what `whole_files` adds to it
LOCK = ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAILURES: tuple[type[Exception], ...] = (OSError, SafetensorError, RuntimeError)


class WriteError(OSError):
    """Something could not be written, most often because the disk is full.

    Args:
        path: what was to be written.
        reason: why it was not.
        full: whether that is because something is full.
        advice: how to go on.
    """

    def __init__(self, path: str | Path, reason: str, full: bool, advice: str | None = None):
        then = f"; {'make room, then ' if full else ''}{advice}" if advice else ""
        super().__init__(f"cannot write {path}: {reason}{then}")
        self.path, self.reason, self.full = path, reason, full

    def advising(self, advice: str) -> "WriteError":
        """The same failure with advice."""
        return WriteError(self.path, self.reason, self.full, advice)


def as_write_error(error: BaseException, path: str | Path) -> WriteError | None:
    """A `WriteError`, which an error is that says that a disk, a quota or a file is full; None for others.

    Args:
        error: of any code.
        path: what was written to, as far as the error does not know.
    """
    if isinstance(error, WriteError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return WriteError(error.filename or path, os.strerror(error.errno), full=True)
    return None


def unwritten(error: BaseException, path: str | Path) -> WriteError:
    """The `WriteError` of what a writer raised; where it swallows the reason, another write is tried, which tells it.

    Args:
        error: of the writer.
        path: what it wrote.
    """
    if isinstance(error, WriteError):
        return WriteError(path, error.reason, error.full)
    if isinstance(error, OSError) and error.errno is not None:
        return WriteError(path, os.strerror(error.errno), error.errno in FULL)
    told = re.search(r"\(os error (\d+)\)", str(error))  # by safetensors
    if told is not None:
        return WriteError(path, os.strerror(int(told[1])), int(told[1]) in FULL)
    number = _errno_of_more(Path(path))
    if number is not None:
        return WriteError(path, os.strerror(number), number in FULL)
    return WriteError(path, " ".join(str(error).split()) or type(error).__name__, full=False)


def _errno_of_more(path):
    """The error number of a write behind what was written last of a path; None where it works. The file stays."""
    partial = (
        path / FILES,
        path.with_name(f".{path.name}{PARTIAL_SUFFIX}"),
        path.with_name(path.name + PARTIAL_SUFFIX),
    )
    written = next((each for each in (*partial, path) if each.exists()), path)
    files = [each for each in (written, *written.rglob("*")) if each.is_file()]
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    try:
        with open(newest, "r+b") if newest else tempfile.TemporaryFile(dir=path.parent) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                file.write(bytes(2**16))
                file.flush()
                os.fsync(file.fileno())
            finally:
                os.truncate(file.fileno(), size)
    except OSError as error:
        return error.errno
    return None


@contextlib.contextmanager
def writing(path: str | Path, *failures: type[Exception]) -> Iterator[None]:
    """Within, where nothing but writing is done: what a writer raises is a `WriteError` that names the path.

    Args:
        path: what is written.
        failures: further exceptions that the writers raise.
    """
    try:
        yield
    except (*FAILURES, *failures) as error:
        if isinstance(error, RuntimeError) and type(error) is not RuntimeError:  # torch.save's is plain
            raise
        raise unwritten(error, path) from error


@contextlib.contextmanager
def whole(path: str | Path, *failures: type[Exception]) -> Iterator[Path]:
    """Write a file or a folder whole or not at all.

    Args:
        path: of the file, or of the folder, which replaces one that is there; a file replaces no folder.
        failures: see `writing`.

    Yields:
        A path beside it to write to, which is flushed to disk and renamed at the end, and removed by any failure.

    Raises:
        WriteError: it could not be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    try:
        with writing(path, *failures):
            _remove(partial)
            yield partial
            _flush(partial)
            _put(partial, path)
    except BaseException:
        _remove(partial)
        raise


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """Add files to a folder, or replace them: all are written before any takes its place.

    Yields:
        An empty folder to write to.

    Raises:
        WriteError: one could not be written; the folder is as it was.
    """
    folder = Path(folder)
    partial = folder / FILES
    try:
        with writing(folder):
            _remove(partial)
            partial.mkdir(parents=True)
            yield partial
            _flush(partial)
            for path in sorted(partial.iterdir()):
                _put(path, folder / path.name)
    finally:
        _remove(partial)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, see `whole`."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def one_run(folder: str | Path) -> Iterator[None]:
    """Within, no other process may enter with this folder, which is made; a process that dies leaves it at once.

    The same thread may enter again.

    Raises:
        ValueError: another run is in there.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another run is writing into {folder}: wait for its end, or choose another folder"
        ) from error
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: who opened it before looks again
        lock.release()


def is_empty(folder: str | Path) -> bool:
    """Whether there is nothing in a folder, or no folder; the lock of `one_run` counts not."""
    path = Path(folder)
    return not path.is_dir() or all(found.name == LOCK for found in path.iterdir())


def _flush(path):
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def _put(partial, path):
    """Rename; a folder takes the place of a folder, and a file that of a file alone."""
    if path.is_dir() and partial.is_dir():
        shutil.rmtree(path)
    os.replace(partial, path)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

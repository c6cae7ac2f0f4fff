"""What makes a checkpoint count: a manifest, written last, that names every file with its size and SHA-256.

Both trainers share this one idea. A folder without a manifest, or whose files do not match it, was interrupted while
it was written: it is skipped, and the skip is said aloud. Before a run resumes, the hashes are compared, too: a file
that has changed since is an error, since weights that nobody trained would go on in silence.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from hf_vq.writing import PARTIAL_SUFFIX, WriteError, as_write_error, write_text, writing

logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_manifest.json"
TRAINER_STATE = "trainer_state.json"
FOLDER_NAME = re.compile(rf"checkpoint-(\d+)({re.escape(PARTIAL_SUFFIX)})?")


def seal(folder: str | Path, step: int) -> None:
    """Declare a checkpoint complete: flush its files to disk, then write the manifest that lists them."""
    folder = Path(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    write_text(folder / MANIFEST, json.dumps({"step": step, "files": files}, indent=2) + "\n")


def unseal(folder: str | Path) -> None:
    """Declare a checkpoint incomplete, before its files are written again."""
    (Path(folder) / MANIFEST).unlink(missing_ok=True)


def why_incomplete(folder: str | Path) -> str | None:
    """Say what a checkpoint folder lacks.

    Args:
        folder: path of a checkpoint folder.

    Returns:
        None for a complete checkpoint, else one sentence fragment that names the first thing missing.
    """
    folder = Path(folder)
    if folder.name.endswith(PARTIAL_SUFFIX):
        return "it was interrupted while it was written"
    try:
        files = _read_manifest(folder)
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was interrupted while it was written, or comes from elsewhere"
    except ValueError:
        return f"its {MANIFEST} cannot be read"
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size:
            return f"its file {name} has {path.stat().st_size} bytes instead of {size}"
    return None


def _read_manifest(folder: Path) -> dict[str, tuple[int, str | None]]:
    """Size of each file of a checkpoint and its hash, which older versions did not write; a ValueError for others."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    named = FOLDER_NAME.fullmatch(folder.name)
    try:
        step, files = manifest["step"], manifest["files"]
        if type(step) is not int or (named and int(named[1]) != step):
            raise ValueError(f"{folder / MANIFEST} is of another step, {step!r}")
        return {
            name: (entry, None) if isinstance(entry, int) else (entry["size"], entry["sha256"])
            for name, entry in files.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} is no manifest") from error


def check_unchanged(folder: str | Path) -> None:
    """Compare the files of a complete checkpoint with the hashes in its manifest; one of older versions has none.

    Raises:
        ValueError: names the first file that has changed, and what to do.
    """
    folder = Path(folder)
    for name, (_, expected) in _read_manifest(folder).items():
        if expected is None:
            continue
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            older = [path.name for _, path in list_checkpoints(folder.parent) if why_incomplete(path) is None]
            older = older[: older.index(folder.name)] if folder.name in older else older
            advice = f"resume from an older one ({', '.join(reversed(older))})" if older else "start anew, elsewhere"
            raise ValueError(
                f"checkpoint {str(folder)!r} cannot be resumed: its file {name} has changed since it was written "
                f"(SHA-256 {found[:12]} instead of {str(expected)[:12]}); {advice}"
            )


def list_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """All checkpoint folders, complete or not, as `(step, path)` in ascending order of step."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        match = FOLDER_NAME.fullmatch(path.name)
        if match and path.is_dir():
            found.append((int(match[1]), path))
    return sorted(found)


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None; each newer, incomplete one is named in a warning."""
    for _, path in reversed(list_checkpoints(output_dir)):
        reason = why_incomplete(path)
        if reason is None:
            return path
        logger.warning("Skipping the incomplete checkpoint %s: %s.", path, reason)
    return None


def resolve_checkpoint(output_dir: str | Path, resume_from_checkpoint: str | Path | bool | None) -> Path | None:
    """Turn the argument `resume_from_checkpoint` into the folder to resume from.

    Args:
        output_dir: folder of the run.
        resume_from_checkpoint: None or False (start anew), True (the latest complete checkpoint) or a path.

    Returns:
        The path of a complete checkpoint, or None to start anew.

    Raises:
        ValueError: nothing complete to resume from, a file of the checkpoint that has changed since it was written, or
            a start anew in a folder that already holds checkpoints.
    """
    if not resume_from_checkpoint:
        existing = [path.name for _, path in list_checkpoints(output_dir) if not path.name.endswith(PARTIAL_SUFFIX)]
        if existing:
            raise ValueError(
                f"output_dir={str(output_dir)!r} already holds checkpoints (up to {existing[-1]}): "
                "resume with resume_from_checkpoint=True, or choose another folder"
            )
        return None
    if resume_from_checkpoint is True:
        path = latest_checkpoint(output_dir)
        if path is None:
            raise ValueError(
                f"resume_from_checkpoint=True, but output_dir={str(output_dir)!r} has no complete checkpoint: "
                "start anew, in another folder"
            )
        check_unchanged(path)
        return path
    path = Path(resume_from_checkpoint)
    reason = why_incomplete(path) if path.is_dir() else "there is no such folder"
    if reason is not None:
        raise ValueError(f"resume_from_checkpoint={str(path)!r} cannot be resumed: {reason}")
    check_unchanged(path)
    return path


def abandon_newer(output_dir: str | Path, checkpoint: str | Path) -> None:
    """Let no checkpoint count that is newer than the one a run resumes from: the run will write its own."""
    newest = json.loads((Path(checkpoint) / MANIFEST).read_text(encoding="utf-8"))["step"]
    for step, path in list_checkpoints(output_dir):
        if step > newest and why_incomplete(path) is None:
            logger.warning("Resuming from %s: the newer %s no longer counts.", Path(checkpoint).name, path)
            unseal(path)


def rotate_checkpoints(output_dir: str | Path, limit: int | None, keep: str | Path | None = None) -> None:
    """Delete the oldest complete checkpoints beyond `limit`, and the remains of interrupted writes and deletions.

    With a limit those are also the folders without a manifest that are older than the newest complete checkpoint, as
    versions before this left them: no run will complete them.

    Args:
        output_dir: folder of the run.
        limit: number of complete checkpoints to leave, or None for all.
        keep: path of one checkpoint never to delete (the best one).
    """
    found = [path for _, path in list_checkpoints(output_dir)]
    complete = [path for path in found if why_incomplete(path) is None]
    remains = [path for path in found if path.name.endswith(PARTIAL_SUFFIX)]
    if limit and complete:
        older = found[: found.index(complete[-1])]
        remains += [path for path in older if not (path / MANIFEST).is_file() and path not in remains]
        remains += complete[:-limit]
    for path in remains:
        if keep is None or path.resolve() != Path(keep).resolve():
            _delete(path)


def _delete(folder):
    """A deletion that is itself interrupted leaves nothing that looks like a checkpoint."""
    if not folder.name.endswith(PARTIAL_SUFFIX):
        doomed = folder.with_name(folder.name + PARTIAL_SUFFIX)
        shutil.rmtree(doomed, ignore_errors=True)
        folder = folder.rename(doomed)
    shutil.rmtree(folder)


@contextlib.contextmanager
def writing_checkpoint(output_dir: str | Path, step: int, accelerator: Accelerator) -> Iterator[Path]:
    """Write a checkpoint under a temporary name, and give it its own when it is whole; a failure is a `WriteError`.

    Args:
        output_dir: folder of the run.
        step: number of finished optimizer steps.
        accelerator: every process enters; the main one creates, seals and renames.

    Yields:
        The folder to write into.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = final.with_name(final.name + PARTIAL_SUFFIX)
    try:
        with writing(final):
            if accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            accelerator.wait_for_everyone()
            yield partial
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                seal(partial, step)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk gets its space back; older checkpoints are untouched
        raise
    accelerator.wait_for_everyone()


def how_to_go_on(output_dir: str | Path) -> str:
    """Advice for a run that has failed: which checkpoint to resume from, and how."""
    latest = latest_checkpoint(output_dir)
    if latest is None:
        return "start anew: no checkpoint is whole yet"
    return f"resume from {latest} with resume_from_checkpoint=True (hf-vq train: --resume {output_dir})"


@contextlib.contextmanager
def advising(output_dir: str | Path) -> Iterator[None]:
    """Within: a `WriteError`, or a disk that is full, is a `WriteError` that says how to go on.

    So is what a writer's thread fails with, as TensorBoard's: its own traceback is not shown.
    """
    of_threads: list[WriteError] = []
    previous = threading.excepthook

    def note(failure: threading.ExceptHookArgs) -> None:
        found = None if failure.exc_value is None else as_write_error(failure.exc_value, output_dir)
        if found is None:
            previous(failure)
        else:
            of_threads.append(found)

    threading.excepthook = note
    try:
        yield
        if of_threads:
            raise of_threads[0]
    except OSError as error:
        found = as_write_error(error, output_dir)
        if found is None:
            raise
        raise found.advising(how_to_go_on(output_dir)) from error
    finally:
        threading.excepthook = previous


def prepare_output_dir(output_dir: str | Path, needed: int) -> None:
    """Create the folder of a run, and check before any work that one checkpoint will fit.

    Args:
        output_dir: folder to create; it may exist.
        needed: bytes of a checkpoint and of what is published.

    Raises:
        ValueError: the folder cannot be created or written, or its disk is too full.
    """
    path = Path(output_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe{PARTIAL_SUFFIX}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may have been faster
    except OSError as error:
        raise ValueError(f"output_dir={str(output_dir)!r} cannot be written: {error}") from error
    free = shutil.disk_usage(path).free
    if free < needed:
        raise ValueError(
            f"output_dir={str(output_dir)!r}: its disk has {free / 2**20:.0f} MiB free, "
            f"one checkpoint needs {needed / 2**20:.0f} MiB"
        )

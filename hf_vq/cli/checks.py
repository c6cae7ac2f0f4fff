"""What every verb checks before any work: output paths, disk space, model folders, class labels."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from torch import nn

from hf_vq.data.sources import HUB_ID
from hf_vq.modalities import Modality
from hf_vq.pipelines import PIPELINES
from hf_vq.pipelines.base import CodesPipeline
from hf_vq.processes import count_processes
from hf_vq.quiet import is_quiet, quiet
from hf_vq.registry import modality_of
from hf_vq.saved import CONFIG, INDEX, folder_kind, read_index, read_json
from hf_vq.training.disk import module_footprint, run_bytes
from hf_vq.training.tasks import Task
from hf_vq.writing import as_write_error, is_empty, one_run

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def existing_parent(path: str | Path) -> Path:
    """The nearest path at or above the given one that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def check_writable(path: str | Path) -> None:
    """Raise a ValueError if a folder cannot be created or written, without leaving a trace."""
    parent = existing_parent(path)
    if not parent.is_dir():
        raise ValueError(f"cannot write to {path}: {parent} is a file, not a folder")
    try:
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise ValueError(f"cannot write to {path}: {error.strerror or error}") from error


def check_output_folder(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise a ValueError unless a verb may write into this folder.

    Args:
        path: the folder; it is not created.
        overwrite: a non-empty folder is fine.
        resume: a non-empty folder is fine, and what is in it stays.
    """
    check_writable(path)
    if overwrite and os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("overwrite is for one process: remove the output folder before starting several")
    if not is_main_process():  # the main one may have begun already
        return
    if not (overwrite or resume or is_empty(path)):
        raise ValueError(f"the output folder {path} exists and is not empty (--overwrite replaces what it holds)")


def check_output_file(path: str | Path, *, suffix: str, overwrite: bool = False) -> None:
    """Raise a ValueError unless a verb may write this file."""
    path = Path(path)
    if path.suffix.lower() != suffix:
        raise ValueError(f"the output {path} must be a {suffix} file")
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder, a file name is needed")
    if path.exists() and not overwrite:
        raise ValueError(f"the output file {path} exists (--overwrite replaces it)")
    check_writable(path.parent)


def check_disk_space(path: str | Path, needed: int, what: str) -> None:
    """Raise a ValueError if the disk of a path has fewer than `needed` bytes left."""
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed:
        raise ValueError(
            f"no disk space: {what} needs about {needed / 2**20:,.1f} MiB in {path}, {free / 2**20:,.1f} MiB are free"
        )


def training_bytes(trained: Task | nn.Module, args: Any, num_samples: int | None) -> int:
    """Bytes that a training writes at the most.

    Args:
        trained: a `Task`, or the model of a training that knows one alone.
        args: the training's arguments.
        num_samples: in its data; None for a stream.
    """
    if not isinstance(trained, Task):
        averaged = getattr(args, "weight_ema_decay", None) is not None
        return run_bytes(module_footprint(trained, averaged=averaged), args, num_samples)
    return run_bytes(trained.footprint(), args, num_samples)


def is_main_process() -> bool:
    """Whether this is the one process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str, *, result: bool = False) -> None:
    """Print, once where several processes run.

    Args:
        text: a line.
        result: it tells what came out, which `--quiet` leaves.
    """
    if is_main_process() and (result or not is_quiet()):
        print(text)


def say_start(text: str) -> None:
    """Say what starts, and in how many processes: a launcher that started one alone does not tell it."""
    count = count_processes()
    say(f"{text} in {count} process{'es' if count > 1 else ''}.")


def bars_of(args: Any) -> AbstractContextManager[None]:
    """Within: no library shows a progress bar where a training's arguments or `--quiet` say so."""
    args.disable_tqdm = args.disable_tqdm or is_quiet()
    return quiet(everything=False) if args.disable_tqdm else nullcontext()


def tell_push(address: str | None) -> None:
    """Say where a push at the end of a training went, if there was one."""
    if address is not None:
        say(f"Pushed: {address}")


def alone(folder: str | Path, *, make: bool) -> AbstractContextManager[None]:
    """`one_run`, which the main process enters for all.

    Args:
        folder: of the run.
        make: where it is not there; else there is no other run to wait for.
    """
    return one_run(folder) if is_main_process() and (make or Path(folder).is_dir()) else nullcontext()


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Within: whatever goes wrong with an addition to finished work is one line on stderr, and costs nothing else.

    A full disk is no matter of one addition: it is raised.
    """
    try:
        yield
    except Exception as error:
        unwritten = as_write_error(error, what)
        if unwritten is not None and unwritten.full:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: no {what}: {reason}", file=sys.stderr)


def start_output_folder(path: str | Path, *, overwrite: bool, stale: Sequence[str]) -> Path:
    """Create an output folder once everything has been checked; with `overwrite`, remove what earlier runs left.

    Args:
        path: the folder.
        overwrite: delete what matches `stale`; files of other makers stay.
        stale: glob patterns of what this verb writes.
    """
    folder = Path(path)
    if overwrite:
        for pattern in stale:
            for found in sorted(folder.glob(pattern)):
                if found.is_dir():
                    shutil.rmtree(found)
                else:
                    found.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def local_folder(name: str, repo_type: str = "model") -> Path:
    """The given folder, or the download of a repository of the Hub.

    Args:
        name: of a folder; else a repo id, or "user/name@revision" with a branch, a tag or a commit.
        repo_type: "model"; "dataset" is one of codes, which may also be called "datasets/user/name".

    Raises:
        ValueError: neither a folder nor a repo id, or a repo that cannot be had.
    """
    if Path(name).is_dir():
        return Path(name)
    repo_id, at, revision = str(name).partition("@")
    if repo_type == "dataset":
        repo_id = repo_id.removeprefix("datasets/")
    what = "codes" if repo_type == "dataset" else "model"
    if Path(name).exists() or not HUB_ID.fullmatch(repo_id) or (at and not revision):
        raise ValueError(f"no such {what} folder: {name}")
    from huggingface_hub import snapshot_download

    patterns = ["data/*.parquet"] if repo_type == "dataset" else None
    try:
        found = snapshot_download(repo_id, repo_type=repo_type, revision=revision or None, allow_patterns=patterns)
    except (OSError, ValueError) as error:
        here, kind = "folder here", ""
        if repo_type == "dataset":
            here, kind = "folder of codes here (`hf-vq tokenize` writes one)", " as a data set"
        raise ValueError(f"{name} is no {here}, and downloading it{kind} from the Hub failed: {error}") from error
    return Path(found)


def local_folder_of_any(name: str) -> Path:
    """`local_folder` of a model, or where there is none of that name, of codes."""
    if name.startswith("datasets/") and not Path(name).is_dir():
        return local_folder(name, "dataset")
    try:
        return local_folder(name)
    except ValueError as error:
        if not isinstance(error.__cause__, RepositoryNotFoundError | LocalEntryNotFoundError):
            raise
        try:
            return local_folder(name, "dataset")
        except ValueError:
            raise error from None


def pinned(name: str, folder: Path) -> str:
    """What to call a model that `local_folder` found: its folder, or its repository with the commit."""
    return name if Path(name).is_dir() else f"{name.partition('@')[0]}@{folder.name}"


def pipeline_folders(folder: str | Path) -> dict[str, Path]:
    """Folders of the models of a pipeline by component name, from its model_index.json."""
    index = read_index(folder)
    names = [name for name, value in index.items() if (name == "autoencoder" or name.endswith("prior")) and value[0]]
    return {name: Path(folder) / name for name in names}


def load_pipeline(folder: str | Path) -> CodesPipeline:
    """The pipeline of a folder, as the class it was saved from.

    Raises:
        ValueError: it is no pipeline of ours.
    """
    name = read_index(folder).get("_class_name")
    name = name[1] if isinstance(name, list) else name
    if name not in PIPELINES:
        raise ValueError(f"{folder} holds {name!r}, which is none of {', '.join(PIPELINES)}")
    return PIPELINES[name].from_pretrained(folder)


def check_weights(folder: str | Path, *kinds: str) -> str:
    """Raise a ValueError unless a folder is of one of the kinds and has its config and weights; return its kind."""
    folder, kind = Path(folder), folder_kind(folder)
    if kind is None:
        words = f"{folder} holds no model, pipeline or codes (no {INDEX}, {CONFIG} or data/*.parquet)"
        raise ValueError(words + _advice(folder, kinds))
    if kind not in kinds:
        words = f"{folder} holds {_named(kind)}, {' or '.join(map(_named, kinds))} is needed"
        raise ValueError(words + _advice(folder, kinds))
    if kind == "codes":
        return kind
    for model in pipeline_folders(folder).values() if kind == "pipeline" else [folder]:
        if not (model / CONFIG).is_file():
            raise ValueError(f"{model} has no config.json")
        if not any(path for pattern in WEIGHT_PATTERNS for path in model.glob(pattern)):
            raise ValueError(f"{model} has a config.json but no weights (no {' or '.join(WEIGHT_PATTERNS)})")
    return kind


def check_same_config(option: str, wanted: dict[str, Any], config: Mapping[str, Any], source: str | Path) -> None:
    """Raise a ValueError for the first wanted value that a model which exists does not have."""
    for name, value in wanted.items():
        if name not in config:
            raise ValueError(f"{option}: {source} has no option {name!r}")
        has = config[name]
        if (list(has) if isinstance(has, tuple) else has) != (list(value) if isinstance(value, tuple) else value):
            raise ValueError(f"{option} has {name}={value!r}, but init_from={source} has {has!r}, which cannot change")


def _advice(folder, kinds):
    """Names the folder of the right kind that is in this one, or around it."""
    near = [path for path in (*sorted(folder.glob("*/")), folder.parent) if folder_kind(path) in kinds]
    return f": did you mean {near[0]}?" if near else ""


def _named(kind):
    return {"autoencoder": "an autoencoder", "codes": "codes"}.get(kind, f"a {kind}")


def find_modality(class_name: str) -> Modality:
    """The modality of an autoencoder by the name of its class; a ValueError where it has none."""
    modality = modality_of(class_name)
    if modality is None:
        raise ValueError(f"{class_name} belongs to no modality that hf_vq can load and show samples of")
    return modality


def folder_modality(folder: str | Path) -> Modality:
    """The modality of the folder of an autoencoder, or of a pipeline with one; a ValueError where it has none."""
    part = pipeline_folders(folder)["autoencoder"] if folder_kind(folder) == "pipeline" else Path(folder)
    return find_modality(read_json(part / CONFIG).get("_class_name"))


def pick_device(name: str | None) -> torch.device:
    """The torch device to compute on: the one asked for, else a GPU where there is one, else the CPU."""
    if name is None:
        place = int(os.environ.get("LOCAL_RANK", "0"))  # each process of a machine has a GPU of its own
        return torch.device("cuda", place) if torch.cuda.is_available() else torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name!r} cannot be used: {error}") from error


def check_labels(labels: Iterable[int], count: int, kind: str, plural: str) -> None:
    """Raise a ValueError for the first label of a class, or of another kind, that is out of range."""
    for label in labels:
        if count == 0:
            raise ValueError(f"{kind} label {label}: the prior was trained without {plural}")
        if not 0 <= label < count:
            raise ValueError(f"{kind} label {label} is out of range: the prior has {plural} 0 to {count - 1}")

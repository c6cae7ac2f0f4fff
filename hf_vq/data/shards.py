"""The Parquet shards of tokenized data: their names, whether they belong together, and their columns as arrays."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_vq.data.seals import Shard, matches, read_part, read_shard
from hf_vq.renaming import warn_user
from hf_vq.saved import SAVED_TO_DISK

SHARD_NAME = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.parquet")
LABELS = {"class_labels": "class_names", "speaker_labels": "speaker_names"}  # columns, and their names in a plan
EXAMPLE_NAME = "train-00000-of-00001.parquet"
IN_MEMORY_BYTES = 64 * 2**20  # codes of a split and grid that take more are mapped from a file


def column_names(plan: dict, kind: str = "codes") -> list[str]:
    """Columns of a kind, "codes" or "lengths": one, or of a hierarchy "codes_0" and so on, coarse to fine."""
    if isinstance(plan["codebook_size"], list):
        return [f"{kind}_{grid}" for grid in range(len(plan["codebook_size"]))]
    return [kind]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `tokenize_dataset` wrote about the codes of a file; a ValueError where they are not ours, or damaged."""
    return read_shard(path).plan


def code_splits(folder: str | Path) -> list[str]:
    """Names of the splits in a folder of codes, train first.

    Raises:
        ValueError: no such folder, or no codes in it.
    """
    found = {match["split"] for match in _shard_names(folder)}
    if not found and any((Path(folder) / name).is_file() for name in SAVED_TO_DISK):
        raise ValueError(
            f"{folder} holds what `save_to_disk` of datasets wrote: load_from_disk it, and write every split by "
            "to_parquet('codes/data/SPLIT-00000-of-00001.parquet')"
        )
    others = [path.name for path in sorted(Path(folder, "data").glob("*.parquet"))]
    if not found and others:
        raise ValueError(f"{folder} holds no codes: data/{others[0]} should be called as data/{EXAMPLE_NAME}")
    if not found:
        raise ValueError(f"{folder} holds no codes: run `hf-vq tokenize` to make them")
    return sorted(found, key=lambda split: (split != "train", split))


def find_shards(folder: str | Path, split: str) -> list[Path]:
    """Paths of all shards of a split, in order.

    Raises:
        ValueError: no such folder or split, or missing shards.
    """
    if split not in code_splits(folder):
        raise ValueError(f"split={split!r}: {folder} has splits {', '.join(code_splits(folder))}")
    shards = [match for match in _shard_names(folder) if match["split"] == split]
    totals = {int(match["total"]) for match in shards}
    if len(totals) > 1:
        raise ValueError(f"{folder} holds shards of several runs: {shards[0][0]} and {shards[-1][0]}")
    if len(shards) != max(totals):
        raise ValueError(
            f"{folder} is incomplete: {len(shards)} of {max(totals)} shards of {split} "
            "(run the same `hf-vq tokenize` with --resume)"
        )
    return [Path(folder) / "data" / match[0] for match in shards]


def count_grids(folder: str | Path) -> int:
    """How many grids of codes a folder holds for each sample: more than one are those of a hierarchy."""
    split = code_splits(folder)[0]
    first = next(match[0] for match in _shard_names(folder) if match["split"] == split)
    return len(column_names(read_metadata(Path(folder) / "data" / first)))


def read_column(
    shards: Sequence[Shard], name: str, item_shape: tuple[int, ...] = (), memory_map: bool | None = False
) -> np.ndarray | None:
    """A column of all shards as one array (rows, *item_shape), None where the shards have no such column.

    Args:
        shards: in order.
        name: of the column.
        item_shape: of its items.
        memory_map: decode the column once into a file in the cache of `datasets`, which later calls share, and map
            it: it takes no memory. None: where it takes more than 64 MiB; where the cache cannot be written, a
            warning tells it and the column is read into memory.

    Raises:
        ValueError: a shard whose column is not as it was written.
        OSError: `memory_map=True`, and the cache cannot be written.
    """
    if name not in shards[0].types:
        return None
    first = read_part(shards[0], name, item_shape)
    rows = sum(shard.rows for shard in shards)
    if memory_map or (memory_map is None and first[:1].nbytes * rows > IN_MEMORY_BYTES):
        target = _cache_file(shards, name)
        try:
            mapped = _mapped(target, shards, name)
            if mapped is None:
                _write_array(target, (rows, *item_shape), first, shards[1:], name)
                mapped = np.load(target, mmap_mode="r")
            return mapped
        except OSError as error:
            if memory_map:
                raise
            warn_user(f"{target.parent} cannot keep decoded codes ({error}): they are read into memory")
    return np.concatenate([first, *(read_part(shard, name, item_shape) for shard in shards[1:])])


def _mapped(target, shards, name):
    """The decoded column of an earlier call, None where there is none, or a damaged one, as after a power cut."""
    try:
        mapped = np.load(target, mmap_mode="r")
    except (FileNotFoundError, EOFError, ValueError):
        return None
    ends = np.cumsum([shard.rows for shard in shards])
    whole = len(mapped) == ends[-1] and all(map(matches, shards, [name] * len(shards), np.split(mapped, ends[:-1])))
    return mapped if whole else None


def _write_array(target, shape, first, shards, name):
    """Write a column as a .npy file, part by part: the first, and those of the shards. A failure leaves nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for shard in shards:
                file.write(read_part(shard, name, shape[1:]).astype(first.dtype, casting="safe").tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _cache_file(shards, name):
    """Where a mapped column lies: another one once any of the shards has changed."""
    import datasets

    paths = [shard.path for shard in shards]
    identity = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.sha256(json.dumps([name, identity]).encode()).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_vq-codes" / f"{digest}.npy"


def _shard_names(folder):
    """Matches of the names of all shards of a folder, in order."""
    data = Path(folder) / "data"
    names = sorted(path.name for path in data.iterdir()) if data.is_dir() else []
    return [match for match in map(SHARD_NAME.fullmatch, names) if match]

"""The Parquet shards of tokenized data: their names, what they know of themselves, and their columns as arrays."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_vq.renaming import warn_user

SCHEMA_KEY = b"hf_vq"  # in the Parquet schema metadata, beside the features of `datasets`
SHARD_NAME = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.parquet")
IN_MEMORY_BYTES = 64 * 2**20  # codes of a split and grid that take more are mapped from a file
OLD_KEYS = {"images_sha256": "samples_sha256"}  # of the metadata, by version 0.1.0


def column_names(plan: dict, kind: str = "codes") -> list[str]:
    """Columns of a kind, "codes" or "lengths": one, or of a hierarchy "codes_0" and so on, coarse to fine."""
    if isinstance(plan["codebook_size"], list):
        return [f"{kind}_{grid}" for grid in range(len(plan["codebook_size"]))]
    return [kind]


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What `tokenize_dataset` wrote about the codes of a file; a ValueError where they are not ours."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    if SCHEMA_KEY not in metadata:
        raise ValueError(f"{path} does not hold codes of hf_vq: its schema has no {SCHEMA_KEY.decode()!r} entry")
    return {OLD_KEYS.get(key, key): value for key, value in json.loads(metadata[SCHEMA_KEY]).items()}


def code_splits(folder: str | Path) -> list[str]:
    """Names of the splits in a folder of codes, train first.

    Raises:
        ValueError: no such folder, or no codes in it.
    """
    found = {match["split"] for match in map(SHARD_NAME.fullmatch, _shard_names(folder)) if match}
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
    shards = [match for match in map(SHARD_NAME.fullmatch, _shard_names(folder)) if match and match["split"] == split]
    if len(shards) != int(shards[0]["total"]):
        raise ValueError(
            f"{folder} is incomplete: {len(shards)} of {int(shards[0]['total'])} shards of {split} "
            "(run the same `hf-vq tokenize` with --resume)"
        )
    return [Path(folder) / "data" / match[0] for match in shards]


def count_grids(folder: str | Path) -> int:
    """How many grids of codes a folder holds for each sample: more than one are those of a hierarchy."""
    split = code_splits(folder)[0]
    first = next(
        name for name in _shard_names(folder) if (match := SHARD_NAME.fullmatch(name)) and match["split"] == split
    )
    return len(column_names(read_metadata(Path(folder) / "data" / first)))


def read_column(
    paths: Sequence[str | Path], name: str, item_shape: tuple[int, ...] = (), memory_map: bool | None = False
) -> np.ndarray | None:
    """A column of all shards as one array (rows, *item_shape), None where the shards have no such column.

    Args:
        paths: of the shards, in order.
        name: of the column.
        item_shape: of its items.
        memory_map: decode the column once into a file in the cache of `datasets`, which later calls share, and map
            it: it takes no memory. None: where it takes more than 64 MiB; where the cache cannot be written, a
            warning tells it and the column is read into memory.

    Raises:
        OSError: `memory_map=True`, and the cache cannot be written.
    """
    import pyarrow.parquet

    if name not in pyarrow.parquet.read_schema(paths[0]).names:
        return None
    first = _read_part(paths[0], name, item_shape)
    rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths)
    if memory_map or (memory_map is None and first[:1].nbytes * rows > IN_MEMORY_BYTES):
        target = _cache_file(paths, name)
        try:
            if not target.exists():
                _write_array(target, (rows, *item_shape), first, paths[1:], name)
            try:
                return np.load(target, mmap_mode="r")
            except (EOFError, ValueError):  # damaged, as after a power cut
                _write_array(target, (rows, *item_shape), first, paths[1:], name)
                return np.load(target, mmap_mode="r")
        except OSError as error:
            if memory_map:
                raise
            warn_user(f"{target.parent} cannot keep decoded codes ({error}): they are read into memory")
    return np.concatenate([first, *(_read_part(path, name, item_shape) for path in paths[1:])])


def _read_part(path, name, item_shape):
    import pyarrow.parquet

    column = pyarrow.parquet.read_table(path, columns=[name]).combine_chunks().column(name).chunk(0)
    for _ in item_shape:
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(-1, *item_shape)


def _write_array(target, shape, first, paths, name):
    """Write a column as a .npy file, part by part: the first, and those of the paths. Nothing is left of a failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for path in paths:
                file.write(_read_part(path, name, shape[1:]).astype(first.dtype, casting="safe").tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _cache_file(paths, name):
    """Where a mapped column lies: another one once any of the shards has changed."""
    import datasets

    identity = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    digest = hashlib.sha256(json.dumps([name, identity]).encode()).hexdigest()
    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_vq-codes" / f"{digest}.npy"


def _shard_names(folder):
    data = Path(folder) / "data"
    return sorted(path.name for path in data.iterdir()) if data.is_dir() else []

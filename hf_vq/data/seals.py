"""What a shard of codes knows of itself, so that flipped bits and foreign shards are noticed before codes are used.

Parquet's own checksums cover pages alone, neither dictionaries nor the footer. A shard therefore says in its metadata
what it is (split, number, rows), the SHA-256 of every column as it is read, and the SHA-256 of all that it says.
Shards of versions before this have no seal and are read as they are, and so are those that `datasets` has written.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_vq.data.features import plan_of_features

SCHEMA_KEY = b"hf_vq"  # in the Parquet schema metadata, beside the features of `datasets`
SEAL, SHARD = "sha256", "shard"  # keys beside those of the plan
OLD_KEYS = {"images_sha256": "samples_sha256"}  # of the metadata, by version 0.1.0


class DamagedShardError(ValueError):
    """A file of codes is not as it was written."""


@dataclass(frozen=True)
class Shard:
    """A file of codes, by its footer.

    Attributes:
        path: of the file.
        plan: what `tokenize_dataset` says of the whole split.
        rows: in the file.
        types: name and type of every column.
        facts: what the shard says of itself: `split`, `number`, `rows` and `columns`, their SHA-256 by name; None in
            files of versions before there were seals, and in those that `datasets` has written.
    """

    path: Path
    plan: dict[str, Any]
    rows: int
    types: dict[str, Any]
    facts: dict[str, Any] | None


def sealed(plan: Mapping[str, Any], split: str, number: int, columns: Mapping[str, np.ndarray]) -> bytes:
    """The metadata of a shard.

    Args:
        plan: what is true of the whole split.
        split, number: which shard it is.
        columns: arrays (rows, ...) by name, as `read_column` will give them.
    """
    facts = {
        "split": split,
        "number": number,
        "rows": len(next(iter(columns.values()))),
        "columns": {name: column_sha256(column) for name, column in columns.items()},
    }
    told = {**plan, SHARD: facts}
    return json.dumps({**told, SEAL: _sha256(told)}, sort_keys=True).encode()


def column_sha256(column: np.ndarray) -> str:
    """SHA-256 of a column (rows, ...): its numbers, their type and the shape of an item."""
    digest = hashlib.sha256(f"{column.dtype.str} {column.shape[1:]}".encode())
    digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def read_footer(path: Path) -> tuple[bytes, int, dict[str, Any]]:
    """What a file says of its codes, as it is; its rows; and name and type of every column.

    Raises:
        ValueError: no readable Parquet file, none of ours, or one that does not tell the tokenizer any more.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        metadata, types = schema.metadata or {}, {field.name: field.type for field in schema}
    except (*UNREADABLE, pyarrow.ArrowException) as error:
        raise DamagedShardError(f"{path} is not a readable Parquet file: {_in_a_line(error)}") from error
    if SCHEMA_KEY in metadata:
        return metadata[SCHEMA_KEY], rows, types
    plan = plan_of_features(metadata)
    if plan is None:
        raise ValueError(
            f"{path} does not hold codes of hf_vq, or does not say which tokenizer made them: its schema has no "
            f"{SCHEMA_KEY.decode()!r} entry, and its features have no id of one. `hf-vq tokenize` writes both, "
            "`datasets` keeps the features; where codes went another way, cast them to the features that they had"
        )
    return json.dumps(plan).encode(), rows, types


def read_shard(path: str | Path) -> Shard:
    """The footer of a file of codes, whose seal is checked.

    Raises:
        ValueError: no readable Parquet file, none of ours, or one whose metadata have changed since they were written.
    """
    path = Path(path)
    text, rows, types = read_footer(path)
    try:
        told: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedShardError(f"{path} is damaged: its metadata are no JSON ({_in_a_line(error)})") from error
    seal = told.pop(SEAL, None)
    if seal is None and SHARD not in told:
        return Shard(path, {OLD_KEYS.get(key, key): value for key, value in told.items()}, rows, types, None)
    if seal != _sha256(told):
        raise DamagedShardError(f"{path} is damaged: its metadata are not as they were written ({SEAL} {seal})")
    facts = told.pop(SHARD)
    return Shard(path, told, rows, types, facts)


def _sha256(told):
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _in_a_line(error):
    return " ".join(str(error).split()) or type(error).__name__


# what pyarrow raises for files that are damaged, beside its own exceptions
UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError)


def read_part(shard: Shard, name: str, item_shape: tuple[int, ...]) -> np.ndarray:
    """A column of a shard, (rows, *item_shape), which is what was written.

    Raises:
        ValueError: it cannot be read, or it is not as it was written.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(shard.path, columns=[name], page_checksum_verification=True)
        column = table.combine_chunks().column(name).chunk(0)
        for _ in item_shape:
            column = column.flatten()
        part = column.to_numpy(zero_copy_only=False).reshape(shard.rows, *item_shape)
    except (*UNREADABLE, pyarrow.ArrowException, IndexError) as error:
        raise DamagedShardError(
            f"{shard.path} is damaged: column {name} cannot be read ({_in_a_line(error)})"
        ) from error
    if not matches(shard, name, part):
        raise DamagedShardError(
            f"{shard.path} is damaged: column {name} is not as it was written (its SHA-256 differs)"
        )
    return part


def matches(shard: Shard, name: str, part: np.ndarray) -> bool:
    """Whether a column is what the shard says; True where it says nothing."""
    return shard.facts is None or shard.facts["columns"].get(name) == column_sha256(part)

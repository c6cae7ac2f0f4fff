"""What a shard of codes knows of itself, so that flipped bits and foreign shards are noticed before codes are used.

Parquet's own checksums cover pages alone, neither dictionaries nor the footer. A shard therefore says in its metadata
what it is (split, number, rows), the SHA-256 of every column as it is read, and the SHA-256 of all that it says.
Beside it stands the SHA-256 of the whole file, taken with zeros in its own place: no byte changes unnoticed.
Shards of versions before this have no seal, or none of the whole file, and are read as they are, and so are those that
`datasets` has written.
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
FILE_SEAL = b"hf_vq_file_sha256"  # in the Parquet metadata, outside the schema's
UNSEALED = b"0" * 64
WHOLE_FILE = "whole_file"  # among the facts of a shard: there is such a seal
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
        file_sha256: the seal of the whole file, 64 digits; None where there is none.
    """

    path: Path
    plan: dict[str, Any]
    rows: int
    types: dict[str, Any]
    facts: dict[str, Any] | None
    file_sha256: bytes | None


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
        WHOLE_FILE: True,
    }
    told = {**plan, SHARD: facts}
    return json.dumps({**told, SEAL: _sha256(told)}, sort_keys=True).encode()


def column_sha256(column: np.ndarray) -> str:
    """SHA-256 of a column (rows, ...): its numbers, their type and the shape of an item; or its strings."""
    if column.dtype.kind == "O":
        return hashlib.sha256(json.dumps(column.tolist()).encode()).hexdigest()
    digest = hashlib.sha256(f"{column.dtype.str} {column.shape[1:]}".encode())
    digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def write_sealed(table: Any, path: Path) -> None:
    """Write a pyarrow table as a Parquet file that holds the seal of its own bytes.

    Args:
        table: its schema has the metadata of `sealed`.
        path: of the file.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({FILE_SEAL: UNSEALED})
    content = path.read_bytes()
    place = content.index(UNSEALED, content.rindex(FILE_SEAL))
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(hashlib.sha256(content).hexdigest().encode())


def check_bytes(shard: Shard) -> None:
    """Raise a `DamagedShardError` unless a file is byte for byte what was written, as far as its version sealed it."""
    if shard.facts is None or not shard.facts.get(WHOLE_FILE):
        return
    content, seal = shard.path.read_bytes(), shard.file_sha256 or b""
    told = len(seal) == len(UNSEALED)
    if not told or hashlib.sha256(content.replace(seal, UNSEALED)).hexdigest().encode() != seal:
        raise DamagedShardError(f"{shard.path} is damaged: its bytes are not as they were written (SHA-256 differs)")


def read_footer(path: Path) -> tuple[bytes, int, dict[str, Any], bytes | None]:
    """What a file says of its codes, as it is; its rows; name and type of every column; and its seal.

    Raises:
        ValueError: no readable Parquet file, none of ours, or one that does not tell the tokenizer any more.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            seal = (file.metadata.metadata or {}).get(FILE_SEAL)
        metadata, types = schema.metadata or {}, {field.name: field.type for field in schema}
    except (*UNREADABLE, pyarrow.ArrowException) as error:
        raise DamagedShardError(f"{path} is not a readable Parquet file: {_in_a_line(error)}") from error
    if SCHEMA_KEY in metadata:
        return metadata[SCHEMA_KEY], rows, types, seal
    if seal is not None:
        raise DamagedShardError(f"{path} is damaged: it has a seal, but its schema no {SCHEMA_KEY.decode()!r} entry")
    plan = plan_of_features(metadata)
    if plan is None:
        raise ValueError(
            f"{path} does not hold codes of hf_vq, or does not say which tokenizer made them: its schema has no "
            f"{SCHEMA_KEY.decode()!r} entry, and its features have no id of one. `hf-vq tokenize` writes both, "
            "`datasets` keeps the features; where codes went another way, cast them to the features that they had"
        )
    return json.dumps(plan).encode(), rows, types, None


def read_shard(path: str | Path) -> Shard:
    """The footer of a file of codes, whose seal is checked.

    Raises:
        ValueError: no readable Parquet file, none of ours, or one whose metadata have changed since they were written.
    """
    path = Path(path)
    text, rows, types, file_seal = read_footer(path)
    try:
        told: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedShardError(f"{path} is damaged: its metadata are no JSON ({_in_a_line(error)})") from error
    seal = told.pop(SEAL, None)
    if seal is None and SHARD not in told:
        return Shard(path, {OLD_KEYS.get(key, key): value for key, value in told.items()}, rows, types, None, None)
    if seal != _sha256(told):
        raise DamagedShardError(f"{path} is damaged: its metadata are not as they were written ({SEAL} {seal})")
    facts = told.pop(SHARD)
    return Shard(path, told, rows, types, facts, file_seal)


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

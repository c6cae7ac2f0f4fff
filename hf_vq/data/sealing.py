"""Shards of codes written with a seal, and with one again where `datasets` has taken it off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_vq.data.features import plan_of_features, with_identity
from hf_vq.data.folders import check_shards, read_columns
from hf_vq.data.seals import SCHEMA_KEY, Shard, sealed
from hf_vq.data.shards import SHARD_NAME, code_splits
from hf_vq.writing import whole


def write_sealed(
    target: Path, table: Any, plan: Mapping[str, Any], split: str, number: int, columns: Mapping[str, np.ndarray]
) -> None:
    """Write a shard whole or not at all.

    Args:
        target: its path.
        table: a pyarrow Table with the schema metadata of `datasets`.
        plan, split, number, columns: see `sealed`.

    Raises:
        WriteError: it could not be written.
    """
    import pyarrow
    import pyarrow.parquet

    metadata = {**with_identity(table.schema.metadata, plan), SCHEMA_KEY: sealed(plan, split, number, columns)}
    with whole(target, pyarrow.ArrowException) as partial:
        pyarrow.parquet.write_table(
            table.replace_schema_metadata(metadata), partial, compression="zstd", write_page_checksum=True
        )


def seal_again(folder: str | Path, output_dir: str | Path) -> dict[str, Path]:
    """All shards of a folder of codes, each with a seal and with an identity that `datasets` keeps.

    Shards that lack one of them are written again into another folder. The seal of rows that went through `datasets`
    says how they were found, not how they were tokenized: its plan has `rewritten`.

    Args:
        folder: of codes; every column is read.
        output_dir: an empty folder.

    Returns:
        Path by path in a repository, "data/train-00000-of-00001.parquet".

    Raises:
        ValueError: codes that are not whole, see `check_shards`.
    """
    found = {}
    for split in code_splits(folder):
        shards = check_shards(folder, split)
        rows = sum(shard.rows for shard in shards)
        for shard in shards:
            name = f"data/{shard.path.name}"
            found[name] = _seal_one(shard, rows, Path(output_dir) / name)
    return found


def _seal_one(shard: Shard, rows: int, target: Path) -> Path:
    """The path of a shard with a seal and an identity: its own, or the target."""
    import pyarrow.parquet

    columns = read_columns(shard)
    table = pyarrow.parquet.read_table(shard.path, memory_map=True)
    if shard.facts is not None and plan_of_features(table.schema.metadata) is not None:
        return shard.path
    match = SHARD_NAME.fullmatch(shard.path.name)
    plan = {**shard.plan, "num_samples": rows} if "rewritten" in shard.plan else shard.plan
    target.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(target, table, plan, match["split"], int(match["number"]), columns)  # type: ignore[index]
    return target

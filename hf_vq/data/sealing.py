"""Shards of codes written with a seal, and with one again where `datasets` has taken it off."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_vq.data.features import plan_of_features, with_identity
from hf_vq.data.folders import check_shards, read_columns
from hf_vq.data.seals import SCHEMA_KEY, Shard, sealed, write_sealed
from hf_vq.data.shards import SHARD_NAME, code_splits
from hf_vq.writing import whole


def write_shard(
    target: Path, table: Any, plan: Mapping[str, Any], split: str, number: int, columns: Mapping[str, np.ndarray]
) -> None:
    """Write a shard whole or not at all.

    Args:
        target: its path.
        table: a pyarrow Table with the schema metadata of `datasets`, see `with_identity`.
        plan, split, number, columns: see `sealed`.

    Raises:
        WriteError: it could not be written.
    """
    import pyarrow

    metadata = {**table.schema.metadata, SCHEMA_KEY: sealed(plan, split, number, columns)}
    with whole(target, pyarrow.ArrowException) as partial:
        write_sealed(table.replace_schema_metadata(metadata), partial)


def seal_again(folder: str | Path, output_dir: str | Path, tokenizer: str | None = None) -> dict[str, Path]:
    """All shards of a folder of codes as they may travel: with a seal, an identity that `datasets` keeps, and no path.

    Shards that are not so are written again into another folder. The seal of rows that went through `datasets` says
    how they were found, not how they were tokenized: its plan has `rewritten`.

    Args:
        folder: of codes; every column is read.
        output_dir: an empty folder.
        tokenizer: the repository of their tokenizer; None: what they say.

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
            found[name] = _seal_one(shard, rows, Path(output_dir) / name, tokenizer)
    return found


def _seal_one(shard: Shard, rows: int, target: Path, tokenizer: str | None) -> Path:
    """The path of a shard as `seal_again` wants it: its own, or the target."""
    import pyarrow.parquet

    columns, table = read_columns(shard), pyarrow.parquet.read_table(shard.path, memory_map=True)
    kept = plan_of_features(table.schema.metadata)
    identity = {**shard.plan["tokenizer"], "path": tokenizer or ("" if kept is None else kept["tokenizer"]["path"])}
    if shard.facts is not None and kept is not None and kept["tokenizer"] == identity == shard.plan["tokenizer"]:
        return shard.path
    match = SHARD_NAME.fullmatch(shard.path.name)
    counted = {"num_samples": rows} if "rewritten" in shard.plan else {}
    plan = {**shard.plan, **counted, "tokenizer": identity}
    table = table.replace_schema_metadata(with_identity(table.schema.metadata, plan))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_shard(target, table, plan, match["split"], int(match["number"]), columns)  # type: ignore[index]
    return target

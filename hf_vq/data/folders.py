"""Whether the shards of a folder of codes belong together: one tokenizer, all rows, the columns of their plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_vq.data.identity import differing_hash
from hf_vq.data.seals import Shard, check_bytes, read_part, read_shard
from hf_vq.data.shards import LABELS, SHARD_NAME, code_splits, column_names, find_shards

SHARED = ("codebook_size", "class_names", "speaker_names")  # by all splits; their samples may differ in size


def check_shards(folder: str | Path, split: str) -> list[Shard]:
    """The shards of a split, in order, once those of the whole folder have been looked at.

    Raises:
        ValueError: names the first shard that is missing, damaged, of another tokenizer or another data set, or whose
            columns or rows are not those that its metadata promise.
    """
    shards = [read_shard(path) for path in find_shards(folder, split)]
    first = shards[0]
    for shard in shards:
        _check_alone(shard)
        _check_same(shard, first, [key for key in first.plan if key != "tokenizer"])
        if shard.types != first.types:
            raise ValueError(f"{shard.path} has columns {_words(shard.types)}, {first.path} has {_words(first.types)}")
    rows = sum(shard.rows for shard in shards)
    if "rewritten" in first.plan and first.plan.get("num_samples", rows) != rows:
        raise ValueError(f"{folder} has {rows} rows of {split}, by their metadata {first.plan['num_samples']}")
    for other in code_splits(folder):
        if other != split:  # it may be incomplete
            for path in sorted((Path(folder) / "data").glob(f"{other}-*.parquet")):
                if SHARD_NAME.fullmatch(path.name):
                    _check_same(read_shard(path), first, SHARED)
    return shards


def check_whole(path: Path) -> None:
    """Read all of a file of codes.

    Raises:
        DamagedShardError: it is not as it was written.
        ValueError: it is not what its metadata promise.
    """
    shard = read_shard(path)
    _check_alone(shard)
    read_columns(shard)


def read_columns(shard: Shard) -> dict[str, np.ndarray]:
    """Its columns of codes, lengths and labels by name, (rows, ...) arrays; a DamagedShardError as of `read_part`."""
    shapes, names = shard.plan["code_shape"], column_names(shard.plan)
    items = dict(zip(names, [shapes] if names == ["codes"] else shapes, strict=True))
    found = {name: read_part(shard, name, tuple(items.get(name, ()))) for name in _own_columns(shard)}
    check_bytes(shard)
    return found


def _own_columns(shard: Shard) -> list[str]:
    """Names of the columns that we know; `datasets` may have added others."""
    known = {*column_names(shard.plan), *column_names(shard.plan, "lengths"), *LABELS}
    return [name for name in shard.types if name in known or "rewritten" not in shard.plan]


def _check_same(shard: Shard, first: Shard, keys: Any) -> None:
    """Whether a shard was made as the first one was."""
    try:
        key = differing_hash(first.plan["tokenizer"], shard.plan["tokenizer"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{shard.path} is damaged: it does not say which tokenizer made its codes") from error
    if key is not None:
        mine, theirs = shard.plan["tokenizer"], first.plan["tokenizer"]
        raise ValueError(
            f"{shard.path} was made by another tokenizer ({mine['path'] or mine['class']}) than {first.path} "
            f"({theirs['path'] or theirs['class']}): {key} is {mine[key]}, not {theirs[key]}"
        )
    for key in sorted(keys, key=lambda key: key.endswith("sha256")):  # what people understand comes first
        mine, theirs = shard.plan.get(key), first.plan.get(key)  # plans without speakers lack their names
        if mine != theirs:
            raise ValueError(f"{shard.path} was made with {key}={mine}, {first.path} with {theirs}")


def _check_alone(shard: Shard) -> None:
    """Whether rows and columns of a shard are those that its metadata promise."""
    plan, match = shard.plan, SHARD_NAME.fullmatch(shard.path.name)
    needed = {"codebook_size", "code_shape", "sample_shape", "class_names"}
    missing = (needed if "rewritten" in plan else {*needed, "num_samples", "shard_size"}) - plan.keys()
    if missing or match is None:
        raise ValueError(f"{shard.path} is damaged: its metadata lack {', '.join(sorted(missing))}")
    if "rewritten" not in plan:
        _check_share(shard, int(match["number"]), int(match["total"]))
    shapes = [plan["code_shape"]] if column_names(plan) == ["codes"] else plan["code_shape"]
    sizes = [plan["codebook_size"]] if column_names(plan) == ["codes"] else plan["codebook_size"]
    for name, shape, size in zip(column_names(plan), shapes, sizes, strict=True):
        _check_codes(shard, name, tuple(shape), size)
    if shard.facts is not None:
        _check_facts(shard, {"split": match["split"], "number": int(match["number"]), "rows": shard.rows})


def _check_share(shard: Shard, number: int, count: int) -> None:
    """Whether a shard has the rows that `tokenize_dataset` gives it, and is one of as many."""
    plan = shard.plan
    for key in ("num_samples", "shard_size"):
        if type(plan[key]) is not int or plan[key] < 1:
            raise ValueError(f"{shard.path} is damaged: its metadata have {key}={plan[key]!r}")
    total = -(-plan["num_samples"] // plan["shard_size"])
    if count != total:
        raise ValueError(
            f"{shard.path} should be one of {total} shards: {plan['num_samples']} samples by its metadata"
        )
    rows = min(plan["shard_size"], plan["num_samples"] - number * plan["shard_size"])
    if shard.rows != rows:
        raise ValueError(f"{shard.path} has {shard.rows} rows, by its metadata it should have {rows}")


def _check_codes(shard: Shard, name: str, shape: tuple[int, ...], size: int) -> None:
    """Whether the column of a grid is there, with items of its shape, of a type that holds its codes."""
    import pyarrow

    if name not in shard.types:
        raise ValueError(f"{shard.path} has no column {name}")
    kind, sides = shard.types[name], []
    while pyarrow.types.is_fixed_size_list(kind) or pyarrow.types.is_list(kind):
        sides.append(kind.list_size if pyarrow.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    if len(sides) != len(shape) or any(a not in (b, None) for a, b in zip(sides, shape, strict=True)):
        raise ValueError(f"{shard.path} has items of shape {tuple(sides)} in {name}, by its metadata {shape}")
    if not pyarrow.types.is_integer(kind):
        raise ValueError(f"{shard.path} has a column {name} of {kind}, which are no codes")
    if np.iinfo(kind.to_pandas_dtype()).max < size - 1:
        raise ValueError(
            f"{shard.path} has a column {name} of {kind}, too narrow for codebook_size={size}: codes wrapped when an "
            "older version wrote them, tokenize again"
        )


def _check_facts(shard: Shard, expected: Mapping[str, Any]) -> None:
    facts = shard.facts or {}
    for key, value in expected.items():
        if facts.get(key) != value:
            raise ValueError(f"{shard.path} was written as {key}={facts.get(key)}, it is found as {value}")
    if facts["columns"].keys() != set(_own_columns(shard)):
        raise ValueError(
            f"{shard.path} is damaged: its columns are {', '.join(shard.types)}, written were "
            f"{', '.join(facts['columns'])}"
        )


def _words(types):
    return ", ".join(f"{name} ({kind})" for name, kind in types.items())

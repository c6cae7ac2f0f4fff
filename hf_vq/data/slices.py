"""Slices of a split in the syntax of `datasets`, such as "train[45000:50000]" or "train[:90%]"."""

import numpy as np

from hf_vq.data.sources import MissingSplitError


def split_name(split: str) -> str:
    """Name of the split that a slice, or a split without one, speaks of."""
    return split.partition("[")[0]


def is_slice(split: str) -> bool:
    return "[" in split


def slice_rows(split: str, count: int) -> np.ndarray:
    """Row numbers, int64, of a slice of a split of `count` rows.

    Raises:
        ValueError: not the syntax of `datasets`, slices of several splits, a row twice, or no row.
    """
    from datasets import ReadInstruction

    name = split_name(split)
    try:
        parts = ReadInstruction.from_spec(split).to_absolute({name: count})
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"split={split!r} is no slice of one split as in `datasets`, such as {name}[45000:50000] or {name}[:90%]"
        ) from error
    rows = np.concatenate([np.arange(part.from_, part.to, dtype=np.int64) for part in parts])
    if len(np.unique(rows)) != len(rows):
        raise ValueError(f"split={split!r} has rows twice")
    if len(rows) == 0:
        raise MissingSplitError(f"split={split!r} is empty: the source has {count} rows in {name}")
    return rows

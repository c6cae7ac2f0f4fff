"""Codes of one grid or of a hierarchy of them, as one kind of thing, and integers of any type as int64."""

from typing import Any

import torch

INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
)  # fmt: skip
GRID_NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}  # by how many there are, coarse to fine


def as_grids(codes: torch.Tensor | tuple[torch.Tensor, ...] | list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Codes as a tuple of grids, coarse to fine, whatever the model: those of one grid are a tensor.

    Args:
        codes: (batch, *grid) or (batch, levels, *grid) int64; of a hierarchy a tuple or list of them.
    """
    return tuple(codes) if isinstance(codes, tuple | list) else (codes,)


def codes_as_int64(codes: Any) -> Any:
    """Codes of any integer type as int64: a tensor, or of a hierarchy a tuple, None where a grid is missing."""
    if not isinstance(codes, tuple | list):
        return as_int64("codes", codes)
    return tuple(None if one is None else as_int64(f"codes[{grid}]", one) for grid, one in enumerate(codes))


def as_int64(name: str, values: Any) -> torch.Tensor:
    """Codes, labels and whatever else is counted, of any integer type, as int64: the one place where they are read.

    Args:
        name: of the argument, for messages.
        values: a tensor of integers of any width, signed or not. (torch computes with few of them: not even the
            minimum of a uint16 tensor, as which `hf-vq tokenize` stores codes.)

    Raises:
        ValueError: no tensor, a tensor of another type (floats and bools are no codes), or values beyond int64.
    """
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{name} must be a tensor of integers, got {type(values).__name__}")
    if values.dtype not in INTEGERS:
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    wide = values.to(torch.int64)
    if values.dtype == torch.uint64 and not torch.compiler.is_compiling() and (wide < 0).any():
        raise ValueError(f"{name} must be below 2**63, got {int(wide[wide < 0][0]) + 2**64}")
    return wide

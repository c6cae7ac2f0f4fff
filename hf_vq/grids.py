"""Codes of one grid or of a hierarchy of them, as one kind of thing."""

import torch

GRID_NAMES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}  # by how many there are, coarse to fine


def as_grids(codes: torch.Tensor | tuple[torch.Tensor, ...] | list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Codes as a tuple of grids, coarse to fine, whatever the model: those of one grid are a tensor.

    Args:
        codes: (batch, *grid) or (batch, levels, *grid) int64; of a hierarchy a tuple or list of them.
    """
    return tuple(codes) if isinstance(codes, tuple | list) else (codes,)

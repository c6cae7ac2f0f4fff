"""Grids of codes as one sequence of ids, and back."""

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any

import torch

from hf_vq.arguments import checked
from hf_vq.grids import as_grids, as_int64
from hf_vq.ranges import MOST_CODES, Codebook, Count, Depth, OneOf

ORDERS = ("positions", "levels")
Order = Annotated[str, OneOf(ORDERS)]


@checked
def flatten_codes(
    codes: Any,
    codebook_size: Codebook | Sequence[Codebook] | None = None,
    *,
    num_levels: Depth = 1,
    order: Order = "positions",
    offset: Count = 0,
) -> torch.Tensor:
    """Codes as one sequence of ids for every sample.

    A grid of any number of axes is read in row-major order: its last axis runs fastest. The grids of a hierarchy
    follow each other, coarse to fine.

    Args:
        codes: (batch, *grid) integers, or (batch, num_levels, *grid) where there are several levels; of a hierarchy a
            tuple of them, coarse to fine.
        codebook_size: number of codes, or one for every grid. With it every level of every grid has ids of its own, in
            this order: those of grid 0 and level 0, of its other levels, of grid 1 and so on. None: ids are the codes,
            and what an id means depends on its place alone.
        num_levels: of every grid; above 1, axis 1 of codes are the levels of a residual or product quantizer.
        order: of the levels of a grid: "positions", all levels of a position before the next position, as
            `TransformerPrior` has them, or "levels", all positions of a level before the next level.
        offset: the first id.

    Returns:
        (batch, codes of a sample) int64.

    Raises:
        ValueError: codes that are no integers, have no such levels or are out of range, grids of different batches, or
            ids that int64 does not hold.
    """
    several = isinstance(codes, tuple | list)
    grids = [as_int64(f"codes[{grid}]" if several else "codes", one) for grid, one in enumerate(as_grids(codes))]
    starts, sizes = _ranges(codebook_size, len(grids), num_levels, offset)
    flat = []
    for grid, (one, first, size) in enumerate(zip(grids, starts, sizes, strict=True)):
        name, axes = f"codes[{grid}]" if several else "codes", "*grid" if num_levels == 1 else f"{num_levels}, *grid"
        if one.ndim < 2 + (num_levels > 1) or (num_levels > 1 and one.shape[1] != num_levels):
            raise ValueError(f"{name} must be (batch, {axes}), got shape {tuple(one.shape)}")
        if len(one) != len(grids[0]):
            raise ValueError(f"{name} has a batch of {len(one)}, codes[0] has {len(grids[0])}")
        low, high = (int(extreme) for extreme in one.aminmax()) if one.numel() else (0, 0)
        if low < 0 or high >= size:
            raise ValueError(f"{name} must be in [0, {size}), got {low} to {high}")
        ids = one.reshape(len(one), num_levels, -1) + torch.tensor(first, device=one.device)[:, None]
        flat.append((ids.transpose(1, 2) if order == "positions" else ids).flatten(1))
    return torch.cat(flat, dim=1)


@checked
def unflatten_codes(
    ids: torch.Tensor,
    code_shape: Sequence[Any],
    codebook_size: Codebook | Sequence[Codebook] | None = None,
    *,
    num_levels: Depth = 1,
    order: Order = "positions",
    offset: Count = 0,
) -> Any:
    """The codes of `flatten_codes`, which `detokenize` takes.

    Args:
        ids: (batch, codes of a sample) integers.
        code_shape: of one sample, as `code_shape` of an autoencoder gives it: the grid, after the number of levels
            where there are several; of a hierarchy a sequence of such shapes, coarse to fine.
        codebook_size, num_levels, order, offset: those of `flatten_codes`.

    Returns:
        (batch, *grid) int64, (batch, num_levels, *grid) where there are several levels; of a hierarchy a tuple.

    Raises:
        ValueError: ids that are no integers, too many or too few, or not of the level and grid of their place; a
            code_shape without these levels.
    """
    ids = as_int64("ids", ids)
    several = any(isinstance(one, Sequence) for one in code_shape)
    shapes = [tuple(one) for one in code_shape] if several else [tuple(code_shape)]
    for shape in shapes:
        sizes_are_whole = all(type(side) is int and side > 0 for side in shape)
        if not sizes_are_whole or len(shape) < 1 + (num_levels > 1) or (num_levels > 1 and shape[0] != num_levels):
            axes = "grid" if num_levels == 1 else f"{num_levels} levels, then the grid"
            raise ValueError(f"code_shape must be sizes of the {axes}, got {tuple(code_shape)}")
    lengths = [prod(shape) for shape in shapes]
    if ids.ndim != 2 or ids.shape[1] != sum(lengths):
        raise ValueError(
            f"ids must be (batch, {sum(lengths)}) for code_shape={tuple(code_shape)}, got shape {tuple(ids.shape)}"
        )
    starts, sizes = _ranges(codebook_size, len(shapes), num_levels, offset)
    codes, begin = [], 0
    for shape, length, first, size in zip(shapes, lengths, starts, sizes, strict=True):
        part = ids[:, begin : begin + length]
        part = part.unflatten(1, (-1, num_levels) if order == "positions" else (num_levels, -1))
        firsts = torch.tensor(first, device=ids.device)
        part = part - (firsts if order == "positions" else firsts[:, None])
        outside = ((part < 0) | (part > size - 1)).flatten(1).nonzero()
        if len(outside):
            row, place = outside[0].tolist()
            level = place % num_levels if order == "positions" else place // (length // num_levels)
            raise ValueError(
                f"ids[{row}, {begin + place}] must be in [{first[level]}, {first[level] + size}), those of its "
                f"{'grid' if num_levels == 1 else f'level {level}'}, got {int(ids[row, begin + place])}"
            )
        codes.append((part.transpose(1, 2) if order == "positions" else part).reshape(len(ids), *shape))
        begin += length
    return tuple(codes) if several else codes[0]


def _ranges(codebook_size, num_grids, num_levels, offset):
    """Of every grid: the first id of each level, and how many there are.

    Raises:
        ValueError: another number of sizes than of grids, or ids beyond int64.
    """
    if codebook_size is None:
        return [[offset] * num_levels] * num_grids, [MOST_CODES - offset] * num_grids
    sizes = list(codebook_size) if isinstance(codebook_size, Sequence) else [codebook_size] * num_grids
    if len(sizes) != num_grids:
        raise ValueError(f"codebook_size must be one number or {num_grids}, one for each grid, got {codebook_size}")
    starts, end = [], offset
    for size in sizes:
        starts.append([end + level * size for level in range(num_levels)])
        end += size * num_levels
    if end > MOST_CODES:
        raise ValueError(f"codebook_size={codebook_size} and offset={offset}: int64 holds no {end} ids")
    return starts, sizes

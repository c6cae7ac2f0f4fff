"""Codes of a grid as vectors that know their place."""

from math import prod
from typing import Any

import torch
from torch import nn

from hf_vq.arguments import checked
from hf_vq.ranges import Labels, Side, Width


class GridEmbedding(nn.Module):
    """A learned vector of each code plus those of its place in the grid (DALL-E, https://arxiv.org/abs/2102.12092).

    Args:
        num_embeddings: rows of the codes' table.
        hidden_size: width.
        grid: the largest grid, any number of axes.
        per_axis: a place is the sum of one vector an axis. Otherwise every place has a vector of its own, in raster
            order, and smaller grids take the first ones.

    Raises:
        ValueError: an argument out of its range, named with its value.
    """

    places: Any  # nn.ModuleList of nn.Embedding

    @checked
    def __init__(self, num_embeddings: Labels, hidden_size: Width, grid: tuple[Side, ...], per_axis: bool = True):
        super().__init__()
        self.grid = tuple(grid)
        self.codes = nn.Embedding(num_embeddings, hidden_size)
        tables = self.grid if per_axis else (prod(self.grid),)
        self.places = nn.ModuleList(nn.Embedding(size, hidden_size) for size in tables)
        self.per_axis = per_axis

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors (batch, positions, hidden_size), in raster order, of integer codes (batch, *grid).

        Raises:
            ValueError: codes of a grid with other axes, or a larger one.
        """
        grid = codes.shape[1:]
        if len(grid) != len(self.grid) or any(size > most for size, most in zip(grid, self.grid, strict=True)):
            raise ValueError(f"codes must be of a grid of up to {self.grid}, got one of {tuple(grid)}")
        hidden = self.codes(codes).flatten(1, -2)  # (batch, positions, hidden_size)
        if not self.per_axis:
            return hidden + self.places[0].weight[: hidden.shape[1]]
        places = self.places[0].weight[: grid[0]]
        for table, size in zip(self.places[1:], grid[1:], strict=True):
            places = (places[:, None] + table.weight[:size]).flatten(0, 1)  # one more axis, in raster order
        return hidden + places

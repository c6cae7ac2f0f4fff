"""Samples of different lengths in batches of alike ones, where how far a batch is padded changes no code."""

import itertools
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from hf_vq.data.padding import has_variable_length
from hf_vq.grids import as_grids


def batches_by_length(autoencoder: Any, dataset: Any, rows: Sequence[int], batch_size: int) -> list[list[int]] | None:
    """Places of rows in batches of similar lengths; None where the batches of the data set are to be kept.

    Samples of one length that the data set has in one batch are together again, and no others of this length with
    them: what an encoder computes at once, and so every bit of it, is the same.

    Args:
        autoencoder: with `lengths_alone`, see `AutoencoderMixin`.
        dataset: of which `lengths` tells the length of every sample before it is read.
        rows: of the data set.
        batch_size: the most samples of a batch.
    """
    lengths = getattr(dataset, "lengths", None)
    if lengths is None or not has_variable_length(dataset) or not getattr(autoencoder, "lengths_alone", False):
        return None
    own, seen, groups = np.asarray(lengths)[rows], Counter[int](), []
    for start in range(0, len(own), batch_size):
        batch = own[start : start + batch_size]
        for length in np.unique(batch).tolist():
            groups.append((seen[length], length, (start + np.flatnonzero(batch == length)).tolist()))
            seen[length] += 1
    batches: list[list[int]] = []
    for _, several in itertools.groupby(sorted(groups), key=itemgetter(0)):  # no length twice in a turn
        batches.append([])
        for _, _, places in several:
            if len(batches[-1]) + len(places) > batch_size:
                batches.append([])
            batches[-1] += places
    return batches


class PaddedGrids:
    """Codes of batches that were padded less, as those of batches that were padded to the longest sample of all.

    Args:
        autoencoder: with `lengths_alone`.
        shape: (channels, length) of the longest sample.
    """

    def __init__(self, autoencoder: Any, shape: Sequence[int]):
        self.frames = [grid[-1] for grid in autoencoder.code_shapes(shape)]
        (stride,) = autoencoder.grid_strides[0]
        device = next(autoencoder.parameters()).device
        sample = torch.zeros(1, shape[0], 2 * stride, device=device)  # silence, and as much padding
        mask = (torch.arange(2 * stride, device=device) < stride)[None]
        self.padding = [grid[..., -1:] for grid in as_grids(autoencoder.tokenize(sample, padding_mask=mask))]

    def __call__(self, codes: Any) -> list[torch.Tensor]:
        """Codes (batch, *levels, frames) of every grid, with as many frames as the longest sample has."""
        found = []
        for grid, padding, frames in zip(as_grids(codes), self.padding, self.frames, strict=True):
            missing = padding.expand(len(grid), *grid.shape[1:-1], frames - grid.shape[-1])
            found.append(torch.cat([grid, missing], dim=-1))
        return found

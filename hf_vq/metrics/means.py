"""Metrics that are means of single items' figures: what they share."""

import math
from typing import ClassVar

import torch
from torch import nn

from hf_vq.metrics.padding import real_parts
from hf_vq.processes import sum_over_processes


class MeanOfItems(nn.Module):
    """The mean of a figure of each item, summed in float64: it depends neither on batches nor on processes.

    A subclass gives `each`.

    Class attributes:
        name: of the figure.
        smallest_size: values along the shortest side of the smallest samples that have one.
        cheap: whether it is computed where nothing is asked for.
        more_is_better: whether a larger figure is a better one.
    """

    name: ClassVar[str]
    smallest_size: ClassVar[int] = 1
    cheap: ClassVar[bool] = True
    more_is_better: ClassVar[bool] = True
    sums: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # items, figures

    def each(self, samples: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """The figures (items,) of samples and their reconstructions, (batch, channels, *space) without padding."""
        raise NotImplementedError

    def reset(self) -> None:
        self.sums.zero_()

    @torch.no_grad()
    def update(
        self, samples: torch.Tensor, reconstructions: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> None:
        """Adds samples and their reconstructions, (batch, channels, *space) float in [-1, 1] each.

        Args:
            padding_mask: (batch, *space) bool, True = real: the rest does not count. None: all is real.

        Raises:
            ValueError: shapes differ, or are too small.
        """
        if samples.shape != reconstructions.shape:
            raise ValueError(
                f"samples {tuple(samples.shape)} and reconstructions {tuple(reconstructions.shape)} differ in shape"
            )
        for part, other in real_parts(padding_mask, samples, reconstructions):
            found = self.each(part, other).double()
            self.sums += torch.stack([torch.full_like(found, 1.0), found]).sum(dim=1).to(self.sums.device)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The mean over everything added since `reset`, on all processes, by its name; NaN without items."""
        count, total = sum_over_processes(self.sums.clone()).tolist()
        return {self.name: total / count if count else math.nan}

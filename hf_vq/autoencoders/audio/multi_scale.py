"""SNAC's quantizer: residual levels of which the first ones have fewer frames, so that each is a grid of its own."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.quantizers.base import Quantizer, QuantizerOutput


class MultiScaleQuantizer(nn.Module):
    """Quantizes the mean of every few frames, then what that leaves in finer steps (https://arxiv.org/abs/2410.14411).

    Args:
        strides: frames of a code of every grid, coarse to fine.
        make: makes the quantizer of a grid.
    """

    def __init__(self, strides: Sequence[int], make: Callable[[], Quantizer]):
        super().__init__()
        self.strides = tuple(strides)
        self.grids: Any = nn.ModuleList(make() for _ in self.strides)

    @property
    def dim(self) -> int:
        """Channels of the latents."""
        return self.grids[0].dim

    def forward(self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None) -> QuantizerOutput:
        """As of a `Quantizer`; codes are a tuple, terms of the loss named by grid.

        Args:
            latents: (batch, dim, frames), of frames that all strides divide.
            padding_mask: (batch, frames) bool, True = real, or None.
        """
        outputs: list[Any] = []

        def quantize(grid, pooled):
            outputs.append(self.grids[grid](pooled, self._mask(grid, padding_mask)))
            return outputs[-1].latents

        total = self._descend(latents, quantize)
        losses = {
            f"{name}_{grid}": value for grid, output in enumerate(outputs) for name, value in output.losses.items()
        }
        codes: Any = tuple(output.codes for output in outputs)
        return QuantizerOutput(
            latents=total, codes=codes, loss=sum(output.loss for output in outputs) / len(outputs), losses=losses
        )

    @torch.no_grad()
    def tokenize(self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Latents (batch, dim, frames) to codes, (batch, frames / stride) of every grid."""
        codes: list[torch.Tensor] = []

        def quantize(grid, pooled):
            codes.append(self.grids[grid].tokenize(pooled, self._mask(grid, padding_mask)))
            return self.grids[grid].detokenize(codes[-1]).to(pooled.dtype)

        self._descend(latents, quantize)
        return tuple(codes)

    def detokenize(self, codes: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """Codes, those of finer grids None where they are left out, to latents (batch, dim, frames)."""
        total: Any = 0
        for grid, stride, one in zip(self.grids, self.strides, codes, strict=True):
            if one is not None:
                total = total + grid.detokenize(one).repeat_interleave(stride, dim=-1)
        return total

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None) -> bool:
        """As of a `Quantizer`."""
        started = []

        def quantize(grid, pooled):
            quantizer = self.grids[grid]
            started.append(quantizer.initialize(pooled, self._mask(grid, padding_mask)))
            return quantizer.detokenize(quantizer.tokenize(pooled)).to(pooled.dtype)

        self._descend(latents, quantize)
        return any(started)

    def _descend(self, latents, quantize):
        """The sum of what `quantize(grid, pooled)` makes of what coarser grids left."""
        total: Any = 0
        for grid, stride in enumerate(self.strides):
            residual = latents - total  # its gradient passes: what a coarser grid took does not count twice
            pooled = F.avg_pool1d(residual, stride, stride) if stride > 1 else residual
            quantized = quantize(grid, pooled)
            total = total + quantized.repeat_interleave(stride, dim=-1)
        return total

    def _mask(self, grid, padding_mask):
        """Cells of a grid with anything real in them."""
        return None if padding_mask is None else padding_mask.unflatten(1, (-1, self.strides[grid])).any(dim=2)

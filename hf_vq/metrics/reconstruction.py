"""How far reconstructions are from their samples."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from hf_vq.processes import sum_over_processes


@dataclass
class ReconstructionErrorOutput:
    """Errors over all values of all samples, samples being in [-1, 1].

    Attributes:
        mse: mean squared error.
        l1: mean absolute error.
        error_over_variance: `mse` over the variance of the data; 0 is perfect, 1 is as good as the mean. It is the
            same whatever the scale of the samples. NaN where the data does not vary.
        psnr: peak signal-to-noise ratio of `mse`, in dB, for a peak-to-peak range of 2; infinite without error.
    """

    mse: float
    l1: float
    error_over_variance: float
    psnr: float


class ReconstructionError(nn.Module):
    """Sums errors over an epoch, in float64; depends neither on the batch size nor on the number of processes.

    The variance is that of all values around their one mean, as in Sonnet's and Keras' examples.
    """

    sums: torch.Tensor

    def __init__(self):
        super().__init__()
        # values, their sum, that of their squares, of absolute errors and of squared ones
        self.register_buffer("sums", torch.zeros(5, dtype=torch.float64))

    @staticmethod
    def describe() -> dict[str, dict[str, Any]]:
        """What figures are told apart by, by name."""
        words = "hf_vq, over all values of all samples, float64, reconstructions not cut to [-1, 1]"
        return {entry.name: {"implementation": words} for entry in fields(ReconstructionErrorOutput)}

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
            ValueError: shapes differ.
        """
        if samples.shape != reconstructions.shape:
            raise ValueError(
                f"samples {tuple(samples.shape)} and reconstructions {tuple(reconstructions.shape)} differ in shape"
            )
        if padding_mask is not None:
            samples, reconstructions = (x.movedim(1, -1)[padding_mask] for x in (samples, reconstructions))
        samples, reconstructions = samples.double(), reconstructions.double()
        error = samples - reconstructions
        sums = [samples.sum(), samples.square().sum(), error.abs().sum(), error.square().sum()]
        self.sums += torch.stack([torch.full_like(sums[0], samples.numel()), *sums]).to(self.sums.device)

    @torch.no_grad()
    def compute(self) -> ReconstructionErrorOutput:
        """The errors over everything added since `reset`, on all processes.

        Raises:
            ValueError: nothing was added.
        """
        count, total, squares, absolute, error = sum_over_processes(self.sums.clone()).tolist()
        if count == 0:
            raise ValueError("no samples were added")
        mse, variance = error / count, squares / count - (total / count) ** 2
        return ReconstructionErrorOutput(
            mse=mse,
            l1=absolute / count,
            error_over_variance=mse / variance if variance > 1e-12 else math.nan,
            psnr=10 * math.log10(4 / mse) if mse > 0 else math.inf,
        )

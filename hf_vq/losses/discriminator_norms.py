"""Normalisation within a discriminator, over the whole batch of all processes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.nn.functional as differentiable
from torch import nn

from hf_vq.processes import is_distributed, sum_over_processes


class BatchNorm(nn.BatchNorm2d):
    """torch's BatchNorm (https://arxiv.org/abs/1502.03167), whose statistics are those of all processes together.

    `torch.nn.SyncBatchNorm` is for GPUs alone. Names and running statistics are torch's.
    """

    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to the same, each channel normalised."""
        if not (self.training and is_distributed()):
            return super().forward(inputs)
        counts = inputs.new_full((1,), inputs.numel() / inputs.shape[1], dtype=torch.float32)
        values = inputs.float()
        sums = torch.cat([values.sum(dim=(0, 2, 3)), counts])
        sums = differentiable.all_reduce(sums)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - mean[:, None, None]
        variance = differentiable.all_reduce(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalised = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(inputs.dtype)


class ActNorm(nn.Module):
    """A scale and a shift for each channel that the first batch in training starts at zero mean and unit variance.

    Glow (https://arxiv.org/abs/1807.03039, section 3.1), with the names of taming-transformers: scale * (x + loc).

    Args:
        channels: of the inputs.
    """

    initialized: torch.Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to the same."""
        if self.training and not self.initialized:
            self._start(inputs)
        return self.scale * (inputs + self.loc)

    @torch.no_grad()
    def _start(self, inputs):
        values = inputs.double()
        count = sum_over_processes(values.new_full((1,), values.numel() / values.shape[1]))
        mean = sum_over_processes(values.sum(dim=(0, 2, 3))) / count
        squares = sum_over_processes((values - mean[:, None, None]).square().sum(dim=(0, 2, 3)))
        deviation = (squares / (count - 1)).sqrt()
        self.loc.copy_(-mean[None, :, None, None])
        self.scale.copy_(1 / (deviation[None, :, None, None] + 1e-6))
        self.initialized.fill_(1)


def group_norm(channels: int) -> nn.Module:
    """Group norm (https://arxiv.org/abs/1803.08494): 32 groups, or as many as divide the channels."""
    return nn.GroupNorm(next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": BatchNorm,
    "group": group_norm,
    "act": ActNorm,
}

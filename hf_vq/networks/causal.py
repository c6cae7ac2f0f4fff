"""Causal convolutions: an output depends on no later input."""

import torch
import torch.nn.functional as F
from torch import nn


class CausalConv1d(nn.Conv1d):
    """Dilated convolution over the present and the past, zeros before the start (https://arxiv.org/abs/1609.03499).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: number of taps; the last one reads the present.
        dilation: steps between taps.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size, dilation=dilation, bias=bias)
        self.reach = (kernel_size - 1) * dilation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs (batch, out_channels, length) of inputs (batch, in_channels, length)."""
        return super().forward(F.pad(inputs, (self.reach, 0)))

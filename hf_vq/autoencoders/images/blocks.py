"""Convolutions and residual blocks of the image autoencoders."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


def _norm(norm, channels):
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


class CheckpointedLayers(nn.Module):
    """Base of modules whose layers can be computed again in the backward pass instead of being kept.

    `enable_gradient_checkpointing()` of the model switches it on, as everywhere in diffusers.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable

    def run(self, layer: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(layer, *inputs)
        return layer(*inputs)


def _margins(kernel_size: int, padding: str) -> tuple[int, int]:
    """What a convolution of stride 2 needs before and after each axis, so that it halves it."""
    total = kernel_size - 2
    before = total // 2 if padding == "same" else (total + 1) // 2
    return before, total - before


class ConvNorm(nn.Module):
    """A convolution of stride 2, (batch, in, 2h, 2w) to (batch, out, h, w), then a norm.

    Args:
        padding: "symmetric", or "same": as TensorFlow, the odd one of the padded pixels at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: str, norm: str):
        super().__init__()
        before, after = _margins(kernel_size, padding)
        even = before == after  # which the convolution pads by itself, without a copy
        self.pads = None if even else (before, after) * 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=2, padding=before if even else 0)
        self.norm = _norm(norm, out_channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(hidden if self.pads is None else F.pad(hidden, self.pads)))


class TransposedConvNorm(nn.Module):
    """A transposed convolution of stride 2, (batch, in, h, w) to (batch, out, 2h, 2w), then a norm.

    Args:
        padding: "symmetric", or "same": as TensorFlow, the odd one of the cropped pixels at the end.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: str, norm: str):
        super().__init__()
        before, after = _margins(kernel_size, padding)
        even = before == after  # which the convolution leaves out by itself
        self.start = None if even else before
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride=2, padding=before if even else 0)
        self.norm = _norm(norm, out_channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        full = self.conv(hidden)  # (batch, out, 2h, 2w), or each side kernel_size - 2 more
        if self.start is None:
            return self.norm(full)
        height, width = (2 * side for side in hidden.shape[2:])
        return self.norm(full[:, :, self.start : self.start + height, self.start : self.start + width])


class ResidualBlock(nn.Module):
    """relu, 3x3 convolution, relu, 1x1 convolution, added to the input or, where "rectified", to its relu."""

    def __init__(self, channels: int, residual_channels: int, norm: str, form: str):
        super().__init__()
        self.rectified = form == "rectified"
        self.conv1 = nn.Conv2d(channels, residual_channels, 3, padding=1)
        self.norm1 = _norm(norm, residual_channels)
        self.conv2 = nn.Conv2d(residual_channels, channels, 1)
        self.norm2 = _norm(norm, channels)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rectified = F.relu(hidden)
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(rectified)))))
        return branch + (rectified if self.rectified else hidden)


class ResidualStack(CheckpointedLayers):
    """Residual blocks, if any, then a relu where `end_activation` says so."""

    def __init__(
        self, channels: int, num_layers: int, residual_channels: int, norm: str, form: str, end_activation: bool
    ):
        super().__init__()
        self.layers = nn.ModuleList(ResidualBlock(channels, residual_channels, norm, form) for _ in range(num_layers))
        self.ends_rectified = end_activation

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = self.run(layer, hidden)
        return F.relu(hidden) if self.ends_rectified else hidden

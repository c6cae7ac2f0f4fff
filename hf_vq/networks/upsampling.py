"""Features of frames as features of samples."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.arguments import checked
from hf_vq.ranges import Count, KernelSize, NotEmpty, Number, OneOf, Parity, Size, Width

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
MODES = ("nearest", "bilinear", "bicubic")


class FeatureUpsampler(nn.Module):
    """Stretches frames in time and smooths them, once per scale, each feature alike (as r9y9/wavenet_vocoder).

    Args:
        channels: features of a frame.
        scales: factors in time, one per stretch; the product is the hop from frame to frame.
        context: frames needed before the first and after the last.
        input_conv: convolve the frames over their context first; otherwise the context is cut off at the end.
        feature_kernel_size: odd size of the smoothing kernels across features.
        mode: interpolation, "nearest", "bilinear" or "bicubic".
        activation: after each smoothing: None, "relu", "leaky_relu", "sigmoid" or "tanh".
        negative_slope: of "leaky_relu".

    Raises:
        ValueError: a value is out of its range.
    """

    @checked
    def __init__(
        self,
        channels: Width,
        scales: Annotated[Sequence[Size], NotEmpty()],
        context: Count = 0,
        input_conv: bool = True,
        feature_kernel_size: Annotated[KernelSize, Parity(1)] = 1,
        mode: Annotated[str, OneOf(MODES)] = "nearest",
        activation: Annotated[str, OneOf(ACTIVATIONS)] | None = None,
        negative_slope: Number = 0.01,
    ):
        super().__init__()
        self.scales, self.context, self.mode, self.hop = tuple(scales), context, mode, prod(scales)
        self.input_conv = nn.Conv1d(channels, channels, 2 * context + 1, bias=False) if input_conv else None
        self.smoothing = nn.ModuleList(
            nn.Conv2d(
                1, 1, (feature_kernel_size, 2 * scale + 1), padding=(feature_kernel_size // 2, scale), bias=False
            )
            for scale in scales
        )
        options = {"negative_slope": negative_slope} if activation == "leaky_relu" else {}
        self.activation = nn.Identity() if activation is None else ACTIVATIONS[activation](**options)

    def num_frames(self, length: int) -> int:
        """Frames that `length` samples need, their context included."""
        return -(-length // self.hop) + 2 * self.context

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (batch, channels, frames) as (batch, channels, (frames - 2 * context) * hop)."""
        if self.input_conv is not None:
            features = self.input_conv(features)
        features = features[:, None]  # (batch, 1, channels, frames)
        for scale, conv in zip(self.scales, self.smoothing, strict=True):
            stretched = F.interpolate(features, scale_factor=(1.0, float(scale)), mode=self.mode)
            features = self.activation(conv(stretched))
        features = features[:, 0]
        if self.input_conv is None and self.context:
            features = features[..., self.context * self.hop : -self.context * self.hop]
        return features

"""The networks between the levels of a hierarchy of codes, and linear ways around networks."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.autoencoders.images.blocks import CheckpointedLayers, ResidualStack


class LevelEncoder(CheckpointedLayers):
    """Strided convolutions, residual blocks, relu: (batch, in, h, w) to (batch, hidden, h / stride, w / stride)."""

    def __init__(self, in_channels, stride, hidden_channels, num_residual_layers, residual_channels):
        super().__init__()
        halvings = stride.bit_length() - 1
        widths = [in_channels, hidden_channels // 2, *[hidden_channels] * (halvings - 1)]
        self.downsample = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.middle = nn.Conv2d(widths[-1], hidden_channels, 3, padding=1)
        self.residual = ResidualStack(
            hidden_channels, num_residual_layers, residual_channels, "none", "pre_activation", end_activation=False
        )

    def forward(self, hidden):
        for layer in self.downsample:
            hidden = F.relu(self.run(layer, hidden))
        return F.relu(self.residual(self.middle(hidden)))


class LevelDecoder(CheckpointedLayers):
    """A convolution, residual blocks, transposed convolutions: (batch, in, h, w) to (batch, out, h x stride, ...)."""

    def __init__(self, in_channels, out_channels, stride, hidden_channels, num_residual_layers, residual_channels):
        super().__init__()
        self.middle = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.residual = ResidualStack(
            hidden_channels, num_residual_layers, residual_channels, "none", "pre_activation", end_activation=False
        )
        doublings = stride.bit_length() - 1
        widths = [*[hidden_channels] * (doublings - 1), *[hidden_channels // 2] * (doublings > 1), out_channels]
        widths = [hidden_channels, *widths[-doublings:]]
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))

    def forward(self, context):
        hidden = F.relu(self.residual(self.middle(context)))
        for index, layer in enumerate(self.upsample):
            hidden = self.run(layer, F.relu(hidden) if index else hidden)
        return hidden


def make_upsampler(in_channels, out_channels, stride):
    """Transposed convolutions alone, (batch, in, h, w) to (batch, out, h x stride, w x stride)."""
    widths = [in_channels, *[out_channels] * (stride.bit_length() - 1)]
    return nn.Sequential(*(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)))


class PatchShortcut(nn.Module):
    """A learned linear code of patches, beside the networks (after DC-AE, https://arxiv.org/abs/2410.10733).

    Training starts from it instead of from noise: the networks around it begin at zero and learn what it lacks.

    Args:
        channels: of the samples.
        dim: of the latents.
        stride: side of a patch.
    """

    def __init__(self, channels, dim, stride):
        super().__init__()
        self.encoder = nn.Conv2d(channels, dim, stride, stride=stride, bias=False)
        self.decoder = nn.ConvTranspose2d(dim, channels, stride, stride=stride, bias=False)
        with torch.no_grad():  # orthogonal patches, and the same back
            nn.init.orthogonal_(self.encoder.weight.flatten(1))
            self.decoder.weight.copy_(self.encoder.weight)

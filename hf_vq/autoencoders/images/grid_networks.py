"""The networks between the grids of a hierarchy of codes, and linear ways around networks."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.autoencoders.images.blocks import CheckpointedLayers, ResidualStack
from hf_vq.processes import sum_over_processes


class GridEncoder(CheckpointedLayers):
    """Strided convolutions, residual blocks, relu: (batch, in, h, w) to (batch, hidden, h / stride, w / stride)."""

    def __init__(
        self, in_channels: int, stride: int, hidden_channels: int, num_residual_layers: int, residual_channels: int
    ):
        super().__init__()
        halvings = stride.bit_length() - 1
        widths = [in_channels, hidden_channels // 2, *[hidden_channels] * (halvings - 1)]
        self.downsample = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.middle = nn.Conv2d(widths[-1], hidden_channels, 3, padding=1)
        self.residual = ResidualStack(
            hidden_channels, num_residual_layers, residual_channels, "none", "pre_activation", end_activation=False
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.downsample:
            hidden = F.relu(self.run(layer, hidden))
        return F.relu(self.residual(self.middle(hidden)))


class GridDecoder(CheckpointedLayers):
    """A convolution, residual blocks, transposed convolutions: (batch, in, h, w) to (batch, out, h x stride, ...)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        hidden_channels: int,
        num_residual_layers: int,
        residual_channels: int,
    ):
        super().__init__()
        self.middle = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.residual = ResidualStack(
            hidden_channels, num_residual_layers, residual_channels, "none", "pre_activation", end_activation=False
        )
        doublings = stride.bit_length() - 1
        widths = [*[hidden_channels] * (doublings - 1), *[hidden_channels // 2] * (doublings > 1), out_channels]
        widths = [hidden_channels, *widths[-doublings:]]
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.residual(self.middle(context)))
        for index, layer in enumerate(self.upsample):
            hidden = self.run(layer, F.relu(hidden) if index else hidden)
        return hidden


def make_upsampler(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
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
        overlap: pixels by which a patch reaches beyond its sides; it begins at zero there.
    """

    def __init__(self, channels: int, dim: int, stride: int, overlap: int = 0):
        super().__init__()
        self.stride, self.overlap = stride, overlap
        options = {"kernel_size": stride + 2 * overlap, "stride": stride, "padding": overlap, "bias": False}
        self.encoder = nn.Conv2d(channels, dim, **options)
        self.decoder = nn.ConvTranspose2d(dim, channels, **options)
        self.set_patches(nn.init.orthogonal_(torch.empty(dim, channels * stride**2, dtype=torch.float32)))

    @torch.no_grad()
    def set_patches(self, patches: torch.Tensor) -> None:
        """Takes these patches, (dim, channels x stride x stride), and the same back."""
        patches = patches.unflatten(1, (-1, self.stride, self.stride))
        self.encoder.weight.copy_(F.pad(patches, (self.overlap,) * 4))
        self.decoder.weight.copy_(self.encoder.weight)

    @torch.no_grad()
    def start_at_principal_directions(
        self, sample: torch.Tensor, groups: int, bits: float, real: torch.Tensor | None = None
    ) -> None:
        """Starts at the principal directions of a sample's patches; groups of latents share them out.

        Args:
            sample: (batch, channels, height, width), of this process; all processes together count.
            groups: of latents that are quantized apart; they divide `dim`.
            bits: of all groups together.
            real: (batch, *grid) bool, the patches that count; None: all.
        """
        patches = F.unfold(sample.float(), self.stride, stride=self.stride).transpose(1, 2).flatten(0, 1)
        if real is not None:
            patches = patches[real.flatten()]
        moments = sum_over_processes(patches.T @ patches) / sum_over_processes(patches.new_tensor(float(len(patches))))
        variances, directions = torch.linalg.eigh(moments)
        dim = len(self.encoder.weight)
        variances, directions = variances.flip(0)[:dim].clamp_min(1e-12), directions.T.flip(0)[:dim]
        start = directions.new_zeros(dim, directions.shape[1])
        start[share_out(variances.tolist(), groups, dim // groups, bits)] = directions
        self.set_patches(start)


def share_out(variances: torch.Tensor, groups: int, width: int, bits: float) -> list[list[int]]:
    """Places of components in groups, such that every group has about as much to say.

    Bits go to components as reverse water-filling has it: half the binary logarithm of a variance over a surface below
    which there are none. From the largest on, each joins the group with the fewest bits so far ("eigenvalue
    allocation" of optimized product quantization, https://doi.org/10.1109/TPAMI.2013.240).

    Args:
        variances: of the components, above 0, descending; at most `groups` x `width`.
        groups: how many.
        width: components that a group has room for.
        bits: of all components together.

    Returns:
        list of the place of each component: `width` x its group + its place there.
    """
    logs = [math.log2(variance) / 2 for variance in variances]
    surfaces = [(sum(logs[:n]) - bits) / n for n in range(1, len(logs) + 1)]
    surface = max(surfaces)  # the water rises as long as the next component is above it
    sizes, loads, places = [0] * groups, [0.0] * groups, []
    for log in logs:
        group = min((group for group in range(groups) if sizes[group] < width), key=loads.__getitem__)
        places.append(group * width + sizes[group])
        sizes[group] += 1
        loads[group] += max(0.0, log - surface)
    return places

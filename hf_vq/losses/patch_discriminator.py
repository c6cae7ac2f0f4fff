"""The PatchGAN discriminator: is each patch that of a sample, or of a reconstruction?"""

from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

from hf_vq.arguments import checked
from hf_vq.losses.discriminator import Discriminator, Judgement
from hf_vq.losses.discriminator_norms import NORMS, BatchNorm
from hf_vq.ranges import Depth, OneOf, Width
from hf_vq.single_file import read_discriminator

KERNEL_SIZE, MOST_DOUBLINGS, SLOPE = 4, 3, 0.2


class PatchDiscriminator(Discriminator):
    """PatchGAN (https://arxiv.org/abs/1611.07004, appendix 6.1.2), in the layout and with the names of VQGAN's.

    `num_layers` strided convolutions, a convolution without stride, and one to a single channel: with 3 layers each
    logit sees 70x70 pixels. Widths double up to 8 times `hidden_channels`.

    Args:
        in_channels: channels of a sample.
        hidden_channels: of the first convolution.
        num_layers: strided convolutions.
        norm: "group" (the default), "batch" (taming-transformers': over all processes), "act" (ActNorm) or "none".
        spectral_norm: hold the largest singular value of each convolution at 1 (https://arxiv.org/abs/1802.05957).

    Raises:
        ValueError: an argument out of its range.
    """

    space_dims = 2

    @register_to_config
    @checked
    def __init__(
        self,
        in_channels: Width = 3,
        hidden_channels: Width = 64,
        num_layers: Depth = 3,
        norm: Annotated[str, OneOf(NORMS)] = "group",
        spectral_norm: bool = False,
    ):
        super().__init__()
        widths = [hidden_channels * 2 ** min(index, MOST_DOUBLINGS) for index in range(num_layers + 1)]
        layers: list[nn.Module] = [self._convolution(in_channels, widths[0], 2), nn.LeakyReLU(SLOPE, inplace=True)]
        strides = [2] * (num_layers - 1) + [1]
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers += [self._convolution(before, after, stride, bias=norm != "batch")]
            layers += [NORMS[norm](after)]  # keeps its place where it is none: so do the names of all that follows
            layers += [nn.LeakyReLU(SLOPE, inplace=True)]
        self.main = nn.Sequential(*layers, self._convolution(widths[-1], 1, 1))
        for layer in self.main:
            if isinstance(layer, BatchNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def _convolution(self, before, after, stride, bias=True):
        layer = nn.Conv2d(before, after, KERNEL_SIZE, stride, padding=1, bias=bias)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        return with_spectral_norm(layer) if self.config["spectral_norm"] else layer

    @classmethod
    def from_single_file(cls, path: str | Path) -> "PatchDiscriminator":
        """The discriminator in a checkpoint of adversarial training, such as taming-transformers'.

        Args:
            path: a file of weights that holds `loss.discriminator.*`, `discriminator.*` or its tensors alone.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: a file that is broken or not safe, without a discriminator, or with one of another layout.
        """
        return read_discriminator(path)

    @property
    def smallest_size(self) -> int:
        """Height and width of the smallest samples that leave a logit."""
        size = 1
        for stride in reversed([layer.stride[0] for layer in self.main if isinstance(layer, nn.Conv2d)]):
            size = (size - 1) * stride + KERNEL_SIZE - 2
        return size

    def check_size(self, sample: torch.Tensor) -> None:
        """Raise a ValueError for samples (batch, channels, height, width) too small to leave a logit."""
        if min(sample.shape[2:]) < self.smallest_size:
            raise ValueError(
                f"samples must be at least {self.smallest_size} high and wide for a discriminator of "
                f"num_layers={self.config.num_layers}, got {tuple(sample.shape)}"
            )

    @property
    def mixes_items(self) -> bool:
        return any(isinstance(layer, BatchNorm) for layer in self.main)

    def judge(self, sample: torch.Tensor) -> Judgement:
        features = []
        for layer in self.main:
            sample = layer(sample)
            if isinstance(layer, nn.LeakyReLU):
                features.append(sample)
        return Judgement((sample,), (tuple(features),))

    def forward(
        self, sample: torch.Tensor, other: torch.Tensor | None = None, return_features: bool = False
    ) -> tuple[Any, ...]:
        """As of `Discriminator`, but its logits alone are those of one network: (batch, 1, patches, patches)."""
        judged = super().forward(sample, other, return_features)
        return judged if return_features else tuple(logits for (logits,) in judged)

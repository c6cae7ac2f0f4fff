"""How differently a discriminator sees samples and reconstructions, in its features."""

from collections.abc import Sequence

import torch

from hf_vq.arguments import checked
from hf_vq.processes import count_processes, sum_over_processes

EPSILON = 1e-8  # added to the means that distances are divided by


class FeatureMatchingLoss:
    """The mean over all features of a discriminator of how much they differ from sample to reconstruction.

        relative: mean |real - fake| / mean |real|   (EnCodec, https://arxiv.org/abs/2210.13438, section 3.4)
        else:     mean |real - fake|                 (HiFi-GAN, https://arxiv.org/abs/2010.05646, and DAC)

    The mean |real| is that of all processes. HiFi-GAN and DAC sum over features: their
    weights are here as many times as large.

    Args:
        relative: which of them.
    """

    @checked
    def __init__(self, relative: bool = True):
        self.relative = relative

    def __call__(self, real: Sequence[Sequence[torch.Tensor]], fake: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """A scalar, 0 where both are the same.

        Args:
            real: features of samples, of each sub-discriminator and layer, any shape; they take no gradient.
            fake: of reconstructions, of the same shapes.

        Raises:
            ValueError: no features, or not as many of both.
        """
        ones, others = ([layer for layers in each for layer in layers] for each in (real, fake))
        if not ones or len(ones) != len(others):
            raise ValueError(f"real and fake must be as many features, at least 1; got {len(ones)} and {len(others)}")
        pairs = [(one.detach().float(), other.float()) for one, other in zip(ones, others, strict=True)]
        distances = torch.stack([(one - other).abs().mean() for one, other in pairs])
        if self.relative:
            sizes = torch.stack([one.abs().mean() for one, _ in pairs])
            distances = distances / (sum_over_processes(sizes) / count_processes() + EPSILON)
        return distances.mean()

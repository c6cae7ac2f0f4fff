"""What a discriminator learns, and what it tells the autoencoder: a class for each pair of losses."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F


class AdversarialLoss(ABC):
    """A loss of the discriminator and one of the generator, of logits of any shape; high logits mean "real"."""

    @staticmethod
    @abstractmethod
    def discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """A scalar, lowest where real logits are high and fake ones low.

        Args:
            real: logits of samples.
            fake: logits of reconstructions.
        """

    @staticmethod
    def generator(fake: torch.Tensor) -> torch.Tensor:
        """A scalar, low where the logits of reconstructions are high: -mean(fake)."""
        return -fake.mean()


class HingeLoss(AdversarialLoss):
    """(mean(max(0, 1 - real)) + mean(max(0, 1 + fake))) / 2, and -mean(fake) (https://arxiv.org/abs/1705.02894)."""

    @staticmethod
    def discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


class ClippedHingeLoss(HingeLoss):
    """The generator's word ends where it convinces, too: mean(max(0, 1 - fake)).

    So in SoundStream (https://arxiv.org/abs/2107.03312, section III-E) and EnCodec (https://arxiv.org/abs/2210.13438).
    """

    @staticmethod
    def generator(fake: torch.Tensor) -> torch.Tensor:
        return F.relu(1 - fake).mean()


class LeastSquaresLoss(AdversarialLoss):
    """(mean((1 - real)^2) + mean(fake^2)) / 2, and mean((1 - fake)^2).

    LSGAN (https://arxiv.org/abs/1611.04076), as HiFi-GAN and DAC have it.
    """

    @staticmethod
    def discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return ((1 - real).square().mean() + fake.square().mean()) / 2

    @staticmethod
    def generator(fake: torch.Tensor) -> torch.Tensor:
        return (1 - fake).square().mean()


class VanillaLoss(AdversarialLoss):
    """Cross-entropy (https://arxiv.org/abs/1406.2661, eq. 1), with the generator's -mean(fake) as VQGAN has it.

    (mean(softplus(-real)) + mean(softplus(fake))) / 2: softplus(-x) = -log sigmoid(x).
    """

    @staticmethod
    def discriminator(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


class NonSaturatingLoss(VanillaLoss):
    """Cross-entropy for both, the generator's mean(softplus(-fake)) (https://arxiv.org/abs/1406.2661, section 3)."""

    @staticmethod
    def generator(fake: torch.Tensor) -> torch.Tensor:
        return F.softplus(-fake).mean()


ADVERSARIAL_LOSSES: dict[str, type[AdversarialLoss]] = {
    "hinge": HingeLoss, "vanilla": VanillaLoss, "non_saturating": NonSaturatingLoss,
    "clipped_hinge": ClippedHingeLoss, "least_squares": LeastSquaresLoss,
}  # fmt: skip


def mean_over_judges(
    loss: Callable[..., torch.Tensor], *logits: torch.Tensor | tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """The mean of a loss over the sub-discriminators, whatever number of logits each of them has.

    Args:
        loss: of logits, such as `HingeLoss.discriminator`.
        logits: what it takes, each a tensor, or a tuple of those of the sub-discriminators.
    """
    judges = zip(*([each] if torch.is_tensor(each) else each for each in logits), strict=True)
    return torch.stack([loss(*of_judge) for of_judge in judges]).mean()


def together(logits: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The logits of all sub-discriminators as of one."""
    return logits if torch.is_tensor(logits) else torch.cat([each.flatten(1) for each in logits], dim=1)

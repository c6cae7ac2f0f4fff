"""What autoencoders return."""

from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache

import torch
from diffusers.utils import BaseOutput


@dataclass
class EncoderOutput(BaseOutput):
    """Latents of a sample.

    Attributes:
        latents: (batch, dim, *grid), before quantization; of a hierarchy a tuple of them, coarse to fine.
    """

    latents: torch.Tensor | tuple[torch.Tensor, ...]


@dataclass
class ReconstructionOutput(BaseOutput):
    """A decoded sample.

    Attributes:
        sample: (batch, channels, *space) in [-1, 1].
    """

    sample: torch.Tensor


@dataclass
class TokenizerOutput(BaseOutput):
    """Codes, and what else a sample needs to come back.

    Attributes:
        codes: (batch, *grid) int64; (batch, num_levels, *grid) where there are levels; of a hierarchy a tuple.
        scales: what a model that normalises its input divided by; None for others.
        length: of a padded batch, how far each sample is real: (batch,) int64 in one dimension, in several (batch,
            dimensions); None without padding.
    """

    codes: torch.Tensor | tuple[torch.Tensor, ...]
    scales: torch.Tensor | None = None
    length: torch.Tensor | None = None


@dataclass
class AutoencoderOutput(BaseOutput):
    """Result of an autoencoder's forward.

    Attributes:
        sample: (batch, channels, *space) reconstruction in [-1, 1].
        codes: (batch, *grid) int64; (batch, num_levels, *grid) where there are levels; of a hierarchy a tuple.
        loss: scalar, reconstruction_weight x reconstruction_loss + quantizer_loss.
        reconstruction_loss: scalar.
        quantizer_loss: scalar, as the quantizer weighs its terms.
        losses: every term by name, before weighting.

    Mixed precision and DDP build outputs anew from one mapping of their items: all fields but the first have defaults.
    """

    sample: torch.Tensor
    codes: torch.Tensor | tuple[torch.Tensor, ...] | None = None
    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    quantizer_loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


@cache
def check_rebuilds(output_class: type) -> None:
    """Raise a TypeError for an output that mixed precision and DDP could not build anew, as `ModelOutput` asks too.

    Args:
        output_class: a dataclass; all its fields but the first need defaults.
    """
    name = output_class.__name__
    if not is_dataclass(output_class):
        raise TypeError(f"{name} must be a dataclass and a BaseOutput, as AutoencoderOutput is")
    for field in fields(output_class)[1:]:
        if field.default is MISSING and field.default_factory is MISSING:
            raise TypeError(
                f"{name}.{field.name} needs a default: mixed precision and DDP build outputs "
                "anew from one mapping, the first field"
            )

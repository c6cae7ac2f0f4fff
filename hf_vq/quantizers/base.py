"""What every quantizer answers, and what every quantizer needs: flat rows, float32 codebooks, checked codes."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class QuantizerOutput(ModelOutput):
    """Result of a quantizer.

    Attributes:
        latents: (batch, dim, *grid) quantized, the gradient passes straight through.
        codes: (batch, *grid) int64; (batch, levels, *grid) where there are levels.
        loss: scalar, the weighted sum of this quantizer's terms.
        losses: the terms by name, before weighting.
    """

    latents: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None

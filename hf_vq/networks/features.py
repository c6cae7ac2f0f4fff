"""The contract of frozen networks whose activations tell images apart: for perceptual losses, FID, KID and judges."""

from abc import abstractmethod
from typing import Any

import torch
from torch import nn


class FeatureExtractor(nn.Module):
    """A frozen network; gradients pass through it to its input, and it is always in evaluation mode.

    Attributes:
        identity: what the network is, JSON: `extractor` (its class), `source`, `sha256` of its weights. Figures of two
            extractors compare where their identities are equal.
        smallest_size: height and width, in pixels, of the smallest images that it takes.
    """

    identity: dict[str, Any]
    smallest_size: int

    @abstractmethod
    def forward(self, sample: torch.Tensor) -> list[torch.Tensor]:
        """Activations (batch, channels, height, width) of several depths, finest first.

        Args:
            sample: (batch, channels, height, width) in [-1, 1].
        """

    @abstractmethod
    def embed(self, sample: torch.Tensor) -> torch.Tensor:
        """One vector (batch, dim) for each sample, of the last activations."""

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stays in evaluation mode whatever is asked, so that statistics of normalisation never move."""
        return super().train(False)

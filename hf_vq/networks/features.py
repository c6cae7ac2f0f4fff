"""The contract of frozen networks whose activations tell images apart: for perceptual losses, FID, KID and judges."""

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import nn

from hf_vq.weights import weights_sha256


class FeatureExtractor(nn.Module):
    """A frozen network; gradients pass through it to its input, and it is always in evaluation mode.

    Attributes:
        identity: what the network is, JSON: `extractor` (its class), `source`, `sha256` of its weights. Figures of two
            extractors compare where `extractor` and `sha256` are equal; `source` is for people.
        in_channels: channels of the images that it takes. Grey images become three equal channels where these are 3.
        smallest_size: height and width, in pixels, of the smallest images that it takes.
    """

    identity: dict[str, Any]
    in_channels: int
    smallest_size: int

    @abstractmethod
    def forward(self, sample: torch.Tensor) -> list[torch.Tensor]:
        """Activations (batch, channels, height, width) of several depths, finest first.

        Args:
            sample: (batch, channels, height, width) in [-1, 1].

        Raises:
            ValueError: an image of another number of channels, or too small a one.
        """

    def embed(self, sample: torch.Tensor) -> torch.Tensor:
        """One vector (batch, dim) for each sample: the mean over positions of the last activations."""
        return self(sample)[-1].mean(dim=(2, 3))

    def as_input(self, sample: torch.Tensor) -> torch.Tensor:
        """A sample with the channels and in the precision of the network; what it does not take is a ValueError."""
        if sample.ndim != 4 or not sample.is_floating_point():
            raise ValueError(
                f"sample must be floating point, (batch, channels, height, width) in [-1, 1]; got {sample.dtype} of "
                f"shape {tuple(sample.shape)}"
            )
        channels, smallest = sample.shape[1], min(sample.shape[2:])
        grey = channels == 1 and self.in_channels == 3
        if channels != self.in_channels and not grey:
            takes = f"{self.in_channels} channels{' or 1' if self.in_channels == 3 else ''}"
            raise ValueError(f"{self._words()} takes images of {takes}, got {channels}")
        if smallest < self.smallest_size:
            raise ValueError(
                f"{self._words()} takes images of at least {self.smallest_size} pixels a side, got "
                f"{sample.shape[2]} x {sample.shape[3]}"
            )
        sample = sample.to(next(self.parameters()).dtype)
        return sample.expand(-1, 3, -1, -1) if grey else sample

    def freeze(self, source: str) -> Self:
        """In float32, without a gradient of its own, in evaluation mode, and with its `identity`: ends a constructor.

        Args:
            source: where the weights come from, for people.
        """
        self.float().requires_grad_(False).eval()
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        self.identity = {"extractor": type(self).__name__, "source": source, "sha256": weights_sha256(tensors)}
        return self

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever is asked, so that statistics of normalisation never move."""
        return super().train(False)

    def _words(self) -> str:
        return f"{self.identity['extractor']} of {self.identity['source']}"

"""What discriminators of signals share."""

import torch

from hf_vq.losses.discriminator import Discriminator


class SignalDiscriminator(Discriminator):
    """A discriminator of signals (batch, channels, time) of any length."""

    space_dims = 1

    def check_size(self, sample: torch.Tensor) -> None:
        """Raise a ValueError for samples of other dimensions or channels, or of no length."""
        channels = self.config.in_channels
        if sample.ndim != 3 or sample.shape[1] != channels or not sample.shape[2]:
            raise ValueError(f"samples must be (batch, {channels}, time), got {tuple(sample.shape)}")

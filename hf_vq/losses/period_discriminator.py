"""The multi-period discriminator: what recurs in a signal stands in one column of a picture."""

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hf_vq.arguments import checked
from hf_vq.losses.discriminator import Judgement
from hf_vq.losses.signal_discriminator import SignalDiscriminator
from hf_vq.ranges import NotEmpty, Range, Share, Width

WIDENING = (1, 4, 16, 32, 32)  # channels of the hidden convolutions, in those of the first
STRIDES = (3, 3, 3, 3, 1)

Periods = Annotated[Sequence[Annotated[int, Range(1, 2**12)]], NotEmpty()]


class MultiPeriodDiscriminator(SignalDiscriminator):
    """HiFi-GAN's (https://arxiv.org/abs/2010.05646, section 2.3).

    For each period a signal is cut into rows of so many samples, and convolutions go along the columns alone. Its end
    is mirrored to a whole row; a signal too short for that is extended by zeros.

    Args:
        in_channels: channels of a sample.
        hidden_channels: of the first convolution; the others have 4, 16, 32 and 32 times as many.
        periods: in samples.
        slope: of LeakyReLU.

    Raises:
        ValueError: an argument out of its range.
    """

    @register_to_config
    @checked
    def __init__(
        self,
        in_channels: Width = 1,
        hidden_channels: Width = 32,
        periods: Periods = (2, 3, 5, 7, 11),
        slope: Share = 0.1,
    ):
        super().__init__()
        self.judges = nn.ModuleList(PeriodJudge(in_channels, hidden_channels, slope) for _ in periods)

    def judge(self, sample: torch.Tensor) -> Judgement:
        judged = []
        for period, judge in zip(self.config.periods, self.judges, strict=True):
            missing = -sample.shape[2] % period
            whole = F.pad(sample, (0, missing), "reflect" if missing < sample.shape[2] else "constant")
            judged.append(judge(whole.unflatten(2, (-1, period))))
        return Judgement(*zip(*judged, strict=True))


class PeriodJudge(nn.Module):
    """One period: convolutions along columns, and one to logits.

    Args:
        in_channels: channels of a sample.
        hidden_channels: of the first convolution.
        slope: of LeakyReLU.
    """

    def __init__(self, in_channels: int, hidden_channels: int, slope: float):
        super().__init__()
        self.slope = slope
        widths = [in_channels, *(hidden_channels * times for times in WIDENING)]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (5, 1), (stride, 1), padding=(2, 0)))
            for before, after, stride in zip(widths[:-1], widths[1:], STRIDES, strict=True)
        )
        self.to_logits = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Logits (batch, 1, places, period) and features of (batch, channels, rows, period)."""
        features = []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), self.slope)
            features.append(hidden)
        return self.to_logits(hidden), tuple(features)

"""Likelihood of pixel values: a discretised logistic distribution, and the fit of its scale."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.processes import sum_over_processes

BINS = 16  # of the fit's histogram, to a pixel value
SEARCH_STEPS = 48  # of the golden section: each narrows the bracket of the log scale to 0.618 of its width


def pixel_values(sample: torch.Tensor, num_values: int = 256) -> torch.Tensor:
    """Samples in [-1, 1] as int64 pixel values 0 to num_values - 1, the nearest ones."""
    return ((sample.float() + 1) * ((num_values - 1) / 2)).round().long().clamp(0, num_values - 1)


def discretized_logistic_log_prob(
    sample: torch.Tensor, location: torch.Tensor, log_scale: torch.Tensor, num_values: int = 256
) -> torch.Tensor:
    """Log-probability of pixel values under a logistic distribution cut into one interval for each of them.

    PixelCNN++ (https://arxiv.org/abs/1701.05517, eq. 2) with one component: an interval reaches half a step to either
    side of its value, that of the lowest value down to -infinity, that of the highest up to infinity, so that the
    probabilities of all values sum to 1.

    Args:
        sample: any shape, float in [-1, 1]; taken as the nearest of the `num_values` even steps from -1 to 1.
        location, log_scale: of the same shape or one that broadcasts, in units of `sample`.
        num_values: how many values a pixel can have, at least 2.

    Returns:
        float32 or wider, of the broadcast shape, nats, at most 0.
    """
    pixels, step = pixel_values(sample, num_values), 2 / (num_values - 1)
    centred = pixels.to(torch.promote_types(location.dtype, torch.float32)) * step - 1 - location
    return interval_log_prob(centred, log_scale, step, pixels == 0, pixels == num_values - 1)


def discretized_logistic_log_probs(
    location: torch.Tensor, log_scale: torch.Tensor, num_values: int = 256
) -> torch.Tensor:
    """`discretized_logistic_log_prob` of every pixel value, (..., num_values): each edge between two is met once.

    Args:
        location, log_scale: (..., 1), in units of samples in [-1, 1].
        num_values: how many values a pixel can have, at least 2.
    """
    half, precision = 1 / (num_values - 1), (-log_scale).exp()
    edges = torch.linspace(half - 1, 1 - half, num_values - 1, device=location.device, dtype=location.dtype)
    scaled = (edges - location) * precision
    below = F.logsigmoid(scaled)
    above = below - scaled
    inside = torch.log(-torch.expm1(-2 * half * precision))
    between = below[..., 1:] + above[..., :-1] + inside
    return torch.cat([below[..., :1], between, above[..., -1:]], dim=-1)


def interval_log_prob(
    centred: torch.Tensor, log_scale: torch.Tensor, step: float, lowest: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    """log of F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)), F the logistic function, which underflows nowhere.

    Args:
        centred: value minus location; a and b are half a step above and below it, over the scale.
        log_scale, step: in the same units.
        lowest, highest: bool; there F(b) is 0, or F(a) is 1.
    """
    precision = (-log_scale).exp()
    upper = F.logsigmoid((centred + step / 2) * precision).masked_fill(highest, 0)
    lower = F.logsigmoid((step / 2 - centred) * precision).masked_fill(lowest, 0)
    between = torch.log(-torch.expm1(-step * precision)).expand_as(upper).masked_fill(lowest | highest, 0)
    return upper + lower + between


class LogisticScale(nn.Module):
    """The scales of a discretised logistic around reconstructions that make given samples most likely, one a channel.

    For decoders without a distribution. Distances from pixel to reconstruction are counted in a histogram, 16 bins to
    a pixel value, so that the fit costs no memory, and depends neither on the batches nor on the processes. A golden
    section then finds the scale, between 1/32 of a pixel value and twice the range of all. It is deterministic.

    Args:
        channels: of the samples.
        num_values: how many values a pixel can have.
    """

    counts: torch.Tensor

    def __init__(self, channels: int, num_values: int = 256):
        super().__init__()
        self.num_values = num_values
        self.reach = 2 * num_values * BINS  # distances beyond it count as this far
        shape = (channels, 3, 2 * self.reach + 1)  # 3: the lowest value, those between, the highest
        self.register_buffer("counts", torch.zeros(shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, samples: torch.Tensor, reconstructions: torch.Tensor) -> None:
        """Adds samples and their reconstructions, (batch, channels, *space) float in [-1, 1] each.

        Raises:
            ValueError: shapes differ, or another number of channels.
        """
        channels, kinds, bins = self.counts.shape
        if samples.shape != reconstructions.shape or samples.shape[1] != channels:
            raise ValueError(
                f"samples and reconstructions must be (batch, {channels}, *space), got {tuple(samples.shape)} and "
                f"{tuple(reconstructions.shape)}"
            )
        pixels = pixel_values(samples, self.num_values).movedim(1, 0).flatten(1)  # (channels, values)
        locations = (reconstructions.movedim(1, 0).flatten(1).double() + 1) * ((self.num_values - 1) / 2)
        distances = ((pixels - locations) * BINS).round().clamp(-self.reach, self.reach).long() + self.reach
        kind = 1 + (pixels == self.num_values - 1).long() - (pixels == 0).long()
        channel = torch.arange(channels, device=pixels.device)[:, None]
        places = ((channel * kinds + kind) * bins + distances).flatten()
        self.counts += torch.bincount(places, minlength=self.counts.numel()).view(self.counts.shape)

    @torch.no_grad()
    def compute(self) -> torch.Tensor:
        """Log scales (channels,) float32, in units of samples in [-1, 1].

        Raises:
            ValueError: nothing was added.
        """
        counts = sum_over_processes(self.counts.clone()).cpu()
        if counts.sum() == 0:
            raise ValueError("no samples were added")
        distances = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64) / BINS  # in pixel values
        found = counts.sum(dim=(0, 1)) > 0  # of 16 bits most bins are empty
        counts, distances = counts[:, :, found], distances[found]
        kinds = torch.arange(3)[:, None]

        def log_likelihood(log_scale):
            terms = interval_log_prob(distances, log_scale[:, None, None], 1.0, kinds == 0, kinds == 2)
            return (counts * terms).sum(dim=(1, 2))

        channels, ratio = len(counts), (math.sqrt(5) - 1) / 2
        low = torch.full((channels,), math.log(1 / 32), dtype=torch.float64)
        high = torch.full((channels,), math.log(2 * self.num_values), dtype=torch.float64)
        for _ in range(SEARCH_STEPS):
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            rises = log_likelihood(left) < log_likelihood(right)
            low, high = torch.where(rises, left, low), torch.where(rises, high, right)
        return ((low + high) / 2 + math.log(2 / (self.num_values - 1))).float()

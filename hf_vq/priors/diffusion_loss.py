"""What discrete diffusion learns from: the terms of its bound, and which times are looked at."""

import torch
from torch import nn

from hf_vq.priors.transitions import Transitions
from hf_vq.processes import gather_rows

SEEN_ENOUGH = 10  # items of every time, before times are drawn by their loss


def bound_terms(
    transitions: Transitions,
    log_codes: torch.Tensor,
    codes: torch.Tensor,
    states: torch.Tensor,
    times: torch.Tensor,
) -> torch.Tensor:
    """Nats of each code in the step from a time back to the one before (https://arxiv.org/abs/2111.14822, eq. 5).

    Args:
        transitions: the noise.
        log_codes: (batch, *grid, codebook_size), predicted log-probabilities of the codes.
        codes: (batch, *grid) int64, what they were.
        states: (batch, *grid) int64, what noise made of them.
        times: (batch,) int64.

    Returns:
        (batch, *grid): the divergence between the true step back and the predicted one; at time 0, -log p(code).
    """
    predicted = transitions.log_posterior(log_codes, states, times, times - 1)
    certain = torch.full_like(log_codes, -torch.inf).scatter(-1, codes[..., None], 0.0)
    true = transitions.log_posterior(certain, states, times, times - 1)
    divergence = kl_divergence(true, predicted)
    first = (times == 0).view(-1, *[1] * (codes.ndim - 1))
    return torch.where(first, -predicted.gather(-1, codes[..., None])[..., 0], divergence)


def kl_divergence(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """KL(true || predicted) over the last axis of log-probabilities, where what is not possible counts nothing."""
    possible = true > -torch.inf
    difference = torch.where(possible, true - torch.where(possible, predicted, 0.0), 0.0)
    return (true.exp() * difference).sum(-1)


class TimestepSampler(nn.Module):
    """Draws times as often as their terms are large (https://arxiv.org/abs/2102.09672, section 3.3).

    Until every time has been seen more than ten times, all are as probable. What it remembers is the same in all
    processes, as if one had had all items.

    Args:
        num_timesteps: times.
        importance: False: all are as probable always.
    """

    loss_history: torch.Tensor
    loss_count: torch.Tensor

    def __init__(self, num_timesteps: int, importance: bool = True):
        super().__init__()
        self.importance = importance
        self.register_buffer("loss_history", torch.zeros(num_timesteps))  # of squared terms, a moving average
        self.register_buffer("loss_count", torch.zeros(num_timesteps))

    def probabilities(self) -> torch.Tensor:
        """Of every time, (num_timesteps,) float32."""
        even = torch.full_like(self.loss_history, 1 / len(self.loss_history))
        if len(even) == 1 or not self.importance:
            return even
        weights = (self.loss_history + 1e-10).sqrt() + 1e-4
        weights = torch.cat([weights[1:2], weights[1:]])  # the first term is of another kind than the others
        return torch.where((self.loss_count > SEEN_ENOUGH).all(), weights / weights.sum(), even)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Times (count,) int64 and their probabilities (count,)."""
        probabilities = self.probabilities()
        times = torch.multinomial(probabilities, count, replacement=True)
        return times, probabilities[times]

    @torch.no_grad()
    def update(self, times: torch.Tensor, terms: torch.Tensor) -> None:
        """Take in the terms (batch,) of items, in nats, at times (batch,)."""
        rows = gather_rows(torch.stack([times.double(), terms.double().square()], dim=1))
        times, squares = rows[:, 0].long(), rows[:, 1]
        sums = torch.zeros(2, len(self.loss_count), dtype=torch.float64, device=rows.device)
        sums[0].index_add_(0, times, torch.ones_like(squares))
        sums[1].index_add_(0, times, squares)
        seen, means = sums[0] > 0, sums[1] / sums[0].clamp(min=1)
        history = torch.where(seen, 0.9 * self.loss_history + 0.1 * means, self.loss_history)
        self.loss_history.copy_(history)
        self.loss_count.add_(sums[0])

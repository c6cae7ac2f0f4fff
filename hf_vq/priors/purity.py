"""The purity prior of Improved VQ-Diffusion (https://arxiv.org/abs/2205.16007, section 3.2)."""

from typing import Any

import torch

from hf_vq.priors.sampling import Generators, draw_gumbel, lowest


def step_by_purity(
    scheduler: Any, log_codes: torch.Tensor, time: int, states: torch.Tensor, weight: float, generator: Generators
) -> torch.Tensor:
    """States before a step in which codes appear the sooner, the more certain they are; none changes any more.

    Args:
        scheduler: a `DiscreteDiffusionScheduler`; how many masks a step leaves is what its noise leaves on average.
        log_codes: (batch, *grid, codebook_size).
        time: one of its `timesteps`.
        states: (batch, *grid) int64.
        weight: r of eq. 11: log-probabilities are multiplied by 1 + r purity.
        generator: one, or one per item.

    Returns:
        (batch, *grid) int64.
    """
    grid = states.shape
    states, log_codes = states.flatten(1), log_codes.flatten(1, -2)
    masked = states == scheduler.mask_class
    _, _, now = scheduler.transitions.rates(time)
    _, _, before = scheduler.transitions.rates(scheduler.previous(time))
    left = (masked.sum(1) * (before / now).item()).round().long()  # masks of each item after this step
    purity = log_codes.exp().amax(-1)
    purity = purity / purity.amax(1, keepdim=True)  # (batch, positions), the largest 1
    sharpened = ((1 + weight * purity[..., None]) * log_codes).log_softmax(-1)
    noise = draw_gumbel(sharpened.movedim(-1, 1).shape, generator, states.device).movedim(1, -1)
    drawn = (sharpened + noise).argmax(-1)
    keys = purity.log() + draw_gumbel(states.shape, generator, states.device)  # their order is a draw by purity
    shown = masked & lowest((-keys).masked_fill(~masked, torch.inf), (masked.sum(1) - left)[:, None])
    return torch.where(shown, drawn, states).view(grid)

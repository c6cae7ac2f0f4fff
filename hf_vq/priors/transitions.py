"""How codes turn into noise, and back: the transitions of discrete diffusion, in log space.

Times are whole numbers: 0 after the first step of noise, `num_timesteps` - 1 after the last, -1 before the first,
where all is clean. A state is a code in [0, codebook_size), or the mask, which is codebook_size. Distributions lie
along the last axis, of codes or of states: (batch, *grid, codebook_size) or (batch, *grid, codebook_size + 1).
"""

from math import pi
from typing import Annotated, Any

import torch

from hf_vq.arguments import checked
from hf_vq.ranges import OneOf, Range, Share, Size

TRANSITIONS = ("mask_and_replace", "mask", "uniform")
SCHEDULES = ("linear", "cosine")
Timesteps = Annotated[int, Range(1, 2**16)]
Time = int | torch.Tensor  # one for all, or (batch,)


class Transitions:
    """The noise of VQ-Diffusion (https://arxiv.org/abs/2111.14822, eq. 6-8) and of D3PM (https://arxiv.org/abs/2107.03006).

    After step t a code is itself with probability alpha_t + beta_t, each other code with beta_t and the mask, which it
    never leaves, with gamma_t; alpha_t + codebook_size beta_t + gamma_t = 1. The cumulated alpha and gamma go from
    their start to their end: "linear" as published, "cosine" with the square of a sine
    (https://arxiv.org/abs/2102.09672, eq. 17, without offset). A transition over any stretch of time is one of the
    same kind, whose alpha and 1 - gamma are the quotients of the cumulated ones; so steps may be skipped exactly.

    Args:
        codebook_size: codes.
        num_timesteps: steps of noise.
        transition: "mask_and_replace"; "mask", where beta is 0 (alpha = 1 - gamma); "uniform", where gamma is 0.
        schedule: "linear" or "cosine".
        alpha_cum_start, alpha_cum_end: cumulated alpha after the first and the last step.
        gamma_cum_start, gamma_cum_end: cumulated gamma.

    Raises:
        ValueError: a value out of its range, or a cumulated alpha that grows, a cumulated gamma that shrinks, or
            both that are above 1 together.
    """

    @checked
    def __init__(
        self,
        codebook_size: Size,
        num_timesteps: Timesteps,
        transition: Annotated[str, OneOf(TRANSITIONS)] = "mask_and_replace",
        schedule: Annotated[str, OneOf(SCHEDULES)] = "linear",
        alpha_cum_start: Share = 0.99999,
        alpha_cum_end: Share = 0.000009,
        gamma_cum_start: Share = 0.000009,
        gamma_cum_end: Share = 0.99999,
    ):
        self.codebook_size, self.num_timesteps, self.transition = codebook_size, num_timesteps, transition
        plain: Any = {"dtype": torch.float64, "device": "cpu"}  # also where a model is made without its weights
        way = torch.linspace(0 if num_timesteps > 1 else 1, 1, num_timesteps, **plain)
        if schedule == "cosine":
            way = (way * pi / 2).sin().square()
        alphas = alpha_cum_start + way * (alpha_cum_end - alpha_cum_start)
        gammas = gamma_cum_start + way * (gamma_cum_end - gamma_cum_start)
        if transition == "mask":
            alphas = 1 - gammas
        elif transition == "uniform":
            gammas = torch.zeros_like(gammas)
        check_cumulated(alphas, gammas)
        if transition != "uniform" and gammas[-1] == 0:
            raise ValueError(
                f"gamma_cum_end must be above 0 for transition={transition!r}, which starts from masks, got "
                f"{gamma_cum_end}"
            )
        clean = torch.ones(1, **plain)
        self.alphas = torch.cat([alphas, clean])  # by time; the last is that of -1
        self.gammas = torch.cat([gammas, 1 - clean])
        # whether there is a time until which no code became another one
        self.some_keep = transition == "mask" or bool(((1 - gammas) - alphas <= 0).any())

    @property
    def mask(self) -> int:
        """The state that is no code."""
        return self.codebook_size

    def rates(self, time: Time, since: Time = -1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Alpha, beta and gamma, float64 scalars or (batch,), of what happens after `since` until `time`."""
        time = torch.as_tensor(time)
        alphas, gammas = self.alphas.to(time.device), self.gammas.to(time.device)
        alpha = alphas[time] / alphas[since]
        gamma = (gammas[time] - gammas[since]) / (1 - gammas[since])
        beta = ((1 - gamma) - alpha).clamp(min=0) / self.codebook_size
        return alpha, torch.zeros_like(beta) if self.transition == "mask" else beta, gamma

    def log_rates(self, time: Time, since: Time, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logarithms of the `rates`, to be broadcast to a distribution."""
        shape = [-1] + [1] * (like.ndim - 1)
        return tuple(rate.log().to(like.device, like.dtype).view(shape) for rate in self.rates(time, since))

    def noise(self, codes: torch.Tensor, time: Time, uniforms: torch.Tensor) -> torch.Tensor:
        """States (batch, *grid) after the step of a time, from codes and uniform numbers (2, batch, *grid)."""
        shape = [-1] + [1] * (codes.ndim - 1)
        _, beta, gamma = (rate.to(codes.device).view(shape) for rate in self.rates(time))
        chance, choice = uniforms
        others = (choice * self.codebook_size).long().clamp(max=self.codebook_size - 1)  # rounding may lift it
        states = torch.where(chance < gamma + self.codebook_size * beta, others, codes)
        return torch.where(chance < gamma, self.mask, states)

    def log_posterior(
        self,
        log_codes: torch.Tensor,
        states: torch.Tensor,
        time: Time,
        before: Time,
        log_zero: float = -torch.inf,
    ) -> torch.Tensor:
        """Logarithm of p(x_before | x_time), the sum over codes c of q(x_before | x_time, c) p(c) (eq. 11).

        Where nothing but the mask has taken codes away, a state that is a code was that code all along.

        Args:
            log_codes: (batch, *grid, codebook_size), log p(c); what a truncation took from their sum is missing in
                the result too.
            states: (batch, *grid) int64, x_time.
            time, before: before < time.
            log_zero: what stands for the logarithm of 0 where a code cannot have come from the mask, such as
                log 1e-30 in the originals.

        Returns:
            (batch, *grid, codebook_size + 1).
        """
        log_codes = self.carry_over(log_codes, states, time)
        masked, place = (states == self.mask)[..., None], states[..., None].clamp(max=self.codebook_size - 1)

        def ending_here(since: Time) -> tuple[torch.Tensor, torch.Tensor]:
            """Logarithm of q(x_time | x_since = a code): of a code that x_time is not, and of the one that it is."""
            alpha, beta, gamma = self.log_rates(time, since, log_codes)
            return torch.where(masked, gamma, beta), torch.where(masked, gamma, torch.logaddexp(alpha, beta))

        def add(values: torch.Tensor, other: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            return (values + other).scatter_(-1, place, values.gather(-1, place) + own)  # in place: it is large

        other, own = ending_here(-1)
        weights = add(log_codes, -other, -own)
        if self.some_keep:  # what is impossible may have no way here either, and 0 / 0 is nothing then
            weights = weights.masked_fill(log_codes == -torch.inf, -torch.inf)
        total = weights.logsumexp(-1, keepdim=True)
        alpha, beta, gamma = self.log_rates(before, -1, log_codes)
        codes = add(torch.logaddexp(alpha + weights, beta + total), *ending_here(before))
        mask = gamma + total
        if log_zero == -torch.inf:
            mask = mask.masked_fill(~masked, log_zero)
        else:
            mask = torch.logaddexp(mask, (1 - gamma.exp()).log() + log_zero) + log_zero * ~masked
        return torch.cat([codes, mask], dim=-1)

    def carry_over(self, log_codes: torch.Tensor, states: torch.Tensor, time: Time) -> torch.Tensor:
        """p(c) (batch, *grid, codebook_size); certain, where noise alone has masked until a time, of codes."""
        if not self.some_keep:
            return log_codes
        _, beta, _ = self.rates(time)
        kept = (beta == 0).to(states.device).view(-1, *[1] * (states.ndim - 1)) & (states != self.mask)
        certain = torch.full_like(log_codes, -torch.inf)
        certain = certain.scatter(-1, states[..., None].clamp(max=self.codebook_size - 1), 0.0)
        return torch.where(kept[..., None], certain, log_codes)

    def end_nats(self) -> torch.Tensor:
        """Nats, float64, of KL(q(x_end | code) || p(x_end)), the same for every code.

        p(x_end) is the mask with probability gamma and otherwise any code. Generation starts from masks alone, as the
        originals do, or without masks from any codes; so gamma is to end near 1.
        """
        alpha, beta, gamma = self.rates(self.num_timesteps - 1)
        even = (1 - gamma) / self.codebook_size
        own = torch.special.xlogy(alpha + beta, (alpha + beta) / even.clamp(min=torch.finfo(even.dtype).tiny))
        others = torch.special.xlogy(beta, beta / even.clamp(min=torch.finfo(even.dtype).tiny))
        return own + (self.codebook_size - 1) * others


def check_cumulated(alphas: torch.Tensor, gammas: torch.Tensor) -> None:
    """Raise a ValueError unless codes only ever get lost: alpha falls, the share that gamma leaves falls no less."""
    for name, falling in (("alpha", alphas), ("1 - gamma", 1 - gammas)):
        if (falling[1:] > falling[:-1]).any() or (falling[:-1] == 0).any():
            ends = f"{name}_cum_start={falling[0].item():g} and {name}_cum_end={falling[-1].item():g}"
            raise ValueError(f"the cumulated {name} must fall and may be 0 at the end alone, got {ends}")
    left = (alphas[:-1] / (1 - gammas[:-1])).diff()  # of the codes that are no mask, how many are themselves
    if (left > 1e-12).any():
        raise ValueError(
            "of what gamma_cum leaves, alpha_cum must leave less and less, got a share that grows after step "
            f"{left.argmax().item()}"
        )
    if (alphas + gammas > 1 + 1e-9).any():
        worst = (alphas + gammas).argmax()
        raise ValueError(
            "alpha_cum and gamma_cum must not be above 1 together, got "
            f"{alphas[worst].item():g} and {gammas[worst].item():g} after step {worst.item()}"
        )

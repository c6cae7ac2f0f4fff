"""Discrete diffusion over codes: VQ-Diffusion's prior."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from hf_vq.modes import evaluating, fetched
from hf_vq.priors.base import Prior, PriorOutput
from hf_vq.priors.diffusion_loss import TimestepSampler, bound_terms
from hf_vq.priors.discrete_diffusion_scheduler import DiscreteDiffusionScheduler
from hf_vq.priors.inputs import IGNORED
from hf_vq.priors.parallel import ParallelNetwork, ParallelPriorConfig, check_scheduler, seeded_uniforms
from hf_vq.priors.purity import step_by_purity
from hf_vq.priors.sampling import (
    apply_temperature,
    check_sampling_options,
    keep_likeliest,
    truncate,
)
from hf_vq.priors.transitions import SCHEDULES, TRANSITIONS, Timesteps
from hf_vq.ranges import OneOf, Samples, Share, Side, Size, TopP, Weight
from hf_vq.registry import register


class DiscreteDiffusionPriorConfig(ParallelPriorConfig):
    """Config of `DiscreteDiffusionPrior`.

    Args:
        num_timesteps: steps of noise.
        transition, schedule, alpha_cum_start, alpha_cum_end, gamma_cum_start, gamma_cum_end: of the noise, see
            `hf_vq.priors.transitions.Transitions`.
        timestep_embedding: "learned" or "sinusoidal".
        auxiliary_loss_weight: of KL(code || predicted code) beside the bound, in training.
        adaptive_auxiliary_loss: weigh it by 2 - time / num_timesteps.
        mask_weight: of the terms of codes that are masked, and of those that are not.
        importance_sampling: draw times by their loss.
        likelihood_timesteps: of the steps that are summed up in `log_prob`, at most that many are computed, one of
            each of as many stretches of time.
        (others): see `ParallelPriorConfig`.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_discrete_diffusion"
    attribute_map = {
        "num_hidden_layers": "num_layers", "num_attention_heads": "num_heads", "num_train_timesteps": "num_timesteps",
    }  # fmt: skip

    num_timesteps: Timesteps = 100
    transition: Annotated[str, OneOf(TRANSITIONS)] = "mask_and_replace"
    schedule: Annotated[str, OneOf(SCHEDULES)] = "linear"
    alpha_cum_start: Share = 0.99999
    alpha_cum_end: Share = 0.000009
    gamma_cum_start: Share = 0.000009
    gamma_cum_end: Share = 0.99999
    timestep_embedding: Annotated[str, OneOf(("learned", "sinusoidal"))] = "learned"
    auxiliary_loss_weight: Weight = 0.0005
    adaptive_auxiliary_loss: bool = True
    mask_weight: tuple[Weight, ...] | list[Weight] = (1.0, 1.0)
    importance_sampling: bool = True
    likelihood_timesteps: Timesteps = 16

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.mask_weight = tuple(self.mask_weight)
        if len(self.mask_weight) != 2:
            raise ValueError(f"mask_weight must be two, of masked codes and of others, got {self.mask_weight}")
        self.make_scheduler()

    def make_scheduler(self) -> DiscreteDiffusionScheduler:
        """The scheduler of this noise."""
        names = ("transition", "schedule", "alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end")
        noise = {name: getattr(self, name) for name in names}
        return DiscreteDiffusionScheduler(
            num_vec_classes=self.codebook_size + 1, num_train_timesteps=self.num_timesteps, **noise
        )  # by name: diffusers' from_config takes what came by place for a default


@register
class DiscreteDiffusionPrior(ParallelNetwork, Prior, PreTrainedModel):
    """VQ-Diffusion (https://arxiv.org/abs/2111.14822): codes out of masks, in as few passes as one likes.

    The network predicts all codes from a noisy grid and its time; the loss is the variational bound of one time, drawn
    by importance, beside an auxiliary term. Other noises are those of D3PM (https://arxiv.org/abs/2107.03006).
    """

    config_class = DiscreteDiffusionPriorConfig
    config: DiscreteDiffusionPriorConfig
    base_model_prefix = "prior"
    likelihood = "bound"
    sampling_options = (
        "num_inference_steps", "temperature", "top_k", "top_p", "truncation_rate", "purity_weight", "guidance_scale",
        "known_codes", "known_mask", "negative_encoder_hidden_states", "negative_encoder_attention_mask", "scheduler",
    )  # fmt: skip

    def __init__(self, config: DiscreteDiffusionPriorConfig):
        super().__init__(config)
        self.build(config.num_timesteps, config.timestep_embedding)
        self.timesteps = TimestepSampler(config.num_timesteps, config.importance_sampling)
        self.transitions = config.make_scheduler().transitions
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        lengths: torch.Tensor | None = None,
        context_codes: tuple[torch.Tensor, ...] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Make noise of codes, each item at a time of its own, and predict the codes.

        In training, times and noise come from torch's generator; in eval mode from the codes themselves, so that a
        loss is the same again.

        Args:
            codes: (batch, *grid) of any integer type.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            labels: (batch, *grid) int64 targets instead of `codes`; -100 is ignored.
            return_loss: compute the loss.
            lengths: (batch,) int64, real positions of each item along the first axis of space.
            context_codes: grids (batch, height, width) of a hierarchy that are coarser, coarse to fine.
            encoder_hidden_states: (batch, length, cross_attention_dim), of a prior with text.
            encoder_attention_mask: (batch, length), 1 where these count.

        Returns:
            `PriorOutput`: loss, the bound in mean nats per code, in training with the auxiliary term; and logits,
            log-probabilities (batch, *grid, codebook_size) of the codes given their noise.

        Raises:
            ValueError: an argument out of range or of the wrong shape or type.
        """
        codes, labels, conditions = self.check_inputs(
            codes,
            labels,
            lengths,
            class_labels=class_labels,
            context_codes=context_codes,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        if labels is not None:
            codes = torch.where(labels == IGNORED, codes, labels)
        if self.training:
            times, chances = self.timesteps.draw(len(codes))
            uniforms = torch.rand(2, *codes.shape, device=codes.device)
        else:
            (choice,), (uniforms,) = seeded_uniforms(codes, conditions.get("padding_mask"), 1)
            times = (choice * self.config.num_timesteps).long()
            chances = torch.full_like(choice, 1 / self.config.num_timesteps)
        states = self.transitions.noise(codes, times, uniforms)
        with fetched(self):
            log_codes = self.predict(states, times, **conditions)
        if not return_loss:
            return PriorOutput(logits=log_codes)
        real = torch.ones_like(codes, dtype=torch.bool) if labels is None else labels != IGNORED
        return PriorOutput(self.compute_loss(log_codes, codes, real, states, times, chances), log_codes)

    def predict(
        self,
        states: torch.Tensor,
        timesteps: torch.Tensor,
        padding_mask: torch.Tensor | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Log-probabilities of the codes without noise.

        Args:
            states: (batch, *grid) int64, codes or `mask`.
            timesteps: (batch,) int64.
            padding_mask: (batch, *grid) bool, True = real.
            conditions: checked ones.

        Returns:
            (batch, *grid, codebook_size), at least float32.
        """
        logits = self.run_network(states, timesteps, padding_mask, **conditions)
        return logits.double().log_softmax(-1).to(torch.promote_types(logits.dtype, torch.float32))

    def compute_loss(
        self,
        log_codes: torch.Tensor,
        codes: torch.Tensor,
        real: torch.Tensor,
        states: torch.Tensor,
        times: torch.Tensor,
        chances: torch.Tensor,
    ) -> torch.Tensor:
        """Mean nats per real code: terms of the bound at times (batch,), over the chances (batch,) of these times."""
        config, first = self.config, (times == 0).view(-1, *[1] * (codes.ndim - 1))
        of_masks, of_others = config.mask_weight
        weights = torch.where(states == self.mask, of_masks, of_others).masked_fill(first, 1.0) * real
        terms = (bound_terms(self.transitions, log_codes, codes, states, times) * weights).flatten(1).sum(1)
        if self.training:
            self.timesteps.update(times, terms)
            errors = -log_codes.gather(-1, codes[..., None])[..., 0]  # KL(code || predicted code)
            scale = 2 - times / config.num_timesteps if config.adaptive_auxiliary_loss else 1.0
            terms = terms + config.auxiliary_loss_weight * scale * (errors * weights).flatten(1).sum(1)
        return (terms / chances).sum() / real.sum()

    @apply_forward_hook
    @torch.no_grad()
    def log_prob(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> torch.Tensor:
        """A bound below the log-probability of whole grids, in eval mode and without gradients.

        It is the sum of all steps' terms where `likelihood_timesteps` reaches `num_timesteps`, else an unbiased
        estimate of that sum; the noise depends on the codes alone, so that it is the same again.

        Args:
            codes: (batch, *grid) of any integer type.
            lengths: (batch,) int64, real positions of each item along the first axis of space; None: all.
            conditions: those of `forward`.

        Returns:
            (batch,) nats of the real codes, at most 0.

        Raises:
            ValueError: an argument that does not fit.
        """
        steps, count = self.config.num_timesteps, min(self.config.num_timesteps, self.config.likelihood_timesteps)
        edges = torch.linspace(0, steps, count + 1).round().long().tolist()
        with evaluating(self):
            codes, _, conditions = self.check_inputs(codes, None, lengths, **conditions)
            padding = conditions.get("padding_mask")
            real = torch.ones_like(codes, dtype=torch.bool) if padding is None else padding
            nats = self.transitions.end_nats().to(codes.device, torch.float32) * real.flatten(1).sum(1)
            choices, uniforms = seeded_uniforms(codes, padding, count)
            for low, high, choice, noise in zip(edges[:-1], edges[1:], choices, uniforms, strict=True):
                times = low + (choice * (high - low)).long()
                states = self.transitions.noise(codes, times, noise)
                log_codes = self.predict(states, times, **conditions)
                terms = bound_terms(self.transitions, log_codes, codes, states, times) * real
                nats = nats + (high - low) * terms.flatten(1).sum(1)
        return -nats

    @apply_forward_hook
    @torch.no_grad()
    def sample(
        self,
        batch_size: Samples | None = None,
        code_shape: Sequence[Side] | None = None,
        *,
        num_inference_steps: Size | None = None,
        temperature: Weight = 1.0,
        top_k: Size | None = None,
        top_p: TopP | None = None,
        truncation_rate: TopP = 1.0,
        purity_weight: Weight | None = None,
        guidance_scale: Weight = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        negative_encoder_hidden_states: torch.Tensor | None = None,
        negative_encoder_attention_mask: torch.Tensor | None = None,
        scheduler: Any = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Draw codes out of noise, all of them in every step.

        Args:
            batch_size, code_shape, generator, progress_bar, conditions: as of `Prior.sample`.
            num_inference_steps: passes of the network, at most `num_timesteps`, which is the default.
            temperature: divides the logits of the codes; 0 takes the most probable ones, while which of them appear
                first is still drawn.
            top_k: draw among that many most probable codes.
            top_p: draw among the most probable codes that hold this mass.
            truncation_rate: as `top_p`, but what stays is not made to sum up to 1: VQ-Diffusion's truncation.
            purity_weight: let the most certain codes appear first, and sharpen them by this weight
                (https://arxiv.org/abs/2205.16007, section 3.2, r in eq. 11); None: codes appear anywhere.
            guidance_scale: classifier-free guidance of log-probabilities, in one pass; 1 is none. Needs the null
                class, a null text, or a negative text.
            known_codes: (batch, *grid) of any integer type, read where `known_mask` is True: these codes are kept, and
                all others are drawn in their sight.
            known_mask: (batch, *grid) bool.
            negative_encoder_hidden_states, negative_encoder_attention_mask: of a text to guide away from.
            scheduler: a `DiscreteDiffusionScheduler` of as many states; that of the config by default.

        Returns:
            (batch, *grid) int64.

        Raises:
            TypeError: a condition that this prior does not take.
            ValueError: an argument is missing, out of range or of the wrong shape.
            RuntimeError: the network gave logits that are not finite.
        """
        check_sampling_options(temperature, top_k, top_p, guidance_scale)
        scheduler = self.take_scheduler(scheduler, num_inference_steps)
        if purity_weight is not None and scheduler.transitions.transition == "uniform":
            raise ValueError(
                f"purity_weight={purity_weight} given, but a uniform transition has no mask to begin with"
            )
        code_shape = self._check_code_shape(code_shape)
        shape, conditions, keep = self.check_request(
            batch_size, code_shape, conditions, generator, (known_codes, known_mask), guidance_scale,
            (negative_encoder_hidden_states, negative_encoder_attention_mask),
        )  # fmt: skip

        def step(states: torch.Tensor, time: int) -> torch.Tensor:
            log_codes = self.predict_guided(states, time, conditions, guidance_scale)
            log_codes = narrow(log_codes, temperature, top_k, top_p, truncation_rate)  # (batch, *grid, codebook_size)
            if purity_weight is not None and scheduler.previous(time) >= 0:
                return step_by_purity(scheduler, log_codes, time, states, purity_weight, generator)
            return scheduler.step(log_codes.movedim(-1, 1), time, states, generator)[0]

        states = keep(scheduler.start(shape, generator, self.device))
        times = scheduler.timesteps.tolist()
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            for time in times if progress_bar is None else progress_bar(times):
                states = keep(step(states, time))
        return states

    def predict_guided(self, states: torch.Tensor, time: int, conditions: dict, guidance_scale: float) -> torch.Tensor:
        """`predict` at one time, `guided`; conditions as of `guidance_conditions`."""

        def predict(states: torch.Tensor) -> torch.Tensor:
            return self.predict(states, torch.full((len(states),), time, device=self.device), **conditions)

        log_codes = self.guided(predict, states, guidance_scale)
        return log_codes if guidance_scale == 1 else log_codes.log_softmax(-1)

    def take_scheduler(self, scheduler: Any, num_inference_steps: int | None) -> DiscreteDiffusionScheduler:
        """A scheduler, set to that many steps; by default that of the config.

        Raises:
            ValueError: one of other states or of more time than the network knows, or more steps than there are.
        """
        config = self.config
        if scheduler is None:
            scheduler = config.make_scheduler()
        check_scheduler(scheduler, DiscreteDiffusionScheduler)
        theirs, ours = scheduler.transitions, self.transitions
        if (theirs.codebook_size, theirs.num_timesteps) != (ours.codebook_size, ours.num_timesteps):
            raise ValueError(
                f"scheduler must have num_vec_classes={ours.codebook_size + 1} and num_train_timesteps="
                f"{ours.num_timesteps}, as this prior, got {theirs.codebook_size + 1} and {theirs.num_timesteps}"
            )
        scheduler.set_timesteps(config.num_timesteps if num_inference_steps is None else num_inference_steps)
        return scheduler


def narrow(
    log_codes: torch.Tensor, temperature: float, top_k: int | None, top_p: float | None, truncation_rate: float
) -> torch.Tensor:
    """Log-probabilities (..., codebook_size) after temperature, top-k, top-p and truncation, in this order."""
    if temperature == 0:
        top_k = 1
    elif temperature != 1:
        log_codes = apply_temperature(log_codes, temperature)
    log_codes = keep_likeliest(log_codes, top_k, top_p)
    if temperature != 1 or top_k is not None or top_p is not None:
        log_codes = log_codes.log_softmax(-1)
    return truncate(log_codes, truncation_rate) if truncation_rate < 1 else log_codes

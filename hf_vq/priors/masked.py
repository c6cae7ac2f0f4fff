"""MaskedPrior: MaskGIT's prior, which learns to fill masked codes and draws a grid in a few steps."""

import functools
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple

from hf_vq.modes import evaluating, fetched
from hf_vq.priors.base import Prior, PriorOutput
from hf_vq.priors.inputs import IGNORED
from hf_vq.priors.masked_scheduler import SCHEDULES, MaskedScheduler, decode_masked, lowest, mask_ratio
from hf_vq.priors.parallel import ParallelNetwork, ParallelPriorConfig, check_scheduler, seeded_uniforms
from hf_vq.priors.sampling import check_sampling_options, draw_uniforms, sample_codes
from hf_vq.ranges import Chance, OneOf, Samples, Seed, Side, Size, TopP, Weight
from hf_vq.registry import register

FEW_STEPS = 12  # of MaskGIT and aMUSEd


class MaskedPriorConfig(ParallelPriorConfig):
    """Config of `MaskedPrior`.

    Args:
        masking_schedule: "cosine" or "linear": how many codes are masked, in training by chance and in the course of
            decoding.
        label_smoothing: in training, the share of the target's mass that all codes have in common (0.1 in the paper);
            at 0 the loss is in nats of the codes alone.
        likelihood_steps: passes of the network in `log_prob`; None: one for each code.
        likelihood_orders: orders of the codes that `log_prob` is a mean over.
        likelihood_seed: of these orders.
        (others): see `ParallelPriorConfig`.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_masked"
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}

    masking_schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    label_smoothing: Chance = 0.0
    likelihood_steps: Samples | None = 16
    likelihood_orders: Samples = 1
    likelihood_seed: Seed = 0


@register
class MaskedPrior(ParallelNetwork, Prior, PreTrainedModel):
    """Masked prior of MaskGIT (https://arxiv.org/abs/2202.04200): each code from all that are not masked.

    It is trained to fill random masks, and draws a grid in a few steps, of which each keeps the codes that the network
    is surest of. So known codes may lie anywhere, and all others see them.
    """

    config_class = MaskedPriorConfig
    config: MaskedPriorConfig
    base_model_prefix = "prior"
    likelihood = "bound"
    sampling_options = (
        "num_inference_steps", "temperature", "top_k", "top_p", "guidance_scale", "choice_temperature",
        "known_codes", "known_mask", "negative_encoder_hidden_states", "negative_encoder_attention_mask", "scheduler",
    )  # fmt: skip

    def __init__(self, config: MaskedPriorConfig):
        super().__init__(config)
        self.build()
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
        context_codes: Sequence[torch.Tensor] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Mask codes, each item a share of its own, and predict them from the rest.

        In training the masks come from torch's generator; in eval mode from the codes themselves, so that a loss is
        the same again.

        Args:
            codes: (batch, *grid) of any integer type.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            labels: (batch, *grid) int64 targets instead of `codes`; where they are -100, codes are not masked.
            return_loss: compute the loss.
            lengths: (batch,) int64, real positions of each item along the first axis of space; what is beyond is
                neither masked nor seen.
            context_codes: the coarser grids, coarse to fine, each (batch, its height, its width) int64.
            encoder_hidden_states: (batch, length, cross_attention_dim), of a prior with text.
            encoder_attention_mask: (batch, length), 1 where these count.

        Returns:
            `PriorOutput`: the mean over items of the mean nats of their masked codes, items weighed by their targets;
            and logits (batch, *grid, codebook_size) of all codes given those not masked.

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
        targets = codes if labels is None else labels
        masked = self.draw_masks(codes, targets != IGNORED, conditions.get("padding_mask"))
        with fetched(self):
            logits = self.run_network(codes.masked_fill(masked, self.mask), **conditions)
        return PriorOutput(self.compute_loss(logits, targets, masked) if return_loss else None, logits)

    def draw_masks(
        self, codes: torch.Tensor, candidates: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Which of the candidates (batch, *grid) to mask: a random share of each item, and one at least."""
        if self.training:
            progress = torch.rand(len(codes), device=codes.device)
            scores = torch.rand(codes.shape, device=codes.device)
        else:
            (progress,), ((scores, _),) = seeded_uniforms(codes, padding_mask, 1)
        candidates = candidates.flatten(1)
        counts = candidates.sum(1) * mask_ratio(progress, self.config.masking_schedule)
        scores = scores.flatten(1).masked_fill(~candidates, torch.inf)
        return (lowest(scores, counts.ceil().clamp(min=1)[:, None]) & candidates).view_as(codes)

    def compute_loss(self, logits: torch.Tensor, targets: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
        """Mean over items, weighed by their targets, of the mean nats of their masked codes.

        Items weigh alike whatever share of theirs was masked, so that accumulated batches, processes and padding
        change nothing.
        """
        weights = (targets != IGNORED).flatten(1).sum(1)
        targets = targets.masked_fill(~masked, IGNORED)
        if self.training and self.config.label_smoothing:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).movedim(-1, 1)
            nats = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.config.label_smoothing)
        else:
            nats = self.tokens.nats(logits, targets)
        means = nats.flatten(1).sum(1) / masked.flatten(1).sum(1).clamp(min=1)
        return (means * weights).sum() / weights.sum()

    @apply_forward_hook
    @torch.no_grad()
    def log_prob(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> torch.Tensor:
        """Log-probability of whole grids drawn in random order, or a bound below it, in eval mode, without gradients.

        `likelihood_orders` orders are fixed by `likelihood_seed`. The codes are rated in each of them, in
        `likelihood_steps` groups of the sizes of the schedule, each group from all before it, its codes independent of
        each other: a distribution over grids. The mean over the orders is a bound below the logarithm of their mean
        probability; with one order it is the logarithm itself. `sample` takes the surest codes first instead: what it
        draws with has no likelihood that could be computed.

        Args:
            codes: (batch, *grid) of any integer type.
            lengths: (batch,) int64, real positions of each item along the first axis of space; None: all.
            conditions: those of `forward`.

        Returns:
            (batch,) nats of the real codes, at most 0.

        Raises:
            ValueError: an argument that does not fit.
        """
        with evaluating(self):
            codes, _, conditions = self.check_inputs(codes, None, lengths, **conditions)
            padding_mask = conditions.get("padding_mask")
            real = torch.ones_like(codes, dtype=torch.bool) if padding_mask is None else padding_mask
            total = torch.zeros(len(codes), device=codes.device)
            for scores in self.order_scores(tuple(codes.shape[1:])).to(codes.device):
                scores = scores.expand_as(codes).masked_fill(~real, torch.inf).flatten(1)
                hidden = real.flatten(1)
                for left in self.codes_left(hidden.sum(1, keepdim=True)):
                    still = lowest(scores, left)
                    shown = hidden & ~still
                    if shown.any():
                        states = codes.masked_fill(hidden.view_as(codes), self.mask)
                        nats = self.tokens.nats(self.run_network(states, **conditions), codes)
                        total = total - nats.flatten(1).masked_fill(~shown, 0).sum(1)
                    hidden = still
        return total / self.config.likelihood_orders

    def order_scores(self, code_shape: tuple[int, ...]) -> torch.Tensor:
        """Numbers (orders, *grid) by which `log_prob` orders codes, the lowest last; those of a place, in any grid."""
        generator = torch.Generator().manual_seed(self.config.likelihood_seed)
        shape = (self.config.likelihood_orders, *cast(tuple, self.config.code_shape))
        scores = torch.rand(shape, generator=generator, dtype=torch.float32)
        return scores[(slice(None), *map(slice, code_shape))]

    def codes_left(self, counts: torch.Tensor) -> list[torch.Tensor]:
        """Of counts (batch, 1) of codes, how many are still hidden after each step of `log_prob`."""
        steps = self.config.likelihood_steps
        if steps is None:
            return [(counts - step).clamp(min=0) for step in range(1, int(counts.max()) + 1)]
        ratios = mask_ratio(torch.arange(1, steps + 1) / steps, self.config.masking_schedule).clamp(min=0).tolist()
        return [(counts * ratio).floor() for ratio in [*ratios[:-1], 0.0]]

    @apply_forward_hook
    @torch.no_grad()
    def sample(
        self,
        batch_size: Samples | None = None,
        code_shape: Sequence[Side] | None = None,
        *,
        num_inference_steps: Samples | None = None,
        temperature: Weight = 1.0,
        top_k: Size | None = None,
        top_p: TopP | None = None,
        guidance_scale: Weight = 1.0,
        choice_temperature: Weight = 4.5,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        negative_encoder_hidden_states: torch.Tensor | None = None,
        negative_encoder_attention_mask: torch.Tensor | None = None,
        scheduler: Any = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Draw codes, in every step those that the network is surest of, in eval mode.

        Args:
            batch_size: number of grids of a prior without conditions; with conditions it is theirs.
            code_shape: the grid; `config.code_shape` by default.
            num_inference_steps: passes of the network, at most as many as codes; by default 12, or as many as codes
                where these are fewer.
            temperature: divides the logits that codes are drawn from; 0 is greedy. How sure the network is of a code
                is always its probability at temperature 1.
            top_k: draw among that many most probable codes.
            top_p: draw among the most probable codes that hold this mass.
            guidance_scale: classifier-free guidance of logits, in one pass; 1 is none. Needs the null class, a null
                text, or a negative text.
            choice_temperature: of the Gumbel noise on how sure the network is, in the first step; it falls to 0 in the
                last (4.5 in MaskGIT, 2 in aMUSEd). At 0 only the surest codes are kept.
            generator: a generator on the CPU or the model's device, or one per grid, which makes each independent of
                the others.
            known_codes: (batch, *grid) of any integer type, read where `known_mask` is True: these codes are kept, and
                all others are drawn in their sight.
            known_mask: (batch, *grid) bool.
            negative_encoder_hidden_states: (batch, length, cross_attention_dim), a text to guide away from.
            negative_encoder_attention_mask: (batch, length) of it.
            scheduler: a `MaskedScheduler` to take the steps with; by default that of the config.
            progress_bar: wraps the loop over steps.
            conditions: those of `forward`, such as `class_labels` (batch,).

        Returns:
            (batch, *grid) int64.

        Raises:
            TypeError: a condition that this prior does not take.
            ValueError: an argument is missing, out of range or of the wrong shape.
            RuntimeError: the network gave logits that are not finite.
        """
        check_sampling_options(temperature, top_k, top_p, guidance_scale)
        code_shape = self._check_code_shape(code_shape)
        scheduler = self.take_scheduler(scheduler, num_inference_steps, code_shape, choice_temperature)
        shape, conditions, keep = self.check_request(
            batch_size, code_shape, conditions, generator, (known_codes, known_mask), guidance_scale,
            (negative_encoder_hidden_states, negative_encoder_attention_mask),
        )  # fmt: skip
        codes = keep(torch.full(shape, self.mask, device=self.device))

        network = functools.partial(self.run_network, **conditions)

        def predict(states: torch.Tensor) -> torch.Tensor:
            return self.guided(network, states.view(shape), guidance_scale).flatten(1, -2)

        def draw(logits: torch.Tensor) -> torch.Tensor:
            uniforms = draw_uniforms(logits.shape[1], shape[0], generator, self.device).T.flatten()
            return sample_codes(logits.flatten(0, 1), uniforms, temperature, top_k, top_p).view(shape[0], -1)

        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            codes = decode_masked(predict, codes.flatten(1), scheduler, generator, progress_bar, draw)
        return codes.view(shape)

    def take_scheduler(
        self,
        scheduler: Any = None,
        num_inference_steps: int | None = None,
        code_shape: tuple[int, ...] | None = None,
        choice_temperature: float = 4.5,
    ) -> MaskedScheduler:
        """A scheduler, set to that many steps for grids of a shape; by default that of the config.

        Raises:
            ValueError: one with another mask, or more steps than codes.
        """
        if scheduler is None:
            scheduler = MaskedScheduler(self.mask, self.config.masking_schedule)
        check_scheduler(scheduler, MaskedScheduler)
        if scheduler.config.mask_token_id != self.mask:
            raise ValueError(
                f"scheduler must have mask_token_id={self.mask}, as this prior, got {scheduler.config.mask_token_id}"
            )
        code_shape = tuple(self.config.code_shape or ()) if code_shape is None else code_shape
        most = prod(code_shape)
        if num_inference_steps is None:
            num_inference_steps = min(FEW_STEPS, most)
        if num_inference_steps > most:
            raise ValueError(
                f"num_inference_steps must be at most {most}, the codes of a grid of {code_shape}, "
                f"got {num_inference_steps}"
            )
        scheduler.set_timesteps(num_inference_steps, (choice_temperature, 0.0))
        return scheduler

"""Priors that draw code after code: the loss, `log_prob` and the cached loop of `sample`."""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, Protocol, cast

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from transformers.utils import can_return_tuple

from hf_vq.modes import evaluating, fetched
from hf_vq.priors.base import Prior, PriorOutput
from hf_vq.priors.causality import check_causality
from hf_vq.priors.inputs import map_tensors
from hf_vq.priors.sampling import check_sampling_options, draw_uniforms, guide
from hf_vq.ranges import Count, Samples, Side, Size, TopP, Weight


class SamplingState(Protocol):
    """What a prior remembers of the codes drawn so far; its work per code does not grow with the grid.

    A state that can take many codes in one pass has a method `prefill(codes)` too: the codes (grids, count) of the
    first positions in drawing order, before any other call.
    """

    def next_logits(self) -> torch.Tensor:
        """Logits (grids, codebook_size) of the next position in drawing order."""

    def append(self, codes: torch.Tensor) -> None:
        """Take the codes (grids,) of that position and go on to the following one."""


class AutoregressivePrior(Prior):
    """A prior whose codes are drawn one by one, each from those before it; before `PreTrainedModel` among the bases.

    A subclass gives `grid_dims` and `predict`; `start_sampling`, so that a code costs less than a whole grid;
    `code_order` where that is not raster order; where it has other conditions than classes, `make_conditions` and a
    `forward` that names them and calls `run_forward`.

    Class attributes:
        reads_lengths: whether `predict` takes `lengths`, since the network must know where an item ends. Otherwise
            padding does no harm as long as it is drawn last, which is checked.
    """

    likelihood = "exact"
    sampling_options: tuple[str, ...] = (
        "temperature", "top_k", "top_p", "guidance_scale", "guidance_steps", "known_codes", "known_mask",
    )  # fmt: skip
    reads_lengths = False
    causal_state: tuple | None = None  # what `check_causality` remembers: how many steps it saw, and in which state

    @classmethod
    def check_contract(cls) -> None:
        super().check_contract()
        if cls.predict is AutoregressivePrior.predict:
            raise TypeError(f"{cls.__name__} must define predict(codes, **conditions)")
        if cls.make_conditions is not Prior.make_conditions and cls.forward is AutoregressivePrior.forward:
            raise TypeError(f"{cls.__name__} has conditions of its own: it must define a forward that names them")

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        lengths: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Logits of every code from the codes drawn before it, and their loss.

        Args:
            codes: (batch, *grid) of any integer type.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            labels: (batch, *grid) int64 targets instead of `codes`; -100 is ignored.
            return_loss: compute the loss.
            lengths: (batch,) int64, real positions of each item along the first axis of space; what is beyond takes no
                part in the loss.

        Returns:
            `PriorOutput` with the loss in mean nats per code and logits (batch, *grid, codebook_size).

        Raises:
            ValueError: codes, classes or targets out of range or of the wrong shape or type, or lengths beyond which
                `code_order` draws codes before those within.
        """
        return self.run_forward(codes, labels, return_loss, lengths, class_labels=class_labels)

    def predict(self, codes: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """Logits (batch, *grid, codebook_size) for checked codes (batch, *grid) and checked conditions."""
        raise NotImplementedError(f"{type(self).__name__} must define predict(codes, **conditions)")

    def start_sampling(self, num_grids: int, code_shape: tuple[int, ...], **conditions: Any) -> SamplingState:
        """An empty state for `num_grids` grids of `code_shape` under checked conditions.

        This one reads the whole grid for every code: right for every prior, and slow. A family has its own.
        """
        return WholeGrids(self, num_grids, code_shape, conditions)

    def code_order(self, code_shape: tuple[int, ...]) -> torch.Tensor | None:
        """Places of the codes in the flattened grid, in the order in which they are drawn; None is raster order."""
        return None

    def drawing_places(self, code_shape: tuple[int, ...]) -> torch.Tensor:
        """`code_order`, written out where it is raster order."""
        order = self.code_order(code_shape)
        return torch.arange(prod(code_shape)) if order is None else order

    def run_forward(
        self,
        codes: torch.Tensor,
        labels: torch.Tensor | None,
        return_loss: bool,
        lengths: torch.Tensor | None = None,
        **conditions: Any,
    ) -> PriorOutput:
        """The common part of `forward`: check, drop conditions in training, predict, loss."""
        codes, labels, conditions = self.check_inputs(codes, labels, lengths, **conditions)
        with fetched(self):
            logits = self.predict(codes, **conditions)
        return PriorOutput(loss=self.compute_loss(logits, codes, labels) if return_loss else None, logits=logits)

    def compute_loss(self, logits: torch.Tensor, codes: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Mean nats per code: `labels` instead of `codes` as targets where given, -100 ignored."""
        return self.tokens.nats(logits, codes if labels is None else labels, reduction="mean")

    def check_inputs(
        self,
        codes: torch.Tensor,
        labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        **conditions: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict]:
        codes, labels, conditions = super().check_inputs(codes, labels, lengths, **conditions)
        if lengths is not None and self.reads_lengths:
            conditions["lengths"] = torch.as_tensor(lengths).to(self.device, torch.int64)
        return codes, labels, conditions

    def check_lengths(self, lengths: torch.Tensor | Sequence[int], codes: torch.Tensor) -> torch.Tensor:
        lengths = super().check_lengths(lengths, codes)
        if not self.reads_lengths and not torch.compiler.is_compiling():
            places = self.drawing_places(tuple(codes.shape[1:])).to(codes.device)
            real = self.real_places(lengths, codes).flatten(1)[:, places]
            if (real[:, 1:] & ~real[:, :-1]).any():
                raise ValueError(
                    f"lengths={lengths.tolist()}: in its code_order, this {type(self).__name__} draws codes beyond "
                    "them before codes within them"
                )
        return lengths

    @apply_forward_hook
    @torch.no_grad()
    def check_likelihood(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> None:
        """Raise a `ValueError` where logits of a code depend on that code or on one drawn later.

        More thorough than the look that `log_prob` takes; see `check_causality` for what it can find.
        """
        with evaluating(self):
            check_causality(self, *self.check_inputs(codes, None, lengths, **conditions), thorough=True)

    @apply_forward_hook  # offloaded weights come to the device, as for forward
    @torch.no_grad()
    def log_prob(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> torch.Tensor:
        """Log-probability of whole grids, in eval mode and without gradients.

        Args:
            codes: (batch, *grid) of any integer type.
            lengths: (batch,) int64, real positions of each item along the first axis of space; None: all.
            conditions: those of `forward`, such as `class_labels` (batch,) int64 where the prior has classes.

        Returns:
            (batch,) nats of the real codes, at most 0.

        Raises:
            ValueError: an argument that does not fit, or a network that sees the codes that it predicts.
        """
        with evaluating(self):
            codes, labels, conditions = self.check_inputs(codes, None, lengths, **conditions)
            check_causality(self, codes, labels, conditions)
            logits = self.predict(codes, **conditions)
        return -self.tokens.nats(logits, codes if labels is None else labels).flatten(1).sum(1)

    @apply_forward_hook
    @torch.no_grad()
    def sample(
        self,
        batch_size: Samples | None = None,
        code_shape: Sequence[Side] | None = None,
        *,
        temperature: Weight = 1.0,
        top_k: Size | None = None,
        top_p: TopP | None = None,
        guidance_scale: Weight = 1.0,
        guidance_steps: Count | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Draw codes one by one in drawing order, in eval mode, with cached activations.

        Args:
            batch_size: number of grids of a prior without conditions; with conditions it is theirs.
            code_shape: the grid; `config.code_shape` by default.
            temperature: divides the logits; 0 is greedy.
            top_k: draw among that many most probable codes.
            top_p: draw among the most probable codes that hold this mass.
            guidance_scale: classifier-free guidance; 1 is none. Needs the null class (`class_dropout_prob` > 0).
            guidance_steps: guide only that many codes from the first on; None guides all.
            generator: a generator on the CPU or the model's device, or one per grid.
            known_codes: (batch, *grid) of any integer type, read where `known_mask` is True: these codes are kept.
                Later positions follow them; earlier ones, drawn before, do not know of them. What all grids know from
                the first position on is not drawn at all: transformers take it in one pass.
            known_mask: (batch, *grid) bool.
            progress_bar: wraps the loop over positions, such as `tqdm` or a pipeline's `progress_bar`.
            conditions: those of `forward`, such as `class_labels` (batch,) of a prior with classes, where
                `num_classes` is the null class if it exists.

        Returns:
            (batch, *grid) int64.

        Raises:
            TypeError: a condition that this prior does not take.
            ValueError: an argument is missing, out of range or of the wrong shape.
            RuntimeError: the network gave logits that are not finite.
        """
        check_sampling_options(temperature, top_k, top_p, guidance_scale, guidance_steps)
        return self.draw_grids(
            batch_size,
            code_shape,
            conditions,
            generator,
            known_codes,
            known_mask,
            progress_bar,
            guidance_scale,
            guidance_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )

    def draw_grids(
        self,
        batch_size: int | None,
        code_shape: Sequence[int] | None,
        conditions: dict,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        known: torch.Tensor | None,
        known_mask: torch.Tensor | None,
        progress_bar: Callable[[Iterable], Iterable] | None,
        guidance_scale: float = 1.0,
        guidance_steps: int | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """`sample` with checked options: the loop over positions. `options` are those of `tokens.draw`."""
        tokens, code_shape = self.tokens, self._check_code_shape(code_shape)
        batch_size, conditions = self._check_batch(batch_size, conditions, code_shape)
        known = self._check_known(known, known_mask, (batch_size, *code_shape))

        guided = guidance_scale != 1
        if guided and not self.can_guide:
            raise ValueError(
                f"guidance_scale={guidance_scale} needs a null class, but this prior was made with "
                f"class_dropout_prob={self.config.class_dropout_prob}"
            )
        copies = 2 if guided else 1  # a second copy of each grid runs without its condition
        if guided:
            null = self.null_conditions(conditions)
            conditions = {name: map_tensors(_joined, value, null[name]) for name, value in conditions.items()}
        num_codes = prod(code_shape)
        if guidance_steps is None:
            guidance_steps = num_codes
        places = self.drawing_places(code_shape).tolist()
        uniforms = draw_uniforms(tokens.draws * num_codes, batch_size, generator, self.device)
        uniforms = uniforms.unflatten(0, (num_codes, tokens.draws)).squeeze(1).unbind()
        codes = torch.empty(batch_size, num_codes, dtype=tokens.dtype, device=self.device)
        first = 0  # step
        if known is not None:
            known = known.to(self.device, tokens.dtype).flatten(1)
            known_mask = cast(torch.Tensor, known_mask).to(self.device).flatten(1)
            first = int(known_mask[:, places].all(dim=0).cumprod(dim=0).sum())
            codes[:, places[:first]] = known[:, places[:first]]
        finite = torch.ones((), dtype=torch.bool, device=self.device)  # looked at once: a look waits for the device
        # the weights' dtype decides, not an autocast region: caches are written in place
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            state = self.start_sampling(copies * batch_size, code_shape, **conditions)
            if 0 < first < num_codes:
                _prefill(state, codes[:, places[:first]].repeat(copies, 1))
            steps = range(first, num_codes)
            for step in steps if progress_bar is None else progress_bar(steps):
                logits, place = state.next_logits(), places[step]
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                finite &= logits.sum().isfinite()
                if guided:
                    conditional, unconditional = logits.chunk(2)
                    logits = guide(conditional, unconditional, guidance_scale if step < guidance_steps else 1.0)
                drawn = tokens.draw(logits, uniforms[step], **options)
                if known is not None:
                    drawn = torch.where(cast(torch.Tensor, known_mask)[:, place], known[:, place], drawn)
                codes[:, place] = drawn
                state.append(drawn.repeat(copies))
        if not finite:
            raise RuntimeError("the prior gave logits that are not finite: its weights or its dtype are at fault")
        return codes.view(batch_size, *code_shape)


class WholeGrids:
    """The state of a prior that remembers nothing but the codes."""

    def __init__(
        self, prior: AutoregressivePrior, num_grids: int, code_shape: tuple[int, ...], conditions: dict
    ) -> None:
        self.prior, self.conditions, self.step = prior, conditions, 0
        self.codes = torch.zeros(num_grids, *code_shape, dtype=prior.tokens.dtype, device=prior.device)
        self.places = prior.drawing_places(code_shape).tolist()

    def next_logits(self) -> torch.Tensor:
        return self.prior.predict(self.codes, **self.conditions).flatten(1, -2)[:, self.places[self.step]]

    def append(self, codes: torch.Tensor) -> None:
        self.codes.view(len(codes), -1)[:, self.places[self.step]] = codes
        self.step += 1


def _prefill(state: SamplingState, codes: torch.Tensor) -> None:
    """Take the first codes (grids, count), in one pass where the state can."""
    if hasattr(state, "prefill"):
        state.prefill(codes)
        return
    for column in codes.unbind(1):
        state.next_logits()
        state.append(column)


def _joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.cat([one, other])

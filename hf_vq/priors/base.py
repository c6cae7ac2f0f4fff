"""What every prior shares: the loss, `log_prob` and the loop of `sample`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers.utils import ModelOutput

from hf_vq.hub import PushMixin
from hf_vq.priors.inputs import IGNORED, InputChecks
from hf_vq.priors.sampling import check_sampling_options, draw_uniforms, guide, sample_codes


@dataclass
class PriorOutput(ModelOutput):
    """Result of a prior.

    Attributes:
        loss: scalar, mean nats per code that is not ignored.
        logits: (batch, *grid, codebook_size), each from the codes before it in raster order.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SamplingState(Protocol):
    """What a prior remembers of the codes drawn so far; its work per code does not grow with the grid.

    A state that can take many codes in one pass has a method `prefill(codes)` too: the codes (grids, count) of the
    first positions in drawing order, before any other call.
    """

    def next_logits(self) -> torch.Tensor:
        """Logits (grids, codebook_size) of the next position in raster order."""

    def append(self, codes: torch.Tensor) -> None:
        """Take the codes (grids,) of that position and go on to the following one."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and afterwards each of its modules back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class PriorMixin(InputChecks, PushMixin):
    """The part of a prior that does not depend on its network; stands before `PreTrainedModel` among the bases.

    A prior gives `grid_dims`, `predict` and `start_sampling`, and a `forward` that names its conditions. Where it has
    others than classes, it names them in `condition_names` and checks them in `check_condition`.

    Class attributes:
        exact_log_prob: whether `log_prob` is the log-likelihood itself, not a bound below it.
    """

    main_input_name = "codes"
    condition_names: tuple[str, ...] = ("class_labels",)
    # Grids are full, so the mean over accumulated batches is the mean of their means: Trainer may simply average.
    # (What it would pass as num_items_in_batch counts shifted `labels`, which are not our targets.)
    accepts_loss_kwargs = False
    exact_log_prob = True
    grid_dims: int

    def predict(self, codes: torch.Tensor, **conditions) -> torch.Tensor:
        """Logits (batch, *grid, codebook_size) for checked codes (batch, *grid) and checked conditions."""
        raise NotImplementedError

    def start_sampling(self, num_grids: int, code_shape: tuple[int, ...], **conditions) -> SamplingState:
        """An empty state for `num_grids` grids of `code_shape` under checked conditions."""
        raise NotImplementedError

    def code_order(self, code_shape: tuple[int, ...]) -> torch.Tensor | None:
        """Places of the codes in the flattened grid, in the order in which they are drawn; None is raster order."""
        return None

    @classmethod
    def from_single_file(cls, path, config=None, format=None):
        """A checkpoint of another project as a prior of this class; arguments and errors as of autoencoders'."""
        from hf_vq.converters import load_single_file

        return load_single_file(cls, path, config, format)

    @apply_forward_hook  # offloaded weights come to the device, as for forward
    @torch.no_grad()
    def log_prob(self, codes: torch.Tensor, **conditions) -> torch.Tensor:
        """Log-probability of whole grids, in eval mode and without gradients.

        Args:
            codes: (batch, *grid) int64.
            conditions: those of `forward`, such as `class_labels` (batch,) int64 where the prior has classes.

        Returns:
            (batch,) nats, at most 0.
        """
        self.check_codes(codes)
        conditions = self.check_conditions(conditions, codes.shape[0], tuple(codes.shape[1:]))
        with evaluating(self):
            logits = self.predict(codes, **conditions)
        return -_cross_entropy(logits, codes, reduction="none").flatten(1).sum(1)

    @apply_forward_hook
    @torch.no_grad()
    def sample(
        self,
        batch_size: int | None = None,
        code_shape: Sequence[int] | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float = 1.0,
        guidance_steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **conditions,
    ) -> torch.Tensor:
        """Draw codes one by one in raster order, in eval mode, with cached activations.

        Args:
            batch_size: number of grids of a prior without conditions; with conditions it is theirs.
            code_shape: the grid; `config.code_shape` by default.
            temperature: divides the logits; 0 is greedy.
            top_k: draw among that many most probable codes.
            top_p: draw among the most probable codes that hold this mass.
            guidance_scale: classifier-free guidance; 1 is none. Needs the null class (`class_dropout_prob` > 0).
            guidance_steps: guide only that many codes from the first on; None guides all.
            generator: a generator on the CPU or the model's device, or one per grid.
            known_codes: (batch, *grid) int64, read where `known_mask` is True: these codes are kept. Later positions
                follow them; earlier ones, drawn before, do not know of them. What all grids know from the first
                position on is not drawn at all: transformers take it in one pass.
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
        code_shape = self._check_code_shape(code_shape)
        batch_size, conditions = self._check_batch(batch_size, conditions, code_shape)
        self._check_known(known_codes, known_mask, (batch_size, *code_shape))

        guided = guidance_scale != 1
        if guided and not self.can_guide:
            raise ValueError(
                f"guidance_scale={guidance_scale} needs a null class, but this prior was made with "
                f"class_dropout_prob={self.config.class_dropout_prob}"
            )
        copies = 2 if guided else 1  # a second copy of each grid runs without its condition
        if guided:
            conditions = _side_by_side(conditions, self.null_conditions(conditions))
        num_codes = prod(code_shape)
        if guidance_steps is None:
            guidance_steps = num_codes
        order = self.code_order(code_shape)
        places = list(range(num_codes)) if order is None else order.tolist()
        uniforms = draw_uniforms(num_codes, batch_size, generator, self.device)
        codes = torch.empty(batch_size, num_codes, dtype=torch.int64, device=self.device)
        first = 0  # step
        if known_codes is not None:
            known_codes, known_mask = (x.to(self.device).flatten(1) for x in (known_codes, known_mask))
            first = int(known_mask[:, places].all(dim=0).cumprod(dim=0).sum())
            codes[:, places[:first]] = known_codes[:, places[:first]]
        finite = torch.ones((), dtype=torch.bool, device=self.device)  # looked at once: a look waits for the device
        # the weights' dtype decides, not an autocast region: caches are written in place
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            state = self.start_sampling(copies * batch_size, code_shape, **conditions)
            if 0 < first < num_codes:
                _prefill(state, codes[:, places[:first]].repeat(copies, 1))
            steps = range(first, num_codes)
            for step in steps if progress_bar is None else progress_bar(steps):
                logits, place = _at_least_float32(state.next_logits()), places[step]
                finite &= logits.sum().isfinite()
                if guided:
                    conditional, unconditional = logits.chunk(2)
                    logits = guide(conditional, unconditional, guidance_scale if step < guidance_steps else 1.0)
                drawn = sample_codes(logits, uniforms[step], temperature, top_k, top_p)
                if known_codes is not None:
                    drawn = torch.where(known_mask[:, place], known_codes[:, place], drawn)
                codes[:, place] = drawn
                state.append(drawn.repeat(copies))
        if not finite:
            raise RuntimeError("the prior gave logits that are not finite: its weights or its dtype are at fault")
        return codes.view(batch_size, *code_shape)

    def run_forward(
        self, codes: torch.Tensor, labels: torch.Tensor | None, return_loss: bool, **conditions
    ) -> PriorOutput:
        """The common part of `forward`: check, drop classes in training, predict, loss."""
        conditions = self.check_inputs(codes, labels, **conditions)
        logits = self.predict(codes, **conditions)
        return PriorOutput(loss=self.compute_loss(logits, codes, labels) if return_loss else None, logits=logits)

    def check_inputs(self, codes: torch.Tensor, labels: torch.Tensor | None, **conditions) -> dict:
        """Check what `forward` got; checked conditions, in training with some classes dropped."""
        self.check_codes(codes, labels)
        conditions = self.check_conditions(conditions, codes.shape[0], tuple(codes.shape[1:]))
        if "class_labels" in conditions:
            conditions["class_labels"] = self.drop_class_labels(conditions["class_labels"])
        return conditions

    @property
    def can_guide(self) -> bool:
        """Whether there is a null class to guide away from."""
        return self.config.class_dropout_prob > 0

    def null_conditions(self, conditions: dict) -> dict:
        """What guidance compares with, given checked conditions: the null class, all else as it is."""
        return {**conditions, "class_labels": torch.full_like(conditions["class_labels"], self.config.num_classes)}

    def compute_loss(self, logits: torch.Tensor, codes: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Mean nats per code: `labels` instead of `codes` as targets where given, -100 ignored."""
        return _cross_entropy(logits, codes if labels is None else labels)

    def drop_class_labels(self, class_labels: torch.Tensor | None) -> torch.Tensor | None:
        """In training, replace each label by the null class with probability `class_dropout_prob`."""
        if not self.training or self.config.class_dropout_prob == 0:
            return class_labels
        dropped = torch.rand(class_labels.shape, device=class_labels.device) < self.config.class_dropout_prob
        return class_labels.masked_fill(dropped, self.config.num_classes)


def _prefill(state: SamplingState, codes: torch.Tensor) -> None:
    """Take the first codes (grids, count), in one pass where the state can."""
    if hasattr(state, "prefill"):
        state.prefill(codes)
        return
    for column in codes.unbind(1):
        state.next_logits()
        state.append(column)


def _side_by_side(conditions: dict, others: dict) -> dict:
    """Two sets of conditions as one of twice the batch."""
    return {
        name: tuple(map(torch.cat, zip(value, others[name], strict=True)))
        if isinstance(value, tuple)
        else torch.cat([value, others[name]])
        for name, value in conditions.items()
    }


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return F.cross_entropy(
        _at_least_float32(logits).movedim(-1, 1), targets, ignore_index=IGNORED, reduction=reduction
    )

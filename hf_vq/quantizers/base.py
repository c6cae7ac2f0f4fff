"""What every quantizer answers, and what every quantizer needs: rows, projections, state that stays float32."""

import contextlib
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from hf_vq.arguments import check_own, checked
from hf_vq.grids import as_int64
from hf_vq.modes import InferenceVerbs
from hf_vq.quantizers.checks import check_mask, constructor_arguments, telling_size
from hf_vq.quantizers.fitted import FittedLatents
from hf_vq.quantizers.gradients import masked_mse, straight_through, widened
from hf_vq.quantizers.nearest import widest_float
from hf_vq.ranges import Codebook, Width


@dataclass
class QuantizerOutput(ModelOutput):
    """Result of a quantizer.

    Attributes:
        latents: (batch, dim, *grid) quantized; gradients pass to the latents that came in.
        codes: (batch, *grid) int64; (batch, num_levels, *grid) where there are levels.
        loss: scalar, the weighted sum of this quantizer's terms.
        losses: the terms by name, before weighting.
    """

    latents: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


class Quantizer(InferenceVerbs, nn.Module):
    """Base of all quantizers: latents (batch, dim, *grid) to codes (batch, *grid) and back.

    A subclass works on rows, one per grid position: it defines `_codes` and `_vectors`, and `_quantize` where
    one commitment loss is not all of its training.

    Args:
        codebook_size: number of codes, of one level where there are several; at most 2^63.
        dim: width of the latents.
        code_dim: width in which codes are chosen; learned linear maps lead there and back where it is given.

    Attributes:
        num_levels: codes per grid position; with more than one, codes have a levels axis after the batch.
        initialized: whether the codebook has started (by k-means), needs no start, or was loaded. A class whose
            codebook is to start sets it False, and True when it has started; one that is made of others answers for
            them. What has not started says so in its state dict, by `unstarted`, a key that no other has.
        codebook_updates: when training forwards change the state by statistics: "forward" (each), "deferred"
            (they gather until `update_codebook()`) or "off".
        nonfinite_rows: on a GPU, how many latents with NaN or infinity were met. Their codes mean nothing, the loss
            is NaN and the statistics leave them out; on the CPU they raise a RuntimeError.
        stock_compatible: whether diffusers' own quantizer gives the same codes from `embedding.weight` alone.
        fitted: moves and scales latents to where the codes lie (`FittedLatents`), or None.
        latent_spreads: of a fixed grid, the standard deviation of each channel that it is made for, or None.

    Class attributes:
        quantizer_type: the name in configs; `@register("my_type")` sets it.
        can_be_level: whether it may be a level of a residual quantizer: it gives one code per position, and learns by
            its own loss and statistics, since the sum of the levels passes gradients by.
    """

    nonfinite_rows: torch.Tensor
    unstarted: torch.Tensor
    _one: torch.Tensor
    registry_kind = "quantizer"
    inference_verbs = ("tokenize", "detokenize")
    quantizer_type: str | None = None
    can_be_level = True
    num_levels = 1
    codebook_updates = "forward"
    stock_compatible = False
    latent_spreads: Any = None
    fitted: FittedLatents | None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _telling_size(vars(cls)["__init__"])  # type: ignore[method-assign]
        check_own(cls, "__init__")
        if "detokenize" in vars(cls):  # one with a way of its own gets codes as the others do
            cls.detokenize = _of_any_integers(cls.detokenize)  # type: ignore[method-assign]
        if isinstance(vars(cls).get("initialized"), bool):
            cls._initialized = vars(cls)["initialized"]
            del cls.initialized

    @checked
    def __init__(self, codebook_size: Codebook, dim: Width, code_dim: Width | None = None):
        super().__init__()
        self.codebook_size, self.dim, self.code_dim = codebook_size, dim, code_dim or dim
        self.project_in = nn.Identity() if code_dim is None else ExactLinear(dim, code_dim)
        self.project_out = nn.Identity() if code_dim is None else ExactLinear(code_dim, dim)
        self.fitted = None
        self.register_buffer("unstarted", torch.ones((), dtype=torch.int64), persistent=not self._initialized)
        self.register_buffer("nonfinite_rows", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("_one", torch.ones((), dtype=torch.float32), persistent=False)  # device and dtype

    @classmethod
    def check_contract(cls) -> None:
        """Raise a TypeError that says what a class lacks to be registered."""
        if constructor_arguments(cls)[:2] != ["codebook_size", "dim"]:
            raise TypeError(
                f"the constructor of {cls.__name__} must begin with codebook_size, dim; it takes "
                f"{', '.join(constructor_arguments(cls)) or 'nothing'}"
            )
        for name, verb in (("_codes", "tokenize"), ("_vectors", "detokenize")):
            if all(getattr(cls, each) is getattr(Quantizer, each) for each in (name, verb)):
                raise TypeError(f"{cls.__name__} must define {name}, which its {verb} calls")
        if (cls.initialized is not Quantizer.initialized or not cls._initialized) and all(
            getattr(cls, each) is getattr(Quantizer, each) for each in ("initialize", "_initialize")
        ):
            raise TypeError(f"{cls.__name__} has a codebook to start, by its initialized: it must define _initialize")

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options whose default has changed, at the value that a saved config means which leaves them out.

        New models write them into their config; `registry.with_changed_options` fills in what older ones lack.

        Args:
            options: the options that are given.
        """
        return {}

    @classmethod
    def part_types(cls, options: dict[str, Any]) -> dict[str, str]:
        """Of a quantizer made of others: names of options that hold options of theirs, with their `quantizer_type`."""
        return {}

    @property
    def bits_per_token(self) -> float:
        """Bits that the codes of one grid position can carry."""
        return self.num_levels * math.log2(self.codebook_size)

    _initialized = True

    @property
    def initialized(self) -> bool:
        return self._initialized

    @initialized.setter
    def initialized(self, value: bool) -> None:
        self._initialized = bool(value)
        self.register_buffer("unstarted", self.unstarted, persistent=not value)

    @property
    def started(self) -> bool:
        """Whether the codes are learned ones, or need no learning; a codebook to start, before it has, is random."""
        return bool(self.initialized)

    def forward(
        self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None, **options: Any
    ) -> QuantizerOutput:
        """Quantizes latents.

        Args:
            latents: (batch, dim, *grid).
            padding_mask: (batch, *grid) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            QuantizerOutput.

        Raises:
            ValueError: latents or a mask of the wrong shape.
            RuntimeError: latents with NaN or infinity (on the CPU).
        """
        if self.training and not self.initialized and not torch.compiler.is_compiling():
            self.initialize(latents, padding_mask)
        with full_precision(latents):
            rows, valid, finite = self._rows(latents, padding_mask)
            counted = valid
            if finite is not None:
                self.nonfinite_rows += (~finite).sum()
                counted = finite if valid is None else valid & finite
            moving = self.fitted if self.training and self.codebook_updates != "off" else None
            fitted = self._fit(rows if moving is None else moving.follow(rows, counted))
            quantized, codes, loss, losses = self._quantize(fitted, valid, counted, latents.shape[0], **options)
            if moving is not None:
                moving.record(rows, counted, self.codebook_updates == "deferred")
            if finite is not None:
                loss = torch.where(finite.all(), loss, torch.nan)
            quantized = to_grid(self.project_out(quantized), latents)
        return QuantizerOutput(latents=quantized, codes=self._code_grid(codes, latents), loss=loss, losses=losses)

    @torch.no_grad()
    def tokenize(
        self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        """Latents (batch, dim, *grid) to codes (batch, *grid) or (batch, num_levels, *grid), int64."""
        with full_precision(latents):
            rows, _, finite = self._rows(latents, padding_mask)
            if finite is not None and not finite.all():
                raise RuntimeError(NONFINITE)
            return self._code_grid(self._codes(self._fit(rows), **options), latents)

    def detokenize(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes, of any integer type, to quantized latents (batch, dim, *grid).

        Raises:
            ValueError: codes that are no integers, outside [0, codebook_size), or with too many levels.
        """
        rows_of_codes, shape = self._code_rows(codes)
        with full_precision(codes):
            rows = self.project_out(self._vectors(rows_of_codes))
        return rows.view(*shape, rows.shape[-1]).movedim(-1, 1)

    @torch.no_grad()
    def initialize(self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None) -> bool:
        """Starts the codebook from these latents, unless it needs no start, has started or was loaded.

        Returns:
            bool: whether it did.

        Raises:
            ValueError: latents or a mask of the wrong shape, or nothing but padding.
        """
        if self.initialized:
            return False
        with full_precision(latents):
            rows, valid, _ = self._rows(latents, padding_mask)
            if valid is not None and not valid.any():
                raise ValueError("padding_mask is False everywhere: there is nothing that a codebook could start from")
            rows = rows if valid is None else rows[valid]
            fitted = self.fitted is not None and self.fitted.start(rows)
            return self._initialize(self._fit(rows)) or fitted

    def mean_vector(self) -> torch.Tensor:
        """The average quantized latent, (dim,): what stands for a code that is not known."""
        return torch.zeros(self.dim, device=self._one.device)

    def residual_scale(self, index: int) -> float | torch.Tensor:
        """Size of this quantizer's code vectors at level `index` of a residual quantizer; learned ones adapt."""
        return 1.0

    def residual_input(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, dim) as the first level of a residual quantizer gets them."""
        return rows

    def update_codebook(self) -> None:
        """Applies what training forwards gathered since the last update (`codebook_updates = "deferred"`)."""
        if self.fitted is not None:
            self.fitted.update()

    def resize(self, codebook_size: int) -> torch.Tensor:
        """Changes the number of codes; see `CodebookSurgery`."""
        raise ValueError(f"{type(self).__name__} has no learned codebook to resize to {codebook_size}")

    @torch.no_grad()
    def derive_buffers(self, missing: set[str]) -> set[str]:
        """Fills buffers that a loaded file lacks and that follow from the rest, in place; called after all is loaded.

        A subclass with a buffer that older files lack fills it here, and adds what its base returns.

        Args:
            missing: names of parameters and buffers of this quantizer, those of its parts among them.

        Returns:
            The names that it filled. Loading refuses files that lack any other parameter or saved buffer.
        """
        derived = missing & {"nonfinite_rows", UNSTARTED, "_one"}
        for name in derived:  # not saved: transformers leaves them without values
            getattr(self, name).fill_(name != "nonfinite_rows")
        return derived

    def finish_loading(self, missing: list[str]) -> None:
        """Called after a checkpoint was loaded, with the names of this quantizer's tensors that it lacked."""
        self.derive_buffers(set(missing))
        if self.initialized and self._was_unstarted(set(missing)):
            self.initialized = False
        if self.fitted is not None:
            self.fitted.finish_loading()

    def expect_keys(self, stored: set[str]) -> None:
        """Called before a file is loaded, with the names of this quantizer's tensors in it: they tell of its start."""
        if stored and type(self).initialized is Quantizer.initialized:  # else its parts tell
            self.initialized = UNSTARTED not in stored

    def _load_from_state_dict(self, state_dict, prefix, *args):
        stored = {name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
        self.expect_keys(stored)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if stored and self.initialized and self._was_unstarted(self._buffers.keys() - stored):
            self.initialized = False

    def _was_unstarted(self, missing):
        """Whether values say that a codebook has not started, as before there was a key for that; puts them right.

        Args:
            missing: names of tensors that were not loaded.
        """
        return False

    def _quantize(self, rows, valid, counted, batch_size):
        """Rows (n, code_dim) to (quantized rows with a gradient, codes (n,) or (n, num_levels), loss, losses).

        Here straight through, with a commitment loss that draws latents to their code vectors.

        Args:
            valid: (n,) bool, rows that count in losses; None: all.
            counted: (n,) bool, rows that count in statistics; None: all.
            batch_size: items that the n rows come from.
        """
        codes = self._codes(rows)
        vectors = self._vectors(codes)
        loss = masked_mse(rows, vectors.detach(), valid)
        return straight_through(rows, vectors), codes, loss, {"commitment": loss}

    def _codes(self, rows):
        """Codes (n,) or (n, num_levels) of rows (n, code_dim)."""
        raise NotImplementedError

    def _vectors(self, codes):
        """Rows (n, code_dim) of codes (n,) or (n, levels)."""
        raise NotImplementedError

    def _initialize(self, rows):
        raise NotImplementedError

    def _fit(self, rows):
        return rows if self.fitted is None else self.fitted(rows)

    def _rows(self, latents, padding_mask):
        """Projected rows, which of them are real, and off the CPU which are finite; None where all are."""
        if latents.ndim < 2 or latents.shape[1] != self.dim:
            raise ValueError(f"latents must be (batch, {self.dim}, *grid), got shape {tuple(latents.shape)}")
        rows = latents.movedim(1, -1).reshape(-1, self.dim).contiguous()
        rows = widened(rows)
        valid = self._check_mask(latents, padding_mask)
        if valid is not None:
            rows = torch.where(valid[:, None], rows, 0)
        finite = torch.isfinite(rows).all(dim=1)
        if rows.device.type == "cpu":
            torch._assert_async(finite.all(), NONFINITE)
            return self.project_in(rows), valid, None
        return self.project_in(rows), valid, finite

    def _check_mask(self, latents, padding_mask):
        """The mask as flat rows, (n,) bool, or None."""
        if padding_mask is None:
            return None
        check_mask(padding_mask, (latents.shape[0], *latents.shape[2:]))
        return padding_mask.reshape(-1)

    def _code_grid(self, codes, latents):
        """Codes (n,) or (n, levels) as (batch, *grid) or (batch, levels, *grid)."""
        grid = (latents.shape[0], *latents.shape[2:])
        if codes.ndim == 1:
            return codes.view(grid)
        return codes.view(*grid, codes.shape[1]).movedim(-1, 1)

    def _code_rows(self, codes):
        """Checked codes as (n,) or (n, levels), and the shape (batch, *grid)."""
        codes = read_codes(codes, self.codebook_size)
        return codes.reshape(-1), codes.shape

    def _apply(self, fn, recurse=True):
        """Moves to a device, never to half precision: averages and codebooks stay at least float32.

        (A bfloat16 average of the constant 10 stops at 4.0 with decay 0.999.)
        """

        def move(tensor):
            moved = fn(tensor)
            if moved.dtype in (torch.float16, torch.bfloat16):
                moved = tensor.to(device=moved.device)
            return moved

        return super()._apply(move, recurse)

    def extra_repr(self) -> str:
        return f"codebook_size={self.codebook_size}, dim={self.dim}"


UNSTARTED = "unstarted"  # in the state dict of a quantizer whose codebook has not started
NONFINITE = "latents hold NaN or infinity: what they were made of, or the weights that made them, did"


class ExactLinear(nn.Linear):
    """A linear map of rows whose result depends on nothing else in the batch: it is rounded once, from float64."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        wide = widest_float(rows.device)
        return nn.functional.linear(rows.to(wide), self.weight.to(wide), self.bias.to(wide)).to(rows.dtype)


def _telling_size(constructor):
    @functools.wraps(constructor)
    def construct(self, *arguments, **options):
        with telling_size(arguments[0] if arguments else options.get("codebook_size")):
            constructor(self, *arguments, **options)

    return construct


def _of_any_integers(detokenize):
    @functools.wraps(detokenize)
    def reading(self, codes, *arguments, **options):
        return detokenize(self, as_int64("codes", codes), *arguments, **options)

    return reading


def full_precision(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which autocast does not touch what a code depends on."""
    if not torch.amp.is_autocast_available(tensor.device.type):
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def to_grid(rows: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Rows (n, dim) back to the shape and dtype of `latents`; what float16 cannot hold becomes its largest number."""
    if latents.dtype == torch.float16:
        largest = torch.finfo(latents.dtype).max
        rows = rows.clamp(-largest, largest)
    return rows.view(latents.shape[0], *latents.shape[2:], rows.shape[1]).movedim(-1, 1).to(latents.dtype)


def read_codes(codes: torch.Tensor, codebook_size: int, lowest: int = 0) -> torch.Tensor:
    """Codes of any integer type as int64; a ValueError unless they are integers in [lowest, codebook_size)."""
    codes = as_int64("codes", codes)
    if codes.numel() and not (codes.min() >= lowest and codes.max() <= codebook_size - 1):  # the size may be 2**63
        raise ValueError(
            f"codes must be in [{lowest}, {codebook_size}), got {codes.min().item()} to {codes.max().item()}"
        )
    return codes

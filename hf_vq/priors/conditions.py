"""What codes may depend on: classes and other labels, prompts, features, codes of coarser grids; one contract for all.

A prior makes its conditions from its config (`Prior.make_conditions`). One that a config leaves out stays in the list,
so that it is refused by name and not taken for a slip of the keyboard.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from hf_vq.grids import as_int64
from hf_vq.priors.config import PriorConfig, SpeakerConfig
from hf_vq.priors.inputs import check_values

NO_TOKEN = -1  # in padded prompts: nothing here


class Condition:
    """One thing that codes may depend on.

    Args:
        name: the keyword of `forward`, `log_prob` and `sample`.
        taken: whether this prior takes it.
        having: how a message says that it does, as "has num_classes=3".
        lacking: how a message says that it does not, as "has no classes (num_classes=0)".
        optional: whether it may be left out.
        dropout_prob: chance that training leaves it out of an item; above 0, guidance can leave it out too.
        null_value: what then stands in its place.
    """

    def __init__(
        self,
        name: str,
        taken: bool = True,
        having: str = "was made with them",
        lacking: str = "was made without them",
        optional: bool = False,
        dropout_prob: float = 0.0,
        null_value: int = 0,
    ):
        self.name, self.taken, self.having, self.lacking, self.optional = name, taken, having, lacking, optional
        self.dropout_prob, self.null_value = dropout_prob, null_value

    def check(self, value: Any, batch_size: int | None = None, code_shape: tuple[int, ...] | None = None) -> Any:
        """A value as a tensor or a tuple of them; None where there is none and none is needed.

        Args:
            value: what the caller gave.
            batch_size: items that it must be for; None: any number.
            code_shape: the grid that it must fit; None: any.

        Raises:
            ValueError: it is missing, not wanted, of the wrong type or shape, or out of range.
        """
        if not self.taken:
            if value is not None:
                raise ValueError(f"{self.name} given, but this prior {self.lacking}")
            return None
        if value is None:
            if self.optional:
                return None
            raise ValueError(f"{self.name} missing: this prior {self.having}")
        return self.check_value(value, batch_size, code_shape)

    def check_value(self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None) -> Any:
        """`check` of a value that is there."""
        raise NotImplementedError(f"{type(self).__name__} must say in check_value what it takes")

    def drop(self, value: Any) -> Any:
        """A checked value, with some items left out by the global random numbers."""
        if self.dropout_prob == 0:
            return value
        dropped = torch.rand(len(value), *[1] * (value.ndim - 1), device=value.device) < self.dropout_prob
        return value.masked_fill(dropped, self.null_value)

    def null(self, value: Any) -> Any:
        """A checked value with all items left out, or the value itself where training never left any out."""
        return value if self.dropout_prob == 0 else torch.full_like(value, self.null_value)

    def pick(self, item: dict) -> Any:
        """What an item or a batch of a data set holds of it; None: nothing that this prior takes."""
        return item.get(self.name) if self.taken else None

    def check_integers(self, value: Any) -> torch.Tensor:
        """An int64 tensor of whole numbers of any type; a `ValueError` for anything else."""
        return as_int64(self.name, torch.as_tensor(value))


class LabelCondition(Condition):
    """A whole number in [0, size) for each item; a number alone is a batch of one.

    Args:
        name: see `Condition`.
        size: how many there are.
        options: of `Condition`.
    """

    def __init__(self, name: str, size: int, **options: Any):
        super().__init__(name, **options)
        self.size = size

    def check_value(self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None) -> torch.Tensor:
        labels = self.check_integers(value)
        if labels.ndim == 0 and batch_size is None:
            labels = labels[None]
        if labels.ndim != 1 or len(labels) == 0 or batch_size not in (None, len(labels)):
            raise ValueError(f"{self.name} must be ({batch_size or 'batch'},), got {tuple(labels.shape)}")
        check_values(self.name, labels, self.size)
        return labels


def class_condition(config: PriorConfig) -> LabelCondition:
    """`class_labels` of a `PriorConfig`; training drops some to the null class, whose number is `num_classes`."""
    return LabelCondition(
        "class_labels",
        config.num_class_embeddings,
        taken=config.num_classes > 0,
        having=f"has num_classes={config.num_classes}",
        lacking="has no classes (num_classes=0)",
        dropout_prob=config.class_dropout_prob,
        null_value=config.num_classes,
    )


def speaker_condition(config: SpeakerConfig) -> LabelCondition:
    """`speaker_labels` of a `SpeakerConfig`; training drops some to the null speaker, `num_speakers`."""
    return LabelCondition(
        "speaker_labels",
        config.num_speaker_embeddings,
        taken=config.num_speakers > 0,
        having=f"has num_speakers={config.num_speakers}",
        lacking="has no speakers (num_speakers=0)",
        dropout_prob=config.speaker_dropout_prob,
        null_value=config.num_speakers,
    )


class PromptCondition(Condition):
    """Text tokens in [0, num_tokens), `prompt_ids` (batch, length).

    Args:
        num_tokens: size of the vocabulary; 0 is a prior without text.
        longest: most tokens of a prompt.
        padded: fill prompts up to `longest` with -1, which is no token; otherwise all of a batch are of one length.
        options: of `Condition`.
    """

    def __init__(self, num_tokens: int, longest: int, padded: bool, **options: Any):
        super().__init__("prompt_ids", taken=num_tokens > 0, null_value=NO_TOKEN, **options)
        self.num_tokens, self.longest, self.padded = num_tokens, longest, padded

    def check_value(self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None) -> torch.Tensor:
        value = self.check_integers(value)
        fits = value.ndim == 2 and value.numel() and value.shape[1] <= self.longest
        if not fits or batch_size not in (None, len(value)):
            lengths = f"at most {self.longest})" if self.padded else f"length) with a length of 1 to {self.longest}"
            raise ValueError(f"prompt_ids must be ({batch_size or 'batch'}, {lengths}, got {tuple(value.shape)}")
        check_values("prompt_ids", value, self.num_tokens, lowest=NO_TOKEN if self.padded else 0)
        return F.pad(value, (0, self.longest - value.shape[1]), value=NO_TOKEN) if self.padded else value


class FeatureCondition(Condition):
    """Floats (batch, *shape).

    Args:
        name: see `Condition`.
        shape: of an item, without its frames.
        num_frames: frames, the last axis, that codes of a length need; None: there is no such axis.
        largest: magnitude that no value may exceed.
        options: of `Condition`.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        num_frames: Callable[[int], int] | None = None,
        largest: float | None = None,
        **options: Any,
    ):
        super().__init__(name, **options)
        self.shape, self.num_frames, self.largest = shape, num_frames, largest

    def check_value(self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None) -> torch.Tensor:
        value = torch.as_tensor(value)
        if not value.is_floating_point():
            raise ValueError(f"{self.name} must be floats, got {value.dtype}")
        shape = self.shape
        if self.num_frames is not None:
            shape += tuple(value.shape[-1:]) if code_shape is None else (self.num_frames(code_shape[0]),)
        fits = value.ndim == 1 + len(shape) and value.shape[1:] == shape
        if not fits or len(value) == 0 or batch_size not in (None, len(value)):
            wanted = ", ".join(map(str, (batch_size or "batch", *shape)))
            raise ValueError(f"{self.name} must be ({wanted}), got {tuple(value.shape)}")
        if self.largest is not None:
            check_magnitude(self.name, value, self.largest)
        return value


class ContextCondition(Condition):
    """Codes of the coarser grids, `context_codes`: a tuple of (batch, *grid) of any integers, coarse to fine.

    Args:
        codebook_sizes: of the coarser grids, coarse to fine; () is none.
        grid_dims: axes of a grid: 2, height and width, or 1, a length.
    """

    def __init__(self, codebook_sizes: list[int], grid_dims: int = 2):
        lacking = "has no coarser grids (context_codebook_sizes=())"
        super().__init__("context_codes", taken=bool(codebook_sizes), lacking=lacking)
        self.codebook_sizes, self.grid_dims = codebook_sizes, grid_dims

    def check(self, value: Any, batch_size: int | None = None, code_shape: tuple[int, ...] | None = None) -> Any:
        if self.taken and value is None:
            return self.check_value(value, batch_size, code_shape)  # which says how many are missing
        return super().check(value, batch_size, code_shape)

    def check_value(
        self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None
    ) -> tuple[torch.Tensor, ...]:
        sizes = self.codebook_sizes
        if not isinstance(value, tuple | list) or len(value) != len(sizes):
            got = len(value) if isinstance(value, tuple | list) else type(value).__name__
            raise ValueError(f"context_codes must be a tuple of {len(sizes)} grids, coarse to fine, got {got}")
        previous: tuple[int, ...] = (1,) * self.grid_dims
        value = tuple(as_int64(f"context_codes[{index}]", codes) for index, codes in enumerate(value))
        for index, (codes, size) in enumerate(zip(value, sizes, strict=True)):
            name = f"context_codes[{index}]"
            if codes.ndim != self.grid_dims + 1:
                wanted = "height, width" if self.grid_dims == 2 else "length"
                raise ValueError(f"{name} must be (batch, {wanted}), got {tuple(codes.shape)}")
            if codes.numel() == 0 or codes.shape[0] != (batch_size or codes.shape[0]):
                raise ValueError(f"{name} must have {batch_size} grids that are not empty, got {tuple(codes.shape)}")
            grid = tuple(codes.shape[1:])
            if any(own < coarser for own, coarser in zip(grid, previous, strict=True)):
                raise ValueError(f"context_codes must be coarse to fine, but {name} has {grid} after {previous}")
            check_values(name, codes, size)
            batch_size, previous = codes.shape[0], grid
        if code_shape is not None and any(own < coarser for own, coarser in zip(code_shape, previous, strict=True)):
            raise ValueError(f"context_codes must be coarser than the codes, {tuple(code_shape)}, got {previous}")
        return value


def check_magnitude(name: str, values: torch.Tensor, largest: float = 1.0) -> None:
    """Raise a `ValueError` unless all values are in [-largest, largest]."""
    if torch.compiler.is_compiling():  # a look at the values would break the graph
        return
    if not (values.abs() <= largest).all():
        raise ValueError(
            f"{name} must be in [{-largest:g}, {largest:g}], got a largest magnitude of {values.abs().max().item()}"
        )

"""What priors check before any work: codes, lengths, conditions, grids and known codes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hf_vq.grids import as_int64
from hf_vq.hosts import PriorHost

IGNORED = -100  # a target that takes no part in the loss, as everywhere in transformers


class InputChecks(PriorHost):
    """Checks of a prior's inputs; it has a `config`, a `device`, a `dtype`, `tokens`, `conditions` and `grid_dims`."""

    grid_dims: int
    tokens: Any
    conditions: tuple[Any, ...]
    has_levels = False  # whether the first axis of a grid holds residual levels, and space begins with the second

    def check_inputs(
        self,
        codes: torch.Tensor,
        labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        **conditions: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict]:
        """Check what `forward` got.

        Returns:
            codes, 0 in the padding that `lengths` tells of; targets, -100 there (None without `labels` and lengths:
            the codes); and conditions, in training with some dropped.

        Raises:
            TypeError: a condition that this prior does not take.
            ValueError: an argument is missing, out of range or of the wrong shape.
        """
        codes, labels = self.read_codes("codes", codes), self.read_codes("labels", labels)
        if lengths is not None and codes.ndim == 1 + self.grid_dims and codes.numel():
            padding = ~self.real_places(self.check_lengths(lengths, codes), codes)
            codes = codes.masked_fill(padding, 0)
            labels = codes if labels is None else labels
            if labels.shape == codes.shape:
                labels = labels.masked_fill(padding, IGNORED)
        self.check_codes(codes, labels)
        conditions = self.check_conditions(conditions, codes.shape[0], tuple(codes.shape[1:]))
        return codes, labels, self.drop_conditions(conditions)

    def read_codes(self, name: str, codes: Any) -> Any:
        """Codes of any integer type as int64, where the elements of this prior are codes; None stays None."""
        return codes if codes is None or self.tokens.dtype.is_floating_point else as_int64(name, codes)

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Raise a `ValueError` unless codes (and targets) that were read are (batch, *grid) in [0, codebook_size)."""
        self.tokens.check(codes, labels, self.grid_dims)

    def check_lengths(self, lengths: torch.Tensor | Sequence[int], codes: torch.Tensor) -> torch.Tensor:
        """Lengths (batch,) int64 on the codes' device.

        Raises:
            ValueError: they are no whole numbers, not one per item, or not from 1 to the size of their axis.
        """
        lengths = as_int64("lengths", torch.as_tensor(lengths))
        if lengths.shape != codes.shape[:1]:
            raise ValueError(f"lengths must be ({len(codes)},), got {tuple(lengths.shape)}")
        check_values("lengths", lengths, codes.shape[1 + self.has_levels] + 1, lowest=1)
        return lengths.to(codes.device)

    def real_places(self, lengths: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Which places are within the lengths (batch,), a mask of the shape of codes (batch, *grid)."""
        axis = 1 + self.has_levels
        within = torch.arange(codes.shape[axis], device=codes.device) < lengths[:, None]
        return within.view(len(codes), *[1] * self.has_levels, -1, *[1] * (codes.ndim - 1 - axis)).expand_as(codes)

    def pick_conditions(self, item: dict) -> dict:
        """What an item or a batch of a data set holds of the conditions that this prior takes."""
        picked = {condition.name: condition.pick(item) for condition in self.conditions}
        return {name: value for name, value in picked.items() if value is not None}

    def check_conditions(
        self, conditions: dict, batch_size: int | None = None, code_shape: tuple[int, ...] | None = None
    ) -> dict:
        """Conditions on the model's device, without those that are None.

        Args:
            conditions: by name.
            batch_size: what they must fit; None: they must fit each other.
            code_shape: the grid that they must fit, where that matters.

        Raises:
            TypeError: a condition that this prior does not take.
            ValueError: one is missing or does not fit.
        """
        takes, checked = self.conditions, {}
        names = [condition.name for condition in takes]
        for name in conditions:
            if name not in names:
                raise TypeError(
                    f"{type(self).__name__} takes no condition {name!r}; it takes {', '.join(names) or 'none'}"
                )
        for condition in takes:
            value = condition.check(conditions.get(condition.name), batch_size, code_shape)
            if value is not None:
                checked[condition.name] = map_tensors(self._to_model, value)
                batch_size = first(value).shape[0]
        return checked

    def drop_conditions(self, conditions: dict) -> dict:
        """In training, checked conditions with some replaced by nothing; otherwise as they are."""
        if not self.training:
            return conditions
        dropped = {c.name: c.drop(conditions[c.name]) for c in self.conditions if c.name in conditions}
        return {**conditions, **dropped}

    def null_conditions(self, conditions: dict) -> dict:
        """What guidance compares with, given checked conditions: without what training has dropped now and then."""
        return {c.name: c.null(conditions[c.name]) for c in self.conditions if c.name in conditions}

    @property
    def can_guide(self) -> bool:
        """Whether there is a null class, or a text left out, to guide away from."""
        return any(condition.dropout_prob > 0 for condition in self.conditions)

    def _to_model(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.device, self.dtype if value.is_floating_point() else torch.int64)

    def _check_batch(self, batch_size: int | None, conditions: dict, code_shape: tuple[int, ...]) -> tuple[int, dict]:
        conditions = self.check_conditions(conditions, None, code_shape)
        if conditions:
            name, value = next(iter(conditions.items()))
            if batch_size is not None:
                raise ValueError(f"batch_size={batch_size} given, but this prior has a condition: give {name} alone")
            return first(value).shape[0], conditions
        if batch_size is None or batch_size < 1:
            raise ValueError(f"batch_size must be at least 1 for a prior without classes, got {batch_size}")
        return batch_size, conditions

    def _check_code_shape(self, code_shape: Sequence[int] | None) -> tuple[int, ...]:
        if code_shape is None:
            code_shape = self.config.code_shape
        if code_shape is None:
            raise ValueError("code_shape missing: neither an argument nor in the config")
        if len(code_shape) != self.grid_dims or any(size < 1 for size in code_shape):
            raise ValueError(f"code_shape must be {self.grid_dims} sizes of at least 1, got {tuple(code_shape)}")
        return tuple(code_shape)

    def _check_known(
        self, known: torch.Tensor | None, mask: torch.Tensor | None, shape: tuple[int, ...]
    ) -> torch.Tensor | None:
        """Known elements as the model takes them, checked."""
        if known is None and mask is None:
            return None
        if known is None or mask is None:
            raise ValueError(f"{self.tokens.known_name} and known_mask go together: one of them is missing")
        if mask.dtype != torch.bool or mask.shape != shape:
            raise ValueError(f"known_mask must be torch.bool {shape}, got {mask.dtype} {tuple(mask.shape)}")
        known = self.read_codes(self.tokens.known_name, known)
        self.tokens.check_known(known, mask, shape)
        return known


def first(value: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The tensor itself, or the first of a tuple."""
    return value[0] if isinstance(value, tuple) else value


def map_tensors(function: Callable, *values: Any) -> Any:
    """A function of tensors, or of the tensors of tuples one by one."""
    return tuple(map(function, *values)) if isinstance(values[0], tuple) else function(*values)


def at_own_lengths(
    lengths: torch.Tensor, size: int, compute: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    """What depends on the length of an item, for items of several lengths; zeros in their padding.

    Args:
        lengths: (batch,).
        size: the length of all, padding included.
        compute: from the rows (n,) of one length and that length to (n, channels, length, ...).

    Returns:
        (batch, channels, size, ...).
    """
    rows, parts = [], []
    for length in lengths.unique().tolist():
        rows.append((lengths == length).nonzero()[:, 0])
        part = compute(rows[-1], length)
        parts.append(F.pad(part, (*[0, 0] * (part.ndim - 3), 0, size - length)))
    return torch.cat(parts)[torch.cat(rows).argsort()]


def check_values(name: str, values: torch.Tensor, size: int, lowest: int = 0) -> None:
    """Raise a `ValueError` unless all values are in [lowest, size)."""
    if torch.compiler.is_compiling():  # a look at the values would break the graph
        return
    low, high = (int(extreme) for extreme in values.aminmax())
    if low < lowest or high >= size:
        raise ValueError(f"{name} must be in [{lowest}, {size}), got {low if low < lowest else high}")

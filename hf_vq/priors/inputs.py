"""What priors check before any work: codes, conditions, grids and known codes."""

from collections.abc import Sequence

import torch

IGNORED = -100  # a target that takes no part in the loss, as everywhere in transformers


class InputChecks:
    """Checks of a prior's inputs; it has a `config`, a `device`, `condition_names` and `grid_dims`."""

    def pick_conditions(self, item: dict) -> dict:
        """What an item or a batch of a data set holds of the conditions that this prior takes."""
        names = [name for name in self.condition_names if name != "class_labels" or self.config.num_classes]
        return {name: item[name] for name in names if name in item}

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
        for name in conditions:
            if name not in self.condition_names:
                raise TypeError(
                    f"{type(self).__name__} takes no condition {name!r}; it takes {', '.join(self.condition_names)}"
                )
        checked = {}
        for name in self.condition_names:
            value = self.check_condition(name, conditions.get(name), batch_size, code_shape)
            if value is not None:
                checked[name] = value
                batch_size = first(value).shape[0]
        return checked

    def check_condition(self, name: str, value, batch_size: int | None, code_shape: tuple[int, ...] | None):
        """One condition, checked and on the model's device; None where the prior needs none."""
        return self.check_class_labels(value, batch_size)

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Raise a `ValueError` unless codes (and targets) are int64 (batch, *grid) in [0, codebook_size)."""
        if codes.dtype != torch.int64:
            raise ValueError(f"codes must be int64, got {codes.dtype}")
        if codes.ndim != 1 + self.grid_dims or codes.numel() == 0:
            raise ValueError(f"codes must be (batch, *grid) with {self.grid_dims} grid axes, got {tuple(codes.shape)}")
        check_range("codes", codes, self.config.codebook_size)
        if labels is None:
            return
        if labels.dtype != torch.int64 or labels.shape != codes.shape:
            raise ValueError(
                f"labels must be int64 of the shape of codes {tuple(codes.shape)}, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        check_range("labels", labels.masked_fill(labels == IGNORED, 0), self.config.codebook_size)

    def check_class_labels(
        self, class_labels: torch.Tensor | Sequence[int] | int | None, batch_size: int | None = None
    ) -> torch.Tensor | None:
        """Labels (batch,) int64 on the model's device, None for a prior without classes.

        Raises:
            ValueError: labels are missing or not wanted, out of range, or not one per item.
        """
        num_classes = self.config.num_classes
        if num_classes == 0:
            if class_labels is not None:
                raise ValueError("class_labels given, but this prior has no classes (num_classes=0)")
            return None
        if class_labels is None:
            raise ValueError(f"class_labels missing: this prior has num_classes={num_classes}")
        class_labels = torch.as_tensor(class_labels)
        if class_labels.ndim == 0 and batch_size is None:
            class_labels = class_labels[None]
        if class_labels.is_floating_point() or class_labels.dtype == torch.bool:
            raise ValueError(f"class_labels must be integers, got {class_labels.dtype}")
        if class_labels.ndim != 1 or len(class_labels) == 0 or batch_size not in (None, len(class_labels)):
            wanted = "(batch,)" if batch_size is None else f"({batch_size},)"
            raise ValueError(f"class_labels must be {wanted}, got {tuple(class_labels.shape)}")
        check_range("class_labels", class_labels, self.config.num_class_embeddings)
        return class_labels.to(self.device, torch.int64)

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
        self, known_codes: torch.Tensor | None, known_mask: torch.Tensor | None, shape: tuple[int, ...]
    ) -> None:
        if known_codes is None and known_mask is None:
            return
        if known_codes is None or known_mask is None:
            raise ValueError("known_codes and known_mask go together: one of them is missing")
        for name, value, dtype in (("known_codes", known_codes, torch.int64), ("known_mask", known_mask, torch.bool)):
            if value.dtype != dtype or value.shape != shape:
                raise ValueError(f"{name} must be {dtype} {shape}, got {value.dtype} {tuple(value.shape)}")
        check_range("known_codes", known_codes.masked_fill(~known_mask, 0), self.config.codebook_size)


def first(value: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The tensor itself, or the first of a tuple."""
    return value[0] if isinstance(value, tuple) else value


def check_range(name: str, values: torch.Tensor, size: int, lowest: int = 0) -> None:
    """Raise a `ValueError` unless all values are in [lowest, size)."""
    if torch.compiler.is_compiling():  # a look at the values would break the graph
        return
    low, high = (int(extreme) for extreme in values.aminmax())
    if low < lowest or high >= size:
        raise ValueError(f"{name} must be in [{lowest}, {size}), got {low if low < lowest else high}")

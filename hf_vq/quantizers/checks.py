"""Checks of arguments, which name the argument and the value."""

import contextlib
import inspect
import re
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import torch

NO_MEMORY = "allocate memory|out of memory|calculation overflowed|Overflow when unpacking"  # in errors of torch
MOST_WEIGHTS = 2**36  # of a learned codebook: 256 GiB in float32


def check_positive_int(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_codebook_fits(codebook_size: int, width: int) -> None:
    """Raise a ValueError for a learned codebook (codebook_size, width) that no memory holds."""
    if codebook_size * width > MOST_WEIGHTS:
        raise ValueError(
            f"codebook_size={codebook_size} is too large for a learned codebook: with {width} numbers a code it takes "
            f"{codebook_size * width * 4 / 2**30:,.0f} GiB; 'finite_scalar' and 'lookup_free' need none"
        )


@contextlib.contextmanager
def telling_size(codebook_size: Any) -> Iterator[None]:
    """Within: an allocation that fails is a ValueError that names the codebook's size."""
    try:
        yield
    except (RuntimeError, MemoryError, TypeError, OverflowError) as error:
        if isinstance(error, MemoryError | OverflowError) or re.search(NO_MEMORY, str(error)):
            raise ValueError(f"codebook_size={codebook_size} needs more memory than there is") from error
        raise


def check_range(low: float, high: float, **values: Any) -> None:
    """Each value must lie in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


def constructor_arguments(quantizer_class: type) -> list[str]:
    """Names of a constructor's arguments in their order, with those that **options hands on to a base class."""
    names: list[str] = []
    for base in quantizer_class.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names += [each.name for each in parameters if each.kind is not each.VAR_KEYWORD and each.name not in names]
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names


def check_mask(padding_mask: Any, shape: tuple[int, ...]) -> None:
    """A padding mask must be a bool tensor of this shape."""
    if not isinstance(padding_mask, torch.Tensor):
        raise ValueError(
            f"padding_mask must be bool of shape {shape} (True = real), a tensor; got {type(padding_mask).__name__}"
        )
    if padding_mask.dtype != torch.bool or tuple(padding_mask.shape) != shape:
        raise ValueError(
            f"padding_mask must be bool of shape {shape} (True = real), got {padding_mask.dtype} of shape "
            f"{tuple(padding_mask.shape)}"
        )

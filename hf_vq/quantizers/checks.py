"""Checks of arguments, which name the argument and the value."""

import torch


def check_positive_int(**values):
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_range(low, high, **values):
    """Each value must lie in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


def check_above(low, **values):
    """Each value must be above `low`."""
    for name, value in values.items():
        if not value > low:
            raise ValueError(f"{name} must be above {low}, got {value!r}")


def check_choice(known, **values):
    """Each value must be one of `known`."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")


def check_mask(padding_mask, shape):
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

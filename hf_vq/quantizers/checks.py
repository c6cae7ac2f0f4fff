"""Checks of constructor arguments, which name the argument and the value."""

from collections.abc import Collection
from typing import Any


def check_positive_int(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_range(low: float, high: float, **values: Any) -> None:
    """Each value must lie in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")


def check_above(low: float, **values: Any) -> None:
    """Each value must be above `low`."""
    for name, value in values.items():
        if not value > low:
            raise ValueError(f"{name} must be above {low}, got {value!r}")


def check_choice(known: Collection, **values: Any) -> None:
    """Each value must be one of `known`."""
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")

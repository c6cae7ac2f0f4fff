"""Figures that do not exist: how they are told in words and in JSON, and that nothing is better or worse than them."""

import math
from typing import Any

REASONS = {  # why a figure is not defined, by the end of its name
    "error_over_variance": "the data have no variance",
    "psnr": "there is no error",
    "ratio": "all codes are equal",
    "ssim": "some are smaller than its window",
}
NOT_DEFINED = "not_defined"  # in JSON: reasons by the name of the figure, which is null


def is_defined(value: Any) -> bool:
    """Whether a figure is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def reason(name: str) -> str:
    """Why a figure of this name is not defined."""
    found = (words for ending, words in REASONS.items() if name.endswith(ending))
    return next(found, "it is no finite number")


def figure_text(name: str, value: Any, form: str = ".4f") -> str:
    """A figure in words.

    Args:
        name: of the figure, which tells why it may not be defined.
        value: a number; None, NaN or infinity where it does not exist.
        form: how the number is written.

    Returns:
        Such as "0.1234", or "not defined: the data have no variance".
    """
    return format(value, form) if is_defined(value) else f"not defined: {reason(name)}"


def plain_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON has them: what is NaN or infinite is null, and `not_defined` says why, in every dict of them."""
    plain = {name: plain_figures(value) if isinstance(value, dict) else value for name, value in figures.items()}
    missing = [name for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]
    if not missing:
        return plain
    reasons = {name: reason(name) for name in missing}
    return {**plain, **dict.fromkeys(missing), NOT_DEFINED: {**plain.get(NOT_DEFINED, {}), **reasons}}

"""Quantizers by name."""

import difflib
from collections.abc import Callable
from typing import Any

from hf_vq.quantizers.base import Quantizer
from hf_vq.quantizers.checks import constructor_arguments
from hf_vq.registry import QUANTIZERS


def make_quantizer(
    quantizer_type: str,
    codebook_size: int,
    dim: int,
    quantizer_config: dict[str, Any] | None = None,
    variant: Callable[[type], type] | None = None,
) -> Quantizer:
    """The quantizer of a name.

    Args:
        quantizer_type: a key of `QUANTIZERS`.
        codebook_size: number of codes; of each level where there are several.
        dim: width of the latents.
        quantizer_config: its other constructor arguments by name.
        variant: makes of the class the one that is built; None: it is built itself.

    Raises:
        ValueError: an unknown type or option, naming the nearest right one.
    """
    if quantizer_type not in QUANTIZERS:
        raise ValueError(f"quantizer_type must be one of {sorted(QUANTIZERS)}, got {quantizer_type!r}")
    quantizer_class = QUANTIZERS[quantizer_type]
    options, known = dict(quantizer_config or {}), option_names(quantizer_class)
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {sorted(known)}"
            raise ValueError(f"quantizer_config: {quantizer_type!r} has no option {name!r}; {hint}")
    return (variant(quantizer_class) if variant else quantizer_class)(codebook_size, dim, **options)


def level_types() -> list[str]:
    """Quantizers that can be a level of a residual one."""
    return sorted(name for name, quantizer_class in QUANTIZERS.items() if quantizer_class.can_be_level)


def option_names(quantizer_class: type) -> set[str]:
    """Constructor arguments after `codebook_size` and `dim`."""
    return set(constructor_arguments(quantizer_class)) - {"codebook_size", "dim"}

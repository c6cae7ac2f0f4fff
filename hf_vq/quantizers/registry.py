"""Quantizers by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
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
            nearest = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {sorted(known)}"
            raise ValueError(f"quantizer_config: {quantizer_type!r} has no option {name!r}; {hint}")
    return (variant(quantizer_class) if variant else quantizer_class)(codebook_size, dim, **options)


def with_changed_options(
    quantizer_type: Any, quantizer_config: dict[str, Any] | None, earlier: bool
) -> dict[str, Any] | None:
    """A config with every option written out whose default has changed, in the quantizers it is made of too.

    Args:
        quantizer_type: a key of `QUANTIZERS`; of another the config stays as it is, for the constructor to refuse.
        quantizer_config: its options.
        earlier: the config was saved: what it leaves out is at the earlier default. Else it is at the present one.
    """
    quantizer_class = QUANTIZERS.get(quantizer_type) if isinstance(quantizer_type, str) else None
    if quantizer_class is None or not isinstance(quantizer_config, Mapping | None):
        return quantizer_config
    options = dict(quantizer_config or {})
    for name, former in quantizer_class.earlier_defaults(options).items():
        options.setdefault(name, former if earlier else option_default(quantizer_class, name))
    for part, part_type in quantizer_class.part_types(options).items():
        completed = with_changed_options(part_type, options.get(part), earlier)
        options.update({part: completed} if completed is not None else {})
    return options or quantizer_config


def without_earlier_options(quantizer_type: Any, quantizer_config: dict[str, Any] | None) -> dict[str, Any] | None:
    """The config that `with_changed_options(earlier=True)` completes to this one, as older versions wrote it."""
    quantizer_class, options = QUANTIZERS.get(quantizer_type), dict(quantizer_config or {})
    if quantizer_class is None or quantizer_config is None:
        return quantizer_config
    for name, former in quantizer_class.earlier_defaults(options).items():
        if options.get(name, former) == former:
            options.pop(name, None)
    for part, part_type in quantizer_class.part_types(options).items():
        if options.get(part) is not None:
            options[part] = without_earlier_options(part_type, options[part])
    return options or None if quantizer_config else quantizer_config


def level_types() -> list[str]:
    """Quantizers that can be a level of a residual one."""
    return sorted(name for name, quantizer_class in QUANTIZERS.items() if quantizer_class.can_be_level)


def option_default(quantizer_class: type, name: str) -> Any:
    """The default of a constructor's argument, which a base class may hold."""
    constructors = (vars(base)["__init__"] for base in quantizer_class.__mro__ if "__init__" in vars(base))
    found = (inspect.signature(constructor).parameters.get(name) for constructor in constructors)
    return next(parameter.default for parameter in found if parameter is not None)


def option_names(quantizer_class: type) -> set[str]:
    """Constructor arguments after `codebook_size` and `dim`."""
    return set(constructor_arguments(quantizer_class)) - {"codebook_size", "dim"}

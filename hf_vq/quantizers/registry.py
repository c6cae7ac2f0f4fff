"""Quantizers by name."""

import difflib
import inspect

QUANTIZERS = {}


def register(quantizer_type):
    """Class decorator: the `quantizer_type` under which configs name a quantizer."""

    def add(quantizer_class):
        QUANTIZERS[quantizer_type] = quantizer_class
        return quantizer_class

    return add


def make_quantizer(quantizer_type, codebook_size, dim, quantizer_config=None, classes=QUANTIZERS):
    """The quantizer of a name.

    Args:
        quantizer_type: a key of `QUANTIZERS`.
        codebook_size: number of codes; of each level where there are several.
        dim: width of the latents.
        quantizer_config: its other constructor arguments by name.
        classes: the classes by name.

    Raises:
        ValueError: an unknown type or option, naming the nearest right one.
    """
    if quantizer_type not in classes:
        raise ValueError(f"quantizer_type must be one of {sorted(classes)}, got {quantizer_type!r}")
    options, known = dict(quantizer_config or {}), option_names(classes[quantizer_type])
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {sorted(known)}"
            raise ValueError(f"quantizer_config: {quantizer_type!r} has no option {name!r}; {hint}")
    return classes[quantizer_type](codebook_size, dim, **options)


def option_names(quantizer_class):
    """Constructor arguments after `codebook_size` and `dim`, with those that **options hands on to a base class."""
    names = set()
    for base in quantizer_class.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
                break
    return names - {"self", "codebook_size", "dim"}

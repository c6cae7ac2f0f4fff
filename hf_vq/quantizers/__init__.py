"""Latents <-> codes."""

import difflib
import inspect

from hf_vq.quantizers.base import Quantizer, QuantizerOutput
from hf_vq.quantizers.ema import EMAVectorQuantizer
from hf_vq.quantizers.nearest import nearest_codes
from hf_vq.quantizers.vector import VectorQuantizer

QUANTIZERS = {"vector": VectorQuantizer, "ema": EMAVectorQuantizer}


def make_quantizer(quantizer_type, codebook_size, dim, quantizer_config=None, classes=QUANTIZERS):
    """The quantizer of a name.

    Args:
        quantizer_type: a key of `QUANTIZERS`.
        codebook_size: number of codes.
        dim: width of a code vector.
        quantizer_config: its other constructor arguments by name.
        classes: the classes by name.

    Raises:
        ValueError: an unknown type or option, naming the nearest right one.
    """
    if quantizer_type not in classes:
        raise ValueError(f"quantizer_type must be one of {sorted(classes)}, got {quantizer_type!r}")
    quantizer_class, options = classes[quantizer_type], dict(quantizer_config or {})
    known = set(inspect.signature(quantizer_class).parameters) - {"codebook_size", "dim"}
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {sorted(known)}"
            raise ValueError(f"quantizer_config: {quantizer_type!r} has no option {name!r}; {hint}")
    return quantizer_class(codebook_size, dim, **options)


__all__ = [
    "EMAVectorQuantizer",
    "QUANTIZERS",
    "Quantizer",
    "QuantizerOutput",
    "VectorQuantizer",
    "make_quantizer",
    "nearest_codes",
]

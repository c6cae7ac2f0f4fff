"""What an autoencoder class must have to be registered, and how it is told."""

import inspect
from dataclasses import is_dataclass
from typing import Any

from diffusers import ConfigMixin, ModelMixin

from hf_vq.autoencoders.outputs import check_rebuilds
from hf_vq.registry import MODALITIES

BASES = "(AutoencoderMixin, ModelMixin, ConfigMixin)"


def check_autoencoder(autoencoder_class: Any, mixin: type) -> None:
    """Raise a TypeError, or for a wrong value a ValueError, that says what a class lacks.

    Args:
        autoencoder_class: the class.
        mixin: `AutoencoderMixin`, whose methods do not count.
    """
    name, order = autoencoder_class.__name__, autoencoder_class.__mro__
    if not issubclass(autoencoder_class, ModelMixin) or not issubclass(autoencoder_class, ConfigMixin):
        raise TypeError(f"{name} must be a ModelMixin and ConfigMixin of diffusers: class {name}{BASES}")
    if order.index(mixin) > order.index(ModelMixin):
        raise TypeError(
            f"among the bases of {name}, AutoencoderMixin must stand before ModelMixin: class {name}{BASES}"
        )
    dims = getattr(autoencoder_class, "space_dims", None)
    if not isinstance(dims, int) or dims < 1:
        raise TypeError(f"{name}.space_dims must be the number of axes of space in a sample, got {dims!r}")
    for words in _missing(autoencoder_class, mixin):
        raise TypeError(f"{name} must define {words}")
    _check_constructor(autoencoder_class)
    _check_output(autoencoder_class)
    modality = autoencoder_class.modality
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"{name}.modality must be None or one of {sorted(MODALITIES)}, got {modality!r}")


def _check_output(autoencoder_class: Any) -> None:
    """What `forward` says that it returns must be what mixed precision can build anew."""
    try:
        returned = inspect.signature(autoencoder_class.forward, eval_str=True).return_annotation
    except (NameError, AttributeError, SyntaxError):  # words that mean something to type checkers alone
        return
    if isinstance(returned, type) and is_dataclass(returned):
        check_rebuilds(returned)


def _missing(autoencoder_class: Any, mixin: type) -> list[str]:
    hierarchical = autoencoder_class.hierarchical is True  # of some it is a property
    factor = "downsample_factors" if hierarchical else "downsample_factor"
    needed = {"encode": "encode(sample)", "decode": "decode(latents)", factor: f"the property {factor}"}
    if hierarchical:
        needed |= {
            "quantizers": "the property quantizers",
            "tokenize_sample": "tokenize_sample(sample, grid_masks)",
            "decode_codes": "decode_codes(codes)",
        }
    return [
        words for name, words in needed.items() if getattr(autoencoder_class, name, None) is getattr(mixin, name, None)
    ]


def _check_constructor(autoencoder_class: Any) -> None:
    """The constructor must be the config: of diffusers, and of the class's face in transformers."""
    name, init = autoencoder_class.__name__, autoencoder_class.__init__
    if not hasattr(init, "__wrapped__"):
        raise TypeError(f"the constructor of {name} must be decorated with @register_to_config of diffusers")
    parameters = list(inspect.signature(init).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"the constructor of {name} must name all its arguments, got {parameter}")
        if parameter.default is parameter.empty:
            raise TypeError(f"the constructor of {name} must have a default for {parameter.name}")
    for option in ("reconstruction_loss", "reconstruction_weight"):
        if option not in {parameter.name for parameter in parameters}:
            raise TypeError(f"the constructor of {name} must take {option}, which its loss reads in the config")

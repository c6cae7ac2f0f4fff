"""hf_vq: vector-quantized models behind Hugging Face interfaces."""

from diffusers import ModelMixin
from transformers import PreTrainedModel

from .auto import AutoVQModel, register
from .autoencoders import (
    VQVAE,
    VQModel,
    VQModelConfig,
    VQModelForAutoModel,
    VQVAEConfig,
    VQVAEForAutoModel,
)
from .quantizers import EMAVectorQuantizer, VectorQuantizer
from .version import __version__

register()

__all__ = [
    "AutoVQModel",
    "EMAVectorQuantizer",
    "ModelMixin",  # diffusers looks here for the base classes of a pipeline's components
    "PreTrainedModel",
    "VQModel",
    "VQModelConfig",
    "VQModelForAutoModel",
    "VQVAE",
    "VQVAEConfig",
    "VQVAEForAutoModel",
    "VectorQuantizer",
    "__version__",
]

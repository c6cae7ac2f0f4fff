"""hf_vq: vector-quantized models behind Hugging Face interfaces."""

from diffusers import ModelMixin
from transformers import PreTrainedModel

from .auto import AutoVQModel, AutoVQPrior, register
from .autoencoders import (
    VQVAE,
    VQModel,
    VQModelConfig,
    VQModelForAutoModel,
    VQVAEConfig,
    VQVAEForAutoModel,
)
from .pipelines import VQPipeline
from .priors import PixelCNN, PixelCNNConfig
from .quantizers import EMAVectorQuantizer, VectorQuantizer
from .version import __version__

register()

__all__ = [
    "AutoVQModel",
    "AutoVQPrior",
    "EMAVectorQuantizer",
    "ModelMixin",  # diffusers looks here for the base classes of a pipeline's components
    "PixelCNN",
    "PixelCNNConfig",
    "PreTrainedModel",
    "VQModel",
    "VQModelConfig",
    "VQModelForAutoModel",
    "VQPipeline",
    "VQVAE",
    "VQVAEConfig",
    "VQVAEForAutoModel",
    "VectorQuantizer",
    "__version__",
]

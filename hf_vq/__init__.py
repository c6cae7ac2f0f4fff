"""hf_vq: vector-quantized models behind Hugging Face interfaces."""

from diffusers import ModelMixin
from transformers import PreTrainedModel

from hf_vq.auto import AutoVQModel, AutoVQPrior, register
from hf_vq.autoencoders import (
    DVAE,
    RQVAE,
    VQVAE,
    VQVAE2,
    DVAEConfig,
    DVAEForAutoModel,
    MAGVIT2Model,
    MAGVIT2ModelConfig,
    MAGVIT2ModelForAutoModel,
    RQVAEConfig,
    RQVAEForAutoModel,
    ViTVQModel,
    ViTVQModelConfig,
    ViTVQModelForAutoModel,
    VQModel,
    VQModelConfig,
    VQModelForAutoModel,
    VQVAE2Config,
    VQVAE2ForAutoModel,
    VQVAEConfig,
    VQVAEForAutoModel,
)
from hf_vq.pipelines import VQPipeline
from hf_vq.priors import GPTPrior, GPTPriorConfig, PixelCNN, PixelCNNConfig, RQTransformer, RQTransformerConfig
from hf_vq.quantizers import EMAVectorQuantizer, VectorQuantizer
from hf_vq.version import __version__

register()

__all__ = [
    "AutoVQModel",
    "AutoVQPrior",
    "DVAE",
    "DVAEConfig",
    "DVAEForAutoModel",
    "EMAVectorQuantizer",
    "GPTPrior",
    "GPTPriorConfig",
    "MAGVIT2Model",
    "MAGVIT2ModelConfig",
    "MAGVIT2ModelForAutoModel",
    "ModelMixin",  # diffusers looks here for the base classes of a pipeline's components
    "PixelCNN",
    "PixelCNNConfig",
    "PreTrainedModel",
    "RQTransformer",
    "RQTransformerConfig",
    "RQVAE",
    "RQVAEConfig",
    "RQVAEForAutoModel",
    "ViTVQModel",
    "ViTVQModelConfig",
    "ViTVQModelForAutoModel",
    "VQModel",
    "VQModelConfig",
    "VQModelForAutoModel",
    "VQPipeline",
    "VQVAE",
    "VQVAE2",
    "VQVAE2Config",
    "VQVAE2ForAutoModel",
    "VQVAEConfig",
    "VQVAEForAutoModel",
    "VectorQuantizer",
    "__version__",
]

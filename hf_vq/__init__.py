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
from hf_vq.grids import as_grids
from hf_vq.modalities import ImageProcessor
from hf_vq.pipelines import VQPipeline, VQVAE2Pipeline
from hf_vq.priors import (
    AutoregressivePrior,
    DelayedTransformerPrior,
    DelayedTransformerPriorConfig,
    GPTPrior,
    GPTPriorConfig,
    LlamaGenPrior,
    LlamaGenPriorConfig,
    MixtureWaveNet,
    MixtureWaveNetConfig,
    PixelCNN,
    PixelCNNConfig,
    PixelSNAIL,
    PixelSNAILConfig,
    Prior,
    RQTransformer,
    RQTransformerConfig,
    TransformerPrior,
    TransformerPriorConfig,
    WaveNet,
    WaveNetConfig,
)
from hf_vq.quantizers import EMAVectorQuantizer, VectorQuantizer
from hf_vq.registry import find_class
from hf_vq.version import __version__

register()

__all__ = [
    "__version__",
    "as_grids",
    "AutoregressivePrior",
    "AutoVQModel",
    "AutoVQPrior",
    "DelayedTransformerPrior",
    "DelayedTransformerPriorConfig",
    "DVAE",
    "DVAEConfig",
    "DVAEForAutoModel",
    "EMAVectorQuantizer",
    "GPTPrior",
    "GPTPriorConfig",
    "ImageProcessor",
    "LlamaGenPrior",
    "LlamaGenPriorConfig",
    "MAGVIT2Model",
    "MAGVIT2ModelConfig",
    "MAGVIT2ModelForAutoModel",
    "MixtureWaveNet",
    "MixtureWaveNetConfig",
    "ModelMixin",  # diffusers looks here for the base classes of a pipeline's components
    "PixelCNN",
    "PixelCNNConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "PreTrainedModel",
    "Prior",
    "RQTransformer",
    "RQTransformerConfig",
    "RQVAE",
    "RQVAEConfig",
    "RQVAEForAutoModel",
    "TransformerPrior",
    "TransformerPriorConfig",
    "VectorQuantizer",
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
    "VQVAE2Pipeline",
    "VQVAEConfig",
    "VQVAEForAutoModel",
    "WaveNet",
    "WaveNetConfig",
]


def __getattr__(name):
    """Classes that others have registered: saved pipelines name them as ours."""
    found = find_class(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found

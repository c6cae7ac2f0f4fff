"""hf_vq: vector-quantized models behind Hugging Face interfaces."""

from typing import Any

from diffusers import ModelMixin, SchedulerMixin
from transformers import PreTrainedModel

from hf_vq.auto import AutoVQModel, AutoVQPrior, know_registered_classes
from hf_vq.autoencoders import (
    DVAE,
    FACES,
    RQVAE,
    VQVAE,
    VQVAE2,
    AudioCodec,
    MAGVIT2Model,
    SpectralCodec,
    StreamingDetokenizer,
    StreamingTokenizer,
    ViTVQModel,
    VQModel,
)
from hf_vq.autoencoders import pretrained as _pretrained
from hf_vq.grids import as_grids
from hf_vq.losses import (
    LPIPS,
    CombinedDiscriminator,
    FeatureDistance,
    MelLoss,
    MultiBandDiscriminator,
    MultiPeriodDiscriminator,
    MultiScaleSTFTDiscriminator,
    PatchDiscriminator,
    SpectralLoss,
)
from hf_vq.modalities import AudioProcessor, ImageProcessor
from hf_vq.pipelines import VQAudioPipeline, VQPipeline, VQTextToImagePipeline, VQVAE2Pipeline
from hf_vq.plugins import import_plugins
from hf_vq.priors import (
    AutoregressivePrior,
    DelayedTransformerPrior,
    DelayedTransformerPriorConfig,
    DiscreteDiffusionPrior,
    DiscreteDiffusionPriorConfig,
    DiscreteDiffusionScheduler,
    GPTPrior,
    GPTPriorConfig,
    LlamaGenPrior,
    LlamaGenPriorConfig,
    MaskedPrior,
    MaskedPriorConfig,
    MaskedScheduler,
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
from hf_vq.registry import find_class, register
from hf_vq.tokens import CodeVocabulary, add_code_tokens, flatten_codes, unflatten_codes
from hf_vq.version import __version__

know_registered_classes()

__all__ = [
    *FACES,  # `<Name>Config` and `<Name>ForAutoModel` of each autoencoder
    "__version__",
    "add_code_tokens",
    "as_grids",
    "AudioCodec",
    "AudioProcessor",
    "AutoregressivePrior",
    "AutoVQModel",
    "AutoVQPrior",
    "CodeVocabulary",
    "CombinedDiscriminator",
    "DelayedTransformerPrior",
    "DelayedTransformerPriorConfig",
    "DiscreteDiffusionPrior",
    "DiscreteDiffusionPriorConfig",
    "DiscreteDiffusionScheduler",
    "DVAE",
    "EMAVectorQuantizer",
    "FeatureDistance",
    "flatten_codes",
    "GPTPrior",
    "GPTPriorConfig",
    "ImageProcessor",
    "LlamaGenPrior",
    "LlamaGenPriorConfig",
    "LPIPS",
    "MAGVIT2Model",
    "MaskedPrior",
    "MaskedPriorConfig",
    "MaskedScheduler",
    "MelLoss",
    "MixtureWaveNet",
    "MixtureWaveNetConfig",
    "ModelMixin",  # diffusers looks here for the base classes of a pipeline's components
    "MultiBandDiscriminator",
    "MultiPeriodDiscriminator",
    "MultiScaleSTFTDiscriminator",
    "PatchDiscriminator",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "PreTrainedModel",
    "Prior",
    "RQTransformer",
    "RQTransformerConfig",
    "RQVAE",
    "TransformerPrior",
    "TransformerPriorConfig",
    "register",
    "SchedulerMixin",  # the same
    "SpectralCodec",
    "SpectralLoss",
    "StreamingDetokenizer",
    "StreamingTokenizer",
    "unflatten_codes",
    "VectorQuantizer",
    "ViTVQModel",
    "VQAudioPipeline",
    "VQModel",
    "VQPipeline",
    "VQTextToImagePipeline",
    "VQVAE",
    "VQVAE2",
    "VQVAE2Pipeline",
    "WaveNet",
    "WaveNetConfig",
]


def __getattr__(name: str) -> Any:
    """Registered classes with their configs and faces: saved folders name them as ours."""
    found = find_class(name)
    if found is not None:
        return found
    try:
        return getattr(_pretrained, name)
    except AttributeError:
        words = "if a saved folder asks for it, import the package that registers it"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r} ({words})") from None


import_plugins()

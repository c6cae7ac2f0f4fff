"""Codes -> codes: what is likely, and new ones."""

from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.base import Prior, PriorOutput
from hf_vq.priors.config import PriorConfig
from hf_vq.priors.delayed_transformer import DelayedTransformerPrior, DelayedTransformerPriorConfig
from hf_vq.priors.discrete_diffusion import DiscreteDiffusionPrior, DiscreteDiffusionPriorConfig
from hf_vq.priors.discrete_diffusion_scheduler import DiscreteDiffusionScheduler
from hf_vq.priors.gpt import GPTPrior, GPTPriorConfig
from hf_vq.priors.llamagen import LlamaGenPrior, LlamaGenPriorConfig
from hf_vq.priors.masked import MaskedPrior, MaskedPriorConfig
from hf_vq.priors.masked_scheduler import MaskedScheduler
from hf_vq.priors.mixture_wavenet import MixtureWaveNet, MixtureWaveNetConfig
from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig
from hf_vq.priors.rq_transformer import RQTransformer, RQTransformerConfig
from hf_vq.priors.transformer import TransformerPrior, TransformerPriorConfig
from hf_vq.priors.wavenet import WaveNet, WaveNetConfig
from hf_vq.registry import PRIORS

__all__ = [
    "AutoregressivePrior",
    "DelayedTransformerPrior",
    "DelayedTransformerPriorConfig",
    "DiscreteDiffusionPrior",
    "DiscreteDiffusionPriorConfig",
    "DiscreteDiffusionScheduler",
    "GPTPrior",
    "GPTPriorConfig",
    "LlamaGenPrior",
    "LlamaGenPriorConfig",
    "MaskedPrior",
    "MaskedPriorConfig",
    "MaskedScheduler",
    "MixtureWaveNet",
    "MixtureWaveNetConfig",
    "PRIORS",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "Prior",
    "PriorConfig",
    "PriorOutput",
    "RQTransformer",
    "RQTransformerConfig",
    "TransformerPrior",
    "TransformerPriorConfig",
    "WaveNet",
    "WaveNetConfig",
]

"""Codes -> codes: what is likely, and new ones."""

from hf_vq.priors.base import PriorConfig, PriorMixin, PriorOutput
from hf_vq.priors.delayed_transformer import DelayedTransformerPrior, DelayedTransformerPriorConfig
from hf_vq.priors.llamagen import LlamaGenPrior, LlamaGenPriorConfig
from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.transformer import TransformerPrior, TransformerPriorConfig

PRIORS = {
    "DelayedTransformerPrior": (DelayedTransformerPriorConfig, DelayedTransformerPrior),
    "LlamaGenPrior": (LlamaGenPriorConfig, LlamaGenPrior),
    "PixelCNN": (PixelCNNConfig, PixelCNN),
    "TransformerPrior": (TransformerPriorConfig, TransformerPrior),
}

__all__ = [
    "DelayedTransformerPrior",
    "DelayedTransformerPriorConfig",
    "LlamaGenPrior",
    "LlamaGenPriorConfig",
    "PRIORS",
    "PixelCNN",
    "PixelCNNConfig",
    "PriorConfig",
    "PriorMixin",
    "PriorOutput",
    "TransformerPrior",
    "TransformerPriorConfig",
]

"""Codes -> codes: what is likely, and new ones."""

from hf_vq.priors.base import PriorConfig, PriorMixin, PriorOutput
from hf_vq.priors.gpt import GPTPrior, GPTPriorConfig
from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.rq_transformer import RQTransformer, RQTransformerConfig, RQTransformerOutput

PRIORS = {
    "GPTPrior": (GPTPriorConfig, GPTPrior),
    "PixelCNN": (PixelCNNConfig, PixelCNN),
    "RQTransformer": (RQTransformerConfig, RQTransformer),
}

__all__ = [
    "GPTPrior",
    "GPTPriorConfig",
    "PRIORS",
    "PixelCNN",
    "PixelCNNConfig",
    "PriorConfig",
    "PriorMixin",
    "PriorOutput",
    "RQTransformer",
    "RQTransformerConfig",
    "RQTransformerOutput",
]

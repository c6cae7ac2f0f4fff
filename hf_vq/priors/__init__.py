"""Codes -> codes: what is likely, and new ones."""

from hf_vq.priors.base import PriorConfig, PriorMixin, PriorOutput
from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig

PRIORS = {
    "PixelCNN": (PixelCNNConfig, PixelCNN),
    "PixelSNAIL": (PixelSNAILConfig, PixelSNAIL),
}

__all__ = [
    "PRIORS",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "PriorConfig",
    "PriorMixin",
    "PriorOutput",
]

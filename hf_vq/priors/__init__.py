"""Codes -> codes: what is likely, and new ones."""

from hf_vq.priors.base import PriorConfig, PriorMixin, PriorOutput
from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig

PRIORS = {"PixelCNN": (PixelCNNConfig, PixelCNN)}

__all__ = ["PRIORS", "PixelCNN", "PixelCNNConfig", "PriorConfig", "PriorMixin", "PriorOutput"]

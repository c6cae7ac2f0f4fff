"""Codes -> codes: what is likely, and new ones."""

from .base import PriorConfig, PriorOutput
from .pixelcnn import PixelCNN, PixelCNNConfig

PRIORS = {"PixelCNN": (PixelCNNConfig, PixelCNN)}

__all__ = ["PRIORS", "PixelCNN", "PixelCNNConfig", "PriorConfig", "PriorOutput"]

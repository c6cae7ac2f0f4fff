"""Codes -> codes."""

from .base import PriorConfig, PriorMixin, PriorOutput
from .pixelcnn import PixelCNN, PixelCNNConfig

__all__ = ["PixelCNN", "PixelCNNConfig", "PriorConfig", "PriorMixin", "PriorOutput"]

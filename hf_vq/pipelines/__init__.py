"""Prior and autoencoder as DiffusionPipelines."""

from .vq import VQPipeline

__all__ = ["VQPipeline"]

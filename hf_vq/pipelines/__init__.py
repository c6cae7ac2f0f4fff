"""Prior and autoencoder as DiffusionPipelines."""

from hf_vq.pipelines.vq import VQPipeline

__all__ = ["VQPipeline"]

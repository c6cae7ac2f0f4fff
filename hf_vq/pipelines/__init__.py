"""Prior and autoencoder as DiffusionPipelines."""

from hf_vq.pipelines.vq import VQPipeline
from hf_vq.pipelines.vqvae2 import VQVAE2Pipeline
from hf_vq.registry import PIPELINES

__all__ = ["PIPELINES", "VQPipeline", "VQVAE2Pipeline"]

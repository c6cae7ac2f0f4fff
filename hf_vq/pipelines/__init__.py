"""Prior and autoencoder as DiffusionPipelines."""

from hf_vq.pipelines.text_to_image import VQTextToImagePipeline
from hf_vq.pipelines.vq import VQPipeline
from hf_vq.pipelines.vqvae2 import VQVAE2Pipeline
from hf_vq.registry import PIPELINES

__all__ = ["PIPELINES", "VQPipeline", "VQTextToImagePipeline", "VQVAE2Pipeline"]

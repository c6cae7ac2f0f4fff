"""Prior and autoencoder as DiffusionPipelines."""

from hf_vq.pipelines.audio import VQAudioPipeline
from hf_vq.pipelines.text_to_image import VQTextToImagePipeline
from hf_vq.pipelines.vq import VQPipeline
from hf_vq.pipelines.vqvae2 import VQVAE2Pipeline
from hf_vq.registry import PIPELINES

__all__ = ["PIPELINES", "VQAudioPipeline", "VQPipeline", "VQTextToImagePipeline", "VQVAE2Pipeline"]

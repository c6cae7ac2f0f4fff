"""Sample <-> codes."""

from hf_vq.autoencoders.base import AutoencoderMixin, AutoencoderOutput
from hf_vq.autoencoders.images.vq_model import VQModel, VQModelOutput
from hf_vq.autoencoders.images.vqvae import VQVAE
from hf_vq.autoencoders.pretrained import VQModelConfig, VQModelForAutoModel, VQVAEConfig, VQVAEForAutoModel

AUTOENCODERS = {"VQModel": VQModel, "VQVAE": VQVAE}

__all__ = [
    "AUTOENCODERS",
    "AutoencoderMixin",
    "AutoencoderOutput",
    "VQModel",
    "VQModelConfig",
    "VQModelForAutoModel",
    "VQModelOutput",
    "VQVAE",
    "VQVAEConfig",
    "VQVAEForAutoModel",
]

"""Sample <-> codes."""

from .base import AutoencoderMixin, AutoencoderOutput
from .images.vq_model import VQModel, VQModelOutput
from .images.vqvae import VQVAE
from .pretrained import VQModelConfig, VQModelForAutoModel, VQVAEConfig, VQVAEForAutoModel

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

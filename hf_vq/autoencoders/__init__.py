"""Sample <-> codes."""

from hf_vq.autoencoders.base import AutoencoderMixin, AutoencoderOutput
from hf_vq.autoencoders.images.dvae import DVAE
from hf_vq.autoencoders.images.rqvae import RQVAE
from hf_vq.autoencoders.images.vq_model import VQModel, VQModelOutput
from hf_vq.autoencoders.images.vqvae import VQVAE
from hf_vq.autoencoders.images.vqvae2 import VQVAE2
from hf_vq.autoencoders.pretrained import (
    DVAEConfig,
    DVAEForAutoModel,
    RQVAEConfig,
    RQVAEForAutoModel,
    VQModelConfig,
    VQModelForAutoModel,
    VQVAE2Config,
    VQVAE2ForAutoModel,
    VQVAEConfig,
    VQVAEForAutoModel,
)

AUTOENCODERS = {"DVAE": DVAE, "RQVAE": RQVAE, "VQModel": VQModel, "VQVAE": VQVAE, "VQVAE2": VQVAE2}

__all__ = [
    "AUTOENCODERS",
    "AutoencoderMixin",
    "AutoencoderOutput",
    "DVAE",
    "DVAEConfig",
    "DVAEForAutoModel",
    "RQVAE",
    "RQVAEConfig",
    "RQVAEForAutoModel",
    "VQModel",
    "VQModelConfig",
    "VQModelForAutoModel",
    "VQModelOutput",
    "VQVAE",
    "VQVAE2",
    "VQVAE2Config",
    "VQVAE2ForAutoModel",
    "VQVAEConfig",
    "VQVAEForAutoModel",
]

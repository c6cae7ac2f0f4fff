"""Sample <-> codes."""

from hf_vq.autoencoders.base import AutoencoderMixin
from hf_vq.autoencoders.images.dvae import DVAE
from hf_vq.autoencoders.images.magvit2 import MAGVIT2Model
from hf_vq.autoencoders.images.rqvae import RQVAE
from hf_vq.autoencoders.images.vit_vq_model import ViTVQModel
from hf_vq.autoencoders.images.vq_model import VQModel, VQModelOutput
from hf_vq.autoencoders.images.vqvae import VQVAE
from hf_vq.autoencoders.images.vqvae2 import VQVAE2
from hf_vq.autoencoders.outputs import AutoencoderOutput, TokenizerOutput
from hf_vq.autoencoders.pretrained import (
    DVAEConfig,
    DVAEForAutoModel,
    MAGVIT2ModelConfig,
    MAGVIT2ModelForAutoModel,
    RQVAEConfig,
    RQVAEForAutoModel,
    ViTVQModelConfig,
    ViTVQModelForAutoModel,
    VQModelConfig,
    VQModelForAutoModel,
    VQVAE2Config,
    VQVAE2ForAutoModel,
    VQVAEConfig,
    VQVAEForAutoModel,
)
from hf_vq.registry import AUTOENCODERS

AUTOENCODERS.update(
    (autoencoder_class.__name__, autoencoder_class)
    for autoencoder_class in (DVAE, MAGVIT2Model, RQVAE, ViTVQModel, VQModel, VQVAE, VQVAE2)
)

__all__ = [
    "AUTOENCODERS",
    "AutoencoderMixin",
    "AutoencoderOutput",
    "TokenizerOutput",
    "DVAE",
    "DVAEConfig",
    "DVAEForAutoModel",
    "MAGVIT2Model",
    "MAGVIT2ModelConfig",
    "MAGVIT2ModelForAutoModel",
    "RQVAE",
    "RQVAEConfig",
    "RQVAEForAutoModel",
    "ViTVQModel",
    "ViTVQModelConfig",
    "ViTVQModelForAutoModel",
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

"""Sample <-> codes. Each module registers its class; `<Name>Config` and `<Name>ForAutoModel` come from that."""

from typing import Any

from hf_vq.autoencoders import pretrained
from hf_vq.autoencoders.audio.codec import AudioCodec
from hf_vq.autoencoders.audio.spectral_codec import SpectralCodec
from hf_vq.autoencoders.audio.streaming import SignalCache, StreamingDetokenizer, StreamingTokenizer
from hf_vq.autoencoders.base import AutoencoderMixin
from hf_vq.autoencoders.images.dvae import DVAE
from hf_vq.autoencoders.images.magvit2 import MAGVIT2Model
from hf_vq.autoencoders.images.rqvae import RQVAE
from hf_vq.autoencoders.images.vit_vq_model import ViTVQModel
from hf_vq.autoencoders.images.vq_model import VQModel, VQModelOutput
from hf_vq.autoencoders.images.vqvae import VQVAE
from hf_vq.autoencoders.images.vqvae2 import VQVAE2
from hf_vq.autoencoders.outputs import AutoencoderOutput, EncoderOutput, ReconstructionOutput, TokenizerOutput
from hf_vq.registry import AUTOENCODERS

FACES = tuple(f"{name}{suffix}" for name in AUTOENCODERS for suffix in ("Config", "ForAutoModel"))

__all__ = [
    *FACES,
    "AudioCodec",
    "AUTOENCODERS",
    "AutoencoderMixin",
    "AutoencoderOutput",
    "DVAE",
    "EncoderOutput",
    "MAGVIT2Model",
    "ReconstructionOutput",
    "RQVAE",
    "SignalCache",
    "SpectralCodec",
    "StreamingDetokenizer",
    "StreamingTokenizer",
    "TokenizerOutput",
    "ViTVQModel",
    "VQModel",
    "VQModelOutput",
    "VQVAE",
    "VQVAE2",
]


def __getattr__(name: str) -> Any:
    return getattr(pretrained, name)

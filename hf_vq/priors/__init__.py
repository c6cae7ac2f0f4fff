"""Codes -> codes: what is likely, and new ones."""

from hf_vq.priors.base import PriorConfig, PriorMixin, PriorOutput
from hf_vq.priors.mixture_wavenet import MixtureWaveNet, MixtureWaveNetConfig
from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig
from hf_vq.priors.wavenet import WaveNet, WaveNetConfig

PRIORS = {
    "MixtureWaveNet": (MixtureWaveNetConfig, MixtureWaveNet),
    "PixelCNN": (PixelCNNConfig, PixelCNN),
    "PixelSNAIL": (PixelSNAILConfig, PixelSNAIL),
    "WaveNet": (WaveNetConfig, WaveNet),
}

__all__ = [
    "MixtureWaveNet",
    "MixtureWaveNetConfig",
    "PRIORS",
    "PixelCNN",
    "PixelCNNConfig",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "PriorConfig",
    "PriorMixin",
    "PriorOutput",
    "WaveNet",
    "WaveNetConfig",
]

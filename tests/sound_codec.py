"""A small autoencoder of sounds, and sounds for it."""

import io
from pathlib import Path

import numpy as np
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hf_vq.autoencoders import AutoencoderMixin
from hf_vq.autoencoders.outputs import EncoderOutput, ReconstructionOutput
from hf_vq.quantizers import make_quantizer


class SoundCodec(AutoencoderMixin, ModelMixin, ConfigMixin):
    """Linear frames of 8 samples and residual codes."""

    modality, space_dims, downsample_factor = "audio", 1, 8
    decoder_modules = ("to_sample",)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        sampling_rate: int = 24000,
        codebook_size: int = 16,
        reconstruction_loss: str = "mse",
        reconstruction_weight: float = 1.0,
    ):
        super().__init__()
        self.to_latents = nn.Conv1d(in_channels, 4, 8, 8)
        self.quantizer = make_quantizer("residual", codebook_size, 4, {"num_levels": 2})
        self.to_sample = nn.ConvTranspose1d(4, in_channels, 8, 8)

    def encode(self, sample):
        self.check_sample(sample)
        return EncoderOutput(latents=self.to_latents(sample))

    def decode(self, latents):
        return ReconstructionOutput(sample=self.to_sample(latents))


def tone(length, rate=8000, channels=1, pitch=440, loudness=0.5):
    """(channels, length) float64 of a tone."""
    times = np.arange(length) / rate
    return loudness * np.stack([np.sin(2 * np.pi * pitch * (1 + channel) * times) for channel in range(channels)])


def sound_bytes(values, rate=8000, **options):
    """A file of values (channels, length)."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.asarray(values).T, rate, **({"format": "WAV"} | options))
    return file.getvalue()


def write_sounds(folder, count=12, rate=8000, first=300):
    """WAV files of two classes in sub-folders, each 17 samples longer than the one before."""
    for index in range(count):
        path = Path(folder, ("high", "low")[index % 2], f"{index:02d}.wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound_bytes(tone(first + 17 * index, rate, pitch=300 + 50 * index), rate))

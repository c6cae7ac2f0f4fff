"""Autoencoders of a user's own in one, two and three dimensions, and data for them."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from torch.utils.data import Dataset

from hf_vq.autoencoders import AutoencoderMixin
from hf_vq.autoencoders.outputs import EncoderOutput, ReconstructionOutput
from hf_vq.quantizers import make_quantizer

from .registering import register_for_now


class PatchCodec(AutoencoderMixin, ModelMixin, ConfigMixin):
    """Linear patches and a quantizer, along any number of axes.

    Args:
        channels: of a sample; not named as those of images are.
        strides: sides of a patch, one an axis.
        level_volume: divide each sample by its root mean square.
    """

    decoder_modules = ("to_sample",)

    @register_to_config
    def __init__(
        self,
        channels=2,
        strides=(2,),
        codebook_size=16,
        codebook_dim=4,
        quantizer_type="ema",
        quantizer_config=None,
        dropout=0.0,
        level_volume=False,
        reconstruction_loss="mse",
        reconstruction_weight=1.0,
    ):
        super().__init__()
        convolution, transposed = (getattr(nn, f"{name}{self.space_dims}d") for name in ("Conv", "ConvTranspose"))
        strides = tuple(strides)
        self.to_latents = convolution(channels, codebook_dim, strides, strides)
        self.noise = nn.Dropout(dropout)
        self.quantizer = make_quantizer(quantizer_type, codebook_size, codebook_dim, quantizer_config)
        self.to_sample = transposed(codebook_dim, channels, strides, strides)

    @property
    def in_channels(self):
        return self.config.channels

    @property
    def downsample_factor(self):
        return tuple(self.config.strides)

    @property
    def last_layer(self):
        return self.to_sample.weight

    @apply_forward_hook
    def encode(self, sample):
        self.check_sample(sample)
        return EncoderOutput(latents=self.noise(self.to_latents(sample)))

    @apply_forward_hook
    def decode(self, latents):
        return ReconstructionOutput(sample=self.to_sample(latents))

    def normalize(self, sample, padding_mask):
        if not self.config.level_volume:
            return sample, None
        real = sample[:, 0].numel() / len(sample) if padding_mask is None else padding_mask.flatten(1).sum(1)
        scales = (sample.square().flatten(1).sum(1) / (real * sample.shape[1]) + 1e-8).sqrt()
        return sample / self._per_item(scales), scales

    def denormalize(self, sample, scales):
        if not self.config.level_volume:
            return super().denormalize(sample, scales)
        if scales is None:
            raise ValueError("scales missing: this codec levels the volume")
        return sample * self._per_item(scales)

    def _per_item(self, scales):
        return scales.view(-1, *[1] * (1 + self.space_dims))


class SignalCodec(PatchCodec):
    space_dims = 1


class PictureCodec(PatchCodec):
    space_dims = 2


class ClipCodec(PatchCodec):
    space_dims = 3


CODECS = {  # constructor arguments, space of a sample, of a shorter one
    SignalCodec: ({"strides": (4,)}, (24,), (12,)),
    PictureCodec: ({"strides": (4, 2)}, (16, 8), (8, 8)),
    ClipCodec: ({"strides": (2, 2, 4)}, (8, 4, 8), (4, 4, 8)),
}


def register_codecs(monkeypatch):
    """Registers the codecs for the time of a test."""
    register_for_now(monkeypatch, *CODECS)


def make_codec(codec_class, **changes):
    return codec_class(**{**CODECS[codec_class][0], **changes})


def started(model):
    """A model whose codebook has started, from random samples."""
    model.initialize_codebook(torch.rand(16, model.in_channels, *[16] * model.space_dims) * 2 - 1)
    return model


class Waves(Dataset):
    """Smooth samples of two classes, the same in every process; every third is shorter where lengths vary."""

    def __init__(self, codec_class, count, variable_length=False):
        _, self.space, self.shorter = CODECS[codec_class]
        self.count, self.variable_length = count, variable_length
        self.sample_shape, self.class_names, self.num_classes = (2, *self.space), ["low", "high"], 2
        self.labels = torch.arange(count) % 2

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        space = self.shorter if self.variable_length and index % 3 == 0 else self.space
        places = torch.arange(math.prod(space)).view(space) / 3
        phase = torch.tensor([0.0, 1.5]).view(2, *[1] * len(space)) + 0.7 * index
        return {"sample": (places * (1 + index % 2) + phase).sin(), "class_labels": self.labels[index]}

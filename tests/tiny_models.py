"""The smallest models that training can be tested on, with every kind of state that a checkpoint must hold."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.utils.data import Dataset
from transformers.utils import ModelOutput

from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.quantizers.ema import EMAVectorQuantizer


@dataclass
class TinyOutput(ModelOutput):
    sample: torch.Tensor = None
    codes: torch.Tensor = None
    loss: torch.Tensor = None
    reconstruction_loss: torch.Tensor = None
    quantizer_loss: torch.Tensor = None


class TinyAutoencoder(ModelMixin, ConfigMixin):
    """Linear patches of 2x2 with dropout, and an EMA codebook with restarts."""

    num_levels, hierarchical = 1, False

    @register_to_config
    def __init__(self, codebook_size=8, dropout=0.1):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 4, 2, stride=2), nn.ConvTranspose2d(4, 1, 2, stride=2)
        self.noise, self.quantizer = nn.Dropout(dropout), EMAVectorQuantizer(codebook_size, 4)

    @property
    def codebook_size(self):
        return self.config.codebook_size

    @property
    def codebook_sizes(self):
        return (self.codebook_size,)

    def code_shape(self, sample_shape):
        return sample_shape[1] // 2, sample_shape[2] // 2

    def code_shapes(self, sample_shape):
        return (self.code_shape(sample_shape),)

    @property
    def codebook_initialized(self):
        return self.quantizer.initialized

    def initialize_codebook(self, sample):
        return self.quantizer.initialize(self.encoder(sample))

    def set_codebook_updates(self, mode):
        self.quantizer.codebook_updates = mode

    def update_codebook(self):
        self.quantizer.update_codebook()

    def forward(self, sample):
        quantized = self.quantizer(self.noise(self.encoder(sample)))
        reconstruction = self.decoder(quantized.latents)
        error = F.mse_loss(reconstruction, sample)
        return TinyOutput(reconstruction, quantized.codes, error + quantized.loss, error, quantized.loss)


class Images(Dataset):
    """Smooth grey images, 4x4, the same in every process."""

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(count, 1, 2, 2, generator=generator) * 2 - 1
        self.samples = F.interpolate(corners, size=4, mode="bilinear", align_corners=True)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"sample": self.samples[index]}


class Codes(Dataset):
    """Grids of 4x4 codes whose rows repeat the first, the same in every process; the class tells the first code."""

    codebook_size = 8

    def __init__(self, count):
        generator = torch.Generator().manual_seed(0)
        self.codes = torch.randint(0, 4, (count, 1, 4), generator=generator).expand(count, 4, 4).contiguous()

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        return {"codes": self.codes[index], "class_labels": self.codes[index, 0, 0] // 2}


def tiny_prior(num_classes=2, dropout=0.1):
    return PixelCNN(
        PixelCNNConfig(
            codebook_size=8,
            num_classes=num_classes,
            code_shape=(4, 4),
            hidden_channels=8,
            num_layers=2,
            head_channels=8,
            dropout=dropout,
        )
    )

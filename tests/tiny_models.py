"""The smallest models that training can be tested on, with every kind of state that a checkpoint must hold."""

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig

from .tiny_codecs import PictureCodec


def tiny_autoencoder(codebook_size=8, dropout=0.1, **options):
    """Linear patches of 2x2 with dropout, and an EMA codebook with restarts."""
    return PictureCodec(1, (2, 2), codebook_size, codebook_dim=4, dropout=dropout, **options)


class Images(Dataset):
    """Smooth grey images, the same in every process."""

    def __init__(self, count, size=4):
        generator = torch.Generator().manual_seed(0)
        corners = torch.rand(count, 1, 2, 2, generator=generator) * 2 - 1
        self.samples = F.interpolate(corners, size=size, mode="bilinear", align_corners=True)

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

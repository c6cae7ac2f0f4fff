"""An autoencoder, a quantizer and a prior for hf_vq, outside its tree."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from transformers import PreTrainedModel

from hf_vq import AutoregressivePrior, register
from hf_vq.autoencoders import AutoencoderMixin, EncoderOutput, ReconstructionOutput
from hf_vq.priors import PriorConfig
from hf_vq.quantizers import Quantizer, make_quantizer


@register("sign")
class SignQuantizer(Quantizer):
    """A bit for the sign of each channel: 2^dim codes, nothing to learn."""

    bits_per_token = property(lambda self: self.dim)

    def _codes(self, rows):
        return ((rows > 0) * 2 ** torch.arange(self.dim, device=rows.device)).sum(1)

    def _vectors(self, codes):
        return (codes[:, None] >> torch.arange(self.dim, device=codes.device) & 1) * 2.0 - 1

    def _quantize(self, rows, valid, counted, batch_size):
        codes = self._codes(rows)
        signs = self._vectors(codes)
        errors = (rows - signs).square().mean(1)
        loss = errors.mean() if valid is None else (errors * valid).sum() / valid.sum().clamp(min=1)
        return rows + (signs - rows).detach(), codes, loss, {"commitment": loss}


@register
class PatchCodec(AutoencoderMixin, ModelMixin, ConfigMixin):
    """Linear patches of images around any quantizer."""

    modality, space_dims = "image", 2

    @register_to_config
    def __init__(
        self, in_channels: int = 1, patch_size: int = 2, codebook_size: int = 16, codebook_dim: int = 4,
        quantizer_type: str = "ema", quantizer_config: dict | None = None,
        reconstruction_loss: str = "mse", reconstruction_weight: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.quantizer = make_quantizer(quantizer_type, codebook_size, codebook_dim, quantizer_config)
        self.encoder = nn.Conv2d(in_channels, codebook_dim, patch_size, patch_size)
        self.decoder = nn.ConvTranspose2d(codebook_dim, in_channels, patch_size, patch_size)

    @property
    def downsample_factor(self):
        return self.config.patch_size

    def encode(self, sample):
        return EncoderOutput(latents=self.encoder(sample))

    def decode(self, latents):
        return ReconstructionOutput(sample=self.decoder(latents))


class BigramPriorConfig(PriorConfig):
    model_type = "hf_vq_example_bigram"


@register
class BigramPrior(AutoregressivePrior, PreTrainedModel):
    """Each code depends on the one before it, in raster order, and on the class."""

    config_class, base_model_prefix, grid_dims = BigramPriorConfig, "prior", 2

    def __init__(self, config):
        super().__init__(config)
        self.after = nn.Embedding(config.codebook_size + 1, config.codebook_size)  # the last row begins a grid
        self.classes = nn.Embedding(max(1, config.num_class_embeddings), config.codebook_size)
        self.post_init()

    def forward(self, codes, class_labels=None, labels=None, return_loss=True, lengths=None):
        return self.run_forward(codes, labels, return_loss, lengths=lengths, class_labels=class_labels)

    def predict(self, codes, class_labels=None):
        before = F.pad(codes.flatten(1)[:, :-1], (1, 0), value=self.config.codebook_size)
        logits = self.after(before) + (0 if class_labels is None else self.classes(class_labels)[:, None])
        return logits.view(*codes.shape, -1)

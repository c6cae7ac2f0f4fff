"""An autoencoder, a quantizer and a prior for hf_vq, outside its tree."""

import torch
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

    def __init__(self, codebook_size, dim):
        if codebook_size != 2**dim:
            raise ValueError(f"codebook_size must be 2^dim={2**dim}, got {codebook_size}")
        super().__init__(codebook_size, dim)

    def _codes(self, rows):
        return ((rows > 0) * 2 ** torch.arange(self.dim, device=rows.device)).sum(1)

    def _vectors(self, codes):
        return (codes[:, None] >> torch.arange(self.dim, device=codes.device) & 1) * 2.0 - 1


@register
class PatchCodec(AutoencoderMixin, ModelMixin, ConfigMixin):
    """Linear patches of images around any quantizer."""

    modality, space_dims, downsample_factor = "image", 2, 2

    @register_to_config
    def __init__(
        self, in_channels: int = 1, codebook_size: int = 16, codebook_dim: int = 4, quantizer_type: str = "ema",
        quantizer_config: dict | None = None, reconstruction_loss: str = "mse", reconstruction_weight: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.quantizer = make_quantizer(quantizer_type, codebook_size, codebook_dim, quantizer_config)
        self.encoder = nn.Conv2d(in_channels, codebook_dim, kernel_size=2, stride=2)
        self.decoder = nn.ConvTranspose2d(codebook_dim, in_channels, kernel_size=2, stride=2)

    def encode(self, sample):
        return EncoderOutput(latents=self.encoder(sample))

    def decode(self, latents):
        return ReconstructionOutput(sample=self.decoder(latents))


class BigramPriorConfig(PriorConfig):
    model_type = "hf_vq_example_bigram"


@register
class BigramPrior(AutoregressivePrior, PreTrainedModel):
    """Each code depends on the one before it, in raster order, and on the class."""

    config_class, grid_dims = BigramPriorConfig, 2

    def __init__(self, config):
        super().__init__(config)
        self.after = nn.Embedding(config.codebook_size + 1, config.codebook_size)  # the last row begins a grid
        self.classes = nn.Embedding(max(1, config.num_class_embeddings), config.codebook_size)
        self.post_init()

    def predict(self, codes, class_labels=None):
        before = nn.functional.pad(codes.flatten(1)[:, :-1], (1, 0), value=self.config.codebook_size)
        logits = self.after(before) + (0 if class_labels is None else self.classes(class_labels)[:, None])
        return logits.view(*codes.shape, -1)

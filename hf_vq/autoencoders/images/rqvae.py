"""RQ-VAE: VQGAN's network with several residual codes at every position."""

from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.autoencoders.images.base import ImageAutoencoderMixin
from hf_vq.autoencoders.images.convolutional import check_widths, make_decoder, make_encoder
from hf_vq.autoencoders.images.stages import StagedNetwork
from hf_vq.autoencoders.outputs import EncoderOutput, ReconstructionOutput
from hf_vq.quantizers import make_quantizer
from hf_vq.ranges import Codebook, Depth, NotEmpty, Positive, QuantizerType, Width
from hf_vq.registry import register
from hf_vq.renaming import renamed_options


@register
class RQVAE(StagedNetwork, ImageAutoencoderMixin, ModelMixin, ConfigMixin):
    """RQ-VAE (https://arxiv.org/abs/2203.01941, section 3.1).

    The defaults are the paper's network for 256 x 256 pixels: 8 x 8 positions of 4 codes out of 16,384 that all
    levels share.

    Args:
        in_channels: channels of a sample.
        block_out_channels: width of every stage of the network, fine to coarse, multiples of `norm_num_groups`; the
            sides halve between stages.
        layers_per_block: residual blocks in a stage of the encoder; the decoder has one more.
        attention_stages: for every stage whether attention follows each of its blocks; None: nowhere.
        mid_block_add_attention: whether the coarse end has attention.
        latent_channels: width between the convolutions and the projections to codes.
        norm_num_groups: groups of the norms.
        stem_channels: width after the first convolution; None: the first of `block_out_channels`.
        codebook_size: number of codes of a level of the quantizer.
        codebook_dim: width of a code.
        quantizer_type: "residual" or another of `hf_vq.quantizers.QUANTIZERS`.
        quantizer_config: its other options. For "residual" those left out are the paper's: `num_levels=4`,
            `shared_codebook=True`.
        reconstruction_loss: "mse" or "l1", on [-1, 1].
        reconstruction_weight: its weight in `loss`, above 0.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_rqvae"
    _supports_gradient_checkpointing = True

    @renamed_options(attention_levels="attention_stages")
    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        block_out_channels: Annotated[tuple[Width, ...], NotEmpty()] = (128, 128, 256, 256, 512, 512),
        layers_per_block: Depth = 2,
        attention_stages: tuple[bool, ...] | None = (False, False, False, False, False, True),
        mid_block_add_attention: bool = True,
        latent_channels: Width = 256,
        norm_num_groups: Width = 32,
        stem_channels: Width | None = None,
        codebook_size: Codebook = 16384,
        codebook_dim: Width = 256,
        quantizer_type: QuantizerType = "residual",
        quantizer_config: dict | None = None,
        reconstruction_loss: str = "mse",
        reconstruction_weight: Positive = 1.0,
    ):
        super().__init__()
        check_reconstruction(reconstruction_loss, reconstruction_weight)
        stem = {} if stem_channels is None else {"stem_channels": stem_channels}
        widths = {f"block_out_channels[{i}]": width for i, width in enumerate(block_out_channels)}
        check_widths(norm_num_groups, **stem, **widths)
        attention = (False,) * len(block_out_channels) if attention_stages is None else tuple(attention_stages)
        if len(attention) != len(block_out_channels):
            raise ValueError(
                f"attention_stages must have one entry for each of the {len(block_out_channels)} block_out_channels, "
                f"got {attention_stages!r}"
            )
        options = {"num_levels": 4, "shared_codebook": True} if quantizer_type == "residual" else {}
        network: dict[str, Any] = {
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "mid_block_add_attention": mid_block_add_attention,
            "norm_num_groups": norm_num_groups,
        }
        down = tuple("AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in attention)
        up = tuple("AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in attention[::-1])
        self.encoder = make_encoder(
            in_channels, latent_channels, down_block_types=down, stem_channels=stem_channels, **network
        )
        self.quant_conv = nn.Conv2d(latent_channels, codebook_dim, 1)
        self.quantizer = make_quantizer(
            quantizer_type, codebook_size, codebook_dim, {**options, **(quantizer_config or {})}
        )
        self.post_quant_conv = nn.Conv2d(codebook_dim, latent_channels, 1)
        self.decoder = make_decoder(latent_channels, in_channels, up_block_types=up, **network)

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return self.decoder.conv_out.weight

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, height, width) in [-1, 1] to latents (batch, dim, *grid), not yet quantized."""
        self.check_sample(sample)
        latents = self.in_slices(self.encode_slice, sample)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> ReconstructionOutput | tuple[torch.Tensor]:
        """Latents (batch, dim, *grid), as given, to samples (batch, channels, height, width)."""
        sample = self.in_slices(self.decode_slice, latents)
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)

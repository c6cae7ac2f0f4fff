"""The convolutional encoder and decoder of VQGAN and its heirs, as diffusers builds them."""

import math

from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from hf_vq.quantizers.checks import check_positive_int


def make_encoder(
    in_channels: int,
    out_channels: int,
    block_out_channels: tuple[int, ...],
    down_block_types: tuple[str, ...],
    layers_per_block: int,
    mid_block_add_attention: bool = True,
    norm_num_groups: int = 32,
    act_fn: str = "silu",
    stem_channels: int | None = None,
) -> Encoder:
    """diffusers' Encoder, (batch, in, h, w) to (batch, out, h / f, w / f), f = 2^(stages - 1).

    Args:
        stem_channels: width after the first convolution; None: that of the first stage. taming's checkpoints have
            another where `ch_mult` does not begin with 1.
    """
    encoder = Encoder(
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=down_block_types,
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        act_fn=act_fn,
        norm_num_groups=norm_num_groups,
        double_z=False,
        mid_block_add_attention=mid_block_add_attention,
    )
    if stem_channels is not None and stem_channels != block_out_channels[0]:
        encoder.conv_in = nn.Conv2d(in_channels, stem_channels, 3, padding=1)
        encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
            in_channels=stem_channels,
            out_channels=block_out_channels[0],
            temb_channels=None,
            eps=1e-6,
            groups=norm_num_groups,
            non_linearity=act_fn,
        )
    return encoder


def make_decoder(
    in_channels: int,
    out_channels: int,
    block_out_channels: tuple[int, ...],
    up_block_types: tuple[str, ...],
    layers_per_block: int,
    mid_block_add_attention: bool = True,
    norm_num_groups: int = 32,
    act_fn: str = "silu",
    norm_type: str = "group",
) -> Decoder:
    """diffusers' Decoder, (batch, in, h, w) to (batch, out, h x f, w x f), f = 2^(stages - 1)."""
    return Decoder(
        in_channels=in_channels,
        out_channels=out_channels,
        up_block_types=up_block_types,
        block_out_channels=block_out_channels,
        layers_per_block=layers_per_block,
        act_fn=act_fn,
        norm_num_groups=norm_num_groups,
        norm_type=norm_type,
        mid_block_add_attention=mid_block_add_attention,
    )


def check_widths(norm_num_groups: int, **widths: int) -> None:
    """Every width must be a positive multiple of the groups of the norms."""
    check_positive_int(norm_num_groups=norm_num_groups, **widths)
    for name, width in widths.items():
        if width % norm_num_groups:
            raise ValueError(f"{name} must be a multiple of norm_num_groups, {norm_num_groups}; got {width}")


def initialize_like_sonnet(module: nn.Module) -> None:
    """Truncated normal of deviation 1 / sqrt(fan-in), biases zero: a plain PyTorch start trails it for 1,000 steps."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_in = module.in_channels * math.prod(module.kernel_size)
        deviation = fan_in**-0.5
        nn.init.trunc_normal_(module.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.zeros_(module.bias)

"""diffusers' Encoder and Decoder in two parts: one that can run in tiles, one that attends to the whole map."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, SpatialNorm
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from diffusers.models.upsampling import Upsample2D

from hf_vq.autoencoders.images.tiling import LocalPart, TilingMixin

CONDITIONED = (ResnetBlock2D, ResnetBlockCondNorm2D, Attention, UNetMidBlock2D)
GLOBAL = (Attention, UNetMidBlock2D)


class StagedNetwork(TilingMixin):
    """For an autoencoder of diffusers' Encoder and Decoder around `quant_conv` and `post_quant_conv`."""

    def local_parts(self) -> tuple[LocalPart, ...]:
        return SplitEncoder(self.encoder).local, SplitDecoder(self.decoder).local

    def encode_slice(self, sample: torch.Tensor) -> torch.Tensor:
        """Samples to latents, in tiles where tiling is on."""
        if not self.use_tiling:
            return self.quant_conv(self.encoder(sample))
        return self.quant_conv(SplitEncoder(self.encoder)(sample, self.in_tiles))

    def decode_slice(self, latents: torch.Tensor) -> torch.Tensor:
        """Quantized latents to samples, in tiles where tiling is on."""
        condition = latents if self.config.get("norm_type") == "spatial" else None
        hidden = self.post_quant_conv(latents)
        if not self.use_tiling:
            return self.decoder(hidden, condition)
        return SplitDecoder(self.decoder)(hidden, condition, self.in_tiles)


class SplitEncoder:
    """Up to the last downsampling before an attention block or the middle it is local, from there on whole."""

    def __init__(self, encoder: Encoder):
        steps = [encoder.conv_in, *_block_steps(encoder.down_blocks, "downsamplers"), encoder.mid_block]
        first_global = min(i for i, step in enumerate(steps) if isinstance(step, GLOBAL))
        scalings = [i for i, step in enumerate(steps[:first_global]) if isinstance(step, Downsample2D)]
        _check_scalings(scalings)
        local, self.whole = steps[: scalings[-1] + 1], steps[scalings[-1] + 1 :]
        self.whole += [encoder.conv_norm_out, encoder.conv_act, encoder.conv_out]
        self.local = LocalPart(lambda tile: _run(local, tile), local, 1, 2 ** len(scalings))

    def __call__(
        self, sample: torch.Tensor, in_tiles: Callable[[LocalPart, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        return _run(self.whole, in_tiles(self.local, sample))


class SplitDecoder:
    """Up to the first upsampling after the middle and every attention block it is whole, from there on local."""

    def __init__(self, decoder: Decoder):
        steps = [decoder.conv_in, decoder.mid_block, *_block_steps(decoder.up_blocks, "upsamplers")]
        last_global = max(i for i, step in enumerate(steps) if isinstance(step, GLOBAL))
        scalings = [i for i, step in enumerate(steps) if i > last_global and isinstance(step, Upsample2D)]
        _check_scalings(scalings)
        self.whole, self.steps = steps[: scalings[0]], steps[scalings[0] :]
        self.steps += [decoder.conv_norm_out, decoder.conv_act, decoder.conv_out]
        spatial = isinstance(decoder.conv_norm_out, SpatialNorm)
        self.condition_channels = decoder.conv_in.in_channels if spatial else 0
        self.local = LocalPart(self._run_tile, self.steps, 2 ** len(scalings), 1)

    def __call__(
        self,
        hidden: torch.Tensor,
        condition: torch.Tensor | None,
        in_tiles: Callable[[LocalPart, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        hidden = _run(self.whole, hidden, condition)
        if condition is not None:  # travels with its tile as further channels
            hidden = torch.cat([hidden, F.interpolate(condition, size=hidden.shape[2:], mode="nearest")], dim=1)
        return in_tiles(self.local, hidden)

    def _run_tile(self, tile):
        if not self.condition_channels:
            return _run(self.steps, tile)
        return _run(self.steps, tile[:, : -self.condition_channels], tile[:, -self.condition_channels :])


def _block_steps(blocks, scalers):
    steps = []
    for block in blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            steps += [resnet] if attention is None else [resnet, attention]
        steps += getattr(block, scalers) or []
    return steps


def _check_scalings(scalings):
    if not scalings:
        raise ValueError("tiling needs a part without attention at the sample's resolution, this network has none")


def _run(steps, hidden, condition=None):
    """The steps in order, each called as diffusers' blocks call it."""
    for step in steps:
        if isinstance(step, CONDITIONED):
            hidden = step(hidden, temb=condition)
        else:
            hidden = step(hidden, condition) if isinstance(step, SpatialNorm) else step(hidden)
    return hidden

"""A codec that works on short spectra, frame by frame: several times the speed of SEANet."""

from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hf_vq.autoencoders.audio.base import RESIDUAL_DEFAULTS, SoundCodec
from hf_vq.autoencoders.audio.spectra import SpectralFrames, SpectralSynthesis
from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.quantizers import make_quantizer
from hf_vq.ranges import (
    Chance,
    Codebook,
    Depth,
    FreeDepth,
    KernelSize,
    NotEmpty,
    Parity,
    Positive,
    QuantizerType,
    Range,
    Size,
    Width,
)
from hf_vq.registry import register

FIRST_SCALE = 0.1  # of what a new block adds


class ConvNeXtBlock(nn.Module):
    """x + scale * contract(gelu(expand(norm(depthwise convolution of x)))) (https://arxiv.org/abs/2201.03545).

    Args:
        channels: of signals (batch, channels, frames).
        kernel_size: frames that the convolution sees, odd.
        expansion: how many times wider the block is inside.
    """

    def __init__(self, channels: int, kernel_size: int, expansion: int):
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, expansion * channels)
        self.contract = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), FIRST_SCALE))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.depthwise(frames).transpose(1, 2))
        hidden = self.contract(nn.functional.gelu(self.expand(hidden)))
        return frames + (self.scale * hidden).transpose(1, 2)


class LayerNormOfChannels(nn.LayerNorm):
    """LayerNorm of the channels of (batch, channels, frames)."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return super().forward(frames.transpose(1, 2)).transpose(1, 2)


@register
class SpectralCodec(SoundCodec, ModelMixin, ConfigMixin):
    """Sound to codes and back by networks over frames of short spectra: any length in, the same length out.

    Spectra lead to frames and frames to spectra without any convolution at the rate of the samples, as in Vocos
    (https://arxiv.org/abs/2306.00814); between them stand ConvNeXt blocks around residual codes. It is not causal.

    Args:
        sampling_rate: samples a second.
        in_channels: 1, or 2 for stereo.
        hop_length: samples of a frame.
        subframes: spectra in a frame, a divisor of `hop_length`.
        fft_size: samples of a spectrum, even, at least the hop over `subframes`.
        hidden_channels: width of the encoder.
        decoder_channels: width of the decoder; None: the encoder's.
        encoder_layers, decoder_layers: ConvNeXt blocks.
        kernel_size: frames that a block sees, odd.
        expansion: how many times wider a block is inside.
        normalize, chunk_length_s, overlap: as of `AudioCodec`.
        codebook_size, codebook_dim, quantizer_type, quantizer_config, target_bandwidths: as of `AudioCodec`.
        reconstruction_loss: "l1" or "mse" in time.
        reconstruction_weight: its weight in `loss`, above 0.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_spectral_codec"

    @register_to_config
    def __init__(
        self,
        sampling_rate: Size = 24000,
        in_channels: Width = 1,
        hop_length: Annotated[int, Range(1, 2**14)] = 320,
        subframes: Depth = 4,
        fft_size: Annotated[int, Range(2, 2**14), Parity(0)] = 320,
        hidden_channels: Width = 256,
        decoder_channels: Width | None = None,
        encoder_layers: FreeDepth = 4,
        decoder_layers: FreeDepth = 6,
        kernel_size: Annotated[KernelSize, Parity(1)] = 7,
        expansion: Depth = 3,
        normalize: bool = False,
        chunk_length_s: Positive | None = None,
        overlap: Chance = 0.01,
        codebook_size: Codebook = 1024,
        codebook_dim: Width = 64,
        quantizer_type: QuantizerType = "residual",
        quantizer_config: dict | None = None,
        target_bandwidths: Annotated[tuple[Positive, ...], NotEmpty()] | None = None,
        reconstruction_loss: str = "l1",
        reconstruction_weight: Positive = 1.0,
    ):
        super().__init__()
        check_reconstruction(reconstruction_loss, reconstruction_weight)
        if hop_length % subframes:
            raise ValueError(f"subframes must divide hop_length={hop_length}, got {subframes}")
        step = hop_length // subframes
        if fft_size < step:
            raise ValueError(f"fft_size must be at least hop_length / subframes = {step}, got {fft_size}")
        if chunk_length_s is not None and chunk_length_s * sampling_rate < 1:
            raise ValueError(f"chunk_length_s={chunk_length_s} is less than a sample")
        numbers = in_channels * subframes * 2 * (fft_size // 2 + 1)  # in a frame
        back = decoder_channels or hidden_channels

        def blocks(channels, count):
            return [ConvNeXtBlock(channels, kernel_size, expansion) for _ in range(count)]

        self.encoder = nn.Sequential(
            SpectralFrames(fft_size, step, subframes),
            nn.Conv1d(numbers, hidden_channels, 1),
            *blocks(hidden_channels, encoder_layers),
            LayerNormOfChannels(hidden_channels),
            nn.Conv1d(hidden_channels, codebook_dim, 1),
        )
        options = {**(RESIDUAL_DEFAULTS if quantizer_type == "residual" else {}), **(quantizer_config or {})}
        self.quantizer: Any = make_quantizer(quantizer_type, codebook_size, codebook_dim, options)
        self.decoder = nn.Sequential(
            nn.Conv1d(codebook_dim, back, 1),
            *blocks(back, decoder_layers),
            LayerNormOfChannels(back),
            nn.Conv1d(back, numbers, 1),
            SpectralSynthesis(in_channels, fft_size, step, subframes),
        )

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return self.config.hop_length

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the spectra: for the adaptive weight of an adversarial loss."""
        return self.decoder[-2].weight

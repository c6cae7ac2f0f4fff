"""A codec that works on short spectra, frame by frame: several times the speed of SEANet."""

from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hf_vq.autoencoders.audio.base import RESIDUAL_DEFAULTS, SoundCodec
from hf_vq.autoencoders.audio.lapped import LappedFrames, LappedSynthesis
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


class FrameNetwork(nn.Module):
    """A linear map of frames, and what ConvNeXt blocks add to it.

    The map starts as that of the lowest of the coefficients of `LappedFrames` to those that come first, in order, or
    back; what is added starts small. So a new codec is a transform coder already, and is not far from a sound one.

    Args:
        before, after: channels of frames (batch, channels, frames) that come and go.
        width: of the blocks.
        layers: how many.
        kernel_size, expansion: as of `ConvNeXtBlock`.
        step: coefficients of a spectrum.
        synthesis: the coefficients go; else they come.
    """

    def __init__(
        self, before: int, after: int, width: int, layers: int, kernel_size: int, expansion: int, step: int,
        synthesis: bool,
    ):  # fmt: skip
        super().__init__()
        self.linear = nn.Conv1d(before, after, 1)
        self.enter = nn.Conv1d(before, width, 1)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, kernel_size, expansion) for _ in range(layers)))
        self.norm = LayerNormOfChannels(width)
        self.leave = nn.Conv1d(width, after, 1)
        with torch.no_grad():
            self.linear.bias.zero_()  # type: ignore[union-attr]
            self.linear.weight.copy_(_lowest(before, after, step, synthesis)[..., None])
            self.leave.weight.mul_(FIRST_SCALE)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.linear(frames) + self.leave(self.norm(self.blocks(self.enter(frames))))


def _lowest(before, after, step, synthesis):
    """The matrix (after, before) of the lowest coefficients of all spectra to latents in order, or of those back."""
    coefficients, latents = (after, before) if synthesis else (before, after)
    order = torch.arange(coefficients, device="cpu").view(-1, step).T.flatten()[:latents]  # by frequency
    matrix = torch.zeros(coefficients, latents, device="cpu")
    matrix[order, torch.arange(len(order), device="cpu")] = 1
    return matrix if synthesis else matrix.T


@register
class SpectralCodec(SoundCodec, ModelMixin, ConfigMixin):
    """Sound to codes and back by networks over frames of short spectra: any length in, the same length out.

    Between a lapped transform and its inverse, which are fixed, stand linear maps beside ConvNeXt blocks, as of Vocos
    (https://arxiv.org/abs/2306.00814), around residual codes: no convolution at the rate of the samples, so that it
    trains several times faster than SEANet, and it starts as a linear transform coder. It is not causal.

    Args:
        sampling_rate: samples a second.
        in_channels: 1, or 2 for stereo.
        hop_length: samples of a frame.
        subframes: spectra in a frame; they must make even steps of the hop.
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
        hop_length: Annotated[int, Range(2, 2**14)] = 320,
        subframes: Depth = 2,
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
        if hop_length % (2 * subframes):
            raise ValueError(f"subframes must make even steps of hop_length={hop_length}, got {subframes}")
        step = hop_length // subframes
        if chunk_length_s is not None and chunk_length_s * sampling_rate < 1:
            raise ValueError(f"chunk_length_s={chunk_length_s} is less than a sample")
        numbers = in_channels * hop_length  # in a frame
        shape = (kernel_size, expansion, step)
        self.encoder = nn.Sequential(
            LappedFrames(step, subframes),
            FrameNetwork(numbers, codebook_dim, hidden_channels, encoder_layers, *shape, synthesis=False),
        )
        options = {**(RESIDUAL_DEFAULTS if quantizer_type == "residual" else {}), **(quantizer_config or {})}
        self.quantizer: Any = make_quantizer(quantizer_type, codebook_size, codebook_dim, options)
        self.decoder = nn.Sequential(
            FrameNetwork(
                codebook_dim, numbers, decoder_channels or hidden_channels, decoder_layers, *shape, synthesis=True
            ),
            LappedSynthesis(in_channels, step, subframes),
        )

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return self.config.hop_length

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the spectra: for the adaptive weight of an adversarial loss."""
        return self.decoder[0].leave.weight

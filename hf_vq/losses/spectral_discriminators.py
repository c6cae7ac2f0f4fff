"""Discriminators of signals by their complex spectra, each at several resolutions."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from hf_vq.arguments import checked
from hf_vq.losses.discriminator import Judgement
from hf_vq.losses.signal_discriminator import SignalDiscriminator
from hf_vq.losses.spectra import mirrored, spectra
from hf_vq.ranges import NotEmpty, Range, Share, Width

KERNEL, STRIDE = (3, 9), (1, 2)  # frames, frequencies

Windows = Annotated[Sequence[Annotated[int, Range(4, 2**16)]], NotEmpty()]
Dilations = Annotated[Sequence[Annotated[int, Range(1, 2**8)]], NotEmpty()]
Bands = Annotated[Sequence[Sequence[Share]], NotEmpty()]


class MultiScaleSTFTDiscriminator(SignalDiscriminator):
    """EnCodec's (https://arxiv.org/abs/2210.13438, section 3.4): 2-D convolutions over complex spectra.

    Of each scale, real and imaginary parts are channels of a picture of frames and frequencies; frames begin with the
    signal, lie wholly within it, and overlap by three quarters. A signal shorter than a window is extended by zeros.

    Args:
        in_channels: channels of a sample.
        hidden_channels: of each hidden convolution.
        window_lengths: samples of the window of each scale.
        dilations: along frames, of the strided convolutions.
        slope: of LeakyReLU.

    Raises:
        ValueError: an argument out of its range.
    """

    @register_to_config
    @checked
    def __init__(
        self,
        in_channels: Width = 1,
        hidden_channels: Width = 32,
        window_lengths: Windows = (2048, 1024, 512, 256, 128),
        dilations: Dilations = (1, 2, 4),
        slope: Share = 0.2,
    ):
        super().__init__()
        self.judges = nn.ModuleList(
            SpectrumJudge(in_channels, hidden_channels, dilations, slope, 1) for _ in window_lengths
        )
        _register_windows(self, window_lengths)

    def judge(self, sample: torch.Tensor) -> Judgement:
        judged = []
        for index, judge in enumerate(self.judges):
            window = getattr(self, f"window_{index}")
            length = len(window)
            whole = F.pad(sample, (0, max(length - sample.shape[2], 0)))
            picture = spectral_picture(whole, window) / window.square().sum().sqrt()
            judged.append(judge([picture]))
        return Judgement(*zip(*judged, strict=True))


class MultiBandDiscriminator(SignalDiscriminator):
    """DAC's (https://arxiv.org/abs/2306.06546): each band of each complex spectrum has convolutions of its own.

    Frames overlap by three quarters, and there are as many as hops in the signal, whose ends are mirrored; a signal
    too short for that is first extended by zeros.

    Args:
        in_channels: channels of a sample.
        hidden_channels: of each hidden convolution.
        window_lengths: samples of the window of each resolution.
        bands: where each begins and ends, as shares of all frequencies.
        slope: of LeakyReLU.

    Raises:
        ValueError: an argument out of its range, or a band without a frequency.
    """

    @register_to_config
    @checked
    def __init__(
        self,
        in_channels: Width = 1,
        hidden_channels: Width = 32,
        window_lengths: Windows = (2048, 1024, 512),
        bands: Bands = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)),
        slope: Share = 0.1,
    ):
        super().__init__()
        for length in window_lengths:
            for band in bands:
                if len(band) != 2 or not _place(band[0], length) < _place(band[1], length):
                    raise ValueError(f"bands must begin and end, got {band}: no frequency at window_lengths {length}")
        self.judges = nn.ModuleList(
            SpectrumJudge(in_channels, hidden_channels, (1, 1, 1), slope, len(bands)) for _ in window_lengths
        )
        _register_windows(self, window_lengths)

    def judge(self, sample: torch.Tensor) -> Judgement:
        judged = []
        for index, judge in enumerate(self.judges):
            window = getattr(self, f"window_{index}")
            length, hop = len(window), len(window) // 4
            margin, missing = (length - hop) // 2, -sample.shape[2] % hop
            picture = spectral_picture(mirrored(sample, margin, margin + missing), window)
            places = [[_place(share, length) for share in band] for band in self.config.bands]
            judged.append(judge([picture[..., low:high] for low, high in places]))
        return Judgement(*zip(*judged, strict=True))


class SpectrumJudge(nn.Module):
    """One resolution: convolutions of each band, and one of all of them to logits.

    Args:
        in_channels: channels of a sample.
        hidden_channels: of each hidden convolution.
        dilations: along frames, of the strided convolutions.
        slope: of LeakyReLU.
        num_bands: how many.
    """

    def __init__(self, in_channels: int, hidden_channels: int, dilations: Sequence[int], slope: float, num_bands: int):
        super().__init__()
        self.slope = slope
        self.bands = nn.ModuleList()
        for _ in range(num_bands):
            layers = [_convolution(2 * in_channels, hidden_channels)]
            layers += [_convolution(hidden_channels, hidden_channels, STRIDE, dilation) for dilation in dilations]
            self.bands.append(nn.ModuleList([*layers, _convolution(hidden_channels, hidden_channels, kernel=(3, 3))]))
        self.to_logits = _convolution(hidden_channels, 1, kernel=(3, 3))

    def forward(self, pictures: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Logits (batch, 1, frames, places) and features of the bands of a `spectral_picture`."""
        ends, features = [], []
        bands: Any = self.bands  # lists of layers
        for picture, layers in zip(pictures, bands, strict=True):
            hidden = picture.to(self.to_logits.weight.dtype)
            for layer in layers:
                hidden = F.leaky_relu(layer(hidden), self.slope)
                features.append(hidden)
            ends.append(hidden)
        return self.to_logits(torch.cat(ends, dim=3)), tuple(features)


@torch.compiler.disable(reason="inductor has no complex numbers")
def spectral_picture(signal: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Signals (batch, channels, time) as real and imaginary parts (batch, 2 channels, frames, frequencies)."""
    spectrum = spectra(signal, len(window), len(window) // 4, window)
    return torch.cat([spectrum.real, spectrum.imag], dim=1).transpose(2, 3)


def _convolution(before, after, stride=(1, 1), dilation=1, kernel=KERNEL):
    padding = (dilation * (kernel[0] // 2), kernel[1] // 2)
    return weight_norm(nn.Conv2d(before, after, kernel, stride, padding, (dilation, 1)))


def _register_windows(module, window_lengths):
    for index, length in enumerate(window_lengths):
        module.register_buffer(f"window_{index}", torch.hann_window(length), persistent=False)


def _place(share, window_length):
    """The frequency where a share of all frequencies ends."""
    return int(share * (window_length // 2 + 1))

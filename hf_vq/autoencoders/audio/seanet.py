"""SEANet's encoder and decoder (https://arxiv.org/abs/2009.02095), as SoundStream, EnCodec, DAC and SNAC vary them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_vq.autoencoders.audio.convolutions import Rules, SignalConv, TransposedSignalConv
from hf_vq.autoencoders.audio.layers import (
    LocalAttention,
    ResidualUnit,
    SkipLSTM,
    make_activation,
    stream_through,
)


class Shape(NamedTuple):
    """What encoder and decoder have in common; see the arguments of `AudioCodec` of the same names."""

    kernel_size: int
    num_residual_layers: int
    residual_kernel_size: int
    dilation_growth: int
    residual_compress: int
    residual_shortcut: bool
    activation: str
    lstm_layers: int
    attention_layers: int
    attention_heads: int
    attention_window: int
    rules: Rules

    def residual_units(self, channels: int) -> list[nn.Module]:
        """Those of one stage, with growing dilations."""
        return [
            ResidualUnit(
                channels,
                self.residual_kernel_size,
                self.dilation_growth**index,
                self.residual_compress,
                self.residual_shortcut,
                self.activation,
                self.rules,
            )
            for index in range(self.num_residual_layers)
        ]

    def coarse_layers(self, channels: int) -> list[nn.Module]:
        """What looks far along the frames of the coarse end."""
        lstm = [SkipLSTM(channels, self.lstm_layers)] if self.lstm_layers else []
        heads, window, causal = self.attention_heads, self.attention_window, self.rules.causal
        return [*lstm, *(LocalAttention(channels, heads, window, causal) for _ in range(self.attention_layers))]

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> SignalConv:
        """A convolution under the rules."""
        return SignalConv(in_channels, out_channels, kernel_size, self.rules, stride)


class Network(nn.Module):
    """Layers one after another, which take a signal as a whole or piece by piece."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            signal = layer(signal)
        return signal

    def stream(self, signal: torch.Tensor, states: list[Any] | None, end: bool) -> tuple[torch.Tensor, list[Any]]:
        """See `stream_through`."""
        return stream_through(self.layers, signal, states, end)


def make_encoder(
    in_channels: int, hidden_channels: int, latent_channels: int, strides: Sequence[int], end_kernel: int, shape: Shape
) -> Network:
    """Signals (batch, in_channels, time) to latents (batch, latent_channels, frames); the width doubles by stage."""
    width = hidden_channels
    layers: list[nn.Module] = [shape.conv(in_channels, width, shape.kernel_size)]
    for stride in strides:
        layers += [*shape.residual_units(width), make_activation(shape.activation, width)]
        layers += [shape.conv(width, 2 * width, 2 * stride, stride)]
        width *= 2
    layers += [*shape.coarse_layers(width), make_activation(shape.activation, width)]
    return Network([*layers, shape.conv(width, latent_channels, end_kernel)])


def make_decoder(
    latent_channels: int,
    hidden_channels: int,
    out_channels: int,
    strides: Sequence[int],
    end_kernel: int,
    shape: Shape,
) -> Network:
    """Latents (batch, latent_channels, frames) to signals (batch, out_channels, time); the width halves by stage."""
    width = hidden_channels
    layers: list[nn.Module] = [shape.conv(latent_channels, width, shape.kernel_size), *shape.coarse_layers(width)]
    for stride in strides:
        layers += [make_activation(shape.activation, width)]
        layers += [TransposedSignalConv(width, width // 2, stride, shape.rules)]
        width //= 2
        layers += shape.residual_units(width)
    layers += [make_activation(shape.activation, width)]
    return Network([*layers, shape.conv(width, out_channels, end_kernel)])

"""Layers of audio codecs besides convolutions; those that look at other moments also run piece by piece."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.autoencoders.audio.convolutions import Rules, SignalConv

ROTARY_BASE = 10000.0
FEW_STEPS = 48  # of an LSTM
TINY = 1e-9  # added to Snake's alpha where it divides, as in DAC


class Snake(nn.Module):
    """x + sin(alpha x)^2 / alpha, with an alpha for each channel that is learned (https://arxiv.org/abs/2006.08195).

    Args:
        channels: of the signal.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return signal + (self.alpha + TINY).reciprocal() * torch.sin(self.alpha * signal).square()


def make_activation(name: str, channels: int, inplace: bool = True) -> nn.Module:
    """ "elu" or "snake", of signals (batch, channels, time); the first in place, unless they are looked at again."""
    return Snake(channels) if name == "snake" else nn.ELU(inplace=inplace)


def stream_through(
    layers: Iterable[nn.Module], signal: torch.Tensor, states: list[Any] | None, end: bool
) -> tuple[torch.Tensor, list[Any]]:
    """The next piece of a signal through layers one after another, and the state of each after it.

    Args:
        layers: those without `stream` look at one moment alone.
        signal: (batch, channels, any length).
        states: None at the start.
        end: nothing comes after this piece.
    """
    after: list[Any] = []
    for index, layer in enumerate(layers):
        state = states[index] if states else None
        stream: Any = getattr(layer, "stream", None)
        if stream is not None:
            signal, state = stream(signal, state, end)
        elif signal.shape[-1]:
            signal = layer(signal)
        after.append(state)
    return signal, after


class ResidualUnit(nn.Module):
    """shortcut(x) + convolution(activation(dilated convolution(activation(x)))), as in SEANet and SoundStream.

    Args:
        channels: of the signal.
        kernel_size, dilation: of the first convolution.
        compress: the inner width is the outer one over this.
        shortcut: a convolution beside the two, of kernel size 1; else x itself.
        activation: "elu" or "snake".
        rules: `Rules`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilation: int,
        compress: int,
        shortcut: bool,
        activation: str,
        rules: Rules,
    ):
        super().__init__()
        inner = max(1, channels // compress)
        groups = channels if rules.depthwise else 1
        self.block = nn.ModuleList(
            [
                make_activation(activation, channels, inplace=False),
                SignalConv(channels, inner, kernel_size, rules, dilation=dilation, groups=groups),
                make_activation(activation, inner),
                SignalConv(inner, channels, 1, rules),
            ]
        )
        self.shortcut = SignalConv(channels, channels, 1, rules) if shortcut else nn.Identity()

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        hidden = signal
        for layer in self.block:
            hidden = layer(hidden)
        return self.shortcut(signal) + hidden

    def stream(self, signal: torch.Tensor, state: Any, end: bool) -> tuple[torch.Tensor, Any]:
        """As of `SignalConv`; the state is that of the block, and what of the shortcut is ahead of it."""
        states, ahead = state or (None, signal[..., :0])
        hidden, states = stream_through(self.block, signal, states, end)
        beside = self.shortcut(signal) if signal.shape[-1] else signal
        ahead = torch.cat([ahead, beside], dim=-1)
        now = hidden.shape[-1]
        return ahead[..., :now] + hidden, (states, ahead[..., now:])


class SkipLSTM(nn.Module):
    """A signal plus an LSTM of it, as at the coarse end of EnCodec.

    Args:
        channels: of the signal and of the LSTM.
        num_layers: of the LSTM.
    """

    def __init__(self, channels: int, num_layers: int):
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.stream(signal, None, True)[0]

    def stream(self, signal: torch.Tensor, state: Any, end: bool) -> tuple[torch.Tensor, Any]:
        """As of `SignalConv`; the state is the LSTM's."""
        if not signal.shape[-1]:
            return signal, state
        steps = signal.permute(2, 0, 1)
        few = len(steps) < FEW_STEPS and not torch.is_grad_enabled()
        hidden, state = self._few_steps(steps, state) if few else self.lstm(steps, state)
        return (hidden + steps).permute(1, 2, 0), state

    def _few_steps(self, steps, state):
        """As the LSTM; torch's kernel for the CPU packs all weights in every call, which takes as long as many steps.

        Args:
            steps: (time, batch, channels).
        """
        zeros = steps.new_zeros(self.lstm.num_layers, *steps.shape[1:])
        hidden, cells, outputs = *map(list, state or (zeros, zeros)), []
        for step in steps:
            for layer, weights in enumerate(self.lstm.all_weights):
                step, cells[layer] = torch.lstm_cell(step, (hidden[layer], cells[layer]), *weights)
                hidden[layer] = step
            outputs.append(step)
        return torch.stack(outputs), (torch.stack(hidden), torch.stack(cells))


class LocalAttention(nn.Module):
    """A pre-norm transformer layer whose frames see those near by, with rotary positions.

    Args:
        channels: of the signal, two or a multiple of two for each head.
        num_heads: heads.
        window: frames that one sees: itself and those before; where it is not causal, half of them after it.
        causal: whether it is.
    """

    def __init__(self, channels: int, num_heads: int, window: int, causal: bool):
        super().__init__()
        self.num_heads, self.window, self.causal = num_heads, window, causal
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv, self.output = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)
        self.expand, self.contract = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        return self.stream(signal, None, True)[0]

    def stream(self, signal: torch.Tensor, state: Any, end: bool) -> tuple[torch.Tensor, Any]:
        """As of `SignalConv`; the state are keys and values of the last frames, and how many frames were before."""
        if not signal.shape[-1]:
            return signal, state
        hidden = signal.transpose(1, 2)
        queries, keys, values = self.qkv(self.norm1(hidden)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        start, old_keys, old_values = state or (0, keys[:, :0], values[:, :0])
        angles = self._angles(start, keys.shape[1], keys.shape[-1], keys)
        queries, keys = _rotated(queries, angles), _rotated(keys, angles)
        keys, values = torch.cat([old_keys, keys], dim=1), torch.cat([old_values, values], dim=1)
        before, now = old_keys.shape[1], hidden.shape[1]
        places = torch.arange(before + now, device=signal.device)
        back = places[before:, None] - places  # how many frames ago
        reach = 0 if self.causal else self.window // 2
        seen = (back >= -reach) & (back < self.window - reach)
        attended = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), seen
        )
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(2))
        hidden = hidden + self.contract(F.gelu(self.expand(self.norm2(hidden))))
        kept = max(0, before + now - (self.window - 1))
        return hidden.transpose(1, 2), (start + now, keys[:, kept:], values[:, kept:])

    @staticmethod
    def _angles(start, frames, head_dim, like):
        """(frames, 1, head_dim / 2), of positions from `start` on."""
        rates = ROTARY_BASE ** -(torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim)
        return (torch.arange(start, start + frames, device=like.device)[:, None] * rates)[:, None]


def _rotated(states, angles):
    """States (batch, frames, heads, head_dim), each half's pairs turned by the angles of their frame."""
    cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
    one, other = states.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)

"""Convolutions of signals that keep time: length L in, ceil(L / stride) or L x stride out, whole or piece by piece."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

NORMS = ("weight", "time_group", "none")
PAD_MODES = ("reflect", "constant", "replicate")


class Rules(NamedTuple):
    """What all convolutions of a network have in common.

    Attributes:
        causal: what a convolution adds to keep time stands before the signal, else half of it after.
        norm: "weight", weight normalisation (https://arxiv.org/abs/1602.07868); "time_group", a group norm over all
            channels and all of time; or "none".
        pad_mode: what is added: "reflect", the signal mirrored; "constant", zeros; or "replicate", its ends.
        trim_right_ratio: share of what a causal transposed convolution adds that is cut at the end, the rest at the
            start, where it is latency.
        symmetric_trim: of what a transposed convolution adds, cut as much at both ends, rounded up, as DAC does: with
            an odd stride the result is a sample short.
        depthwise: residual units convolve each channel alone, as SNAC's do.
    """

    causal: bool = True
    norm: str = "weight"
    pad_mode: str = "reflect"
    trim_right_ratio: float = 1.0
    symmetric_trim: bool = False
    depthwise: bool = False


def pad_signal(signal: torch.Tensor, left: int, right: int, mode: str) -> torch.Tensor:
    """A signal (batch, channels, time) with more at both ends; one too short to be mirrored gets zeros first."""
    short = max(left, right) + 1 - signal.shape[-1] if mode == "reflect" else 0
    if short > 0:
        signal = F.pad(F.pad(signal, (0, short)), (left, right), mode)
        return signal[..., : signal.shape[-1] - short]
    return F.pad(signal, (left, right), mode) if left or right else signal


class SignalConv(nn.Module):
    """A convolution (batch, channels, L) to (batch, channels, ceil(L / stride)), as EnCodec's.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: as of `nn.Conv1d`.
        rules: `Rules`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        rules: Rules,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.rules, self.stride, self.span = rules, stride, (kernel_size - 1) * dilation + 1
        self.before = self.span - stride  # what is added in all, where the stride divides the length
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups)
        self.conv: Any = weight_norm(conv) if rules.norm == "weight" else conv
        self.norm = nn.GroupNorm(1, out_channels) if rules.norm == "time_group" else nn.Identity()

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        right = 0 if self.rules.causal else self.before // 2
        missing = -signal.shape[-1] % self.stride
        return self._convolve(pad_signal(signal, self.before - right, right + missing, self.rules.pad_mode))

    def stream(self, signal: torch.Tensor, state: Any, end: bool) -> tuple[torch.Tensor, Any]:
        """What the next piece of a signal (batch, channels, any length) adds to the result, and the state after it.

        Args:
            state: None at the start; whether what stands before the signal is there already, and what is to come in.
            end: nothing comes after this piece.
        """
        begun, waiting = state or (False, signal[..., :0])
        waiting = torch.cat([waiting, signal], dim=-1)
        mode = self.rules.pad_mode
        if not begun and waiting.shape[-1]:
            enough = max(self.before, self.stride - 1) if mode == "reflect" else 0
            if waiting.shape[-1] > enough:
                begun, waiting = True, pad_signal(waiting, self.before, 0, mode)
            elif end:
                return self(waiting), None
        if not begun:
            return self._nothing(waiting), (False, waiting)
        if end:
            waiting = pad_signal(waiting, 0, (self.before - waiting.shape[-1]) % self.stride, mode)
        frames = (waiting.shape[-1] - self.before) // self.stride
        used = self.before + frames * self.stride
        result = self._convolve(waiting[..., :used]) if frames else self._nothing(waiting)
        return result, (True, waiting[..., frames * self.stride :])

    def _convolve(self, padded):
        return self.norm(self.conv(padded))

    def _nothing(self, signal):
        return signal.new_zeros(signal.shape[0], self.conv.out_channels, 0)


class TransposedSignalConv(nn.Module):
    """A transposed convolution (batch, channels, L) to (batch, channels, L x stride), as EnCodec's; its kernel is two
    strides long.

    Args:
        in_channels, out_channels, stride: as of `nn.ConvTranspose1d`.
        rules: `Rules`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, rules: Rules):
        super().__init__()
        self.stride = stride
        conv = nn.ConvTranspose1d(in_channels, out_channels, 2 * stride, stride)
        self.conv: Any = weight_norm(conv) if rules.norm == "weight" else conv
        self.norm = nn.GroupNorm(1, out_channels) if rules.norm == "time_group" else nn.Identity()
        if rules.causal:
            self.right = math.ceil(stride * rules.trim_right_ratio)
            self.left = stride - self.right
        else:
            self.right = stride // 2
            self.left = stride - self.right
            self.right = self.left if rules.symmetric_trim else self.right

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        signal = self.norm(self.conv(signal))
        return signal[..., self.left : signal.shape[-1] - self.right]

    def stream(self, signal: torch.Tensor, state: Any, end: bool) -> tuple[torch.Tensor, Any]:
        """As of `SignalConv`; the state is what reaches over the end of the last piece, and how much to leave out."""
        batch, out_channels = signal.shape[0], self.conv.out_channels
        overlap, skipped = state or (signal.new_zeros(batch, out_channels, self.stride), self.left)
        ready = signal.new_zeros(batch, out_channels, 0)
        if signal.shape[-1]:
            full = F.conv_transpose1d(signal, self.conv.weight, None, self.stride)
            full = torch.cat([full[..., : self.stride] + overlap, full[..., self.stride :]], dim=-1)
            ready, overlap = full[..., : -self.stride], full[..., -self.stride :]
        if end and (state or signal.shape[-1]):
            ready = torch.cat([ready, overlap[..., : self.left]], dim=-1)
        now = min(skipped, ready.shape[-1])
        return ready[..., now:] + self.conv.bias[:, None], (overlap, skipped - now)


@torch.no_grad()
def fold_weight_norm(network: nn.Module) -> None:
    """Put layers with plain weights in the place of those whose weights are a direction times a length.

    (`remove_parametrizations` changes the layer's class, which it shares with all copies of the layer.)
    """
    for owner in network.modules():
        conv: Any = getattr(owner, "conv", None)
        if conv is None or not parametrize.is_parametrized(conv, "weight"):
            continue
        plain_class = nn.ConvTranspose1d if conv.transposed else nn.Conv1d
        plain: Any = plain_class(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, dilation=conv.dilation,
            groups=conv.groups, device=conv.bias.device, dtype=conv.bias.dtype,
        )  # fmt: skip
        plain.weight.copy_(conv.weight)
        plain.bias.copy_(conv.bias)
        owner.conv = plain

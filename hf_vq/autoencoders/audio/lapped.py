"""Short spectra of signals by the modified discrete cosine transform, several in a frame, and signals of them."""

import math

import torch
import torch.nn.functional as F
from torch import nn

GAIN = 10.0  # of the coefficients that a network sees: speech of -20 dB has some of about 1


class LappedTransform(nn.Module):
    """The modified discrete cosine transform (https://doi.org/10.1109/ICASSP.1987.1169405) of whole signals.

    A spectrum has `step` coefficients, of the 2 x step samples about its place under a sine window. There are as many
    coefficients as samples, and the transform is orthogonal but for half a step at either end of a signal, where
    nothing overlaps: there the window is left out.

    Args:
        step: samples from spectrum to spectrum, even.
        subframes: spectra in a frame.
    """

    basis: torch.Tensor
    edge: torch.Tensor

    def __init__(self, step: int, subframes: int):
        super().__init__()
        self.step, self.subframes = step, subframes
        places = torch.arange(2 * step, dtype=torch.float64, device="cpu") + 0.5
        tones = torch.arange(step, dtype=torch.float64, device="cpu") + 0.5
        window = torch.sin(math.pi * places / (2 * step))
        waves = torch.cos(math.pi / step * tones[:, None] * (places + step / 2))
        self.register_buffer("basis", (math.sqrt(2 / step) * window * waves)[:, None].float(), persistent=False)
        self.register_buffer("edge", window[step // 2 : step].float(), persistent=False)

    def without_window(self, signal: torch.Tensor) -> torch.Tensor:
        """A signal (rows, 1, samples) whose first and last half steps are divided by the window."""
        half = self.step // 2
        first, last = signal[..., :half] / self.edge, signal[..., -half:] / self.edge.flip(0)
        return torch.cat([first, signal[..., half:-half], last], dim=-1)


class LappedFrames(LappedTransform):
    """Signals (batch, channels, frames x hop) to coefficients (batch, channels x subframes x step, frames)."""

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        with torch.autocast(signal.device.type, enabled=False):
            flat = self.without_window(signal.to(self.basis.dtype).flatten(0, 1)[:, None])
            spectra = GAIN * F.conv1d(F.pad(flat, (self.step // 2,) * 2), self.basis, stride=self.step)
        frames = spectra.unflatten(-1, (-1, self.subframes)).permute(0, 3, 1, 2)  # (..., subframes, step, frames)
        return frames.reshape(signal.shape[0], -1, frames.shape[-1]).to(signal.dtype)


class LappedSynthesis(LappedTransform):
    """Coefficients (batch, channels x subframes x step, frames) to signals (batch, channels, frames x hop).

    Args:
        channels: of the signal.
        step, subframes: as of `LappedTransform`.
    """

    def __init__(self, channels: int, step: int, subframes: int):
        super().__init__(step, subframes)
        self.channels = channels

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        frames = features.to(self.basis.dtype).unflatten(1, (self.channels, self.subframes, self.step))
        spectra = frames.permute(0, 1, 3, 4, 2).flatten(0, 1).flatten(2)  # (batch x channels, step, spectra)
        with torch.autocast(features.device.type, enabled=False):
            half = self.step // 2
            signal = F.conv_transpose1d(spectra / GAIN, self.basis, stride=self.step)[..., half:-half]
            signal = self.without_window(signal)
        return signal.reshape(features.shape[0], self.channels, -1).to(features.dtype)

"""Short spectra of signals, several in a frame, and signals of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.autoencoders.audio.convolutions import pad_signal

LOUDEST = 10.0  # of the logarithm of a magnitude that a network asks for
SILENT = 1e-5  # magnitudes below it have no phase
COMPRESSED = 0.3  # power of the magnitudes that a network sees


def _window(fft_size: int, like: torch.Tensor) -> torch.Tensor:
    return torch.hann_window(fft_size, device=like.device, dtype=like.dtype)


def _widened(signal: torch.Tensor) -> torch.Tensor:
    return signal.to(torch.promote_types(signal.dtype, torch.float32))


class SpectralFrames(nn.Module):
    """Signals (batch, channels, frames x hop) to features (batch, channels x subframes x 2 x bins, frames).

    A frame has `subframes` spectra one after another, each of the `fft_size` samples about its place, of which it has
    real and imaginary parts, their magnitudes raised to the power 0.3. Signals are mirrored at their ends.

    Args:
        fft_size: samples of a spectrum, even.
        step: samples from spectrum to spectrum.
        subframes: spectra in a frame.
    """

    def __init__(self, fft_size: int, step: int, subframes: int):
        super().__init__()
        self.fft_size, self.step, self.subframes = fft_size, step, subframes

    def forward(self, signal: torch.Tensor) -> torch.Tensor:
        flat = _widened(signal).flatten(0, 1)[:, None]
        beyond = self.fft_size - self.step
        padded = pad_signal(flat, beyond // 2, beyond - beyond // 2, "reflect")[:, 0]
        with torch.autocast(signal.device.type, enabled=False):
            spectra = torch.stft(
                padded, self.fft_size, self.step, window=_window(self.fft_size, padded), center=False,
                return_complex=True,
            )  # fmt: skip
        parts = torch.view_as_real(spectra)  # (batch x channels, bins, spectra, 2)
        power = parts.square().sum(dim=-1, keepdim=True)
        parts = parts * (power + SILENT**2).pow((COMPRESSED - 1) / 2)
        frames = parts.unflatten(2, (-1, self.subframes)).permute(0, 3, 4, 1, 2)  # (..., subframes, 2, bins, frames)
        return frames.reshape(signal.shape[0], -1, frames.shape[-1]).to(signal.dtype)


class SpectralSynthesis(nn.Module):
    """Features (batch, channels x subframes x 2 x bins, frames) to signals (batch, channels, frames x hop).

    Features are the logarithm of a magnitude and a phase for each bin, as in Vocos (https://arxiv.org/abs/2306.00814).

    Args:
        channels: of the signal.
        fft_size, step, subframes: as of `SpectralFrames`.
    """

    def __init__(self, channels: int, fft_size: int, step: int, subframes: int):
        super().__init__()
        self.channels, self.fft_size, self.step, self.subframes = channels, fft_size, step, subframes

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        frames = _widened(features).unflatten(1, (self.channels, self.subframes, 2, self.fft_size // 2 + 1))
        logs, phases = frames.permute(0, 1, 3, 4, 5, 2).flatten(4).unbind(dim=2)  # (batch, channels, bins, spectra)
        with torch.autocast(features.device.type, enabled=False):
            spectra = torch.polar(logs.clamp_max(LOUDEST).exp(), phases)
            pieces = torch.fft.irfft(spectra, self.fft_size, dim=2)
            window = _window(self.fft_size, logs)
            total = self._add(pieces * window[:, None])
            envelope = self._add(window.square()[None, None, :, None].expand(1, 1, -1, pieces.shape[-1]))
        return (total / envelope).to(features.dtype)

    def _add(self, pieces: torch.Tensor) -> Any:
        """Pieces (batch, channels, fft_size, spectra) one a step, added up, without what lies beyond the ends."""
        length = (pieces.shape[-1] - 1) * self.step + self.fft_size
        total = F.fold(pieces.flatten(0, 1), (1, length), (1, self.fft_size), stride=(1, self.step))
        before = (self.fft_size - self.step) // 2
        total = total[..., before : before + pieces.shape[-1] * self.step]
        return total.reshape(*pieces.shape[:2], -1)

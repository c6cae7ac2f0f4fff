"""Distances of signals by their spectra at several resolutions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class SpectralLoss(nn.Module):
    """Multi-resolution STFT loss (Parallel WaveGAN, https://arxiv.org/abs/1910.11480, eq. 3-6).

    With X and Y the magnitudes |STFT| of target and signal, and N how many there are, each resolution gives

        | X - Y |_F / | X |_F  +  1 / N x | log X - log Y |_1

    spectral convergence, which follows the loud parts, and the distance of logarithms, which follows the quiet ones.
    The loss is the mean over resolutions. Windows are Hann's, frames are centred on multiples of the hop, and signals
    are mirrored at their ends. Magnitudes count from `floor` on, so that silence has finite gradients: 0.

    Args:
        n_ffts: samples of the Fourier transform of each resolution; the defaults are the paper's.
        hop_lengths: samples from frame to frame; None: a quarter of the window.
        window_lengths: samples of the windows, at most those of the transforms; None: as many.
        floor: smallest magnitude, above 0. A full-scale sine has about a quarter of the window's samples.

    Raises:
        ValueError: lengths that do not fit, named with their values.
    """

    def __init__(
        self,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] | None = (120, 240, 50),
        window_lengths: Sequence[int] | None = (600, 1200, 240),
        floor: float = 1e-4,
    ):
        super().__init__()
        windows = tuple(n_ffts if window_lengths is None else window_lengths)
        hops = tuple(max(1, window // 4) for window in windows) if hop_lengths is None else tuple(hop_lengths)
        _check_lengths(tuple(n_ffts), hops, windows)
        if not 0 < floor < float("inf"):
            raise ValueError(f"floor must be above 0 and finite, got {floor}")
        self.n_ffts, self.hop_lengths, self.floor = tuple(n_ffts), hops, floor
        for index, window in enumerate(windows):
            self.register_buffer(f"window_{index}", torch.hann_window(window), persistent=False)

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The distance of each signal from its target.

        Args:
            sample, target: (batch, channels, time), of at least half of the largest transform + 1 in time.

        Returns:
            (batch,) distances; a loss is their mean.

        Raises:
            ValueError: shapes that differ or do not fit, or signals that are too short.
        """
        self._check(sample, target)
        terms: list[Any] = []
        for index in range(len(self.n_ffts)):
            own, wanted = self.magnitudes(sample, index), self.magnitudes(target, index)
            convergence = _length(wanted - own) / _length(wanted)
            terms.append(convergence + (wanted.log() - own.log()).abs().mean(dim=(1, 2, 3)))
        return torch.stack(terms).mean(dim=0)

    def magnitudes(self, sample: torch.Tensor, resolution: int) -> torch.Tensor:
        """The spectrogram (batch, channels, frequencies, frames) of signals (batch, channels, time)."""
        n_fft, window = self.n_ffts[resolution], getattr(self, f"window_{resolution}")
        flat = sample.flatten(0, 1).to(torch.promote_types(sample.dtype, torch.float32))
        spectrum = torch.stft(
            flat,
            n_fft,
            self.hop_lengths[resolution],
            len(window),
            window.to(flat.dtype),
            pad_mode="reflect",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp_min(self.floor**2).sqrt().unflatten(0, sample.shape[:2])

    def _check(self, sample, target):
        if sample.ndim != 3 or sample.shape != target.shape:
            raise ValueError(
                "sample and target must be (batch, channels, time) of one shape, got "
                f"{tuple(sample.shape)} and {tuple(target.shape)}"
            )
        needed = max(self.n_ffts) // 2 + 1  # what is mirrored at an end
        if sample.shape[2] < needed:
            raise ValueError(f"n_ffts {self.n_ffts} need signals of at least {needed} samples, got {sample.shape[2]}")


def _check_lengths(n_ffts, hops, windows):
    if not n_ffts or not len(n_ffts) == len(hops) == len(windows):
        raise ValueError(
            "n_ffts, hop_lengths and window_lengths must have one entry for each resolution, got "
            f"{n_ffts}, {hops} and {windows}"
        )
    for name, values in (("n_ffts", n_ffts), ("hop_lengths", hops), ("window_lengths", windows)):
        if any(type(value) is not int or value < 1 for value in values):
            raise ValueError(f"{name} must be ints of at least 1, got {values}")
    for n_fft, window in zip(n_ffts, windows, strict=True):
        if window > n_fft:
            raise ValueError(f"window_lengths must be at most n_ffts, {n_ffts}; got {windows}")


def _length(magnitudes: torch.Tensor) -> torch.Tensor:
    """Frobenius norm of each item of a batch, (batch,)."""
    return torch.linalg.vector_norm(magnitudes, dim=(1, 2, 3))

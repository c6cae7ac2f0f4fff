"""Spectra of signals at several resolutions, and what distances of them share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def mirrored(
    signal: torch.Tensor, before: int, after: int | None = None, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Signals with their mirror images on both sides, as `F.pad(signal, (before, after), "reflect")` adds them.

    One that is too short to be mirrored is first extended by zeros, to the shortest that is not.

    Args:
        signal: (batch, channels, time).
        before, after: samples to add; None: as many as before.
        lengths: (batch,) where each item ends: it is mirrored there, and 0 behind its image. None: all at the end.

    Returns:
        (batch, channels, before + time + after), where time is that of the longest item once extended.
    """
    after = before if after is None else after
    needed = max(before, after) + 1
    signal = F.pad(signal, (0, max(needed - signal.shape[2], 0)))
    if lengths is None:
        return F.pad(signal, (before, after), mode="reflect")
    last = lengths.clamp_min(needed)[:, None] - 1
    places = torch.arange(-before, signal.shape[2] + after, device=signal.device).abs()
    inside = places <= last + after  # (batch, before + time + after)
    places = (last - (last - places).abs()).clamp_min(0)
    found = signal.gather(2, places[:, None].expand(-1, signal.shape[1], -1))
    return torch.where(inside[:, None], found, found.new_zeros(()))


def spectra(signal: torch.Tensor, n_fft: int, hop_length: int, window: torch.Tensor) -> torch.Tensor:
    """The complex STFT of every frame that lies wholly within a signal, in float32 or wider, whatever the autocast.

    Args:
        signal: (batch, channels, time), of at least n_fft samples.
        n_fft: samples of the Fourier transform.
        hop_length: samples from frame to frame.
        window: (window_length,), in the middle of the transform's samples.

    Returns:
        (batch, channels, frequencies, frames).
    """
    with torch.autocast(signal.device.type, enabled=False):
        flat = signal.flatten(0, 1).to(torch.promote_types(signal.dtype, torch.float32))
        found = torch.stft(
            flat, n_fft, hop_length, len(window), window.to(flat.dtype), center=False, return_complex=True
        )
    return found.unflatten(0, signal.shape[:2])


class SpectralDistance(nn.Module, ABC):
    """A distance of signals by the magnitudes of their spectra, the mean over several resolutions.

    Windows are Hann's, frames are centred on multiples of the hop, and signals are mirrored at their ends; what is
    shorter than half a window + 1 is first extended by zeros to that. All is computed in float32 or wider.

    Args:
        n_ffts: samples of the Fourier transform of each resolution.
        hop_lengths: samples from frame to frame; None: a quarter of the window.
        window_lengths: samples of the windows, at most those of the transforms; None: as many.
        floor: smallest magnitude, above 0, so that silence has finite gradients: 0.

    Raises:
        ValueError: lengths that do not fit, named with their values.
    """

    def __init__(
        self,
        n_ffts: Sequence[int],
        hop_lengths: Sequence[int] | None,
        window_lengths: Sequence[int] | None,
        floor: float,
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

    def forward(
        self, sample: torch.Tensor, target: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The distance of each signal from its target.

        Args:
            sample, target: (batch, channels, time).
            padding_mask: (batch, time) bool, True = real, what is real comes first. A padded signal has the distance
                that it has alone.

        Returns:
            (batch,) distances; a loss is their mean.

        Raises:
            ValueError: shapes that differ or do not fit.
        """
        if sample.ndim != 3 or sample.shape != target.shape or not sample.numel():
            raise ValueError(
                "sample and target must be (batch, channels, time) of one shape, got "
                f"{tuple(sample.shape)} and {tuple(target.shape)}"
            )
        lengths = None
        if padding_mask is not None:
            lengths = _lengths(padding_mask, sample)
            sample, target = (signal * padding_mask[:, None] for signal in (sample, target))
        with torch.autocast(sample.device.type, enabled=False):
            distances = [
                self.distance(
                    self.magnitudes(sample, index, lengths),
                    self.magnitudes(target, index, lengths),
                    None if lengths is None else self._real_frames(sample, index, lengths),
                    index,
                )
                for index in range(len(self.n_ffts))
            ]
            return torch.stack(distances).mean(dim=0)

    @abstractmethod
    def distance(
        self, own: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor | None, resolution: int
    ) -> torch.Tensor:
        """The distances (batch,) at one resolution.

        Args:
            own, wanted: magnitudes (batch, channels, frequencies, frames).
            real: (batch, 1, 1, frames) bool, which frames count; None: all.
            resolution: its number.
        """

    def magnitudes(self, sample: torch.Tensor, resolution: int, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """The spectrogram (batch, channels, frequencies, frames) of signals (batch, channels, time)."""
        n_fft, window = self.n_ffts[resolution], getattr(self, f"window_{resolution}")
        spectrum = spectra(mirrored(sample, n_fft // 2, None, lengths), n_fft, self.hop_lengths[resolution], window)
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp_min(self.floor**2).sqrt()

    def _real_frames(self, sample, resolution, lengths):
        """Which frames (batch, 1, 1, frames) a signal would have without its padding."""
        needed, hop = self.n_ffts[resolution] // 2 + 1, self.hop_lengths[resolution]
        frames = torch.arange(1 + max(sample.shape[2], needed) // hop, device=sample.device)
        return (frames * hop <= lengths.clamp_min(needed)[:, None])[:, None, None]


def mean_of_frames(values: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """The mean (batch,) of values (batch, channels, frequencies, frames) in the real frames, see `distance`."""
    if real is None:
        return values.mean(dim=(1, 2, 3))
    return (values.mean(dim=(1, 2), keepdim=True) * real).sum(dim=(1, 2, 3)) / real.sum(dim=(1, 2, 3))


def _lengths(padding_mask, sample):
    if padding_mask.dtype != torch.bool or padding_mask.shape != (len(sample), sample.shape[2]):
        raise ValueError(
            f"padding_mask must be bool of shape {(len(sample), sample.shape[2])}, got {padding_mask.dtype} of shape "
            f"{tuple(padding_mask.shape)}"
        )
    return padding_mask.sum(dim=1)


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

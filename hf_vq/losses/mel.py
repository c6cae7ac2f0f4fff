"""Distances of signals by how loud they are in the bands that ears tell apart."""

import warnings
from collections.abc import Sequence
from typing import Annotated

import torch
from transformers.audio_utils import mel_filter_bank

from hf_vq.arguments import checked
from hf_vq.losses.spectra import SpectralDistance, mean_of_frames
from hf_vq.ranges import OneOf, Positive, Size, Weight

SMALLEST = 1e-7  # magnitude: far below any floor of the mels, and its square is a float32


class MelLoss(SpectralDistance):
    """Multi-resolution distance of mel spectrograms, with the terms of DAC and of EnCodec.

    With X and Y the mels of target and signal at one resolution, the magnitudes |STFT| summed by triangular filters,
    and means over channels, mels and frames, each resolution gives

        log_weight x mean |log10 X - log10 Y| + linear_weight x mean |X - Y|
            + square_weight x mean (log10 X - log10 Y)^2

    and the loss is the mean over resolutions. The defaults are DAC's (https://arxiv.org/abs/2306.06546), which sums
    its 7 resolutions: its weight of 15 is 105 here. EnCodec's l_f (https://arxiv.org/abs/2210.13438, section 3.4) has
    the two other terms, with 64 mels at the same windows, `mel_scale` "htk", `normalize_filters` False and
    `normalize_windows` True. Windows, ends and padding are as of `SpectralDistance`. A filter without a frequency,
    such as short windows leave where there are many mels, gives 0 and counts in the mean.

    Args:
        sampling_rate: samples a second.
        window_lengths: samples of the windows and of their transforms; the hop is a quarter.
        num_mels: filters of each resolution, or one number for all.
        lowest: frequency in Hz where the first filter begins.
        highest: frequency in Hz where the last one ends; None: half the sampling rate.
        mel_scale: "slaney" (linear below 1 kHz) or "htk".
        normalize_filters: each has an area of 1 Hz, slaney's; else a height of 1.
        normalize_windows: magnitudes are over the root of the window's summed squares, as those of a unitary
            transform; else a full-scale sine has about a quarter of the window's samples.
        log_weight, linear_weight, square_weight: of the terms.
        floor: smallest mel in the logarithms, above 0.

    Raises:
        ValueError: an argument out of its range, or arguments that do not fit each other.
    """

    @checked
    def __init__(
        self,
        sampling_rate: Size,
        window_lengths: Sequence[Size] = (32, 64, 128, 256, 512, 1024, 2048),
        num_mels: Size | Sequence[Size] = (5, 10, 20, 40, 80, 160, 320),
        lowest: Weight = 0.0,
        highest: Positive | None = None,
        mel_scale: Annotated[str, OneOf(("slaney", "htk"))] = "slaney",
        normalize_filters: bool = True,
        normalize_windows: bool = False,
        log_weight: Weight = 1.0,
        linear_weight: Weight = 0.0,
        square_weight: Weight = 0.0,
        floor: Positive = 1e-5,
    ):
        super().__init__(window_lengths, None, None, SMALLEST)
        mels = (num_mels,) * len(self.n_ffts) if isinstance(num_mels, int) else tuple(num_mels)
        if len(mels) != len(self.n_ffts):
            raise ValueError(f"num_mels must be one, or one for each of window_lengths {self.n_ffts}, got {mels}")
        highest = sampling_rate / 2 if highest is None else highest
        if not lowest < highest <= sampling_rate / 2:
            raise ValueError(
                f"lowest={lowest} and highest={highest} must rise, up to half of sampling_rate={sampling_rate}"
            )
        if not log_weight + linear_weight + square_weight:
            raise ValueError(f"log_weight={log_weight}, linear_weight and square_weight must not all be 0")
        self.weights, self.mel_floor = (log_weight, linear_weight, square_weight), floor
        for index, (n_fft, count) in enumerate(zip(self.n_ffts, mels, strict=True)):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
                filters = mel_filter_bank(
                    n_fft // 2 + 1,
                    count,
                    lowest,
                    highest,
                    sampling_rate,
                    norm="slaney" if normalize_filters else None,
                    mel_scale=mel_scale,
                )
            window = getattr(self, f"window_{index}")
            scale = window.square().sum().sqrt().item() if normalize_windows else 1.0
            self.register_buffer(f"filters_{index}", torch.from_numpy(filters / scale).float(), persistent=False)

    def mels(self, magnitudes: torch.Tensor, resolution: int) -> torch.Tensor:
        """Mels (batch, channels, mels, frames) of magnitudes (batch, channels, frequencies, frames)."""
        filters = getattr(self, f"filters_{resolution}").to(magnitudes.dtype)
        return (magnitudes.transpose(2, 3) @ filters).transpose(2, 3)

    def distance(
        self, own: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor | None, resolution: int
    ) -> torch.Tensor:
        own, wanted = self.mels(own, resolution), self.mels(wanted, resolution)
        logs = [mels.clamp_min(self.mel_floor).log10() for mels in (own, wanted)]
        difference = logs[0] - logs[1]
        terms = (difference.abs(), (own - wanted).abs(), difference.square())
        pairs = zip(self.weights, terms, strict=True)
        return sum(weight * mean_of_frames(term, real) for weight, term in pairs if weight)  # type: ignore[return-value]

"""From the numbers of a sound, of any rate and number of channels, to a sample of one rate: one rule for all of it."""

import io
import wave
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from hf_vq.arguments import check_fields
from hf_vq.data.sound_files import require
from hf_vq.ranges import Positive, Rate, Width

LARGEST = 8.0  # of floats, in full scales: what lies beyond is of another scale, such as that of 16 bits
SIXTEEN_BITS = 2**15


def resampled_length(length: int, old_rate: int, new_rate: int) -> int:
    """Samples that a sound has at another rate: all that begin before it ends, length * new / old, rounded up."""
    return -(-length * new_rate // old_rate)


@dataclass(frozen=True)
class SoundRules:
    """How numbers become a sample.

    One channel is made of several by their mean, several of one by copies; other numbers of channels are refused. Then
    a sound is resampled by soxr (its quality HQ), cut to [-1, 1], and its silent ends are cut off where that is asked
    for.

    Args:
        sampling_rate: of samples, in Hz.
        channels: of samples.
        trim_silence: dB below the loudest sample; what is softer at both ends is cut off. None: nothing is.
    """

    sampling_rate: Rate
    channels: Width
    trim_silence: Positive | None = None

    def __post_init__(self):
        check_fields(self)

    def length(self, length: int, rate: int) -> int:
        """Samples of what `to_sample` makes of so many at a rate, unless it trims them."""
        return resampled_length(length, rate, self.sampling_rate)

    def to_sample(self, values: np.ndarray, rate: int) -> torch.Tensor:
        """A sample (channels, length) float32 in [-1, 1].

        Args:
            values: (channels, length) float32, 1.0 being full scale; see `as_floats`.
            rate: of the values, in Hz.

        Raises:
            ValueError: channels that cannot be mixed, NaN, infinity, or values of another scale.
        """
        if values.size == 0:
            raise ValueError(f"it has no samples, but shape {values.shape}")
        largest = float(np.abs(values).max())
        if not largest <= LARGEST:
            raise ValueError(f"values reach {largest:g}, which is NaN or another scale than [-1, 1]")
        sample = self._resampled(self._mixed(values), rate).clip(-1, 1)
        return torch.from_numpy(np.ascontiguousarray(self._trimmed(sample), dtype=np.float32))

    def check_channels(self, channels: int) -> None:
        """Raise a ValueError for sounds of so many channels, where they cannot be mixed to those of samples."""
        if channels != self.channels and 1 not in (channels, self.channels):
            raise ValueError(f"it has {channels} channels, of which channels={self.channels} cannot be made")

    def _mixed(self, values):
        self.check_channels(len(values))
        if self.channels == 1:
            return values.mean(axis=0, keepdims=True, dtype=np.float32)
        return np.broadcast_to(values, (self.channels, values.shape[1]))

    def _resampled(self, values, rate):
        if rate == self.sampling_rate:
            return values
        wanted = self.length(values.shape[1], rate)
        silence = int(1 / Fraction(self.sampling_rate, rate)) + 2  # soxr may end a sample early: there is more to read
        padded = np.pad(values, ((0, 0), (0, silence)))
        found = require("soxr").resample(np.ascontiguousarray(padded.T), rate, self.sampling_rate)
        return found[:wanted].T

    def _trimmed(self, sample):
        if self.trim_silence is None:
            return sample
        levels = np.abs(sample).max(axis=0)
        loud = np.flatnonzero(levels > levels.max() * 10 ** (-self.trim_silence / 20))
        return sample if len(loud) == 0 else sample[:, loud[0] : loud[-1] + 1]


def as_floats(values: np.ndarray) -> np.ndarray:
    """Numbers of a sound as floats of which 1.0 is full scale: integers as files of as many bits have them.

    Raises:
        ValueError: a type that no such files have.
    """
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype in (np.int8, np.int16, np.int32):
        return (values / 2.0 ** (8 * values.dtype.itemsize - 1)).astype(np.float32)
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    raise ValueError(f"it is of type {values.dtype}: sounds are floats, or integers uint8, int8, int16 or int32")


def wav_bytes(sample: torch.Tensor, sampling_rate: int) -> bytes:
    """A WAV file of 16 bits of a sample (channels, length) in [-1, 1]; what lies beyond is cut.

    Values are rounded to the nearest step here: libsndfile takes the one below.
    """
    values = (sample.detach().cpu().double() * SIXTEEN_BITS).round().clamp(-SIXTEEN_BITS, SIXTEEN_BITS - 1)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(len(values))
        writer.setsampwidth(2)
        writer.setframerate(sampling_rate)
        writer.writeframes(values.T.contiguous().numpy().astype("<i2").tobytes())
    return file.getvalue()

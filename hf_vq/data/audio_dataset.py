"""A map-style data set of sounds, which are checked before any work."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_vq.data.sample_dataset import CACHE_BYTES, MismatchError, SampleDataset
from hf_vq.data.sound_files import SOUNDS, Sound
from hf_vq.data.sound_rules import SoundRules
from hf_vq.data.sources import SampleSource
from hf_vq.ranges import Count, Positive, Rate, Size, Width
from hf_vq.renaming import warn_user


class AudioDataset(SampleDataset):
    """Sounds as samples in [-1, 1].

    An item has `sample` (channels, length), `class_labels` () and `speaker_labels` () where the sounds have them, and
    `caption`, a str, where they have captions. Sounds are decoded when asked for, or once if all of them fit
    `cache_bytes`. See `load_audio` for the arguments, and `SampleDataset` for more attributes.

    Attributes:
        sample_shape: (channels, length) of the longest sample.
        variable_length: whether samples are of any length, and padded.
        rules: how files become samples.
        sampling_rate: of samples, in Hz.
        num_values: how many values a number of a sample can have: those of 16 bits.
        audio_length: that all samples have; None: each has its own.
        random_crop: whether `draw` cuts anywhere.
        lengths: samples of each sound, before `audio_length` changes them.
        seconds: of all sounds together.
    """

    num_values = 2**16

    def __init__(
        self,
        source: SampleSource,
        *,
        sampling_rate: Rate | None = None,
        channels: Width | None = None,
        audio_length: Size | None = None,
        random_crop: bool = False,
        trim_silence: Positive | None = None,
        skip_bad: bool = False,
        cache_bytes: Count = CACHE_BYTES,
    ):
        super().__init__(source, SOUNDS, skip_bad)
        self.audio_length, self.random_crop = audio_length, random_crop
        self.source, headers = self.read_each(source, self._header, "reading headers")
        self.rules = self._make_rules(headers, sampling_rate, channels, trim_silence)
        self.sampling_rate = self.rules.sampling_rate
        self.beyond: dict[str, float] = {}  # peaks of sounds that go beyond full scale, by name
        self.tells_beyond = False
        lengths = [self.rules.length(length, rate) for rate, _, length in headers]
        self.cache: list[torch.Tensor] | None = None
        if sum(lengths) * self.rules.channels * 4 <= cache_bytes:
            self.source, self.cache = self.read_each(self.source, self._decode, "decoding sounds")
            lengths = [sample.shape[1] for sample in self.cache]
        elif skip_bad or trim_silence is not None:
            self.source, lengths = self.read_each(self.source, self._decoded_length, "decoding sounds")
        if self.beyond:
            self._warn_of_peaks(f"{len(self.beyond):,} of {len(self):,} sounds go")
        self.tells_beyond = self.cache is None
        self.lengths, longest = lengths, audio_length or max(lengths)
        self.sample_shape = (self.rules.channels, longest)
        self.variable_length = audio_length is None  # also of equal ones, which no frame of a model need divide
        self.seconds = sum(lengths) / self.sampling_rate
        self.take_facts()

    def __getitem__(self, index):
        return self.with_facts(index, self._sample(index, None if self.audio_length is None else 0))

    @property
    def draws(self) -> bool:
        """Whether training is to take items from `draw`."""
        return self.random_crop

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        """An item as training sees it once: cut out anywhere, where the data set is to do so."""
        spare = max(0, self.lengths[index] - self.sample_shape[1])
        start = int(generator.integers(spare + 1)) if self.random_crop else 0
        return self.with_facts(index, self._sample(index, start))

    def changes(self) -> list[str]:
        """What keeps these samples from being those of the original sounds: one line a cause, none where they are.

        It opens all sounds.
        """
        counts = dict.fromkeys(
            ("resampled", "mixed to other channels", "cut beyond full scale", "of a format that loses detail"), 0
        )
        counts["cut beyond full scale"] = len(self.beyond)
        for index in range(len(self)):
            with self.source.open(index) as sound:
                counts["resampled"] += sound.sampling_rate != self.sampling_rate
                counts["mixed to other channels"] += sound.channels != self.rules.channels
                counts["of a format that loses detail"] += not sound.lossless
        found = [f"{count:,} of {len(self):,} sounds were {cause}" for cause, count in counts.items() if count]
        if self.rules.trim_silence is not None:
            found.append("silent ends were cut off")
        if self.audio_length is not None:
            found.append(f"all sounds were made {self.audio_length:,} samples long")
        return found

    def _sample(self, index, start):
        """A whole sample, or `audio_length` of it."""
        if self.cache is None:
            return self._decode(index, start)
        return self.cache[index] if start is None else self._cut(self.cache[index], start)

    def _cut(self, sample, start):
        """A part of a sample, `audio_length` long; silence follows where it ends before."""
        part = sample[:, start : start + self.audio_length]
        return F.pad(part, (0, self.audio_length - part.shape[1]))

    def _header(self, index):
        """Rate, channels and length of a sound."""
        with self.source.open(index) as sound:
            if self.source.files:
                sound.check_complete()
            return sound.sampling_rate, sound.channels, sound.length

    def _make_rules(self, headers: Sequence[tuple], sampling_rate, channels, trim_silence):
        """The rules of all sounds; a MismatchError where they differ in rate, and none is given."""
        first, channels = headers[0][0], channels or max(each for _, each, _ in headers)
        rules = SoundRules(sampling_rate or first, channels, trim_silence)
        for name, (rate, own, _) in zip(self.source.names, headers, strict=True):
            if sampling_rate is None and rate != first:
                raise MismatchError(
                    f"sounds differ in rate, give sampling_rate: {self.source.names[0]} has {first} Hz, {name} {rate}"
                )
            try:
                rules.check_channels(own)
            except ValueError as error:
                raise MismatchError(f"{name}: {error}") from error
        return rules

    def _decode(self, index, start=None):
        """(channels, length) float32 of a whole sound, or `audio_length` of it; an error names the sound."""
        name = self.source.names[index]
        try:
            with self.source.open(index) as sound:
                return self._to_sample(name, sound, start)
        except Exception as error:  # a cell of a table may be anything
            raise SOUNDS.bad(name, error) from error

    def _to_sample(self, name, sound: Sound, start):
        plain = sound.lossless and sound.sampling_rate == self.sampling_rate and self.rules.trim_silence is None
        alone = plain and start is not None  # no more is read than what is seen
        values = sound.read(start, self.audio_length) if alone else sound.read()
        sample, peak = self.rules.to_sample(values, sound.sampling_rate), float(np.abs(values).max())
        if peak > 1:
            self.beyond[name] = peak
            if self.tells_beyond:
                self.tells_beyond = False
                self._warn_of_peaks(f"{name} and maybe others go")
        return sample if start is None else self._cut(sample, 0 if alone else start)

    def _decoded_length(self, index):
        return self._decode(index).shape[1]

    def _warn_of_peaks(self, which):
        warn_user(f"{which} beyond full scale, up to {max(self.beyond.values()):.3g}: they are cut to [-1, 1]")

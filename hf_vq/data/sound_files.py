"""Sound files: opened as far as their header, and decoded to floats; their true length where the format tells it."""

import importlib
import io
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from hf_vq.data.kinds import FileKind

SUFFIXES = (".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64")
LOSSY = ("VORBIS", "OPUS", "MPEG", "ADPCM", "GSM", "ULAW", "ALAW", "G721", "G723", "DWVW", "DPCM")  # within subtypes
PLAIN = (1, 3, 0xFFFE)  # format tags of WAV whose data have as many samples as bytes tell
OPEN_ENDED = 0x7FFFFF00  # what writers that cannot seek back leave as the size of the data, or more


def require(library: str) -> Any:
    """A library that reads or resamples sounds.

    Raises:
        ImportError: it is not installed; names the extra that has it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(f"sounds need {library}: pip install 'hf_vq[audio]'") from error


class Sound:
    """An opened sound file.

    Libsndfile's own count of samples is that of whole blocks in ADPCM and GSM files. The true one stands in the chunk
    `fact` of a WAV file, which counts where it is there.

    Args:
        file: path or binary file.

    Attributes:
        sampling_rate: in Hz.
        channels: of the file.
        length: samples of each channel.
        lossless: whether its format keeps every sample.

    Raises:
        ValueError: not a sound file, one that ends early, or one without samples.
    """

    def __init__(self, file: str | os.PathLike | BinaryIO):
        library = require("soundfile")
        told = _told_length(file)
        try:
            self._file = library.SoundFile(os.fspath(file) if isinstance(file, str | os.PathLike) else file)
        except library.LibsndfileError as error:
            raise ValueError(error.error_string) from error
        self.sampling_rate, self.channels = self._file.samplerate, self._file.channels
        self.length = self._file.frames if told is None else min(told, self._file.frames)
        self.lossless = not any(word in self._file.subtype for word in LOSSY)
        if self.length == 0:
            self._file.close()
            raise ValueError("it has no samples")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """Samples (channels, length) float32; 1.0 is full scale, which lossy formats and floats may exceed.

        Args:
            start: of them; where the format is lossy, decoding from there on may give others.
            count: how many, or as many as there are; None: all.

        Raises:
            ValueError: it ends early, or holds NaN or infinity.
        """
        there = self.length - start
        values = self._values(start, there if count is None else min(count, there))
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or infinity")
        return np.ascontiguousarray(values.T)

    def check_complete(self) -> None:
        """Raise a ValueError unless the last sample is there, without decoding all where the format allows that."""
        self._values(self.length - 1, 1)

    def _values(self, start, count):
        library = require("soundfile")
        if not self._file.seekable():  # such as GSM: it is read from its start, once
            start, count = 0, self.length
        try:
            if start:
                self._file.seek(start)
            values = self._file.read(count, dtype="float32", always_2d=True)  # integers of peaks beyond 1 would wrap
        except library.LibsndfileError as error:
            raise ValueError(f"it cannot be decoded: {error.error_string or error}") from error
        if len(values) < count:
            raise ValueError(f"it ends after {start + len(values):,} of {self.length:,} samples")
        return values


def _told_length(file):
    """Samples that a WAV file of a compressed format tells, None where it tells none; a ValueError where it ends."""
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return _told_length(opened)
    try:
        return _read_chunks(file)
    finally:
        file.seek(0)


def _read_chunks(file):
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(4) != b"RIFF":
        return None
    file.seek(12)
    tag = length = None
    while len(head := file.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            here = end - file.tell()
            if here < size < OPEN_ENDED:
                raise ValueError(f"it ends after {here:,} of {size:,} bytes of sound")
            if size >= OPEN_ENDED:
                break
        if name in (b"fmt ", b"fact"):
            value = int.from_bytes(file.read(2 if name == b"fmt " else 4), "little")
            file.seek(-(2 if name == b"fmt " else 4), io.SEEK_CUR)
            tag, length = (value, length) if name == b"fmt " else (tag, value)
        file.seek(size + size % 2, io.SEEK_CUR)
    return length if length and tag not in PLAIN else None


def is_sound(path: Path) -> bool:
    """Whether a file is a sound by its suffix, or where it has none by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        with Sound(path):
            return True
    except ValueError:
        return False


SOUNDS = FileKind(
    name="audio",
    plural="sounds",
    one="a sound",
    feature="Audio",
    columns=("audio", "sound", "speech", "wav", "flac", "mp3"),  # the last ones of WebDataset
    is_one=is_sound,
    open=Sound,
    unknown="Format not recognised",
)

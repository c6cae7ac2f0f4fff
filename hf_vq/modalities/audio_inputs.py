"""Sounds in any form, as files, arrays or what `datasets` gives, to numbers and their rate."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vq.data.sound_files import Sound
from hf_vq.data.sound_rules import as_floats

MOST_CHANNELS = 32  # an array with fewer columns than this, and more rows, has its channels last


def read_sound(sound: Any, sampling_rate: int | None) -> list[tuple[np.ndarray, int]]:
    """Numbers (channels, length) float32 and their rate in Hz, of one sound or of each in a batch.

    Args:
        sound: as of `AudioProcessor`, but no list.
        sampling_rate: of arrays that do not tell theirs.

    Raises:
        ValueError: another type or shape, a rate that is missing, or a file that cannot be read.
    """
    if isinstance(sound, str | os.PathLike):
        if not Path(sound).is_file():
            raise ValueError(f"no such audio file: {os.fspath(sound)}")
        return [_read_file(sound, os.fspath(sound))]
    if isinstance(sound, bytes | bytearray):
        return [_read_file(io.BytesIO(sound), f"{len(sound):,} bytes")]
    if hasattr(sound, "get_all_samples"):  # what datasets decodes with torchcodec
        decoded = sound.get_all_samples()
        return [(decoded.data.numpy(), int(decoded.sample_rate))]
    if isinstance(sound, Mapping):
        if sound.get("array") is not None:
            return [_with_rate(values, sound.get("sampling_rate")) for values in _arrays(sound["array"])]
        content = sound.get("bytes")
        if content is None and sound.get("path") is None:
            raise ValueError(f"audio: a dict must have 'array' and 'sampling_rate', or 'bytes', got {sorted(sound)}")
        return read_sound(sound["path"] if content is None else content, None)
    return [_with_rate(values, sampling_rate) for values in _arrays(sound)]


def _read_file(file, name):
    try:
        with Sound(file) as opened:
            return opened.read(), opened.sampling_rate
    except ValueError as error:
        raise ValueError(f"bad audio {name}: {error}") from error


def _with_rate(values, rate):
    if rate is None:
        raise ValueError("sampling_rate is missing: an array does not tell its own, give that in which it was taken")
    return values, int(rate)


def _arrays(values):
    """Arrays (channels, length) float32 of one sound or a batch."""
    if torch.is_tensor(values):
        values = values.detach().cpu().numpy()
    if not isinstance(values, np.ndarray):
        try:
            values = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"audio must be files, bytes, arrays, dicts or a list of them, got {type(values).__name__}"
            ) from error
    if values.ndim not in (1, 2, 3) or values.size == 0:
        raise ValueError(f"audio must be (length,), (channels, length) or a batch of these, got shape {values.shape}")
    if values.ndim > 1 and values.shape[-1] <= MOST_CHANNELS < values.shape[-2]:
        raise ValueError(f"audio must be (channels, length), got shape {values.shape}: transpose it")
    try:
        floats = as_floats(values)
    except ValueError as error:
        raise ValueError(f"audio: {error}") from error
    return list(floats if values.ndim == 3 else np.atleast_2d(floats)[None])

"""What is shown of sounds: WAV files with spectrograms beside them, and maps of their codes over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from hf_vq.modalities.audio_processor import write_wav
from hf_vq.modalities.figures import ACCENT, INK, MUTED, code_colours, code_maps, describe_grids, save_figure

MOST_SHOWN = 4  # sounds in a picture
WINDOW = 512  # samples of a spectrum; of short sounds fewer
FLOOR = 80  # dB below the loudest part of the originals that are black
PAUSE = 0.5  # seconds between sounds in one file


def save_reconstructions(
    path: str | Path,
    samples: torch.Tensor,
    reconstructions: torch.Tensor,
    sampling_rate: int | None,
    lengths: Sequence[int] | None = None,
) -> None:
    """Reconstructions as a WAV file, and beside it, as PNG, the spectrogram of each original above that of its own.

    Of one sound the file holds the reconstruction alone; of several each original and its reconstruction in turn.

    Args:
        path: the WAV file to write.
        samples: (batch, channels, length) float in [-1, 1]; the first 4 are in the picture.
        reconstructions: like `samples`.
        sampling_rate: in Hz.
        lengths: of the samples, where they are padded; None: all are of full length.

    Raises:
        ValueError: shapes differ, or the rate is not known.
    """
    if samples.shape != reconstructions.shape:
        raise ValueError(
            f"samples {tuple(samples.shape)} and reconstructions {tuple(reconstructions.shape)} differ in shape"
        )
    pairs = list(zip(_cut(samples, lengths), _cut(reconstructions, lengths), strict=True))
    sounds = [pairs[0][1]] if len(pairs) == 1 else [sound for pair in pairs for sound in pair]
    write_wav(path, _in_turn(sounds, sampling_rate), sampling_rate)
    names = ("original", "reconstruction")
    columns = [list(zip(names, map(spectrogram, pair), strict=True)) for pair in pairs[:MOST_SHOWN]]
    figure, axes = _new_grid(2, len(columns))
    for column, rows in enumerate(columns):
        top = max(float(rows[0][1].max()), -200.0)
        for row, (name, levels) in enumerate(rows):
            _draw_spectrogram(axes[row][column], levels, pairs[column][row].shape[-1], sampling_rate, top)
            axes[row][column].set_title(name, loc="left", fontsize=9, color=INK)
    save_figure(Path(path).with_suffix(".png"), figure)


def save_samples(path: str | Path, samples: torch.Tensor, columns: int, sampling_rate: int | None) -> None:
    """All samples (batch, channels, length) in [-1, 1] in turn as one WAV file; `columns` has no say."""
    write_wav(path, _in_turn(list(samples), sampling_rate), sampling_rate)


def save_code_maps(
    path: str | Path,
    samples: torch.Tensor,
    codes: torch.Tensor | Sequence[torch.Tensor],
    codebook_size: int | Sequence[int],
    sampling_rate: int | None,
    lengths: Sequence[int] | None = None,
) -> None:
    """Spectrograms above their codes over time, level by level, and how often each level uses its codes.

    Args:
        path: the PNG file to write.
        samples: (batch, channels, length) float in [-1, 1]; the first 4 are shown.
        codes: (batch, length) integers in [0, codebook_size), or (batch, levels, length), or for a hierarchy a tuple
            of them, coarse to fine.
        codebook_size: number of codes; a tuple where the grids of a hierarchy differ.
        sampling_rate: in Hz.
        lengths: of the samples, where they are padded; None: all are of full length.

    Raises:
        ValueError: not one map of codes a sample, or codes out of range.
    """
    maps = code_maps(codes, codebook_size, len(samples), axes=1)
    full = samples.shape[-1]
    lengths = list(lengths) if lengths is not None else [full] * len(samples)
    shown = min(len(samples), MOST_SHOWN)
    real = [
        [row[: -(-length * len(row) // full)] for row, length in zip(one.cpu(), lengths, strict=True)]
        for _, one in maps
    ]
    figure, axes = _new_grid(3, shown, heights=(2, max(1, len(maps) / 4), 1.4))
    figure.suptitle(f"Codes: {describe_grids(codes, codebook_size)}", x=0.02, ha="left", fontsize=10, color=INK)
    for column, sound in enumerate(_cut(samples[:shown], lengths[:shown])):
        levels = spectrogram(sound)
        _draw_spectrogram(axes[0][column], levels, lengths[column], sampling_rate, float(levels.max()))
        longest = max(len(rows[column]) for rows in real)
        picture = [np.repeat(rows[column].numpy(), -(-longest // len(rows[column])))[:longest] for rows in real]
        axes[1][column].imshow(code_colours(np.stack(picture)), aspect="auto", interpolation="nearest")
        axes[1][column].set_yticks(range(len(maps)), [name for name, _ in maps] if column == 0 else [])
        axes[1][column].set_xticks([])
    for axis in axes[2][1:]:
        axis.axis("off")
    usage = axes[2][0]
    used, spread = zip(*(_usage(torch.cat(rows)) for rows in real), strict=True)
    usage.bar(range(1, len(used) + 1), used, color=MUTED, label="codes in use")
    usage.bar(range(1, len(used) + 1), spread, width=0.5, color=ACCENT, label="perplexity")
    usage.set_xlabel("level", fontsize=8)
    usage.xaxis.get_major_locator().set_params(integer=True)
    usage.legend(frameon=False, fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    save_figure(path, figure)


def _usage(codes):
    """How many different codes there are, and their perplexity."""
    share = codes.unique(return_counts=True)[1].double() / len(codes)
    return len(share), torch.special.entr(share).sum().exp().item()


def spectrogram(sound: torch.Tensor) -> torch.Tensor:
    """Levels (frequencies, times) in dB of the mean of channels of a sound (channels, length)."""
    mono = sound.detach().float().cpu().mean(dim=0)
    window = min(WINDOW, 2 ** max(4, int(math.log2(len(mono)) - 3)))
    mono = F.pad(mono, (0, max(0, window - len(mono))))
    hop = max(window // 4, len(mono) // 1000)
    spectrum = torch.stft(mono, window, hop, window=torch.hann_window(window), center=False, return_complex=True)
    return 20 * spectrum.abs().clamp_min(1e-10).log10()


def _cut(batch, lengths):
    """Sounds (channels, length) of a batch without their padding."""
    if lengths is None:
        return list(batch)
    return [sound[:, :length] for sound, length in zip(batch, lengths, strict=True)]


def _in_turn(sounds, sampling_rate):
    """Sounds one after the other, with silence between."""
    silence = sounds[0].new_zeros(len(sounds[0]), int(PAUSE * (sampling_rate or 0)))
    parts = [part for sound in sounds for part in (silence.to(sound.device), sound)]
    return torch.cat(parts[1:], dim=1)


def _draw_spectrogram(axis: Any, levels: torch.Tensor, length: int, sampling_rate: int | None, top: float) -> None:
    """Levels over seconds and kHz; `top` dB is white."""
    rate = sampling_rate or 1
    extent = (0, length / rate, 0, rate / 2000)
    axis.imshow(levels.numpy(), origin="lower", aspect="auto", extent=extent, vmin=top - FLOOR, vmax=top, cmap="magma")
    axis.set_xlabel("s", fontsize=8)
    axis.set_ylabel("kHz", fontsize=8)


def _new_grid(rows, columns, heights=None):
    """A figure, and its axes row by row."""
    from matplotlib.figure import Figure

    heights = heights or (2,) * rows
    width, height = 0.9 + 3.2 * columns, 0.6 + sum(heights) + 0.6 * (rows - 1)
    figure = Figure(figsize=(width, height), dpi=120)
    margins = {"left": 0.8 / width, "right": 1 - 0.1 / width, "bottom": 0.4 / height, "top": 1 - 0.4 / height}
    gaps = {"wspace": 0.2, "hspace": 0.6 * rows / sum(heights)}  # a layout of matplotlib's takes twice as long
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"height_ratios": heights} | margins | gaps)
    for axis in axes.flat:
        axis.tick_params(labelsize=7, colors=MUTED)
    return figure, axes

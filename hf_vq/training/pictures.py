"""Pictures of a run, as PNG files: reconstructions, code maps, use of the codebook, samples, losses.

Each is written under a temporary name and renamed when whole.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch

MAX_ITEMS = 64  # a grid shows at most this many samples, a strip of rows at most ROW_ITEMS
ROW_ITEMS = 12
MAX_LEVELS = 4
CELL = 0.9  # inches of a cell
INK, MUTED, ACCENT, SECOND = "#222222", "#8a8a8a", "#2b6cb0", "#dd6b20"


def save_reconstruction_grid(path, samples, reconstructions):
    """Samples above their reconstructions.

    Args:
        path: the PNG file to write.
        samples: (batch, channels, height, width) float in [-1, 1], 1 or 3 channels; the first 12 are shown.
        reconstructions: like `samples`.

    Raises:
        ValueError: shapes differ, or the number of channels is neither 1 nor 3.
    """
    if samples.shape != reconstructions.shape:
        raise ValueError(
            f"samples {tuple(samples.shape)} and reconstructions {tuple(reconstructions.shape)} differ in shape"
        )
    save_comparison(path, {"original": samples, "reconstruction": reconstructions}, "Reconstructions")


def save_comparison(path, rows, title):
    """Named rows of samples, one above the other, sample by sample.

    Args:
        path: the PNG file to write.
        rows: samples by name, (batch, channels, height, width) float in [-1, 1] each; the first 12 are shown.
        title: of the picture.
    """
    _save_rows(path, [(name, _to_pixels(samples)) for name, samples in rows.items()], title)


def save_code_maps(path, samples, codes, codebook_size):
    """Samples above their codes, each code in a colour that is its own in every picture of this codebook size.

    Args:
        path: the PNG file to write.
        samples: (batch, channels, height, width) float in [-1, 1]; the first 12 are shown.
        codes: (batch, height, width) int64 in [0, codebook_size), or (batch, levels, height, width), or for a
            hierarchy a tuple of them, coarse to fine; the first 4 levels are shown.
        codebook_size: number of codes; a tuple where levels of a hierarchy differ.

    Raises:
        ValueError: not one map of codes a sample, or codes out of range.
    """
    parts = codes if isinstance(codes, tuple | list) else (codes,)
    sizes = codebook_size if isinstance(codebook_size, tuple | list) else (codebook_size,) * len(parts)
    levels = []
    for part, size in zip(parts, sizes, strict=True):
        if part.ndim not in (3, 4) or len(part) != len(samples):
            raise ValueError(f"codes must be ({len(samples)}, height, width), got {tuple(part.shape)}")
        if part.min() < 0 or part.max() >= size:
            raise ValueError(f"codes must be in [0, {size}), got {part.min()} to {part.max()}")
        levels += [(level, size) for level in (part.unbind(dim=1) if part.ndim == 4 else (part,))]
    names = ["codes"] if len(levels) == 1 else [f"level {index + 1}" for index in range(len(levels))]
    maps = [
        (name, _code_colours(size)[level.cpu().numpy()])
        for name, (level, size) in list(zip(names, levels, strict=True))[:MAX_LEVELS]
    ]
    grids = ", ".join(
        f"{' x '.join(map(str, part.shape[1:]))} of {size}" for part, size in zip(parts, sizes, strict=True)
    )
    _save_rows(path, [("original", _to_pixels(samples)), *maps], f"Codes: {grids}")


def save_usage_histogram(path, counts):
    """How often each code occurs, most used first, against even use.

    Args:
        path: the PNG file to write.
        counts: (codebook_size,) ints; those of levels, one after the other or (levels, codebook_size), are shown
            together.

    Raises:
        ValueError: no code occurs at all.
    """
    counts = torch.as_tensor(counts).double().cpu()
    if counts.ndim not in (1, 2) or counts.sum() == 0:
        raise ValueError(f"counts must be a positive count or more by code, got shape {tuple(counts.shape)}")
    counts = counts.flatten()
    share = counts.sort(descending=True).values / counts.sum()
    used, perplexity = int((counts > 0).sum()), torch.special.entr(share).sum().exp().item()
    size = len(share)
    figure, axes = _new_axes(7.2, 3.6)
    axes.bar(np.arange(1, size + 1), 100 * share.numpy(), width=0.85 if size <= 64 else 1.0, color=ACCENT)
    axes.axhline(100 / size, color=SECOND, linewidth=1.2, linestyle="--", label=f"even use: {100 / size:.3g} %")
    axes.set_xlim(0.25, size + 0.75)
    axes.set_xlabel("code, most used first")
    axes.set_ylabel("share of all codes (%)")
    axes.set_title(f"{used} of {size} codes in use, perplexity {perplexity:.1f}", loc="left")
    axes.legend(frameon=False, loc="upper right")
    _save(path, figure)


def save_sample_grid(path, samples, labels=None):
    """Samples in a grid, each under its label where labels are given.

    Args:
        path: the PNG file to write.
        samples: (batch, channels, height, width) float in [-1, 1]; the first 64 are shown.
        labels: one int or string for each sample.

    Raises:
        ValueError: not one label a sample.
    """
    if labels is not None and len(labels) != len(samples):
        raise ValueError(f"labels must be {len(samples)}, one for each sample, got {len(labels)}")
    pixels = _to_pixels(samples[:MAX_ITEMS])
    columns = 10 if len(pixels) % 10 == 0 else min(len(pixels), 8)
    rows = math.ceil(len(pixels) / columns)
    label_height = 0.2 if labels is not None else 0.0
    figure, cells = _new_grid(rows, columns, cell_height=CELL * pixels.shape[1] / pixels.shape[2] + label_height)
    for index, cell in enumerate(cells.flat):
        cell.axis("off")
        if index < len(pixels):
            cell.imshow(pixels[index], interpolation="nearest")
            if labels is not None:
                cell.set_title(str(_plain_label(labels[index])), fontsize=8, color=INK, pad=2)
    _save(path, figure)


def save_loss_curve(path, history):
    """Training and validation loss over the steps, from the `history` of a report.

    Args:
        path: the PNG file to write.
        history: list of dicts with `step`, and `loss`, `eval_loss` or both in some of them.

    Raises:
        ValueError: no entry has a loss.
    """
    curves = {}
    for name in ["loss", "eval_loss"]:
        points = {entry["step"]: entry[name] for entry in history if entry.get(name) is not None}
        if points:
            curves[name] = sorted(points.items())
    if not curves:
        raise ValueError("history has no entry with 'loss' or 'eval_loss'")
    figure, axes = _new_axes(7.2, 3.6)
    styles = {"loss": ("training", ACCENT, None), "eval_loss": ("validation", SECOND, "o")}
    for name, points in curves.items():
        label, colour, marker = styles[name]
        steps, values = zip(*points, strict=True)
        marker = marker or ("o" if len(points) == 1 else None)
        axes.plot(steps, values, label=label, color=colour, marker=marker, markersize=4, linewidth=1.6)
    values = [value for points in curves.values() for _, value in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.set_title("Loss", loc="left")
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    _save(path, figure)


def _to_pixels(samples):
    """(batch, channels, height, width) in [-1, 1] to (batch, height, width, 3) uint8."""
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(f"samples must be (batch, 1 or 3, height, width), got {tuple(samples.shape)}")
    pixels = ((samples.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _code_colours(codebook_size):
    """(codebook_size, 3) uint8: hues a golden angle apart, so that neighbouring codes look unlike."""
    from matplotlib.colors import hsv_to_rgb

    index = np.arange(codebook_size)
    hue = (index * 0.6180339887) % 1
    saturation = 0.45 + 0.4 * ((index * 0.7548776662) % 1)
    value = 0.6 + 0.35 * ((index * 0.5698402910) % 1)
    return (hsv_to_rgb(np.stack([hue, saturation, value], axis=1)) * 255).round().astype(np.uint8)


def _plain_label(label):
    return label.item() if torch.is_tensor(label) else label


def _save_rows(path, rows, title):
    """Named rows of pictures, one above the other, column by column."""
    columns = min(len(rows[0][1]), ROW_ITEMS)
    height, width = rows[0][1].shape[1:3]
    figure, cells = _new_grid(len(rows), columns, cell_height=CELL * height / width, left=1.15, top=0.34)
    for (name, pictures), line in zip(rows, cells, strict=True):
        for picture, cell in zip(pictures, line, strict=False):
            cell.imshow(picture, interpolation="nearest", aspect="auto")
            cell.set_xticks([])
            cell.set_yticks([])
            for side in cell.spines.values():
                side.set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontsize=10, color=INK)
    figure.suptitle(title, x=0.02, y=0.98, ha="left", va="top", fontsize=11, color=INK)
    _save(path, figure)


def _new_grid(rows, columns, cell_height, left=0.08, top=0.08):
    """A figure of `rows` x `columns` axes without frames around them; sizes in inches."""
    from matplotlib.figure import Figure

    gap, edge = 0.06, 0.08
    width = left + edge + columns * CELL + (columns - 1) * gap
    height = top + edge + rows * cell_height + (rows - 1) * gap
    figure = Figure(figsize=(width, height), dpi=160)
    cells = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - edge / width,
        top=1 - top / height,
        bottom=edge / height,
        wspace=gap / CELL,
        hspace=gap / cell_height,
    )
    return figure, cells


def _new_axes(width, height):
    """A figure with one pair of axes, open at the top and the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    axes = figure.subplots()
    for side in ["top", "right"]:
        axes.spines[side].set_visible(False)
    for side in ["left", "bottom"]:
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes


def _save(path, figure):
    path = Path(path)
    temporary = path.with_name(f".{path.name}.incomplete")
    figure.savefig(temporary, format="png", facecolor="white")
    os.replace(temporary, path)

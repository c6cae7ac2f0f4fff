"""Pictures of images, as PNG files: reconstructions, code maps, samples."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image, ImageOps

from hf_vq.modalities.figures import INK, code_maps, describe_grids
from hf_vq.modalities.figures import code_colours as _code_colours
from hf_vq.writing import whole

MAX_ITEMS = 64  # a grid shows at most this many samples, a strip of rows at most ROW_ITEMS
ROW_ITEMS = 12
MAX_MAPS = 4
CELL = 0.9  # inches of a cell
POINT = 1 / 72  # inches of a point


def save_reconstruction_grid(path: str | Path, samples: torch.Tensor, reconstructions: torch.Tensor) -> None:
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


def save_comparison(path: str | Path, rows: dict[str, torch.Tensor], title: str) -> None:
    """Named rows of samples, one above the other, sample by sample.

    Args:
        path: the PNG file to write.
        rows: samples by name, (batch, channels, height, width) float in [-1, 1] each; the first 12 are shown.
        title: of the picture.
    """
    _save_rows(path, [(name, _to_pixels(samples)) for name, samples in rows.items()], title)


def save_code_maps(
    path: str | Path,
    samples: torch.Tensor,
    codes: torch.Tensor | Sequence[torch.Tensor],
    codebook_size: int | Sequence[int],
) -> None:
    """Samples above their codes, each code in a colour that is its own in every picture of this codebook size.

    Args:
        path: the PNG file to write.
        samples: (batch, channels, height, width) float in [-1, 1]; the first 12 are shown.
        codes: (batch, height, width) integers in [0, codebook_size), or (batch, levels, height, width), or for a
            hierarchy a tuple of them, coarse to fine; the first 4 maps are shown.
        codebook_size: number of codes; a tuple where the grids of a hierarchy differ.

    Raises:
        ValueError: not one map of codes a sample, or codes out of range.
    """
    maps = code_maps(codes, codebook_size, len(samples), axes=2)
    shown = [(name, _code_colours(one.cpu().numpy())) for name, one in maps[:MAX_MAPS]]
    title = f"Codes: {describe_grids(codes, codebook_size)}"
    _save_rows(path, [("original", _to_pixels(samples)), *shown], title)


def save_sample_grid(path: str | Path, samples: torch.Tensor, labels: Sequence[int | str] | None = None) -> None:
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
    height, label_height = CELL * pixels.shape[1] / pixels.shape[2], 0.2 if labels is not None else 0.0
    figure, canvas, cell = _new_canvas(rows, columns, cell_height=height + label_height)
    places = []
    for index in range(len(pixels)):
        left, right, bottom, _ = cell(*divmod(index, columns))
        bottom += label_height / 2
        places.append((left, right, bottom, bottom + height))
        if labels is not None:
            middle, above = (left + right) / 2, bottom + height + 2 * POINT
            canvas.text(middle, above, str(_plain_label(labels[index])), ha="center", fontsize=8, color=INK)
    _save_with_pictures(path, figure, pixels, places)


def save_sample_rows(path: str | Path, samples: torch.Tensor, columns: int) -> None:
    """Write all samples (images, channels, height, width) in [-1, 1] as one PNG, small ones enlarged without blur."""
    values = ((samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    height, width = pixels.shape[1:3]
    zoom = max(1, 48 // max(height, width))
    images = [Image.fromarray(each).resize((width * zoom, height * zoom), Image.Resampling.NEAREST) for each in pixels]
    images = [ImageOps.expand(image, border=2, fill="white") for image in images]
    images += [Image.new("RGB", images[0].size, "white")] * (-len(images) % columns)
    with whole(path) as partial:
        make_image_grid(images, rows=len(images) // columns, cols=columns).save(partial, format="png")


def _to_pixels(samples):
    """(batch, channels, height, width) in [-1, 1] to (batch, height, width, 3) uint8."""
    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise ValueError(f"samples must be (batch, 1 or 3, height, width), got {tuple(samples.shape)}")
    pixels = ((samples.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _plain_label(label):
    return label.item() if torch.is_tensor(label) else label


def _save_rows(path, rows, title):
    """Named rows of pictures, one above the other, column by column."""
    columns = min(len(rows[0][1]), ROW_ITEMS)
    height, width = rows[0][1].shape[1:3]
    figure, canvas, cell = _new_canvas(len(rows), columns, cell_height=CELL * height / width, left=1.15, top=0.34)
    shown, places = [], []
    for row, (name, pictures) in enumerate(rows):
        shown += list(pictures[:columns])
        places += [cell(row, column) for column in range(len(pictures[:columns]))]
        left, _, bottom, top = cell(row, 0)
        words = {"ha": "right", "va": "center", "fontsize": 10, "color": INK}
        canvas.text(left - 8 * POINT, (bottom + top) / 2, name, **words)
    figure.suptitle(title, x=0.02, y=0.98, ha="left", va="top", fontsize=11, color=INK)
    _save_with_pictures(path, figure, shown, places)


def _save_with_pictures(path, figure, pictures, places):
    """Write a figure with pictures (height, width, 3) uint8 at places: left, right, bottom, top in inches.

    (They are enlarged without blur here: matplotlib takes milliseconds for each.)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    paper = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    for picture, place in zip(pictures, places, strict=True):
        left, right, bottom, top = (round(inches * figure.dpi) for inches in place)
        size = (max(right - left, 1), max(top - bottom, 1))
        paper.paste(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST), (left, paper.height - top))
    with whole(path) as partial:
        paper.save(partial, format="png", dpi=(figure.dpi, figure.dpi))


def _new_canvas(rows, columns, cell_height, left=0.08, top=0.08):
    """A figure, its only axes in inches from its lower left, and a function from row and column to the cell there.

    (A pair of axes for each cell takes several times as long to make and to draw.)
    """
    from matplotlib.figure import Figure

    gap, edge = 0.06, 0.08
    width = left + edge + columns * CELL + (columns - 1) * gap
    height = top + edge + rows * cell_height + (rows - 1) * gap
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    canvas.axis("off")

    def cell(row, column):  # left, right, bottom, top
        x, y = left + column * (CELL + gap), height - top - row * (cell_height + gap)
        return x, x + CELL, y - cell_height, y

    return figure, canvas, cell

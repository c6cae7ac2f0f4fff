"""What all figures of a run share: colours, how a file is written, and how trackers are told of one."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from PIL import Image

from hf_vq.grids import as_grids, codes_as_int64
from hf_vq.writing import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, ACCENT, SECOND = "#222222", "#8a8a8a", "#2b6cb0", "#dd6b20"


def save_figure(path: str | Path, figure: "Figure") -> None:
    """Write a PNG file whole or not at all."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", facecolor="white")


def tell_picture(tracker: GeneralTracker, name: str, path: Path, step: int) -> None:
    """Tell a tracker of TensorBoard, trackio or Weights & Biases of a picture.

    Args:
        tracker: one that has started.
        name: of the picture, the same at every step.
        path: its file; one that is no picture, as a modality may write, is left out.
        step: of the training.
    """
    if path.suffix not in Image.registered_extensions():
        return
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))  # (height, width, 3) uint8
    if tracker.name == "tensorboard":
        tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        tracker.log_images({name: [pixels]}, step=step)
    else:
        tracker.log({name: importlib.import_module("trackio").Image(pixels)}, step=step)


def code_maps(
    codes: torch.Tensor | Sequence[torch.Tensor], codebook_size: int | Sequence[int], samples: int, axes: int
) -> list[tuple[str, torch.Tensor]]:
    """Every map of codes (samples, *grid) with its name, by grid and level, coarse to fine.

    Args:
        codes: (samples, *grid) integers in [0, codebook_size), or (samples, levels, *grid), or for a hierarchy a tuple
            of them, coarse to fine.
        codebook_size: number of codes; a tuple where the grids of a hierarchy differ.
        samples: how many there are.
        axes: of a grid.

    Raises:
        ValueError: not one map of codes a sample, or codes out of range.
    """
    parts, maps = as_grids(codes_as_int64(codes)), []
    for grid, (part, size) in enumerate(zip(parts, _sizes(parts, codebook_size), strict=True)):
        if part.ndim not in (axes + 1, axes + 2) or len(part) != samples:
            names = ", ".join(("height", "width") if axes == 2 else ("length",))
            raise ValueError(f"codes must be ({samples}, {names}), got {tuple(part.shape)}")
        if part.min() < 0 or int(part.max()) >= size:
            raise ValueError(f"codes must be in [0, {size}), got {part.min()} to {part.max()}")
        levels = part.unbind(dim=1) if part.ndim == axes + 2 else (part,)
        for level, codes_of_level in enumerate(levels):
            words = [f"grid {grid + 1}"] * (len(parts) > 1) + [f"level {level + 1}"] * (len(levels) > 1)
            maps.append((" ".join(words) or "codes", codes_of_level))
    return maps


def describe_grids(codes: Any, codebook_size: int | Sequence[int]) -> str:
    """Shapes and numbers of codes, or of each grid in a tuple, such as "8 x 8 of 512"."""
    parts = as_grids(codes)
    sizes = zip(parts, _sizes(parts, codebook_size), strict=True)
    return ", ".join(f"{' x '.join(map(str, part.shape[1:]))} of {size}" for part, size in sizes)


def code_colours(codes: np.ndarray) -> np.ndarray:
    """(*codes.shape, 3) uint8 of codes: hues a golden angle apart, so that neighbouring codes look unlike."""
    from matplotlib.colors import hsv_to_rgb

    index = (codes ^ codes >> 24 ^ codes >> 48) & (2**24 - 1)  # the code, if small; of others a float loses the hue
    hue = (index * 0.6180339887) % 1
    saturation = 0.45 + 0.4 * ((index * 0.7548776662) % 1)
    value = 0.6 + 0.35 * ((index * 0.5698402910) % 1)
    return (hsv_to_rgb(np.stack([hue, saturation, value], axis=-1)) * 255).round().astype(np.uint8)


def _sizes(parts, codebook_size):
    return codebook_size if isinstance(codebook_size, tuple | list) else (codebook_size,) * len(parts)

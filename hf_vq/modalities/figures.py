"""What all figures of a run share: colours, how a file is written, and how trackers are told of one."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image

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

"""The images of one split, not yet decoded: of the bundled digits, of files; and what is held out of them."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

DIGITS_HELD_OUT = 297 / 1797
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class MissingSplitError(ValueError):
    """The source has no such split."""


@dataclass(frozen=True)
class Columns:
    """What is read beside the pixels.

    Attributes:
        image: column of the images; None: the one of type Image.
        label: column of the classes; None: the one that the source has, if any; "none": no classes.
        caption: column of the captions, by the same words.
    """

    image: str | None = None
    label: str | None = None
    caption: str | None = None

    def check_files(self, source: str) -> None:
        """Raise a ValueError for columns that files without a table cannot have."""
        for name, known in (("image", "image"), ("label", "label"), ("caption", "text")):
            asked = getattr(self, name)
            if asked not in (None, "none", known):
                raise ValueError(f"{name}_column={asked!r}: {source} has no table, so no column of this name")


@dataclass
class ImageSource:
    """The images of one split, not yet decoded.

    Attributes:
        names: what an error calls image i, a path or "file row i".
        open: index -> PIL image, opened but not decoded.
        labels: (len(names),) int64 class indices, None where the images have none.
        class_names: one name per class, None without classes; a split without labels has those of the training split.
        captions: one for each image, "" where it has none; None without captions.
        white: pixel value of white; black is 0.
        files: True where each image is a file of its own, whose header is read without reading the rest.
        commit: of the Hub's data set that the images are of; None for others.
    """

    names: Sequence[str]
    open: Callable[[int], Image.Image]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    captions: list[str] | None = None
    white: int = 255
    files: bool = False
    commit: str | None = None

    def select(self, rows: Sequence[int] | np.ndarray) -> "ImageSource":
        """Return the same source with only the given rows, in their order."""
        rows = np.asarray(rows, dtype=np.int64)
        return ImageSource(
            names=[self.names[row] for row in rows],
            open=_Selected(self.open, rows),
            labels=None if self.labels is None else self.labels[rows],
            class_names=self.class_names,
            captions=None if self.captions is None else [self.captions[row] for row in rows],
            white=self.white,
            files=self.files,
            commit=self.commit,
        )


class _Selected:
    """A picklable `lambda index: open(rows[index])`: sources travel to DataLoader workers."""

    def __init__(self, open_image, rows):
        self.open_image, self.rows = open_image, rows

    def __call__(self, index):
        return self.open_image(int(self.rows[index]))


class _OpenFile:
    def __init__(self, paths):
        self.paths = paths

    def __call__(self, index):
        return Image.open(self.paths[index])


class _OpenArray:
    def __init__(self, arrays):
        self.arrays = arrays

    def __call__(self, index):
        return Image.fromarray(self.arrays[index])


def held_out_rows(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers in (training rows, held-out rows), both sorted, the same on every call and machine."""
    held_out = max(1, round(count * fraction)) if fraction > 0 else 0
    order = np.random.default_rng(0).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def carve(whole: ImageSource, split: str, fraction: float, source: str) -> ImageSource:
    """Take split "train" or "validation" of a source that comes with no validation split."""
    if split not in ("train", "validation"):
        raise MissingSplitError(f"split={split!r}: {source} has no such split")
    training, held_out = held_out_rows(len(whole.names), fraction)
    rows = training if split == "train" else held_out
    if len(rows) == 0:
        raise MissingSplitError(
            f"split={split!r} is empty: {source} has {len(whole.names)} training images and no validation split, "
            f"and validation_fraction={fraction}"
        )
    return whole.select(rows)


def digits_source(split: str, resized: bool, fraction: float = DIGITS_HELD_OUT) -> ImageSource:
    """The 1,797 handwritten digits that come with scikit-learn (8x8 grey, values 0 to 16), by default 297 held out.

    Args:
        split: "train" or "validation".
        resized: they are about to be resized, for which values 0 to 255 round less.
        fraction: share of them that is held out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images * (255 / 16) if resized else digits.images
    whole = ImageSource(
        names=[f"digits row {row}" for row in range(len(pixels))],
        open=_OpenArray(pixels.round().astype(np.uint8)),
        labels=digits.target.astype(np.int64),
        class_names=[str(name) for name in digits.target_names],
        white=255 if resized else 16,
    )
    return carve(whole, split, fraction, "digits")


def files_source(paths: Sequence[str | Path]) -> ImageSource:
    """The given image files, without classes."""
    names = [str(path) for path in paths]
    for path in names:
        if not os.path.isfile(path):
            raise ValueError(f"no such image file: {path}")
    return ImageSource(names=names, open=_OpenFile(names), files=True)

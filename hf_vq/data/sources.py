"""The samples of one split, not yet decoded: of the bundled digits, of files; and what is held out of them."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_vq.data.kinds import FileKind

DIGITS_HELD_OUT = 297 / 1797
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class MissingSplitError(ValueError):
    """The source has no such split."""


@dataclass(frozen=True)
class Columns:
    """What is read: samples of a kind, and what stands beside them.

    Attributes:
        kind: of the samples.
        sample: column of the samples; None: the one of their type.
        label: column of the classes; None: the one that the source has, if any; "none": no classes.
        caption: column of the captions, by the same words.
        speaker: column of the speakers; None: no speakers.
    """

    kind: FileKind
    sample: str | None = None
    label: str | None = None
    caption: str | None = None
    speaker: str | None = None

    def check_files(self, source: str) -> None:
        """Raise a ValueError for columns that files without a table cannot have."""
        own = self.kind.name
        for name, asked, known in (
            (own, self.sample, own),
            ("label", self.label, "label"),
            ("caption", self.caption, "text"),
            ("speaker", self.speaker, None),
        ):
            if asked not in (None, "none", known):
                raise ValueError(f"{name}_column={asked!r}: {source} has no table, so no column of this name")


@dataclass
class SampleSource:
    """The samples of one split, not yet decoded.

    Attributes:
        names: what an error calls sample i, a path or "file row i".
        open: index -> what the `open` of their kind gives, such as a PIL image that is not decoded.
        labels: (len(names),) int64 class indices, None where the samples have none.
        class_names: one name per class, None without classes; a split without labels has those of the training split.
        speaker_labels: (len(names),) int64 indices of speakers, None where the samples have none.
        speaker_names: the same as `class_names` for speakers.
        captions: one for each image, "" where it has none; None without captions.
        white: of images, the pixel value of white; black is 0.
        files: True where each sample is a file of its own, whose header is read without reading the rest.
        commit: of the Hub's data set that the samples are of; None for others.
    """

    names: Sequence[str]
    open: Callable[[int], Any]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    speaker_labels: np.ndarray | None = None
    speaker_names: list[str] | None = None
    captions: list[str] | None = None
    white: int = 255
    files: bool = False
    commit: str | None = None

    def select(self, rows: Sequence[int] | np.ndarray) -> "SampleSource":
        """Return the same source with only the given rows, in their order."""
        rows = np.asarray(rows, dtype=np.int64)
        return SampleSource(
            names=[self.names[row] for row in rows],
            open=_Selected(self.open, rows),
            labels=None if self.labels is None else self.labels[rows],
            class_names=self.class_names,
            speaker_labels=None if self.speaker_labels is None else self.speaker_labels[rows],
            speaker_names=self.speaker_names,
            captions=None if self.captions is None else [self.captions[row] for row in rows],
            white=self.white,
            files=self.files,
            commit=self.commit,
        )


class _Selected:
    """A picklable `lambda index: open(rows[index])`: sources travel to DataLoader workers."""

    def __init__(self, open_sample, rows):
        self.open_sample, self.rows = open_sample, rows

    def __call__(self, index):
        return self.open_sample(int(self.rows[index]))


class _OpenFile:
    def __init__(self, kind, paths):
        self.kind, self.paths = kind, paths

    def __call__(self, index):
        return self.kind.open(self.paths[index])


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


def carve(whole: SampleSource, split: str, fraction: float, source: str) -> SampleSource:
    """Take split "train" or "validation" of a source that comes with no validation split."""
    if split not in ("train", "validation"):
        raise MissingSplitError(f"split={split!r}: {source} has no such split")
    training, held_out = held_out_rows(len(whole.names), fraction)
    rows = training if split == "train" else held_out
    if len(rows) == 0:
        raise MissingSplitError(
            f"split={split!r} is empty: {source} has {len(whole.names)} training samples and no validation split, "
            f"and validation_fraction={fraction}"
        )
    return whole.select(rows)


def digits_source(split: str, resized: bool, fraction: float = DIGITS_HELD_OUT) -> SampleSource:
    """The 1,797 handwritten digits that come with scikit-learn (8x8 grey, values 0 to 16), by default 297 held out.

    Args:
        split: "train" or "validation".
        resized: they are about to be resized, for which values 0 to 255 round less.
        fraction: share of them that is held out.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = digits.images * (255 / 16) if resized else digits.images
    whole = SampleSource(
        names=[f"digits row {row}" for row in range(len(pixels))],
        open=_OpenArray(pixels.round().astype(np.uint8)),
        labels=digits.target.astype(np.int64),
        class_names=[str(name) for name in digits.target_names],
        white=255 if resized else 16,
    )
    return carve(whole, split, fraction, "digits")


def files_source(kind: FileKind, paths: Sequence[str | Path]) -> SampleSource:
    """The given files of samples, without classes."""
    names = [str(path) for path in paths]
    for path in names:
        if not os.path.isfile(path):
            raise ValueError(f"no such {kind.name} file: {path}")
    return SampleSource(names=names, open=_OpenFile(kind, names), files=True)

"""Where images come from: the bundled digits, image folders, Parquet files, data sets of the Hub."""

import glob
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
DIGITS_HELD_OUT = 297 / 1797
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class MissingSplitError(ValueError):
    """The source has no such split."""


@dataclass
class ImageSource:
    """The images of one split, not yet decoded.

    Attributes:
        names: what an error calls image i, a path or "file row i".
        open: index -> PIL image, opened but not decoded.
        labels: (len(names),) int64 class indices, None without classes.
        class_names: one name per class, None without classes.
        white: pixel value of white; black is 0.
        files: True where each image is a file of its own, whose header is read without reading the rest.
    """

    names: Sequence[str]
    open: Callable[[int], Image.Image]
    labels: np.ndarray | None = None
    class_names: list[str] | None = None
    white: int = 255
    files: bool = False

    def select(self, rows: Sequence[int] | np.ndarray) -> "ImageSource":
        """Return the same source with only the given rows, in their order."""
        rows = np.asarray(rows, dtype=np.int64)
        return ImageSource(
            names=[self.names[row] for row in rows],
            open=_Selected(self.open, rows),
            labels=None if self.labels is None else self.labels[rows],
            class_names=self.class_names,
            white=self.white,
            files=self.files,
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


class _OpenRow:
    """Opens the encoded bytes of row i of a `datasets.Dataset`."""

    def __init__(self, dataset, column):
        self.dataset, self.column = dataset, column

    def __call__(self, index):
        encoded = self.dataset[index][self.column]
        if encoded is None:
            raise ValueError("the row has no image")
        return Image.open(io.BytesIO(encoded["bytes"]) if encoded["bytes"] is not None else encoded["path"])


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
    paths = [str(path) for path in paths]
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f"no such image file: {path}")
    return ImageSource(names=paths, open=_OpenFile(paths), files=True)


def _subfolders(folder):
    return {entry.name: entry for entry in sorted(folder.iterdir()) if entry.is_dir() and entry.name[0] != "."}


def _files_below(folder):
    """All files below a folder, sorted; names that start with a dot are left out."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in found if not any(part[0] == "." for part in p.relative_to(folder).parts))


def folder_source(folder: Path, split: str, fraction: float) -> ImageSource:
    """Images of a folder; the names of its sub-folders are the classes.

    Sub-folders train/ and validation/ (and test/) are splits; without validation/ a fraction of the training images
    is held out.
    """
    splits = {
        name: path
        for name, spellings in SPLIT_FOLDERS.items()
        for spelling, path in _subfolders(folder).items()
        if spelling in spellings
    }
    if "train" not in splits:
        return carve(_class_folders(folder), split, fraction, str(folder))
    training = _class_folders(splits["train"])
    if split == "train" and "validation" in splits:
        return training
    if split in splits and split != "train":
        return _class_folders(splits[split], training.class_names)
    return carve(training, split, fraction, str(splits["train"]))


def _class_folders(folder, class_names=None):
    """All images of one split; `class_names` are those of the training split, for the others."""
    classes = _subfolders(folder)
    direct = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    if direct and classes:
        raise ValueError(
            f"{folder} holds both files ({direct[0].name}) and sub-folders ({next(iter(classes))}): "
            "put every image in a sub-folder named after its class, or all of them in the folder itself"
        )
    if not classes:
        if not direct:
            raise ValueError(f"{folder} holds no images")
        return files_source(sorted(direct))
    names = class_names or list(classes)
    unknown = sorted(set(classes) - set(names))
    if unknown:
        raise ValueError(f"{folder} has a class that the training split has not: {unknown[0]}")
    labelled = [(path, names.index(name)) for name, below in classes.items() for path in _files_below(below)]
    if not labelled:
        raise ValueError(f"{folder} holds no images")
    source = files_source([path for path, _ in labelled])
    source.labels = np.array([label for _, label in labelled], dtype=np.int64)
    source.class_names = names
    return source


def parquet_files(source: str) -> list[str]:
    """The Parquet files that a path or glob names, an empty list where it names none."""
    if glob.has_magic(source):
        found = sorted(glob.glob(source, recursive=True))
    elif os.path.isdir(source):
        found = sorted(str(path) for path in Path(source).rglob("*.parquet"))
    else:
        found = [source] if os.path.isfile(source) else []
    return [path for path in found if path.endswith(".parquet")]


def parquet_source(
    source: str, files: list[str], split: str, fraction: float, image_column: str | None, label_column: str | None
) -> ImageSource:
    """Images of Parquet files; in a folder, the split is in the file names, as everywhere in `datasets`."""
    import pyarrow
    import pyarrow.parquet
    from datasets import load_dataset

    for path in files:
        try:
            pyarrow.parquet.read_metadata(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    if os.path.isdir(source):
        datasets = load_dataset(source)
    else:
        datasets = load_dataset("parquet", data_files={"train": files})
    return _from_datasets(datasets, source, split, fraction, image_column, label_column)


def hub_source(
    repo_id: str,
    config_name: str | None,
    split: str,
    fraction: float,
    image_column: str | None,
    label_column: str | None,
) -> ImageSource:
    """Images of a data set of the Hub, through `datasets.load_dataset` (honours HF_ENDPOINT and HF_TOKEN)."""
    from datasets import load_dataset

    try:
        datasets = load_dataset(repo_id, config_name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data={repo_id!r} is no file or folder here, and loading it as a data set of the Hub failed: {error}"
        ) from error
    return _from_datasets(datasets, repo_id, split, fraction, image_column, label_column)


def _column_of_type(features, wanted, asked, argument, source):
    """The one column with a feature of type `wanted`, or the one asked for; None where there is none."""
    if asked is not None:
        if asked not in features:
            raise ValueError(f"{argument}={asked!r}: {source} has columns {', '.join(features)}")
        return asked
    found = [name for name, feature in features.items() if isinstance(feature, wanted)]
    if len(found) > 1:
        raise ValueError(f"{source} has several such columns, give {argument}: {', '.join(found)}")
    return found[0] if found else None


def _from_datasets(datasets, source, split, fraction, image_column, label_column):
    import datasets as library

    present = "train" if split in ("train", "validation") and split not in datasets else split
    if present not in datasets:
        raise MissingSplitError(f"split={split!r}: {source} has splits {', '.join(datasets)}")
    rows = datasets[present]
    image_column = _column_of_type(rows.features, library.Image, image_column, "image_column", source)
    if image_column is None:
        raise ValueError(f"{source} has no image column, only {', '.join(rows.features)}: give image_column")
    label_column = _column_of_type(rows.features, library.ClassLabel, label_column, "label_column", source)
    labels, class_names = _read_labels(rows, label_column, source)
    whole = ImageSource(
        names=[f"{source} {present} row {row}" for row in range(len(rows))],
        open=_OpenRow(
            rows.select_columns([image_column]).cast_column(image_column, library.Image(decode=False)), image_column
        ),
        labels=labels,
        class_names=class_names,
    )
    if present == split and (split != "train" or "validation" in datasets):
        return whole
    return carve(whole, split, fraction, source)


def _read_labels(rows, column, source):
    """Labels (rows,) int64 and class names of a column of class labels, integers or strings."""
    import datasets as library

    if column is None:
        return None, None
    feature, values = rows.features[column], np.asarray(rows.data.column(column).to_pylist())
    if isinstance(feature, library.ClassLabel):
        class_names = list(feature.names)
    elif values.dtype.kind == "U":
        class_names, values = np.unique(values, return_inverse=True)
        class_names = class_names.tolist()
    elif values.dtype.kind in "iu":
        class_names = [str(label) for label in range(int(values.max()) + 1)]
    else:
        raise ValueError(f"label_column={column!r} holds neither class labels, nor integers, nor strings")
    outside = np.flatnonzero((values < 0) | (values >= len(class_names)))
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"{source} row {row}: {column}={values[row]} is out of range for {len(class_names)} classes "
            f"(0 to {len(class_names) - 1})"
        )
    return values.astype(np.int64), class_names

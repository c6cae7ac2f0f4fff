"""Samples that lie in folders: classes by sub-folders or by tables beside them, captions in text files."""

import os
from pathlib import Path

import numpy as np

from hf_vq.data.sources import Columns, SampleSource, carve, files_source
from hf_vq.data.tables import SPLIT_NAMES, read_metadata, rows_source
from hf_vq.renaming import warn_user

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def folder_source(folder: Path, split: str, fraction: float, columns: Columns) -> SampleSource:
    """Samples of a folder.

    Sub-folders train/ and validation/ (and test/) are splits; without validation/ a fraction of the training samples
    is held out. Within a split a table (`metadata.jsonl`, `.csv` or `.parquet`) says which samples there are, as for
    ImageFolder of `datasets`; without one the sub-folders are the classes, as for torchvision's: whatever lies below
    one of them, however deep, is of its class. A single sub-folder is no class.
    """
    splits = {
        name: path
        for name, spellings in SPLIT_NAMES.items()
        for path in sorted(folder.iterdir())
        if path.is_dir() and path.name.lower() in spellings
    }
    if "train" not in splits:
        return carve(_read(folder, folder, columns), split, fraction, str(folder))
    beside = [path for path in folder.iterdir() if path.is_file() and columns.kind.is_one(path)]
    if beside:
        warn_user(
            f"{columns.kind.plural} beside {splits['train']} are left out: {len(beside):,}, such as {min(beside).name}"
        )
    training = _read(splits["train"], folder, columns)
    if split == "train" and "validation" in splits:
        return training
    if split in splits and split != "train":
        return _read(splits[split], folder, columns, training)
    return carve(training, split, fraction, str(splits["train"]))


def _read(folder, root, columns, training=None):
    """All samples of one split; `training` is the training split, for the others."""
    kind = columns.kind
    samples: list[Path] = []
    others: list[Path] = []
    for path in files_below(folder):
        (samples if kind.is_one(path) else others).append(path)
    if not samples:
        raise ValueError(f"{folder} holds no {kind.plural}")
    tables = [path for path in others if path.name in METADATA]
    tables = tables or [root / name for name in METADATA if (root / name).is_file()]
    if tables:
        source, used = _of_tables(tables, folder, columns, training, samples), set(tables)
    else:
        columns.check_files(str(folder))
        source, used = _of_classes(folder, samples, columns, training and training.class_names), set[Path]()
        captions = {path.with_suffix(""): path for path in others if path.suffix.lower() == ".txt"}
        found = [captions.get(path.with_suffix("")) for path in samples]
        if columns.caption != "none" and any(found):
            source.captions = ["" if path is None else _read_caption(path) for path in found]
            used.update(path for path in found if path is not None)
    left = [path for path in others if path not in used]
    if left:
        warn_user(f"files of {folder} that are no {kind.plural} are left out: {len(left):,}, such as {left[0].name}")
    return source


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; names that start with a dot are left out, and links back to what was seen."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        found += [Path(parent, name) for name in files if name[0] != "."]
    return sorted(found)


def _of_classes(folder, samples, columns, class_names):
    source = files_source(columns.kind, samples)
    if columns.label == "none":
        return source
    below = [path.relative_to(folder).parts for path in samples]
    direct = [parts[0] for parts in below if len(parts) == 1]
    classes = sorted({parts[0] for parts in below if len(parts) > 1})
    if direct and classes:
        raise ValueError(
            f"{folder} holds both files ({direct[0]}) and sub-folders ({classes[0]}) of {columns.kind.plural}: put "
            "every one in a sub-folder named after its class, or all of them in the folder itself; label_column none "
            "takes all of them, without classes"
        )
    source.class_names = class_names or (classes if len(classes) > 1 else None)
    if classes and source.class_names is not None:
        unknown = [name for name in classes if name not in source.class_names]
        if unknown:
            raise ValueError(f"{folder} has a class that the training split has not: {unknown[0]}")
        numbers = {name: number for number, name in enumerate(source.class_names)}
        source.labels = np.array([numbers[parts[0]] for parts in below], dtype=np.int64)
    return source


def _of_tables(tables, folder, columns, training, samples):
    """The samples that tables name, of those that lie in a folder."""
    rows, paths, named = read_metadata(tables, columns)
    kept = list(range(len(paths)))
    if not tables[0].is_relative_to(folder):  # it tells of other splits, too
        kept = [row for row in kept if Path(paths[row]).resolve().is_relative_to(folder.resolve())]
    if not kept:
        raise ValueError(f"{tables[0]} names no {columns.kind.name} in {folder}")
    files = files_source(columns.kind, [paths[row] for row in kept])
    source = rows_source(rows.select(kept), str(tables[0]), files.names, columns, training)
    source.open, source.files = files.open, True
    if len(samples) != len(named):  # else they are the same
        unnamed = {path.resolve() for path in samples} - {Path(path).resolve() for path in named}
        if unnamed:
            warn_user(
                f"{columns.kind.plural} of {folder} that {tables[0].name} does not name are left out: {len(unnamed):,}"
            )
    return source


def _read_caption(path):
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"the caption {path} is no UTF-8 text: {error}") from error

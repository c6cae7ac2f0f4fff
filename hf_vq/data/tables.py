"""Samples out of tables that `datasets` reads: Parquet, WebDataset tars, saved data sets, data sets of the Hub."""

import glob
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_vq.data.columns import caption_column, label_column, read_captions, read_labels, sample_column, speaker_column
from hf_vq.data.decoding import PICTURES
from hf_vq.data.kinds import FileKind
from hf_vq.data.sources import HUB_ID, Columns, MissingSplitError, SampleSource, carve

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
TARS = (".tar", ".tar.gz", ".tgz")  # of WebDataset
SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))  # by `save_to_disk`: several splits, or one


class _OpenRow:
    """Opens the encoded bytes of row i of a `datasets.Dataset`."""

    def __init__(self, dataset, column, kind):
        self.dataset, self.column, self.kind = dataset, column, kind

    def __call__(self, index):
        return open_cell(self.dataset[index][self.column], self.kind)


def open_cell(cell: dict[str, Any] | None, kind: FileKind = PICTURES) -> Any:
    """An opened, not yet decoded, sample of a cell of an undecoded column: of bytes, or of a path or URL.

    Raises:
        ValueError: the cell is empty.
    """
    if cell is None:
        raise ValueError(f"the row has no {kind.name}")
    if cell["bytes"] is None and "://" not in cell["path"]:
        return kind.open(cell["path"])
    content = cell["bytes"]
    if content is None:  # of a repository of files, streamed
        import fsspec

        with fsspec.open(cell["path"], "rb") as file:
            content = file.read()
    return kind.open(io.BytesIO(content))


def read_splits(
    source: str, kind: FileKind, config_name: str | None = None, streaming: bool = False
) -> Mapping[str, Any] | None:
    """The splits of a source by name, of `datasets`; None for a folder of files of samples.

    Args:
        source: file, folder or glob of Parquet or tar files, folder of `save_to_disk`, or id of the Hub.
        kind: of the samples.
        config_name: of a data set of the Hub.
        streaming: read as they are gone through, `datasets.IterableDataset`.

    Raises:
        ValueError: there is no such source, or it cannot be read.
    """
    import datasets

    if any(all(os.path.isfile(os.path.join(source, name)) for name in names) for names in SAVED):
        if streaming:
            raise ValueError(f"streaming=True: {source} is a folder of save_to_disk, which is mapped from the disk")
        saved = _read(source, datasets.load_from_disk, source).with_format(None)
        return saved if isinstance(saved, dict) else {"train": saved}
    parquet, tars = _files(source, kind)
    if parquet:
        _check_parquet(parquet)
        if os.path.isdir(source):
            return _read(source, datasets.load_dataset, source, streaming=streaming)
        return _read(source, datasets.load_dataset, "parquet", data_files={"train": parquet}, streaming=streaming)
    if tars:
        splits = _by_split(tars, source) if os.path.isdir(source) else {"train": tars}
        return _read(source, datasets.load_dataset, "webdataset", data_files=splits, streaming=streaming)
    if os.path.isdir(source):
        return None
    if os.path.exists(source):
        raise ValueError(f"data={source!r} is neither a Parquet file, nor a tar file, nor a folder")
    if glob.has_magic(source) or not HUB_ID.fullmatch(source):
        raise ValueError(f"data={source!r}: no such file or folder, and not a data set id of the Hub")
    return _read(source, datasets.load_dataset, source, config_name, streaming=streaming, hub=True)


def read_metadata(files: Sequence[str | Path], columns: Columns) -> tuple[Any, list[str], set[str]]:
    """The rows of tables of files, of `datasets.Dataset`, the path of the sample of each, and all paths.

    Args:
        files: of one kind, `metadata.jsonl`, `.csv` or `.parquet`, as ImageFolder of `datasets` reads them.
        columns: to read; that of `file_name` is called "image" or "audio", that of `mask_file_name` "mask".

    Raises:
        ValueError: they cannot be read, have no `file_name`, or name a file that is not there.
    """
    import datasets

    kind, feature_class = columns.kind, getattr(datasets, columns.kind.feature)
    source = ", ".join(map(str, files))
    if kind.feature == "Image":
        tables = {"train": [str(path) for path in files]}
        rows = _read(source, datasets.load_dataset, "imagefolder", data_files=tables)["train"]
    else:  # to write the paths that it finds, AudioFolder of `datasets` wants torchcodec
        rows = datasets.concatenate_datasets([_table_of_files(path, kind) for path in files])
    column, named = sample_column(rows.features, kind, columns.sample, source), {}
    for name in [name for name, feature in rows.features.items() if isinstance(feature, feature_class)]:
        cells = rows.select_columns([name]).cast_column(name, feature_class(decode=False))
        named[name] = [cell and cell["path"] for cell in cells[:][name]]
    for row, path in enumerate(named[column]):
        if path is None or not os.path.isfile(path):
            raise ValueError(
                f"{source} row {row}: " + ("no file_name" if path is None else f"no such {kind.name}: {path}")
            )
    return rows, named[column], {path for paths in named.values() for path in paths if path}


def _table_of_files(path, kind):
    """Rows of one table of files: `file_name`, which begins at the table, is their column of samples."""
    import datasets

    reader = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[Path(path).suffix]
    rows = _read(str(path), datasets.load_dataset, reader, data_files=str(path))["train"]
    if "file_name" not in rows.column_names:
        raise ValueError(f"{path} has no column file_name, only {', '.join(rows.column_names)}")
    names = [name and str(Path(path).parent / name) for name in rows["file_name"]]
    cells = datasets.Dataset.from_dict(
        {kind.name: [{"bytes": None, "path": name} for name in names]},
        features=datasets.Features({kind.name: {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}),
    )
    others = rows.remove_columns("file_name")
    both = datasets.concatenate_datasets([cells, others], axis=1) if others.column_names else cells
    return both.cast_column(kind.name, getattr(datasets, kind.feature)(decode=False))


def table_source(
    splits: Mapping[str, Any], source: str, split: str, fraction: float, columns: Columns
) -> SampleSource:
    """Samples of one split of `read_splits`.

    Args:
        splits: of `datasets.Dataset`.
        source: for messages.
        split: where there is no "validation", it is held out of "train".
        fraction: share that is held out.
        columns: to read.
    """
    present = "train" if split in ("train", "validation") and split not in splits else split
    if present not in splits:
        raise MissingSplitError(f"split={split!r}: {source} has splits {', '.join(splits)}")
    named, training = _named(splits[present], source, present), None
    if present != "train" and "train" in splits:
        names = _named(splits["train"], source, "train")
        training = rows_source(splits["train"], source, names, replace(columns, caption="none"))
    whole = rows_source(splits[present], source, named, columns, training)
    if present == split and (split != "train" or "validation" in splits):
        return whole
    return carve(whole, split, fraction, source)


def rows_source(
    rows: Any, source: str, names: Sequence[str], columns: Columns, training: SampleSource | None = None
) -> SampleSource:
    """Samples of the rows of a `datasets.Dataset`.

    Args:
        rows: with a column of samples.
        source: for messages.
        names: of the rows.
        columns: to read.
        training: the training split, for the others: its classes and speakers are those of all.
    """
    import datasets

    column = sample_column(rows.features, columns.kind, columns.sample, source)
    flat = _flat(rows)
    classes, speakers = (None, None) if training is None else (training.class_names, training.speaker_names)
    label = label_column(flat.features, columns.label, source)
    labels, classes = read_labels(flat, label, names, classes)
    speaker = speaker_column(flat.features, columns.speaker, source)
    speaker_labels, speakers = read_labels(flat, speaker, names, speakers, "speaker")
    feature_class = getattr(datasets, columns.kind.feature)
    encoded = rows.select_columns([column]).cast_column(column, feature_class(decode=False))
    captions = read_captions(flat, caption_column(flat.features, columns.caption, source))
    return SampleSource(
        names,
        _OpenRow(encoded, column, columns.kind),
        labels,
        classes,
        speaker_labels,
        speakers,
        captions,
        commit=_commit_of(rows),
    )


def _flat(rows):
    """What stands beside sounds, fields within columns as columns of their own (`datasets` flattens no sounds)."""
    import datasets

    sounds = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Audio)]
    return rows.remove_columns(sounds).flatten()


def _commit_of(rows):
    """The commit of the Hub's data set that rows are of, None for others: `datasets` names a folder so."""
    folders = {part for file in rows.cache_files for part in Path(file["filename"]).parent.parts}
    found = {part for part in folders if re.fullmatch("[0-9a-f]{40}", part)}
    return found.pop() if len(found) == 1 else None


def _named(rows, source, split):
    return [f"{source} {split} row {row}" for row in range(len(rows))]


def _files(source, kind):
    """The Parquet files and the tar files that a path or glob names, an empty list each where it names none.

    In a folder `metadata.parquet` tells of files, a Parquet file beside a tar of the same name what is in that,
    and a tar beside samples is one of those that they came in.
    """
    folder = os.path.isdir(source)
    if folder:
        found = sorted(os.path.join(parent, name) for parent, _, names in os.walk(source) for name in names)
    else:
        found = [source] if os.path.isfile(source) else sorted(glob.glob(source, recursive=True))
    parquet, tars = ([path for path in found if path.endswith(suffixes)] for suffixes in (".parquet", TARS))
    if folder:
        packed = {path[: -len(suffix)] for path in tars for suffix in TARS if path.endswith(suffix)}
        parquet = [path for path in parquet if path.removesuffix(".parquet") not in packed]
        parquet = [path for path in parquet if os.path.basename(path) != "metadata.parquet"]
        if tars and any(kind.is_one(Path(path)) for path in found):
            tars = []
    return parquet, tars


def _by_split(files, folder):
    """Files of a folder by the split that a word of their paths names, "train" where none does."""
    found: dict[str, list[str]] = {}
    for path in files:
        words = re.split(r"[^a-z]+", os.path.relpath(path, folder).lower())
        name = next((name for name, spellings in SPLIT_NAMES.items() if {*words} & {*spellings}), "train")
        found.setdefault(name, []).append(path)
    return found


def _check_parquet(files):
    """Raise a ValueError for a file that cannot be read, and for two that number their classes differently.

    (`datasets` takes the names of the first file for all of them.)
    """
    import pyarrow
    import pyarrow.parquet

    told: dict[str, tuple[str, list[str]]] = {}
    for path in files:
        try:
            schema = pyarrow.parquet.read_schema(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
        for name, feature in json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).items():
            for column, kind in feature.items() if name == "features" and isinstance(feature, dict) else ():
                if isinstance(kind, dict) and kind.get("_type") == "ClassLabel":
                    first, names = told.setdefault(column, (path, kind["names"]))
                    if names != kind["names"]:
                        raise ValueError(
                            f"{path}: the classes of {column} are {kind['names']}, in {first} they are {names}"
                        )


def unreadable(what: str, error: Exception) -> ValueError:
    """The error, in one line, for data that `datasets` could not read; it raises all kinds."""
    cause = error if error.__cause__ is None else error.__cause__
    kind = "" if isinstance(cause, ValueError | OSError) else f"{type(cause).__name__}: "
    return ValueError(f"{what}: {kind}{' '.join(str(cause).split()) or type(cause).__name__}")


def _read(source, load, *arguments, hub=False, **options):
    """Call a function of `datasets`; a ValueError of one line where it fails."""
    try:
        return load(*arguments, **options)
    except Exception as error:
        what = "is no file or folder here, and loading it as a data set of the Hub failed"
        raise unreadable(f"data={source!r} {what if hub else 'cannot be read'}", error) from error

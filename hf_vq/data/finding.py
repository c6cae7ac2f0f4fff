"""Where the samples of a split come from: files, folders, tables, the Hub, or a data set that is bundled."""

from collections.abc import Callable, Mapping
from pathlib import Path

from hf_vq.data.sample_folders import files_below, folder_source
from hf_vq.data.slices import is_slice, slice_rows, split_name
from hf_vq.data.sources import Columns, SampleSource, files_source
from hf_vq.data.tables import read_splits, table_source


def find_source(
    source: str | Path | list | tuple,
    asked: str,
    fraction: float,
    columns: Columns,
    config_name: str | None = None,
    bundled: Mapping[str, Callable[[str, bool], SampleSource]] | None = None,
) -> SampleSource:
    """The samples of a split, or of a slice of one, and what is known of them.

    Args:
        source: a list of files, or of folders of them; a name of `bundled`; a folder, file, glob or id of the Hub, see
            `read_splits`.
        asked: the split, or rows of one such as "train[:90%]".
        fraction: share of the training samples that is held out where there is no validation split.
        columns: to read.
        config_name: of a data set of the Hub.
        bundled: by name, functions of a split and of whether nothing is held out of it first.

    Raises:
        ValueError: unknown source, split or column, or a bad file.
    """
    split, name, whole = split_name(asked), str(source), is_slice(asked)
    fraction = 0 if whole else fraction
    if isinstance(source, list | tuple):
        columns.check_files("a list of files")
        found = files_source(columns.kind, [path for one in source for path in _files_of(one, columns.kind)])
    elif bundled and name in bundled:
        columns.check_files(name)
        found = bundled[name](split, whole)
    elif (splits := read_splits(name, columns.kind, config_name)) is None:
        found = folder_source(Path(source), split, fraction, columns)
    else:
        found = table_source(splits, name, split, fraction, columns)
    if columns.label == "none":
        found.labels = found.class_names = None
    return found.select(slice_rows(asked, len(found.names))) if whole else found


def _files_of(path, kind):
    """A file, or all of a kind below a folder."""
    return [one for one in files_below(Path(path)) if kind.is_one(one)] if Path(path).is_dir() else [path]

"""Classes, speakers and captions out of a table of `datasets`: which columns hold them, and what their values mean."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_vq.data.kinds import FileKind

LABEL_NAMES = ("label", "labels", "class_labels", "class", "cls")  # cls: of WebDataset
CAPTION_NAMES = ("caption", "captions", "text", "txt", "prompt")  # txt: of WebDataset
KINDS = (("bool", "bool"), ("integer", "int"), ("integer", "uint"), ("float", "float"))
PLURALS = {"label": "classes", "speaker": "speakers"}  # what columns number, by the first word of their option
MOST_CLASSES = 2**24  # more than that are names of things


def pick_column(
    features: Any,
    fits: Callable[[Any], bool],
    asked: str | None,
    argument: str,
    source: str,
    names: Sequence[str] = (),
    otherwise: Callable[[Any], bool] = lambda feature: False,
) -> str | None:
    """The column that is meant: the one asked for, else the one of a type, else the first that has a usual name.

    Args:
        features: of the table.
        fits: tells a column by its feature.
        asked: name of the column; "none": none of them.
        argument: that asks.
        source: for messages.
        names: usual ones, the likeliest first; also the last part of "json.caption", a field within a column.
        otherwise: tells by its feature whether a column of a usual name is of use.

    Raises:
        ValueError: no such column, or several of that type of which not one alone has a usual name.
    """
    if asked == "none":
        return None
    if asked is not None:
        if asked not in features:
            raise ValueError(f"{argument}={asked!r}: {source} has columns {', '.join(features)}")
        return asked
    found = [name for name, feature in features.items() if fits(feature)]
    if len(found) > 1:
        found = [name for name in found if name in names] or found
    if len(found) > 1:
        raise ValueError(f"{source} has several such columns, give {argument}: {', '.join(found)}")
    usual = [
        name
        for whole in (True, False)
        for wanted in names
        for name, feature in features.items()
        if (name if whole else name.rpartition(".")[2]) == wanted and otherwise(feature)
    ]
    return next(iter(found or usual), None)


def sample_column(features: Any, kind: FileKind, asked: str | None, source: str) -> str:
    """Name of the column of the samples; bytes, and bytes beside a path, count as samples where the name says so."""
    import datasets

    feature_class = getattr(datasets, kind.feature)

    def encoded(feature):
        within = feature if isinstance(feature, dict) else {"bytes": feature}
        return {"binary", "large_binary"} & {getattr(within.get("bytes"), "dtype", None)}

    argument = f"{kind.name}_column"
    found = pick_column(
        features, lambda one: isinstance(one, feature_class), asked, argument, source, kind.columns, encoded
    )
    if found is None:
        raise ValueError(f"{source} has no {kind.name} column, only {', '.join(features)}: give {argument}")
    return found


def label_column(features: Any, asked: str | None, source: str) -> str | None:
    """Name of the column of the classes, None where there is none; `features` flat."""
    import datasets

    def plain(feature):
        return isinstance(feature, datasets.Value) and _kind(feature) is not None

    return pick_column(
        features, lambda one: isinstance(one, datasets.ClassLabel), asked, "label_column", source, LABEL_NAMES, plain
    )


def speaker_column(features: Any, asked: str | None, source: str) -> str | None:
    """Name of the column of the speakers, None where none is asked for; `features` flat."""
    return pick_column(features, lambda one: False, asked, "speaker_column", source)


def caption_column(features: Any, asked: str | None, source: str) -> str | None:
    """Name of the column of the captions, None where there is none; `features` flat."""
    found = pick_column(features, lambda one: False, asked, "caption_column", source, CAPTION_NAMES, _is_text)
    if found is not None and not _is_text(features[found]):
        raise ValueError(f"caption_column={found!r} holds neither strings nor lists of strings")
    return found


def read_captions(rows: Any, column: str | None) -> list[str] | None:
    """Captions of the rows of a flat table: "" where a row has none, of several the first."""
    if column is None:
        return None
    values = _arrow(rows, column).to_pylist()
    firsts = (value[0] if value and not isinstance(value, str) else value for value in values)
    return [first or "" for first in firsts]


def read_labels(
    rows: Any,
    column: str | None,
    row_names: Sequence[str],
    known_names: list[str] | None = None,
    what: str = "label",
) -> tuple[np.ndarray | None, list[str] | None]:
    """Labels (rows,) int64, and the names of what they number, classes or speakers, of a column of a flat table.

    A row without a label has None or -1. A split without any label has none; one with some is refused.

    Args:
        rows: of `datasets`.
        column: of class labels, integers, truth values or strings; None: no labels.
        row_names: what messages call the rows.
        known_names: those of the training split, which count; None: those that the rows have.
        what: a key of `PLURALS`.

    Raises:
        ValueError: another type of column, a class or speaker that training has not, or rows without a label among
            others.
    """
    if column is None:
        return None, known_names
    feature = rows.features[column]
    values = [None if value != value else value for value in _arrow(rows, column).to_pylist()]  # NaN
    own = list(getattr(feature, "names", ()))
    kind, names = _kind(feature), known_names or own or None
    if kind is None or (kind == "float" and any(value is not None and value % 1 for value in values)):
        raise ValueError(
            f"{what}_column={column!r} holds neither class labels, nor integers, nor strings, nor truth values: "
            f"{what}_column none leaves {what}s out"
        )
    if own and names != own:  # other numbers than in training, or other classes
        told: dict[Any, Any] = {**dict(enumerate(own)), -1: None}
        kind, values = "string", [told.get(value, value) for value in values]
    if kind == "string":
        names = names or sorted({value for value in values if value is not None})
        numbers = {name: number for number, name in enumerate(names)}
        labels = [-1 if value is None else numbers.get(value, len(names)) for value in values]
    else:
        labels = [-1 if value is None else int(value) for value in values]
        names = names or _numbered(kind, max(labels, default=-1), column, what)
    if all(label == -1 for label in labels):
        return None, names
    for row, label in enumerate(labels):
        if not 0 <= label < len(names):
            span = f"0 to {len(names) - 1}" if kind != "string" else ", ".join(names)
            raise ValueError(
                f"{row_names[row]}: {column}={values[row]} is out of range for {len(names)} {PLURALS[what]} ({span}); "
                f"a split has {what}s in all rows or in none: {what}_column none leaves them out"
            )
    return np.array(labels, dtype=np.int64), names


def _numbered(kind, highest, column, what):
    """Names of classes or speakers that have numbers alone."""
    if kind == "bool":
        return ["False", "True"]
    if highest >= MOST_CLASSES:
        raise ValueError(
            f"{what}_column={column!r} goes up to {highest:,}, more than there are {PLURALS[what]}: "
            f"{what}_column none leaves {what}s out"
        )
    return [str(label) for label in range(highest + 1)]


def _arrow(rows, column):
    """A column of a table of `datasets` as Arrow has it, in the order of its rows."""
    return rows.select_columns([column]).with_format("arrow")[:].column(column)


def _kind(feature):
    """What values of a feature are as classes: "string", "bool", "integer", "float"; None: none."""
    dtype = str(getattr(feature, "dtype", ""))
    if dtype in ("string", "large_string"):
        return "string"
    return next((kind for kind, start in KINDS if dtype.startswith(start)), None)


def _is_text(feature):
    inner = getattr(feature, "feature", feature)  # of lists
    return _kind(inner) == "string" and not isinstance(feature, dict)

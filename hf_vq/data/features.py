"""Which tokenizer made codes, in the one place that `datasets` keeps: the features of their columns.

`datasets` drops what it does not know in the schema of a Parquet file, and so a shard's seal. A feature it keeps
whole: through maps and filters, `save_to_disk`, `to_parquet`, `push_to_hub` and the metadata of a card. The `id` of
the numbers in each column of codes therefore says what is true of all rows, whichever are there.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

FEATURES_KEY = b"huggingface"  # of `datasets`, in the schema of a Parquet file
KEPT = ("tokenizer", "codebook_size", "code_shape", "sample_shape")  # of a plan
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")  # with a revision or without


def with_identity(metadata: Mapping[bytes, bytes], plan: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Schema metadata of `datasets` whose columns of codes say what a plan says of all rows."""
    told = json.loads(metadata[FEATURES_KEY])
    for numbers in _numbers_of_codes(told):
        numbers["id"] = json.dumps({"hf_vq": {name: plan[name] for name in KEPT}}, sort_keys=True)
    return {**metadata, FEATURES_KEY: json.dumps(told).encode()}


def plan_of_features(metadata: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    """What the features in schema metadata say of codes, a plan without facts of the rows; None: nothing.

    It has `rewritten` True: rows may have been chosen, put into another order, or changed since they were tokenized.
    """
    try:
        told = json.loads(metadata[FEATURES_KEY])
        kept = next(json.loads(numbers["id"])["hf_vq"] for numbers in _numbers_of_codes(told) if "id" in numbers)
        plan = {name: kept[name] for name in KEPT}
        features = told["info"]["features"]
        classes, speakers = (features.get(name, {}).get("names") for name in ("class_labels", "speaker_labels"))
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return None
    spoken = {} if speakers is None else {"speaker_names": speakers}
    return {**plan, "class_names": classes, **spoken, "rewritten": True}


def portable(identity: Mapping[str, str]) -> dict[str, str]:
    """A `tokenizer_identity` as others may read it: its path is a repository of the Hub, or empty.

    To be called where the path was given: elsewhere no one knows whether "a/b" was a folder there.
    """
    path = identity["path"]
    return {**identity, "path": path if REPOSITORY.fullmatch(path) and not os.path.exists(path) else ""}


def _numbers_of_codes(told: Any) -> Iterator[dict]:
    """The features of the numbers in every column of codes."""
    for name, feature in told["info"]["features"].items():
        if re.fullmatch(r"codes(_\d+)?", name):
            while "feature" in feature:
                feature = feature["feature"]
            yield feature

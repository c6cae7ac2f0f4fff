"""Codes of a tokenized data set: Parquet shards that know which tokenizer made them, and the data set for a prior."""

import hashlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

SCHEMA_KEY = b"hf_vq"  # in the Parquet schema metadata, beside the features of `datasets`
SHARD_NAME = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.parquet")


def tokenizer_identity(autoencoder, path=None):
    """Tell which tokenizer made some codes.

    Args:
        autoencoder: the model; its state is hashed tensor by tensor, so that saving it again changes nothing.
        path: where it came from, for people; default the path it was loaded from.

    Returns:
        dict with `class`, `path`, `config_sha256` (of the options that are not at their defaults), `weights_sha256`
        and `codes_sha256`, of those options and weights that codes depend on.
    """
    defaults = {name: option.default for name, option in inspect.signature(type(autoencoder)).parameters.items()}
    config = {
        key: value
        for key, value in dict(autoencoder.config).items()
        if not key.startswith("_") and value != defaults.get(key, inspect.Parameter.empty)
    }  # an option that a later version adds changes nothing where it is at its default
    weights = hashlib.sha256()
    encoding = {name: value for name, value in config.items() if name not in autoencoder.decoder_options}
    codes = hashlib.sha256(json.dumps(encoding, sort_keys=True, default=str).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for digest in [weights] if autoencoder.only_decodes(name) else [weights, codes]:
            digest.update(described)
            digest.update(content)
    return {
        "class": type(autoencoder).__name__,
        "path": str(path or autoencoder.config.get("_name_or_path") or ""),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
        "codes_sha256": codes.hexdigest(),
    }


def column_names(plan):
    """Columns of the codes: "codes", or of a hierarchy "codes_0" and so on, coarse to fine."""
    if isinstance(plan["codebook_size"], list):
        return [f"codes_{level}" for level in range(len(plan["codebook_size"]))]
    return ["codes"]


def read_metadata(path):
    """What `tokenize_dataset` wrote about the codes of a file; a ValueError where they are not ours."""
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_schema(path).metadata or {}
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error
    if SCHEMA_KEY not in metadata:
        raise ValueError(f"{path} does not hold codes of hf_vq: its schema has no {SCHEMA_KEY.decode()!r} entry")
    return json.loads(metadata[SCHEMA_KEY])


def code_splits(folder):
    """Names of the splits in a folder of codes, train first.

    Raises:
        ValueError: no such folder, or no codes in it.
    """
    found = {match["split"] for match in map(SHARD_NAME.fullmatch, _shard_names(folder)) if match}
    if not found:
        raise ValueError(f"{folder} holds no codes: run `hf-vq tokenize` to make them")
    return sorted(found, key=lambda split: (split != "train", split))


def _shard_names(folder):
    data = Path(folder) / "data"
    return sorted(path.name for path in data.iterdir()) if data.is_dir() else []


def load_codes(folder, split="train", tokenizer=None, level=None, context=False):
    """Load one split of the codes that `tokenize_dataset` wrote.

    Args:
        folder: its `output_dir`.
        split: "train", "validation", or another that was tokenized.
        tokenizer: autoencoder that the codes must come from; None does not check.
        level: of a hierarchy, which one to load: 0 is the coarsest.
        context: also load the codes of the coarser levels, as `context_codes` of every item.

    Returns:
        `CodesDataset`.

    Raises:
        ValueError: no such folder, split or level, missing shards, or codes of another tokenizer.
    """
    import pyarrow.parquet

    if split not in code_splits(folder):
        raise ValueError(f"split={split!r}: {folder} has splits {', '.join(code_splits(folder))}")
    shards = [match for match in map(SHARD_NAME.fullmatch, _shard_names(folder)) if match and match["split"] == split]
    if len(shards) != int(shards[0]["total"]):
        raise ValueError(
            f"{folder} is incomplete: {len(shards)} of {int(shards[0]['total'])} shards of {split} "
            "(run the same `hf-vq tokenize` with --resume)"
        )
    paths = [Path(folder) / "data" / match[0] for match in shards]
    plan = read_metadata(paths[0])
    if tokenizer is not None:
        check_tokenizer(plan["tokenizer"], tokenizer, folder)
    wanted = [_pick_level(plan, level, folder)]
    if context:
        wanted += [_pick_level(plan, coarser, folder) for coarser in range(level or 0)]
    codes, labels = [[] for _ in wanted], []
    for path in paths:
        table = pyarrow.parquet.read_table(path).combine_chunks()
        for part, (name, _, code_shape) in zip(codes, wanted, strict=True):
            column = table.column(name).chunk(0)
            for _ in code_shape:
                column = column.flatten()
            part.append(column.to_numpy(zero_copy_only=False).reshape(-1, *code_shape))
        if plan["class_names"] is not None:
            labels.append(table.column("class_labels").to_numpy())
    own, *coarser = map(np.concatenate, codes)
    return CodesDataset(
        own,
        np.concatenate(labels) if labels else None,
        codebook_size=wanted[0][1],
        class_names=plan["class_names"],
        sample_shape=tuple(plan["sample_shape"]),
        tokenizer=plan["tokenizer"],
        context_codes=coarser,
        context_codebook_sizes=[size for _, size, _ in wanted[1:]],
    )


def code_levels(folder):
    """How many levels of codes a folder holds: more than one for those of a hierarchy."""
    split = code_splits(folder)[0]
    first = next(
        name for name in _shard_names(folder) if (match := SHARD_NAME.fullmatch(name)) and match["split"] == split
    )
    return len(column_names(read_metadata(Path(folder) / "data" / first)))


def _pick_level(plan, level, folder):
    """Column, codebook size and code shape of a level."""
    names = column_names(plan)
    if names == ["codes"]:
        if level not in (None, 0):
            raise ValueError(f"level={level!r}: {folder} holds codes of one level")
        return "codes", plan["codebook_size"], plan["code_shape"]
    if level is None or not 0 <= level < len(names):
        raise ValueError(
            f"level={level!r}: {folder} holds the codes of a hierarchy, say which of its levels, 0 (coarsest) to "
            f"{len(names) - 1}"
        )
    return names[level], plan["codebook_size"][level], plan["code_shape"][level]


def differing_hash(one, other):
    """Which entry shows that two `tokenizer_identity` are of tokenizers that make different codes; None: none does.

    Where one of them has no `codes_sha256`, as older files have not, decoders count too.
    """
    hashes = ["codes_sha256"] if {"codes_sha256"} <= one.keys() & other.keys() else ["config_sha256", "weights_sha256"]
    return next((key for key in ["class", *hashes] if one[key] != other[key]), None)


def check_tokenizer(identity, autoencoder, folder):
    """Raise a ValueError unless the given autoencoder makes the codes of this `tokenizer_identity`."""
    given = tokenizer_identity(autoencoder)
    key = differing_hash(identity, given)
    if key is not None:
        raise ValueError(
            f"the codes in {folder} were made by another tokenizer ({identity['path'] or identity['class']}): "
            f"{key} is {identity[key]}, that of the given one {given[key]}"
        )


class CodesDataset(Dataset):
    """Codes for a prior; an item is `{"codes": (*grid) int64, "class_labels": () int64}`, labels where there are.

    With context, an item also has `context_codes`: a tuple of (*grid) int64, coarse to fine.

    Args:
        codes: (num_samples, *grid) integer array, kept in its own type.
        labels: (num_samples,) int64 array, None without classes.
        codebook_size: number of different codes.
        class_names: one name per class, None without classes.
        sample_shape: (channels, height, width) of the images that were tokenized.
        tokenizer: `tokenizer_identity` of the autoencoder.
        context_codes: arrays of the coarser levels' codes, coarse to fine.
        context_codebook_sizes: the numbers of their codes.
    """

    def __init__(
        self,
        codes,
        labels,
        *,
        codebook_size,
        class_names,
        sample_shape,
        tokenizer,
        context_codes=(),
        context_codebook_sizes=(),
    ):
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
            raise ValueError(
                f"codes {codes.min()} to {codes.max()} are out of range for codebook_size={codebook_size}"
            )
        self.codes, self.labels = codes, None if labels is None else torch.from_numpy(labels)
        self.codebook_size, self.code_shape = codebook_size, tuple(codes.shape[1:])
        self.class_names, self.num_classes = class_names, len(class_names or ())
        self.sample_shape, self.tokenizer = sample_shape, tokenizer
        self.context_codes, self.context_codebook_sizes = context_codes, tuple(context_codebook_sizes)

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        item = {"codes": torch.from_numpy(self.codes[index].astype(np.int64))}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        if self.context_codes:
            item["context_codes"] = tuple(
                torch.from_numpy(codes[index].astype(np.int64)) for codes in self.context_codes
            )
        return item

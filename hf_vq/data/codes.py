"""Codes of a tokenized data set: Parquet shards that know which tokenizer made them, and the data set for a prior."""

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_vq.data.shards import column_names, find_shards, read_column, read_metadata
from hf_vq.data.tokenizer import Tokenizer
from hf_vq.renaming import with_new_names


def tokenizer_identity(autoencoder: Tokenizer, path: str | Path | None = None) -> dict[str, str]:
    """Tell which tokenizer made some codes.

    Args:
        autoencoder: the model; its state is hashed tensor by tensor, so that saving it again changes nothing.
        path: where it came from, for people; default the path it was loaded from.

    Returns:
        dict with `class`, `path`, `config_sha256` (of the options that are not at their defaults), `weights_sha256`
        and `codes_sha256`, of those options and weights that codes depend on.
    """
    defaults = {name: option.default for name, option in inspect.signature(type(autoencoder)).parameters.items()}
    former = {new: old for old, new in autoencoder.renamed_options().items()}  # a new name makes no other tokenizer
    config = {
        former.get(key, key): value
        for key, value in autoencoder.as_saved_config(dict(autoencoder.config)).items()
        if not key.startswith("_") and value != defaults.get(key, inspect.Parameter.empty)
    }  # an option that a later version adds changes nothing where it is at its default
    weights = hashlib.sha256()
    encoding = {name: value for name, value in config.items() if name not in autoencoder.decoder_options}
    codes = hashlib.sha256(json.dumps(encoding, sort_keys=True, default=str).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
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


def load_codes(
    folder: str | Path,
    split: str = "train",
    tokenizer: Tokenizer | None = None,
    grid: int | None = None,
    context: bool = False,
    level: int | None = None,
    memory_map: bool | None = None,
) -> "CodesDataset":
    """Load one split of the codes that `tokenize_dataset` wrote.

    Args:
        folder: its `output_dir`.
        split: "train", "validation", or another that was tokenized.
        tokenizer: autoencoder that the codes must come from; None does not check.
        grid: of a hierarchy, which one to load: 0 is the coarsest.
        context: also load the codes of the coarser grids, as `context_codes` of every item.
        level: the former name of `grid`.
        memory_map: map the codes from a file in the cache of `datasets` instead of holding them in memory; None: where
            they take more than 64 MiB.

    Returns:
        `CodesDataset`.

    Raises:
        ValueError: no such folder, split or grid, missing shards, or codes of another tokenizer.
    """
    if level is not None:
        grid = with_new_names(
            {"level": level} | ({} if grid is None else {"grid": grid}), {"level": "grid"}, "load_codes"
        )["grid"]
    paths = find_shards(folder, split)
    plan = read_metadata(paths[0])
    if tokenizer is not None:
        check_tokenizer(plan["tokenizer"], tokenizer, folder)
    wanted = [_pick_grid(plan, grid, folder)]
    if context:
        wanted += [_pick_grid(plan, index, folder) for index in range(grid or 0)]
    own, *coarser = (cast(np.ndarray, read_column(paths, name, shape, memory_map)) for name, _, shape in wanted)
    return CodesDataset(
        own,
        read_column(paths, "class_labels") if plan["class_names"] is not None else None,
        codebook_size=wanted[0][1],
        class_names=plan["class_names"],
        sample_shape=tuple(plan["sample_shape"]),
        tokenizer=plan["tokenizer"],
        context_codes=coarser,
        context_codebook_sizes=[size for _, size, _ in wanted[1:]],
        lengths=read_column(paths, column_names(plan, "lengths")[grid or 0]),
    )


def _pick_grid(plan, grid, folder):
    """Column, codebook size and code shape of a grid."""
    names = column_names(plan)
    if names == ["codes"]:
        if grid not in (None, 0):
            raise ValueError(f"grid={grid!r}: {folder} holds codes of one grid")
        return "codes", plan["codebook_size"], plan["code_shape"]
    if grid is None or not 0 <= grid < len(names):
        raise ValueError(
            f"grid={grid!r}: {folder} holds the codes of a hierarchy, say which of its grids, 0 (coarsest) to "
            f"{len(names) - 1}"
        )
    return names[grid], plan["codebook_size"][grid], plan["code_shape"][grid]


def differing_hash(one: dict[str, str], other: dict[str, str]) -> str | None:
    """Which entry shows that two `tokenizer_identity` are of tokenizers that make different codes; None: none does.

    Where one of them has no `codes_sha256`, as older files have not, decoders count too.
    """
    hashes = ["codes_sha256"] if {"codes_sha256"} <= one.keys() & other.keys() else ["config_sha256", "weights_sha256"]
    return next((key for key in ["class", *hashes] if one[key] != other[key]), None)


def check_tokenizer(identity: dict[str, str], autoencoder: Tokenizer, folder: str | Path) -> None:
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

    With context, an item also has `context_codes`: a tuple of (*grid) int64, coarse to fine. Where samples differ in
    length it has `lengths` () int64: real positions along the first axis of space, the rest of its codes is padding.

    Args:
        codes: (num_samples, *grid) integer array, kept in its own type, in memory or mapped.
        labels: (num_samples,) int64 array, None without classes.
        codebook_size: number of different codes.
        class_names: one name per class, None without classes.
        sample_shape: (channels, *space) of the samples that were tokenized, of the longest where they differ.
        tokenizer: `tokenizer_identity` of the autoencoder.
        context_codes: arrays of the coarser grids' codes, coarse to fine.
        context_codebook_sizes: the numbers of their codes.
        lengths: (num_samples,) int64 array, None where all samples are as long.
    """

    def __init__(
        self,
        codes: np.ndarray,
        labels: np.ndarray | None,
        *,
        codebook_size: int,
        class_names: list[str] | None,
        sample_shape: tuple[int, ...],
        tokenizer: dict[str, str],
        context_codes: Sequence[np.ndarray] = (),
        context_codebook_sizes: Sequence[int] = (),
        lengths: np.ndarray | None = None,
    ):
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
            raise ValueError(
                f"codes {codes.min()} to {codes.max()} are out of range for codebook_size={codebook_size}"
            )
        self.codes, self.labels = codes, None if labels is None else torch.from_numpy(labels)
        self.lengths = None if lengths is None else torch.from_numpy(lengths)
        self.codebook_size, self.code_shape = codebook_size, tuple(codes.shape[1:])
        self.class_names, self.num_classes = class_names, len(class_names or ())
        self.sample_shape, self.tokenizer = sample_shape, tokenizer
        self.context_codes, self.context_codebook_sizes = context_codes, tuple(context_codebook_sizes)

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        item: dict[str, Any] = {"codes": torch.from_numpy(self.codes[index].astype(np.int64))}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        if self.lengths is not None:
            item["lengths"] = self.lengths[index]
        if self.context_codes:
            item["context_codes"] = tuple(
                torch.from_numpy(codes[index].astype(np.int64)) for codes in self.context_codes
            )
        return item

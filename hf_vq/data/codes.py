"""Codes of a tokenized data set: Parquet shards that know which tokenizer made them, and the data set for a prior."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_vq.arguments import checked
from hf_vq.data.folders import check_shards
from hf_vq.data.identity import differing_hash, tokenizer_identity
from hf_vq.data.seals import Shard, check_bytes
from hf_vq.data.shards import LABELS, column_names, read_column
from hf_vq.data.shards import read_metadata as read_metadata
from hf_vq.data.tokenizer import Tokenizer
from hf_vq.ranges import Count
from hf_vq.renaming import with_new_names


@checked
def load_codes(
    folder: str | Path,
    split: str = "train",
    tokenizer: Tokenizer | None = None,
    grid: Count | None = None,
    context: bool = False,
    level: Count | None = None,
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
        ValueError: no such folder, split or grid; codes of another tokenizer than the given one; or a shard, which is
            named, that is missing, damaged or does not belong to the others: every file is looked at.
    """
    if level is not None:
        grid = with_new_names(
            {"level": level} | ({} if grid is None else {"grid": grid}), {"level": "grid"}, "load_codes"
        )["grid"]
    shards = check_shards(folder, split)
    plan = shards[0].plan
    if tokenizer is not None:
        check_tokenizer(plan["tokenizer"], tokenizer, folder)
    wanted = [_pick_grid(plan, grid, folder)]
    if context:
        wanted += [_pick_grid(plan, index, folder) for index in range(grid or 0)]
    own, *coarser = (cast(np.ndarray, read_column(shards, name, shape, memory_map)) for name, _, shape in wanted)
    for (name, size, _), codes in zip(wanted, [own, *coarser], strict=True):
        _check_values(shards, name, codes, 0, size)
    labels = {name: read_column(shards, name) for name, names in LABELS.items() if plan.get(names) is not None}
    for column, values in labels.items():
        _check_values(shards, column, values, 0, len(plan[LABELS[column]]))
    name, shape = column_names(plan, "lengths")[grid or 0], wanted[0][2]
    lengths = read_column(shards, name)
    _check_values(shards, name, lengths, 1, shape[len(shape) + 1 - len(plan["sample_shape"])] + 1)
    for shard in shards:
        check_bytes(shard)
    return CodesDataset(
        own,
        labels.get("class_labels"),
        codebook_size=wanted[0][1],
        class_names=plan["class_names"],
        sample_shape=tuple(plan["sample_shape"]),
        tokenizer=plan["tokenizer"],
        context_codes=coarser,
        context_codebook_sizes=[size for _, size, _ in wanted[1:]],
        lengths=lengths,
        speaker_labels=labels.get("speaker_labels"),
        speaker_names=plan.get("speaker_names"),
    )


def _check_values(shards: Sequence[Shard], name: str, values: np.ndarray | None, low: int, high: int) -> None:
    """Raise a ValueError that names the first shard with values outside [low, high)."""
    if values is None:
        return
    ends = np.cumsum([shard.rows for shard in shards])
    for shard, part in zip(shards, np.split(values, ends[:-1]), strict=True):
        if part.size and not low <= int(part.min()) <= int(part.max()) < high:
            raise ValueError(
                f"{shard.path}: {name} of {int(part.min())} to {int(part.max())} are out of range, [{low}, {high})"
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


def check_tokenizer(identity: dict[str, str], autoencoder: Tokenizer, folder: str | Path) -> None:
    """Raise a ValueError unless the given autoencoder makes the codes of this `tokenizer_identity`."""
    given = tokenizer_identity(autoencoder, rounded=False)
    key = differing_hash(identity, given)
    if key is not None:
        raise ValueError(
            f"the codes in {folder} were made by another tokenizer ({identity['path'] or identity['class']}): "
            f"{key} is {identity[key]}, that of the given one {given[key]}"
        )


class CodesDataset(Dataset):
    """Codes for a prior; an item is `{"codes": (*grid) int64, "class_labels": () int64}`, labels where there are.

    Where samples have speakers, it has `speaker_labels` () int64. With context, an item also has `context_codes`: a
    tuple of (*grid) int64, coarse to fine. Where samples differ in length it has `lengths` () int64: real positions
    along the first axis of space, the rest of its codes is padding.

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
        speaker_labels, speaker_names: as labels and class names, of speakers.
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
        speaker_labels: np.ndarray | None = None,
        speaker_names: list[str] | None = None,
    ):
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
            raise ValueError(
                f"codes {codes.min()} to {codes.max()} are out of range for codebook_size={codebook_size}"
            )
        self.codes, self.labels = codes, None if labels is None else torch.from_numpy(labels)
        self.lengths = None if lengths is None else torch.from_numpy(lengths)
        self.codebook_size, self.code_shape = codebook_size, tuple(codes.shape[1:])
        self.class_names, self.num_classes = class_names, 0 if labels is None else len(class_names or ())
        self.speaker_labels = None if speaker_labels is None else torch.from_numpy(speaker_labels)
        self.speaker_names, self.num_speakers = (
            speaker_names,
            0 if speaker_labels is None else len(speaker_names or ()),
        )
        self.sample_shape, self.tokenizer = sample_shape, tokenizer
        self.context_codes, self.context_codebook_sizes = context_codes, tuple(context_codebook_sizes)

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        item: dict[str, Any] = {"codes": torch.from_numpy(self.codes[index].astype(np.int64))}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        if self.speaker_labels is not None:
            item["speaker_labels"] = self.speaker_labels[index]
        if self.lengths is not None:
            item["lengths"] = self.lengths[index]
        if self.context_codes:
            item["context_codes"] = tuple(
                torch.from_numpy(codes[index].astype(np.int64)) for codes in self.context_codes
            )
        return item

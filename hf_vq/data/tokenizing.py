"""Tokenize a data set once: write its codes as Parquet shards that know which tokenizer made them."""

import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from hf_vq.arguments import checked
from hf_vq.data.features import portable, with_identity
from hf_vq.data.folders import check_whole
from hf_vq.data.identity import differing_hash, tokenizer_identity
from hf_vq.data.length_order import PaddedGrids, batches_by_length
from hf_vq.data.padding import collator_for, padded_shape, padding_of, sample_of
from hf_vq.data.sealing import write_shard
from hf_vq.data.seals import DamagedShardError, column_sha256, read_footer
from hf_vq.data.shards import LABELS, SHARD_NAME, column_names, read_metadata
from hf_vq.data.tokenizer import Tokenizer
from hf_vq.grids import as_grids
from hf_vq.processes import join_processes, of_the_first, wait_for_all
from hf_vq.quiet import is_quiet
from hf_vq.ranges import Samples, Size, Workers
from hf_vq.renaming import warn_user
from hf_vq.writing import PARTIAL_SUFFIX, WriteError, is_empty, one_run

OPTIONAL = ("captions_sha256", "speaker_names", "speakers_sha256")  # which a plan may lack
STORED = ("uint8", "uint16", "int32", "uint32", "int64")  # types of codes in Parquet files


def storage_dtype(codebook_size: int) -> np.dtype:
    """The smallest integer type that holds the codes 0 to codebook_size - 1.

    Raises:
        ValueError: none does: a codebook of more than 2^63 codes.
    """
    for name in STORED:
        if codebook_size - 1 <= np.iinfo(name).max:
            return np.dtype(name)
    raise ValueError(f"codebook_size={codebook_size}: codes beyond 2**63 - 1 fit no integer type of Parquet files")


@checked
def tokenize_dataset(
    autoencoder: Tokenizer,
    dataset: Any,
    output_dir: str | Path,
    *,
    batch_size: Samples = 64,
    shard_size: Size = 16384,
    num_workers: Workers = 0,
    path: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, int]:
    """Write the codes of a data set as Parquet shards, `data/<split>-00000-of-00003.parquet`.

    A shard is written under a temporary name and renamed when complete, so that an interrupted run continues with
    `resume=True` where it stopped; the shards are the same bytes as without the interruption. Those that are there are
    read as a whole first: a damaged one is told and made again. Processes that torchrun has started share the shards.

    Args:
        autoencoder: model with `tokenize`, `code_shape` and `codebook_size`.
        dataset: such as an `ImageDataset`, or a dict of data sets by split; map-style, with items as those of
            `train_autoencoder`. Where it has `variable_length` True, codes are padded to its `sample_shape`, the
            longest, and a column `lengths` has every row's real positions along the first axis of space. Only one
            that has `labels` and `class_names` gives its labels, only one that has `speaker_labels` and
            `speaker_names` its speakers, and only one that has `captions` the column `caption`.
        output_dir: folder to write; readable by `datasets.load_dataset` and by `load_codes`.
        batch_size: samples per forward pass.
        shard_size: samples per file.
        num_workers: processes that decode samples.
        path: what to call the tokenizer in the metadata.
        overwrite: replace the codes in an existing folder.
        resume: keep the whole shards that are already there; they must come from the same tokenizer and samples.

    Returns:
        dict of the number of samples by split.

    Raises:
        ValueError: the folder is not empty (neither overwrite nor resume), its codes have another origin, the
            downsampling does not divide the samples' sides, they differ along another axis than the first, or another
            run is writing into the folder.
        WriteError: a shard could not be written; those before it are whole.
    """
    splits = dataset if isinstance(dataset, dict) else {"train": dataset}
    identity = tokenizer_identity(autoencoder, path)
    plans = {split: _plan(autoencoder, dataset, shard_size, identity) for split, dataset in splits.items()}
    device = next(autoencoder.parameters()).device
    rank, processes = join_processes()
    folder, kept = Path(output_dir) / "data", cast(set[Path], set())
    with one_run(output_dir) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            kept = _prepare_folder(Path(output_dir), plans, splits, shard_size, overwrite, resume)
        kept, number = of_the_first(kept), 0
        for split, dataset in splits.items():
            shards = list(_shards(folder, split, len(dataset), shard_size))
            hidden = rank > 0 or is_quiet() or None  # None: shown on a terminal alone
            with tqdm(total=len(dataset), desc=f"tokenizing {split}", disable=hidden) as progress:
                for target, rows in shards:
                    if target not in kept:
                        number += 1  # processes take turns
                        if number % processes == rank:
                            batches = batches_by_length(autoencoder, dataset, rows, batch_size)
                            loader: DataLoader = DataLoader(
                                Subset(dataset, rows),
                                **({"batch_size": batch_size} if batches is None else {"batch_sampler": batches}),
                                num_workers=num_workers,
                                collate_fn=collator_for(autoencoder, dataset, whole=batches is None),
                            )
                            shape = plans[split]["sample_shape"]
                            padded = None if batches is None else PaddedGrids(autoencoder, shape)
                            found = _tokenize(autoencoder, loader, device, padded)
                            _write_shard(target, plans[split], *_in_order(batches, *found))
                    progress.update(len(rows))
        wait_for_all()
    return {split: len(dataset) for split, dataset in splits.items()}


def _plan(autoencoder, dataset, shard_size, identity):
    """What the metadata of every shard of a split says; codes resume only under an equal plan."""
    labels, sample_shape = getattr(dataset, "labels", None), getattr(dataset, "sample_shape", None)
    captions, speakers = getattr(dataset, "captions", None), getattr(dataset, "speaker_labels", None)
    speaker_names = getattr(dataset, "speaker_names", None)
    sample_shape = tuple(sample_of(dataset[0]).shape) if sample_shape is None else padded_shape(autoencoder, dataset)
    code_shape, codebook_size = autoencoder.code_shape(sample_shape), autoencoder.codebook_size
    if autoencoder.hierarchical:  # one entry a grid, coarse to fine
        code_shape, codebook_size = [list(shape) for shape in code_shape], list(autoencoder.codebook_sizes)
    return {
        "tokenizer": identity,
        "codebook_size": codebook_size,
        "code_shape": list(code_shape),
        "sample_shape": list(sample_shape),
        "class_names": getattr(dataset, "class_names", None),
        "num_samples": len(dataset),
        "shard_size": shard_size,
        "samples_sha256": _fingerprint(dataset),
        "labels_sha256": _labels_sha256(labels),
        **(
            {}
            if speaker_names is None
            else {"speaker_names": speaker_names, "speakers_sha256": _labels_sha256(speakers)}
        ),
        **({} if captions is None else {"captions_sha256": column_sha256(np.array(captions, dtype=object))}),
    }


def _labels_sha256(labels):
    return None if labels is None else hashlib.sha256(labels.numpy()).hexdigest()


def _fingerprint(dataset):
    """Hash of a few samples, first to last: enough to notice another data set, cheap on a large one."""
    picked = np.unique(np.linspace(0, len(dataset) - 1, 16).astype(int))
    digest = hashlib.sha256()
    for index in picked:
        digest.update(sample_of(dataset[int(index)]).contiguous().numpy().data)
    return digest.hexdigest()


def _shards(folder, split, num_samples, shard_size):
    total = -(-num_samples // shard_size)
    for number in range(total):
        rows = range(number * shard_size, min((number + 1) * shard_size, num_samples))
        yield folder / f"{split}-{number:05d}-of-{total:05d}.parquet", rows


def _prepare_folder(output_dir, plans, splits, shard_size, overwrite, resume):
    """Refuse, empty or accept an existing folder; return its shards that are whole."""
    folder = output_dir / "data"
    if not (overwrite or resume or is_empty(output_dir)):
        raise ValueError(f"{output_dir} exists and is not empty (overwrite replaces its codes, resume continues them)")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder, codes need one there: move it away")
    partial = [*folder.glob(f".*.parquet{PARTIAL_SUFFIX}"), *folder.glob("*.parquet.partial")]  # of today, of 0.1.0
    for path in sorted([*folder.glob("*.parquet"), *partial]):
        if not path.is_file():
            raise ValueError(f"{path} is no file, but stands where a shard of codes belongs: move it away")
    if overwrite and not resume:
        stale = list(folder.glob("*.parquet"))
        for path in stale:
            _check_ours(path)
        for path in stale:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for path in partial:
        path.unlink()
    expected = {
        target: plans[split]
        for split, dataset in splits.items()
        for target, _ in _shards(folder, split, len(dataset), shard_size)
    }
    kept = set()
    for present in sorted(folder.glob("*.parquet")):
        if present not in expected:
            raise ValueError(f"cannot resume: {present} is not one of the shards of this run")
        try:
            found = read_metadata(present)
        except DamagedShardError as error:
            warn_user(f"{error}: it is made again")
            continue
        for key in dict.fromkeys([*expected[present], *OPTIONAL]):
            mine: Any = found.get(key)
            value = expected[present].get(key)
            same = differing_hash(mine, value) is None if key == "tokenizer" and mine else mine == value
            if not same:
                raise ValueError(f"cannot resume: {present} was made with {key}={mine}, this run has {value}")
        try:
            check_whole(present)
        except DamagedShardError as error:
            warn_user(f"{error}: it is made again")
        else:
            kept.add(present)
    return kept


def _check_ours(path):
    """Raise a ValueError for a file that is not ours to delete, or that does not say so any more."""
    try:
        read_footer(path)
    except DamagedShardError as error:
        raise DamagedShardError(
            f"{error}: overwrite=True deletes what it knows alone; resume=True (hf-vq tokenize: --resume) makes it "
            "again"
        ) from error


@torch.no_grad()
def _tokenize(autoencoder, loader, device, padded=None):
    """Codes (rows, *grid) of every grid, lengths (rows,) or None, and labels and captions by column, of a shard.

    `padded` makes codes of all batches alike, a `PaddedGrids`; None: they are.
    """
    dtypes = [storage_dtype(size) for size in autoencoder.codebook_sizes]
    sizes, parts = autoencoder.codebook_sizes, [cast(list[np.ndarray], []) for _ in dtypes]
    lengths: list[list[np.ndarray]] = [[] for _ in dtypes]
    facts: dict[str, list] = {}
    for batch in loader:
        padding = {name: mask.to(device) for name, mask in padding_of(batch).items()}
        codes = autoencoder.tokenize(batch["sample"].to(device), **padding)
        grids = as_grids(codes) if padded is None else padded(codes)
        for part, grid, dtype, size in zip(parts, grids, dtypes, sizes, strict=True):
            low, high = (int(extreme) for extreme in grid.aminmax())
            if low < 0 or high >= size:  # a narrow type would wrap them
                raise ValueError(f"{type(autoencoder).__name__} gave codes {low} to {high}, of codebook_size={size}")
            part.append(grid.cpu().numpy().astype(dtype))
        if padding:
            for part, length in zip(lengths, _grid_lengths(autoencoder, **padding), strict=True):
                part.append(length.cpu().numpy())
        for name in (*LABELS, "caption"):
            if name in batch:
                facts.setdefault(name, []).extend(batch[name] if name == "caption" else batch[name].tolist())
    return (
        [np.concatenate(part) for part in parts],
        [np.concatenate(part) for part in lengths] if lengths[0] else None,
        {name: np.array(values, dtype=object if name == "caption" else np.int64) for name, values in facts.items()},
    )


def _in_order(batches, codes, lengths, facts):
    """What `_tokenize` gave, its rows as they stand in the data set; None: so they do."""
    if batches is None:
        return codes, lengths, facts
    back = np.argsort(np.concatenate(batches))
    sorted_back = [part[back] for part in codes], [part[back] for part in lengths]
    return *sorted_back, {name: values[back] for name, values in facts.items()}


def _grid_lengths(autoencoder, padding_mask):
    length = autoencoder.real_length(padding_mask)
    if length.ndim > 1 and (length[:, 1:] != length.new_tensor(padding_mask.shape[2:])).any():
        raise ValueError(
            f"samples of lengths {length.tolist()} differ along more than their first axis: a row of codes has one "
            "length"
        )
    return autoencoder.grid_lengths(length)


def _write_shard(target, plan, codes, lengths, facts):
    import datasets

    features, columns = {}, cast(dict[str, Any], {})
    for name, part in zip(column_names(plan), codes, strict=True):
        item_type = datasets.Value(str(part.dtype))
        for length in reversed(part.shape[1:]):
            item_type = datasets.List(item_type, length=length)
        features[name], columns[name] = item_type, list(part)
    for name, part in zip(column_names(plan, "lengths"), lengths or (), strict=bool(lengths)):
        features[name], columns[name] = datasets.Value("int64"), part
    for name, named in LABELS.items():
        if name in facts and plan.get(named) is not None:
            features[name], columns[name] = datasets.ClassLabel(names=plan[named]), facts[name]
    if "caption" in facts and "captions_sha256" in plan:
        features["caption"], columns["caption"] = datasets.Value("string"), facts["caption"]
    match = cast(re.Match, SHARD_NAME.fullmatch(target.name))
    arrays = dict(zip(column_names(plan), codes, strict=True)) | {
        name: np.asarray(column) for name, column in columns.items() if name not in column_names(plan)
    }
    features = datasets.Features(features)
    table = datasets.Dataset.from_dict(columns, features=features).data.table.combine_chunks()
    others_read = {**plan, "tokenizer": portable(plan["tokenizer"])}
    table = table.replace_schema_metadata(with_identity(features.arrow_schema.metadata, others_read))
    try:
        write_shard(target, table, plan, match["split"], int(match["number"]), arrays)
    except WriteError as error:
        raise error.advising("run the same again with resume=True (hf-vq tokenize: --resume)") from error

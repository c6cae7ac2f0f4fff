"""Tokenize a data set once, keep the codes: Parquet shards that know which tokenizer made them."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

SCHEMA_KEY = b"hf_vq"  # in the Parquet schema metadata, beside the features of `datasets`
SHARD_NAME = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.parquet")


def tokenizer_identity(autoencoder, path=None):
    """Tell which tokenizer made some codes.

    Args:
        autoencoder: the model; its state is hashed tensor by tensor, so that saving it again changes nothing.
        path: where it came from, for people; default the path it was loaded from.

    Returns:
        dict with `class`, `path`, `config_sha256` (over the public options) and `weights_sha256`.
    """
    config = {key: value for key, value in dict(autoencoder.config).items() if not key.startswith("_")}
    weights = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "class": type(autoencoder).__name__,
        "path": str(path or autoencoder.config.get("_name_or_path") or ""),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
    }


def storage_dtype(codebook_size):
    """The smallest integer type that holds the codes 0 to codebook_size - 1."""
    if codebook_size <= 2**8:
        return np.dtype("uint8")
    return np.dtype("uint16" if codebook_size <= 2**16 else "int32")


def tokenize_dataset(
    autoencoder,
    images,
    output_dir,
    *,
    batch_size=64,
    shard_size=16384,
    num_workers=0,
    path=None,
    overwrite=False,
    resume=False,
):
    """Write the codes of images as Parquet shards, `data/<split>-00000-of-00003.parquet`.

    A shard is written under a temporary name and renamed when complete, so that an interrupted run continues with
    `resume=True` where it stopped; the shards are the same bytes as without the interruption.

    Args:
        autoencoder: model with `tokenize`, `code_shape` and `codebook_size`.
        images: `ImageDataset`, or a dict of them by split.
        output_dir: folder to write; readable by `datasets.load_dataset` and by `load_codes`.
        batch_size: images per forward pass.
        shard_size: images per file.
        num_workers: processes that decode images.
        path: what to call the tokenizer in the metadata.
        overwrite: replace the codes in an existing folder.
        resume: keep the shards that are already there; they must come from the same tokenizer and images.

    Returns:
        dict of the number of images by split.

    Raises:
        ValueError: the folder is not empty (neither overwrite nor resume), its codes have another origin, or the
            image size does not divide by the downsampling.
    """
    splits = images if isinstance(images, dict) else {"train": images}
    identity = tokenizer_identity(autoencoder, path)
    plans = {split: _plan(autoencoder, dataset, shard_size, identity) for split, dataset in splits.items()}
    folder = _prepare_folder(Path(output_dir), plans, splits, shard_size, overwrite, resume)
    device, was_training = next(autoencoder.parameters()).device, autoencoder.training
    autoencoder.eval()
    try:
        for split, dataset in splits.items():
            shards = list(_shards(folder, split, len(dataset), shard_size))
            with tqdm(total=len(dataset), desc=f"tokenizing {split}", disable=None) as progress:
                for target, rows in shards:
                    if not target.exists():
                        loader = DataLoader(Subset(dataset, rows), batch_size, num_workers=num_workers)
                        _write_shard(target, plans[split], *_tokenize(autoencoder, loader, device))
                    progress.update(len(rows))
    finally:
        autoencoder.train(was_training)
    return {split: len(dataset) for split, dataset in splits.items()}


def _plan(autoencoder, dataset, shard_size, identity):
    """What the metadata of every shard of a split says; codes resume only under an equal plan."""
    labels = dataset.labels
    code_shape, codebook_size = autoencoder.code_shape(dataset.sample_shape), autoencoder.codebook_size
    if autoencoder.hierarchical:  # one entry a level, coarse to fine
        code_shape, codebook_size = [list(shape) for shape in code_shape], list(autoencoder.codebook_sizes)
    return {
        "tokenizer": identity,
        "codebook_size": codebook_size,
        "code_shape": list(code_shape),
        "sample_shape": list(dataset.sample_shape),
        "class_names": dataset.class_names,
        "num_samples": len(dataset),
        "shard_size": shard_size,
        "images_sha256": _fingerprint(dataset),
        "labels_sha256": None if labels is None else hashlib.sha256(labels.numpy()).hexdigest(),
    }


def _fingerprint(dataset):
    """Hash of a few images, first to last: enough to notice another data set, cheap on a large one."""
    picked = np.unique(np.linspace(0, len(dataset) - 1, 16).astype(int))
    digest = hashlib.sha256()
    for index in picked:
        digest.update(dataset[int(index)]["sample"].numpy())
    return digest.hexdigest()


def _shards(folder, split, num_samples, shard_size):
    total = -(-num_samples // shard_size)
    for number in range(total):
        rows = range(number * shard_size, min((number + 1) * shard_size, num_samples))
        yield folder / f"{split}-{number:05d}-of-{total:05d}.parquet", rows


def _prepare_folder(output_dir, plans, splits, shard_size, overwrite, resume):
    """Refuse, empty or accept an existing folder; return the folder of the shards."""
    folder = output_dir / "data"
    if output_dir.is_dir() and any(output_dir.iterdir()) and not (overwrite or resume):
        raise ValueError(f"{output_dir} exists and is not empty (overwrite replaces its codes, resume continues them)")
    if overwrite and not resume and folder.is_dir():
        stale = list(folder.glob("*.parquet"))
        for path in stale:
            _read_metadata(path)  # raises for what is not ours to delete
        for path in stale:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.parquet.partial"):
        path.unlink()
    expected = {
        target: plans[split]
        for split, dataset in splits.items()
        for target, _ in _shards(folder, split, len(dataset), shard_size)
    }
    for present in sorted(folder.glob("*.parquet")):
        if present not in expected:
            raise ValueError(f"cannot resume: {present} is not one of the shards of this run")
        found = _read_metadata(present)
        for key, value in expected[present].items():
            if key == "tokenizer":  # the path is for people: the same weights may have moved
                found[key], value = ({k: v for k, v in d.items() if k != "path"} for d in (found[key], value))
            if found[key] != value:
                raise ValueError(f"cannot resume: {present} was made with {key}={found[key]}, this run has {value}")
    return folder


@torch.no_grad()
def _tokenize(autoencoder, loader, device):
    """Codes (num_samples, *grid), an array for each quantizer, and labels (num_samples,), None without classes."""
    dtypes = [storage_dtype(size) for size in autoencoder.codebook_sizes]
    parts, labels = [[] for _ in dtypes], []
    for batch in loader:
        codes = autoencoder.tokenize(batch["sample"].to(device))
        for part, one, dtype in zip(parts, codes if autoencoder.hierarchical else (codes,), dtypes, strict=True):
            part.append(one.cpu().numpy().astype(dtype))
        labels.extend(batch["class_labels"].tolist() if "class_labels" in batch else ())
    return [np.concatenate(part) for part in parts], np.array(labels, dtype=np.int64) if labels else None


def _write_shard(target, plan, codes, labels):
    import datasets
    import pyarrow.parquet

    features, columns = {}, {}
    for name, part in zip(_column_names(plan), codes, strict=True):
        item_type = datasets.Value(str(part.dtype))
        for length in reversed(part.shape[1:]):
            item_type = datasets.List(item_type, length=length)
        features[name], columns[name] = item_type, list(part)
    if labels is not None:
        features["class_labels"] = datasets.ClassLabel(names=plan["class_names"])
        columns["class_labels"] = labels
    features = datasets.Features(features)
    table = datasets.Dataset.from_dict(columns, features=features).data.table.combine_chunks()
    metadata = {**features.arrow_schema.metadata, SCHEMA_KEY: json.dumps(plan, sort_keys=True).encode()}
    partial = target.with_name(target.name + ".partial")
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), partial, compression="zstd")
    os.replace(partial, target)


def _column_names(plan):
    """Columns of the codes: "codes", or of a hierarchy "codes_0" and so on, coarse to fine."""
    if isinstance(plan["codebook_size"], list):
        return [f"codes_{level}" for level in range(len(plan["codebook_size"]))]
    return ["codes"]


def _read_metadata(path):
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


def load_codes(folder, split="train", tokenizer=None, level=None):
    """Load one split of the codes that `tokenize_dataset` wrote.

    Args:
        folder: its `output_dir`.
        split: "train", "validation", or another that was tokenized.
        tokenizer: autoencoder that the codes must come from; None does not check.
        level: of a hierarchy, which one to load: 0 is the coarsest.

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
    plan = _read_metadata(paths[0])
    if tokenizer is not None:
        check_tokenizer(plan["tokenizer"], tokenizer, folder)
    name, codebook_size, code_shape = _pick_level(plan, level, folder)
    codes, labels = [], []
    for path in paths:
        table = pyarrow.parquet.read_table(path).combine_chunks()
        column = table.column(name).chunk(0)
        for _ in code_shape:
            column = column.flatten()
        codes.append(column.to_numpy(zero_copy_only=False).reshape(-1, *code_shape))
        if plan["class_names"] is not None:
            labels.append(table.column("class_labels").to_numpy())
    return CodesDataset(
        np.concatenate(codes),
        np.concatenate(labels) if labels else None,
        codebook_size=codebook_size,
        class_names=plan["class_names"],
        sample_shape=tuple(plan["sample_shape"]),
        tokenizer=plan["tokenizer"],
    )


def code_levels(folder):
    """How many levels of codes a folder holds: more than one for those of a hierarchy."""
    split = code_splits(folder)[0]
    first = next(
        name for name in _shard_names(folder) if (match := SHARD_NAME.fullmatch(name)) and match["split"] == split
    )
    return len(_column_names(_read_metadata(Path(folder) / "data" / first)))


def _pick_level(plan, level, folder):
    """Column, codebook size and code shape of a level."""
    names = _column_names(plan)
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


def check_tokenizer(identity, autoencoder, folder):
    """Raise a ValueError unless codes with this `tokenizer_identity` come from the given autoencoder."""
    given = tokenizer_identity(autoencoder)
    for key in ("class", "config_sha256", "weights_sha256"):
        if given[key] != identity[key]:
            raise ValueError(
                f"the codes in {folder} were made by another tokenizer ({identity['path'] or identity['class']}): "
                f"{key} is {identity[key]}, that of the given one {given[key]}"
            )


def tokenize_in_memory(autoencoder, images, *, batch_size=64, num_workers=0):
    """Tokenize an `ImageDataset` into a `CodesDataset` without writing anything; not for hierarchies."""
    autoencoder.eval()
    loader = DataLoader(images, batch_size, num_workers=num_workers)
    (codes,), labels = _tokenize(autoencoder, loader, next(autoencoder.parameters()).device)
    return CodesDataset(
        codes,
        labels,
        codebook_size=int(autoencoder.codebook_size),
        class_names=images.class_names,
        sample_shape=images.sample_shape,
        tokenizer=tokenizer_identity(autoencoder),
    )


class CodesDataset(Dataset):
    """Codes for a prior; an item is `{"codes": (*grid) int64, "class_labels": () int64}`, labels where there are.

    Args:
        codes: (num_samples, *grid) integer array, kept in its own type.
        labels: (num_samples,) int64 array, None without classes.
        codebook_size: number of different codes.
        class_names: one name per class, None without classes.
        sample_shape: (channels, height, width) of the images that were tokenized.
        tokenizer: `tokenizer_identity` of the autoencoder.
    """

    def __init__(self, codes, labels, *, codebook_size, class_names, sample_shape, tokenizer):
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
            raise ValueError(
                f"codes {codes.min()} to {codes.max()} are out of range for codebook_size={codebook_size}"
            )
        self.codes, self.labels = codes, None if labels is None else torch.from_numpy(labels)
        self.codebook_size, self.code_shape = codebook_size, tuple(codes.shape[1:])
        self.class_names, self.num_classes = class_names, len(class_names or ())
        self.sample_shape, self.tokenizer = sample_shape, tokenizer

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        item = {"codes": torch.from_numpy(self.codes[index].astype(np.int64))}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

"""`hf-vq tokenize`: a data set in, its codes out."""

import math
from dataclasses import dataclass, field

import hf_vq
from hf_vq.cli.checks import (
    check_disk_space,
    check_output_folder,
    check_weights,
    local_folder,
    pick_device,
    pinned,
    say,
    say_start,
)
from hf_vq.cli.data_options import DataOptions, data_options
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.data.padding import padded_shape
from hf_vq.data.slices import is_slice
from hf_vq.data.tokenizing import storage_dtype, tokenize_dataset
from hf_vq.processes import join_processes
from hf_vq.ranges import Samples, Size, Workers

MANUAL = Manual(
    "tokenize",
    "Tokenize a data set once and keep the codes as Parquet files.",
    """
hf-vq tokenize tokenizer codes --data path/to/data
hf-vq tokenize tokenizer codes --data path/to/data --resume
""",
    ("model", "output"),
)


@dataclass
class TokenizeOptions:
    """What to tokenize with, and where to."""

    model: str = field(metadata={"help": "folder or repo id of the autoencoder"})
    output: str = field(metadata={"help": "folder of the codes"})
    splits: list[str] | None = field(default=None, metadata={"help": "splits to tokenize; default train, validation"})
    batch_size: Samples = field(default=64, metadata={"help": "samples per forward pass"})
    shard_size: Size = field(default=16384, metadata={"help": "samples per file"})
    num_workers: Workers = field(default=0, metadata={"help": "processes that load samples"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the codes in the output folder"})
    resume: bool = field(default=False, metadata={"help": "continue an interrupted run"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, data, _ = parse_options(
        [TokenizeOptions, data_options()],
        argv,
        MANUAL,
    )
    run(options, data)


def run(options: TokenizeOptions, data: DataOptions) -> dict[str, int]:
    """Check everything and write the codes; return the number of samples by split."""
    for split in options.splits or ():
        if is_slice(split):
            raise ValueError(f"splits: {split!r} names rows; give them as train_split or validation_split")
    if options.overwrite and options.resume:
        raise ValueError("overwrite and resume exclude each other")
    check_output_folder(options.output, overwrite=options.overwrite, resume=options.resume)
    device = pick_device(options.device)
    folder = local_folder(options.model)
    check_weights(folder, "autoencoder")
    model = hf_vq.AutoVQModel.from_pretrained(folder).to(device)
    data = data.fit_model(model)
    if options.splits:
        datasets = {split: data.load(split) for split in options.splits}
    else:
        train, validation = data.load_train_and_validation()
        datasets = {"train": train} if validation is None else {"train": train, "validation": validation}
    needed = 0
    for dataset in datasets.values():
        for grid, size in zip(model.code_shapes(padded_shape(model, dataset)), model.codebook_sizes, strict=True):
            needed += len(dataset) * math.prod(grid) * storage_dtype(size).itemsize
    check_disk_space(options.output, needed, "tokenizing")
    join_processes()
    say_start(f"Tokenizing {sum(map(len, datasets.values())):,} {data.modality.plural}")
    counts = tokenize_dataset(
        model,
        datasets,
        options.output,
        batch_size=options.batch_size,
        shard_size=options.shard_size,
        num_workers=options.num_workers,
        path=pinned(options.model, folder),
        overwrite=options.overwrite,
        resume=options.resume,
    )
    words = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    say(f"Wrote the codes of {words} {data.modality.plural}.", result=True)
    return counts

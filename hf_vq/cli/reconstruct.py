"""`hf-vq reconstruct`: samples in, originals beside their reconstructions out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hf_vq
from hf_vq.cli.checks import (
    check_output_file,
    check_output_folder,
    check_weights,
    folder_modality,
    local_folder,
    pick_device,
)
from hf_vq.cli.data_options import SUFFIXES, DataOptions, data_options
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.data.padding import collator_for, padding_of
from hf_vq.figures import figure_text
from hf_vq.metrics.reconstruction import ReconstructionError
from hf_vq.modalities import MODALITIES
from hf_vq.ranges import Size
from hf_vq.training.pictures import first_batch, lengths_of

MANUAL = Manual(
    "reconstruct",
    "Show samples beside what an autoencoder makes of them.",
    """
hf-vq reconstruct tokenizer reconstructions.png --data path/to/data --num 16
hf-vq reconstruct tokenizer reconstructions.png --files one.png two.png
hf-vq reconstruct codec speech.wav --output again.wav
hf-vq reconstruct codec one.wav two.wav path/to/sounds --output folder
""",
    ("model", "output"),
    rest="files",
)


@dataclass
class ReconstructOptions:
    """What to reconstruct, and where to."""

    model: str = field(metadata={"help": "folder or repo id of the autoencoder"})
    output: str = field(
        metadata={
            "help": f"file to write, {SUFFIXES}: originals beside their reconstructions; or a folder: one file each"
        }
    )
    files: list[str] | None = field(
        default=None, metadata={"help": "files of samples, or folders of them, instead of --data"}
    )
    split: str = field(default="validation", metadata={"help": "split of the data"})
    num: Size = field(default=16, metadata={"help": "the first so many samples of the data"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the output file"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, data, _ = parse_options(
        [ReconstructOptions, data_options()],
        argv,
        MANUAL,
        aliases={modality.plural: "files" for modality in MODALITIES.values()},
    )
    run(options, data)


def run(options: ReconstructOptions, data: DataOptions) -> float:
    """Check everything, reconstruct, and write the files; return the mean squared error."""
    if (options.files is None) == (data.data is None):
        raise ValueError("give either data or files")
    device = pick_device(options.device)
    folder = local_folder(options.model)
    check_weights(folder, "autoencoder")
    modality = folder_modality(folder)
    each = not Path(options.output).suffix
    if each:
        check_output_folder(options.output, overwrite=options.overwrite)
    else:
        for suffix in dict.fromkeys([modality.suffix, modality.map_suffix or modality.suffix]):
            path = options.output if suffix == modality.suffix else Path(options.output).with_suffix(suffix)
            check_output_file(path, suffix=suffix, overwrite=options.overwrite)
    model = hf_vq.AutoVQModel.from_pretrained(folder).to(device)
    data = data.fit_model(model)
    dataset = data.load_files(options.files) if options.files else data.load(options.split, cache_bytes=0)
    collate, count = collator_for(model, dataset), min(options.num, len(dataset))
    if each:
        count = len(dataset) if options.files else count
        names = names_of(dataset, count, modality.suffix)
        parts = ((name, collate([dataset[index]])) for index, name in enumerate(names))
    else:
        parts = (one for one in [(Path(options.output).name, first_batch(dataset, collate, count))])
    place = Path(options.output) if each else Path(options.output).parent
    place.mkdir(parents=True, exist_ok=True)
    metric = ReconstructionError()
    for name, batch in parts:
        samples, reconstructions, padding = reconstruct(model, batch)
        more = modality.file_options(model.processor) | lengths_of(padding)
        modality.save_reconstructions(place / name, samples, reconstructions, **more)
        metric.update(samples, reconstructions, **padding)
    error = metric.compute().mse
    told = figure_text("mse", error, ".5f")
    print(f"Wrote {count} reconstructions to {options.output}; mean squared error {told} (on [-1, 1]).")
    return error


def names_of(dataset: Any, count: int, suffix: str) -> list[str]:
    """Names of files for the first samples of a data set: those of their own files, else their numbers.

    Raises:
        ValueError: two have the same name.
    """
    source: Any = getattr(dataset, "source", None)
    if not getattr(source, "files", False):
        return [f"{row}{suffix}" for row in range(count)]
    found: dict[str, str] = {}
    for path in source.names[:count]:
        name = f"{Path(path).stem}{suffix}"
        if name in found:
            raise ValueError(f"{found[name]} and {path} would both become {name}: reconstruct them one by one")
        found[name] = path
    return list(found)


def reconstruct(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Samples of a batch and what their codes decode to, of one shape, and the mask of their padding, if any."""
    samples, padding = batch["sample"], padding_of(batch)
    masks = {name: mask.to(model.device) for name, mask in padding.items()}
    found = model.tokenize(samples.to(model.device), **masks, return_dict=True)
    reconstructions = model.detokenize(found.codes, found.scales, found.length).cpu()
    sides = zip(samples.shape[2:], reconstructions.shape[2:], strict=True)
    inside = [slice(min(pair)) for pair in sides]  # cells reach beyond samples, and padding beyond the longest of them
    cut = {name: mask[:, *inside] for name, mask in padding.items()}
    return samples[:, :, *inside], reconstructions[:, :, *inside], cut

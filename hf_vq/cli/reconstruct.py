"""`hf-vq reconstruct`: samples in, originals beside their reconstructions out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import hf_vq
from hf_vq.cli.checks import check_output_file, check_weights, folder_modality, local_folder, pick_device
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
""",
    ("model", "output"),
)


@dataclass
class ReconstructOptions:
    """What to reconstruct, and where to."""

    model: str = field(metadata={"help": "folder or repo id of the autoencoder"})
    output: str = field(metadata={"help": f"file to write, {SUFFIXES}: originals beside their reconstructions"})
    files: list[str] | None = field(default=None, metadata={"help": "files of samples, instead of --data"})
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
    """Check everything, reconstruct, and write the file; return the mean squared error."""
    if (options.files is None) == (data.data is None):
        raise ValueError("give either data or files")
    device = pick_device(options.device)
    folder = local_folder(options.model)
    check_weights(folder, "autoencoder")
    modality = folder_modality(folder)
    check_output_file(options.output, suffix=modality.suffix, overwrite=options.overwrite)
    model = hf_vq.AutoVQModel.from_pretrained(folder).to(device)
    data = data.fit_model(model)
    dataset = data.load_files(options.files) if options.files else data.load(options.split, cache_bytes=0)
    batch = first_batch(dataset, collator_for(model, dataset), options.num)
    samples, reconstructions, padding = reconstruct(model, batch)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    more = modality.file_options(model.processor) | lengths_of(padding)
    modality.save_reconstructions(options.output, samples, reconstructions, **more)
    metric = ReconstructionError()
    metric.update(samples, reconstructions, **padding)
    error = metric.compute().mse
    told = figure_text("mse", error, ".5f")
    print(f"Wrote {len(samples)} reconstructions to {options.output}; mean squared error {told} (on [-1, 1]).")
    return error


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

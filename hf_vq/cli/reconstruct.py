"""`hf-vq reconstruct`: images in, a picture of originals and reconstructions out."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

import hf_vq
from hf_vq.cli.checks import check_output_file, check_weights, local_folder, pick_device
from hf_vq.cli.data_options import DataOptions
from hf_vq.cli.options import parse_options
from hf_vq.data.images import load_images
from hf_vq.training.pictures import save_reconstruction_grid


@dataclass
class ReconstructOptions:
    """What to reconstruct, and where to."""

    model: str = field(metadata={"help": "folder or repo id of the autoencoder"})
    output: str = field(metadata={"help": "PNG file: originals above their reconstructions"})
    images: list[str] | None = field(default=None, metadata={"help": "image files, instead of --data"})
    split: str = field(default="validation", metadata={"help": "split of the data"})
    num: int = field(default=16, metadata={"help": "the first so many images of the data"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the output file"})


def main(argv):
    """Run the verb."""
    options, data, _ = parse_options(
        [ReconstructOptions, DataOptions],
        argv,
        verb="reconstruct",
        description="Show images beside what an autoencoder makes of them.",
        positional="model",
    )
    run(options, data)


def run(options, data):
    """Check everything, reconstruct, and write the picture; return the mean squared error."""
    check_output_file(options.output, suffix=".png", overwrite=options.overwrite)
    if options.num < 1:
        raise ValueError(f"num={options.num} must be positive")
    if (options.images is None) == (data.data is None):
        raise ValueError("give either data or images")
    device = pick_device(options.device)
    folder = local_folder(options.model)
    check_weights(folder, "autoencoder")
    model = hf_vq.AutoVQModel.from_pretrained(folder).to(device)
    channels = model.config.in_channels
    if options.images is not None:
        images = load_images(options.images, image_size=data.image_size, channels=channels)
    else:
        images = data.load(options.split, channels, cache_bytes=0)
    model.code_shape(images.sample_shape)
    samples = torch.stack([images[index]["sample"] for index in range(min(options.num, len(images)))])
    model.eval()
    with torch.no_grad():
        reconstructions = model.detokenize(model.tokenize(samples.to(device))).cpu()
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    save_reconstruction_grid(options.output, samples, reconstructions)
    error = torch.nn.functional.mse_loss(reconstructions, samples).item()
    print(f"Wrote {len(samples)} reconstructions to {options.output}; mean squared error {error:.5f} (on [-1, 1]).")
    return error

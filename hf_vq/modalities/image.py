"""Images: the modality of two axes of space."""

from dataclasses import dataclass, field
from typing import Any

import PIL
from diffusers import ImagePipelineOutput

from hf_vq.data.image_dataset import ImageDataset
from hf_vq.data.images import load_images
from hf_vq.data.resizing import RESIZE_RULES, as_sides
from hf_vq.metrics.similarity import MultiScaleSimilarity, StructuralSimilarity
from hf_vq.modalities.base import Modality
from hf_vq.modalities.image_pictures import save_code_maps, save_reconstruction_grid, save_sample_rows
from hf_vq.modalities.image_processor import OUTPUT_TYPES, ImageProcessor
from hf_vq.modalities.options import SharedOptions, SharedTraining


@dataclass
class ImageSize:
    """How large images are."""

    image_size: str | None = field(
        default=None,
        metadata={
            "help": "of images: what they are resized to, in pixels: 64 for squares, or height x width: 64x96",
            "aliases": ["--resolution"],
        },
    )


@dataclass
class ImageOptions(ImageSize, SharedOptions):
    """How images are read; see `hf_vq.data.images.load_images`."""

    resize: str | None = field(
        default=None,
        metadata={
            "help": "how images come to their size: crop (the middle), pad (with the background), stretch or none; "
            "default: as the model's, else crop",
            "choices": RESIZE_RULES,
        },
    )
    image_column: str | None = field(default=None, metadata={"help": "column of the images"})
    value_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "LOW HIGH, the pixel values that are black and white; default: those of the model, else 0 255 of "
            "8 bits, 0 65535 of unsigned 16 bits, 0 1 of floats"
        },
    )
    background: str | None = field(
        default=None,
        metadata={
            "help": "colour under transparent pixels and around padded images; default: the model's, else white"
        },
    )


@dataclass
class ImageTraining(SharedTraining):
    """How training reads images; see `hf_vq.data.images.load_images`."""

    streaming: bool = field(
        default=False,
        metadata={"help": "read Parquet, tars or the Hub on the way, which need not fit the disk; needs max_steps"},
    )
    random_flip: bool = field(
        default=False, metadata={"help": "of images: mirror half of them; validation stays as it is"}
    )


def fit_options(options: dict[str, Any], channels: int | None, processor: ImageProcessor | None) -> dict[str, Any]:
    """Options of `load_images` for a model: its channels; size, rule, range and background where none are given."""
    if channels is not None and options["channels"] not in (None, channels):
        raise ValueError(f"channels={options['channels']}, but the model takes {channels}")
    options = {**options, "channels": channels or options["channels"]}
    if processor is not None:
        for name, value in processor.loader_options().items():
            options[name] = value if options[name] is None else options[name]
    for name, default in (("value_range", None), ("background", "white")):
        if options[name] is None:
            options[name] = default if processor is None else getattr(processor, name)
    return options


def space_of(options: ImageSize) -> tuple[int, int] | None:
    """(height, width) in pixels that options ask for, or None."""
    return as_sides(options.image_size)


def describe_data(images: ImageDataset) -> tuple[dict[str, Any], list[str]]:
    """What a report must say of the pixels of an `ImageDataset`, and a warning for each way in which they changed."""
    changes, names, white = images.pixel_changes(), images.source.names, images.num_values - 1
    facts = {
        "num_images": len(images),
        **({"commit": images.source.commit} if images.source.commit else {}),
        "images": f"{names[0]} to {names[-1]}",
        "pixels": f"values 0 to {white}, x 2 / {white} - 1",
        "resize": images.resize,
        **({} if images.resize == "none" else {"resizer": f"Pillow {PIL.__version__}, Lanczos"}),
        **({"value_range": list(images.rules.value_range)} if images.rules.value_range else {}),
        "changed_pixels": changes or "none: lossless, of their original size",
    }
    return facts, [f"bits per dimension are not those of the original pixels: {change}" for change in changes]


IMAGE = Modality(
    name="image",
    plural="images",
    unit="pixel",
    tasks={
        "autoencoder": "image-feature-extraction",
        "pipeline": "unconditional-image-generation",
        "pipeline of texts": "text-to-image",
    },
    example_space=(64, 64),
    show_sample='image = {call}.images[0]\nimage.save("sample.png")',
    embed="![{title}]({file})",
    suffix=".png",
    size_options=ImageSize,
    loader_options=ImageOptions,
    training_options=ImageTraining,
    loader=load_images,
    fit_options=fit_options,
    space_of=space_of,
    describe_data=describe_data,
    processor=ImageProcessor,
    save_reconstructions=save_reconstruction_grid,
    save_code_maps=save_code_maps,
    save_samples=save_sample_rows,
    output_class=ImagePipelineOutput,
    output_types=OUTPUT_TYPES,
    similarities=(StructuralSimilarity, MultiScaleSimilarity),
    largest_value=8.0,
)

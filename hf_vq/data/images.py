"""Images for training: one function that loads them from anywhere."""

from functools import partial
from pathlib import Path
from typing import Any

from hf_vq.arguments import checked
from hf_vq.data.decoding import PICTURES
from hf_vq.data.finding import find_source
from hf_vq.data.image_dataset import ImageDataset
from hf_vq.data.image_stream import ImageStream
from hf_vq.data.pixels import PixelRules
from hf_vq.data.resizing import as_sides, pick_rule
from hf_vq.data.sample_dataset import CACHE_BYTES
from hf_vq.data.slices import is_slice
from hf_vq.data.sources import DIGITS_HELD_OUT, Columns, MissingSplitError, digits_source
from hf_vq.data.tables import read_splits
from hf_vq.ranges import Chance, Count, Number, Side, Width


@checked
def load_images(
    source: str | Path | list | tuple,
    *,
    split: str = "train",
    image_size: Side | tuple[Side, Side] | list[Side] | str | None = None,
    resize: str | None = None,
    channels: Width | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    config_name: str | None = None,
    validation_fraction: Chance = 0.1,
    skip_bad: bool = False,
    cache_bytes: Count = CACHE_BYTES,
    value_range: tuple[Number, Number] | list[Number] | None = None,
    background: str = "white",
    random_crop: bool = False,
    random_flip: bool = False,
    streaming: bool = False,
) -> ImageDataset | ImageStream:
    """Load one split of an image data set.

    Where the source has no validation split, the same random `validation_fraction` of its training images is held
    out on every call. An image folder is checked file by file, and whatever fits the cache is decoded here, so that
    a bad file is reported before any work.

    Args:
        source: "digits" (scikit-learn's 8x8 digits); a folder of images, see `folder_source`; a Parquet or WebDataset
            tar file, a folder or glob of them; a folder of `save_to_disk` of `datasets`; an id of a data set of the
            Hub; or a list of image files.
        split: "train", "validation", or another that the source has; or rows of one of the source's own splits as
            `datasets` names them, such as "train[45000:50000]" or "train[:90%]": nothing is held out of it first.
        image_size: side of squares in pixels, or (height, width), also "64x96", that images are resized to; None keeps
            sizes as they are, which must then be equal.
        resize: how images come to that size, by Lanczos: "crop", the default, takes the largest part of its shape, in
            the middle; "pad" lays the whole image on the background; "stretch" changes its shape; "none": all of them
            must have it.
        channels: 1 (grey) or 3 (RGB); None takes 3 if any image has colour, else 1.
        image_column: column of the images; None takes the one of type Image.
        label_column: column of the classes (class labels, integers, truth values or strings); None takes the one of
            type ClassLabel, else one called "label" or the like, if any; "none": no classes, neither of sub-folders. A
            split whose labels are all -1 or missing has none.
        caption_column: column of the captions, strings; None takes one called "caption", "text" or the like, and of
            folders .txt files beside the images; "none": no captions.
        config_name: configuration of a data set of the Hub.
        validation_fraction: in [0, 1), see above.
        skip_bad: leave out images that cannot be decoded (all of them are decoded here to find out) and list them
            in `skipped`.
        cache_bytes: keep the decoded images in memory if they take no more bytes than this.
        value_range: (low, high), the pixel values that are black and white. None: 0 to 255 of 8 bits, 0 to 65,535 of
            unsigned 16 bits, 0 to 1 of floats; signed and wider integers, and 16 bits that hold fewer, need it.
        background: colour under transparent pixels and around padded images, a name or "#rrggbb"; a warning counts
            images with alpha.
        random_crop, random_flip: what `train_autoencoder` sees is cropped anywhere in the image, not in the middle;
            half of it is mirrored. Items are as they are.
        streaming: read Parquet files, tar files or a data set of the Hub as they are gone through, without labels and
            captions; nothing is held out. They need not fit the disk.

    Returns:
        `ImageDataset`; with `streaming` an `ImageStream`.

    Raises:
        ValueError: unknown source, split or column, bad image (names the file), sizes that differ (names two), pixel
            values out of range or of no known range.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 1 (grey) or 3 (RGB)")
    rules, size = PixelRules(value_range, background), as_sides(image_size)  # type: ignore[arg-type]  # checks both
    columns, rule = Columns(PICTURES, image_column, label_column, caption_column), pick_rule(resize, size)
    how: dict[str, Any] = {"image_size": size, "resize": rule, "channels": channels, "rules": rules}
    draws: dict[str, Any] = {"random_crop": random_crop, "random_flip": random_flip}
    if random_crop and rule != "crop":
        raise ValueError(f"random_crop=True needs image_size, and resize crop, got {rule}")
    if streaming:
        rows, name = _find_stream(source, split, columns, config_name)
        return ImageStream(rows, name, image_column, skip_bad=skip_bad, **how, **draws)
    images = find_source(source, split, validation_fraction, columns, config_name, {"digits": partial(_digits, rule)})
    return ImageDataset(images, skip_bad=skip_bad, cache_bytes=cache_bytes, **how, **draws)


def _digits(rule, split, whole):
    """The digits of a split, resized or not; of the whole data set where nothing is to be held out first."""
    return digits_source(split, rule != "none", fraction=0 if whole else DIGITS_HELD_OUT)


def _find_stream(source, split, columns, config_name):
    """The rows of a split as a stream, and what messages call them."""
    for name in ("label", "caption"):
        if getattr(columns, name) not in (None, "none"):
            raise ValueError(f"{name}_column={getattr(columns, name)!r}: a stream (streaming=True) gives images alone")
    if is_slice(split):
        raise ValueError(f"split={split!r}: rows of a stream (streaming=True) have no numbers, give a whole split")
    here = isinstance(source, list | tuple) or str(source) == "digits"
    splits = None if here else read_splits(str(source), PICTURES, config_name, streaming=True)
    if splits is None:
        raise ValueError(
            f"streaming=True: {source} is on this disk, whose images are read when they are needed anyway"
        )
    if split not in splits:
        raise MissingSplitError(
            f"split={split!r}: {source} has splits {', '.join(splits)}, and nothing is held out of a stream: name one "
            "of them, or hold nothing out (validation_fraction 0)"
        )
    return splits[split], f"{source} {split}"

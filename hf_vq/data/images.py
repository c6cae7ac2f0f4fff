"""Images for training: one function that loads them from anywhere, one map-style data set."""

import glob
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from hf_vq.arguments import checked
from hf_vq.data.decoding import check_complete, decode, is_deep, is_lossless, read_header
from hf_vq.data.pixels import PixelRules
from hf_vq.data.slices import is_slice, slice_rows, split_name
from hf_vq.data.sources import (
    DIGITS_HELD_OUT,
    HUB_ID,
    ImageSource,
    digits_source,
    files_source,
    folder_source,
    hub_source,
    parquet_files,
    parquet_source,
)
from hf_vq.quiet import is_quiet
from hf_vq.ranges import Chance, Count, Number, Side, Width
from hf_vq.renaming import warn_user

CACHE_BYTES = 512 * 2**20


@checked
def load_images(
    source: str | Path | list | tuple,
    *,
    split: str = "train",
    image_size: Side | None = None,
    channels: Width | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    config_name: str | None = None,
    validation_fraction: Chance = 0.1,
    skip_bad: bool = False,
    cache_bytes: Count = CACHE_BYTES,
    value_range: tuple[Number, Number] | list[Number] | None = None,
    background: str = "white",
) -> "ImageDataset":
    """Load one split of an image data set.

    Where the source has no validation split, the same random `validation_fraction` of its training images is held
    out on every call. An image folder is checked file by file, and whatever fits the cache is decoded here, so that
    a bad file is reported before any work.

    Args:
        source: "digits" (scikit-learn's 8x8 digits), an image folder (sub-folders are classes, or train/ and
            validation/ with classes below), a Parquet file, folder or glob, a data set id of the Hub, or a list of
            image files.
        split: "train", "validation", or another that the source has; or rows of one of the source's own splits as
            `datasets` names them, such as "train[45000:50000]" or "train[:90%]": nothing is held out of it first.
        image_size: centre-crop and resize to squares of this side, in pixels; None keeps sizes as they are, which
            must then be equal.
        channels: 1 (grey) or 3 (RGB); None takes 3 if any image has colour, else 1.
        image_column: column of the images; None takes the one of type Image.
        label_column: column of the classes (class labels, integers or strings); None takes the one of type
            ClassLabel, if any.
        config_name: configuration of a data set of the Hub.
        validation_fraction: in [0, 1), see above.
        skip_bad: leave out images that cannot be decoded (all of them are decoded here to find out) and list them
            in `skipped`.
        cache_bytes: keep the decoded images in memory if they take no more bytes than this.
        value_range: (low, high), the pixel values that are black and white. None: 0 to 255 of 8 bits, 0 to 65,535 of
            unsigned 16 bits, 0 to 1 of floats; signed and wider integers, and 16 bits that hold fewer, need it.
        background: colour under transparent pixels, a name or "#rrggbb"; a warning counts images with alpha.

    Returns:
        `ImageDataset`.

    Raises:
        ValueError: unknown source, split or column, bad image (names the file), sizes that differ (names two), pixel
            values out of range or of no known range.
    """
    rules = PixelRules(value_range, background)  # type: ignore[arg-type]  # checks both
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size={image_size} must be positive")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels={channels} must be 1 (grey) or 3 (RGB)")
    columns = (image_column, label_column)
    asked, split, sliced = split, split_name(split), is_slice(split)
    if sliced:
        validation_fraction = 0
    name = str(source)
    if isinstance(source, list | tuple):
        images = files_source(source)
    elif source == "digits":
        images = digits_source(split, resized=image_size is not None, fraction=0 if sliced else DIGITS_HELD_OUT)
    elif files := parquet_files(name):
        images = parquet_source(name, files, split, validation_fraction, *columns)
    elif os.path.isdir(source):
        images = folder_source(Path(source), split, validation_fraction)
    elif os.path.exists(source):
        raise ValueError(f"data={name!r} is neither a Parquet file nor a folder")
    elif glob.has_magic(name) or not HUB_ID.fullmatch(name):
        raise ValueError(f"data={name!r}: no such file or folder, and not a data set id of the Hub")
    else:
        images = hub_source(name, config_name, split, validation_fraction, *columns)
    if sliced:
        images = images.select(slice_rows(asked, len(images.names)))
    return ImageDataset(
        images, image_size=image_size, channels=channels, skip_bad=skip_bad, cache_bytes=cache_bytes, rules=rules
    )


class MismatchError(ValueError):
    """A sound image that does not fit the others: no bad image to skip, but options to change."""


class ImageDataset(Dataset):
    """Images as samples in [-1, 1]; an item is `{"sample": (channels, height, width), "class_labels": ()}`.

    `class_labels` is there only where the images have classes. Images are decoded when asked for, or once if all of
    them fit `cache_bytes`. See `load_images` for the arguments.

    Attributes:
        sample_shape: (channels, height, width).
        rules: what pixel values mean, and what transparent pixels lie on.
        num_values: how many values a pixel can have: 256, or what the source has.
        num_classes: 0 without classes.
        class_names: list of str, None without classes.
        labels: (len,) int64 tensor, None without classes.
        skipped: one line per bad image that was left out, with the reason.
    """

    skipped: list[str]

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: Side | None = None,
        channels: Width | None = None,
        skip_bad: bool = False,
        cache_bytes: Count = CACHE_BYTES,
        rules: PixelRules | None = None,
    ):
        if len(source.names) == 0:
            raise ValueError("the data set has no images")
        self.image_size, self.skip_bad, self.skipped = image_size, skip_bad, []
        rules = rules or PixelRules()
        self.rules = PixelRules(
            rules.value_range, rules.background, source.white if rules.value_range is None else 255
        )
        self.source, headers = self._read_headers(source)
        self._with_alpha = {name for name, header in zip(self.source.names, headers, strict=False) if header.alpha}
        self._tells_alpha = False
        self._grey_was_guessed = channels is None and not any(header.colour for header in headers)
        channels = channels or (1 if self._grey_was_guessed else 3)
        sides = (image_size, image_size) if image_size else (headers[0].height, headers[0].width)
        self.sample_shape = (channels, *sides)
        self.num_values = self.rules.white + 1
        for name, header in zip(self.source.names, headers, strict=False):
            self._check_header(name, header)
        self.cache = None
        if len(self.source.names) * math.prod(self.sample_shape) <= cache_bytes:
            self.source, decoded = self._each(self.source, self._decode, "decoding images")
            self.cache = torch.stack(decoded)
        elif source.files or skip_bad:
            self.source, _ = self._each(self.source, self._check, "checking images")
        if self.cache is not None or source.files:
            self._warn_of_alpha(f"{len(self._with_alpha):,} of {len(self):,} images have")
        self._tells_alpha = self.cache is None and not source.files  # rows that are not read yet
        labels = self.source.labels
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.class_names = self.source.class_names
        self.num_classes = len(self.class_names or ())

    def __len__(self):
        return len(self.source.names)

    def __getitem__(self, index):
        pixels = self._decode(index) if self.cache is None else self.cache[index]
        item = {"sample": pixels.to(torch.float32) * (2 / self.rules.white) - 1}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        return item

    def without(self, other: "ImageDataset") -> np.ndarray:
        """Rows of this data set, int64, whose image is not in another data set of the same source."""
        taken = set(other.source.names)
        return np.array([row for row, name in enumerate(self.source.names) if name not in taken], dtype=np.int64)

    def pixel_changes(self) -> list[str]:
        """What keeps these pixels from being those of the original images: one line a cause, none where they are.

        It opens all images. Bits per dimension compare only between equal pixels.
        """
        counts = dict.fromkeys(
            (
                "cropped or resized",
                "made grey",
                "laid on a background",
                "cut to 8 bits",
                "of a format that loses detail",
            ),
            0,
        )
        for index in range(len(self)):
            with self.source.open(index) as image:
                header = read_header(image)
                counts["cropped or resized"] += (header.height, header.width) != self.sample_shape[1:]
                counts["made grey"] += header.colour and self.sample_shape[0] == 1
                counts["laid on a background"] += header.alpha
                counts["cut to 8 bits"] += is_deep(image)
                counts["of a format that loses detail"] += not is_lossless(image)
        return [f"{count:,} of {len(self):,} images were {cause}" for cause, count in counts.items() if count]

    def _decode(self, index):
        """(channels, height, width) uint8; an error names the image."""
        try:
            with self.source.open(index) as image:
                header = read_header(image)
                self._check_header(self.source.names[index], header)
                if header.alpha:
                    self._with_alpha.add(self.source.names[index])
                    if self._tells_alpha:
                        self._tells_alpha = False
                        self._warn_of_alpha(f"{self.source.names[index]} and maybe others have")
                pixels = decode(image, self.sample_shape[0], self.image_size, self.rules)
                return torch.from_numpy(np.ascontiguousarray(pixels))
        except MismatchError:
            raise
        except Exception as error:  # image plugins raise all kinds on damaged bytes
            raise _bad_image(self.source.names[index], error) from error

    def _warn_of_alpha(self, which):
        if self._with_alpha:
            warn_user(f"{which} an alpha channel: transparent pixels lie on {self.rules.background} (background)")

    def _check_header(self, name, header):
        """Raise a MismatchError for a sound image that does not fit the first one."""
        height, width = self.sample_shape[1:]
        if self._grey_was_guessed and header.colour:
            raise MismatchError(f"{name} has colour where {self.source.names[0]} has none: give channels (1 or 3)")
        if self.image_size is None and (header.height, header.width) != (height, width):
            raise MismatchError(
                f"images differ in size, give image_size: {self.source.names[0]} is {height}x{width}, "
                f"{name} is {header.height}x{header.width}"
            )

    def _check(self, index):
        """Look for a truncated file; by decoding where `skip_bad` or a range leave more to go wrong later."""
        with self.source.open(index) as image:
            ranged = is_deep(image) or self.rules.value_range is not None
            if not self.skip_bad and not ranged:
                check_complete(image)
                return
        self._decode(index)

    def _each(self, source, read, title):
        """Call `read(index)` for all images; return the source without those that fail, and the results."""
        kept, results = [], []
        for index in tqdm(range(len(source.names)), title, leave=False, disable=is_quiet() or None):
            try:
                results.append(read(index))
                kept.append(index)
            except MismatchError:
                raise
            except Exception as error:
                problem = _bad_image(source.names[index], error)
                if not self.skip_bad:
                    raise ValueError(f"{problem} (skip_bad leaves bad images out)") from error
                self.skipped.append(str(problem))
        if not kept:
            raise ValueError(f"no image can be read: {self.skipped[0]}")
        return (source if len(kept) == len(source.names) else source.select(kept)), results

    def _read_headers(self, source):
        """Headers of all image files; of Parquet rows, which have to be read whole, that of the first good one."""

        def read(index):
            with source.open(index) as image:
                return read_header(image)

        if source.files:
            return self._each(source, read, "reading headers")
        for index in range(len(source.names) if self.skip_bad else 1):
            try:
                return source, [read(index)]
            except Exception as error:
                problem = _bad_image(source.names[index], error)
        raise problem


def _bad_image(name, error):
    """The error for one image, once: an error that names the image already is returned as it is."""
    text = str(error)
    if text.startswith(f"bad image {name}: "):
        return error
    return ValueError(f"bad image {name}: {'not an image' if 'cannot identify image file' in text else text}")

"""A map-style data set of images, which are checked before any work."""

import math
from functools import partial
from typing import Any

import numpy as np
import torch

from hf_vq.data.decoding import PICTURES, check_complete, is_deep, is_lossless, read_header
from hf_vq.data.image_reader import ImageReader, draw
from hf_vq.data.pixels import PixelRules
from hf_vq.data.resizing import as_sides, pick_rule
from hf_vq.data.sample_dataset import CACHE_BYTES, SampleDataset
from hf_vq.data.sources import SampleSource
from hf_vq.ranges import Count, Side, Width


class ImageDataset(SampleDataset):
    """Images as samples in [-1, 1].

    An item has `sample` (channels, height, width), `class_labels` () where the images have labels, and `caption`, a
    str, where they have captions. Images are decoded when asked for, or once if all of them fit `cache_bytes`. See
    `load_images` for the arguments, and `SampleDataset` for more attributes.

    Attributes:
        sample_shape: (channels, height, width).
        rules: what pixel values mean, and what transparent pixels lie on.
        num_values: how many values a pixel can have: 256, or what the source has.
        image_size: (height, width) that images are resized to, None where they are not.
        resize: how, see `load_images`.
        random_crop, random_flip: what `draw` does.
    """

    def __init__(
        self,
        source: SampleSource,
        *,
        image_size: Side | tuple[Side, Side] | None = None,
        resize: str | None = None,
        channels: Width | None = None,
        skip_bad: bool = False,
        cache_bytes: Count = CACHE_BYTES,
        rules: PixelRules | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
    ):
        super().__init__(source, PICTURES, skip_bad)
        self.image_size = as_sides(image_size)
        self.resize = pick_rule(resize, self.image_size)
        self.random_crop, self.random_flip = random_crop, random_flip
        rules = rules or PixelRules()
        self.rules = PixelRules(
            rules.value_range, rules.background, source.white if rules.value_range is None else 255
        )
        self.source, headers = self._read_headers(source)
        self.reader = ImageReader(
            self.source.names,
            headers,
            image_size=self.image_size,
            resize=self.resize,
            channels=channels,
            rules=self.rules,
        )
        self.sample_shape = self.reader.sample_shape
        self.num_values = self.rules.white + 1
        self.cache = None
        if len(self.source.names) * math.prod(self.sample_shape) <= cache_bytes:
            self.source, decoded = self.read_each(self.source, self._decode, "decoding images")
            self.cache = torch.stack(decoded)
        elif source.files or skip_bad:
            self.source, _ = self.read_each(self.source, self._check, "checking images")
        if self.cache is not None or source.files:
            self.reader.warn_of_alpha(f"{len(self.reader.with_alpha):,} of {len(self):,} images have")
        self.reader.tells_alpha = self.cache is None and not source.files  # rows that are not read yet
        self.take_facts()

    def __getitem__(self, index):
        return self._item(index, self._decode(index) if self.cache is None else self.cache[index])

    @property
    def draws(self) -> bool:
        """Whether training is to take items from `draw`."""
        return self.random_crop or self.random_flip

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        """An item as training sees it once: cropped and flipped at random, where the data set is to do so."""
        place, flips = draw(generator, self.random_crop, self.random_flip)
        pixels = self._decode(index, place) if self.cache is None or self.random_crop else self.cache[index]
        return self._item(index, pixels.flip(-1) if flips else pixels)

    def _item(self, index, pixels):
        return self.with_facts(index, self.reader.to_sample(pixels))

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

    def _decode(self, index, place=None):
        """(channels, height, width) uint8; an error names the image."""
        return self.reader.read(self.source.names[index], partial(self.source.open, index), place)

    def _check(self, index):
        """Look for a truncated file; by decoding where `skip_bad` or a range leave more to go wrong later."""
        with self.source.open(index) as image:
            ranged = is_deep(image) or self.rules.value_range is not None
            if not self.skip_bad and not ranged:
                check_complete(image)
                return
        self._decode(index)

    def _read_headers(self, source):
        """Headers of all image files; of Parquet rows, which have to be read whole, that of the first good one."""

        def read(index):
            with source.open(index) as image:
                return read_header(image)

        if source.files:
            return self.read_each(source, read, "reading headers")
        for index in range(len(source.names) if self.skip_bad else 1):
            try:
                return source, [read(index)]
            except Exception as error:
                problem = PICTURES.bad(source.names[index], error)
        raise problem

"""Images that are read as they are gone through, from data that need not lie on the disk."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from hf_vq.data.columns import sample_column
from hf_vq.data.decoding import PICTURES, read_header
from hf_vq.data.image_reader import ImageReader, draw
from hf_vq.data.pixels import PixelRules
from hf_vq.data.sample_dataset import MismatchError
from hf_vq.data.tables import open_cell, unreadable
from hf_vq.renaming import warn_user


class ImageStream(IterableDataset):
    """Images as samples in [-1, 1], in the order of the rows; an item is `{"sample": (channels, height, width)}`.

    Its state leads back to its place. See `load_images` for the arguments, and `ImageDataset` for the attributes.

    Args:
        rows: a `datasets.IterableDataset`.
        name: of the source and its split, for messages.
        column: of the images; None: the one of type Image.
    """

    labels = class_names = captions = None
    num_classes, skipped = 0, ()

    def __init__(
        self,
        rows: Any,
        name: str,
        column: str | None = None,
        *,
        image_size: tuple[int, int] | None = None,
        resize: str = "none",
        channels: int | None = None,
        skip_bad: bool = False,
        rules: PixelRules | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
    ):
        import datasets

        self.name, self.column = name, sample_column(rows.features or {}, PICTURES, column, name)
        self.rows = rows.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))
        self.image_size, self.resize, self.skip_bad = image_size, resize, skip_bad
        self.rules = rules or PixelRules()
        self.random_crop, self.random_flip, self.epoch = random_crop, random_flip, 0
        self.num_values = self.rules.white + 1
        self.start = self.given = 0  # rows of this pass that come before the next item, and behind the last one
        row, header = self._first()
        self.reader = ImageReader(
            [row], [header], image_size=image_size, resize=resize, channels=channels, rules=self.rules
        )
        self.reader.tells_alpha = True
        self.sample_shape = self.reader.sample_shape

    @property
    def draws(self) -> bool:
        """Whether training is to read `drawn`."""
        return self.random_crop or self.random_flip

    def set_epoch(self, epoch: int) -> None:
        """Tell which pass comes next."""
        self.epoch = epoch
        self.rows.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place behind the item that was given last."""
        return {"rows": self.rows.state_dict(), "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place."""
        self.rows.load_state_dict(state["rows"])
        self.start = state["given"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._items(lambda row: (None, False))

    def drawn(self, seed: int) -> Iterator[dict[str, Any]]:
        """The items as training sees them in this pass: cropped and flipped by seed, pass and row."""

        def by_row(row):
            return draw(np.random.default_rng((seed, self.epoch, row)), self.random_crop, self.random_flip)

        return self._items(by_row)

    def _items(self, by_row):
        self.given, self.start = self.start, 0
        for row in self._rows():
            name, (place, flips) = f"{self.name} row {self.given}", by_row(self.given)
            self.given += 1
            try:
                pixels = self.reader.read(name, partial(open_cell, row[self.column]), place)
            except MismatchError:
                raise
            except ValueError as error:
                if not self.skip_bad:
                    raise ValueError(f"{error} (skip_bad leaves bad images out)") from error
                warn_user(f"skipped: {error}")
                continue
            yield {"sample": self.reader.to_sample(pixels.flip(-1) if flips else pixels)}

    def _rows(self):
        rows = iter(self.rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise unreadable(f"{self.name} cannot be read behind row {self.given}", error) from error
            yield row

    def _first(self):
        """Name and header of the first sound image."""
        problem: Exception = ValueError(f"{self.name} has no images")
        for number, row in enumerate(self._rows()):
            name = f"{self.name} row {number}"
            try:
                with open_cell(row[self.column]) as image:
                    return name, read_header(image)
            except Exception as error:
                problem = PICTURES.bad(name, error)
                if not self.skip_bad:
                    break
        raise problem

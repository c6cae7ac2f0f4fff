"""Opened images of a data set to pixel values of one shape; what does not fit is told by name."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from hf_vq.data.decoding import PICTURES, Header, decode, read_header
from hf_vq.data.pixels import PixelRules
from hf_vq.data.sample_dataset import MismatchError
from hf_vq.renaming import warn_user


class ImageReader:
    """Reads images as uint8 tensors of one shape.

    Args:
        names: what messages call the images whose headers are known, the first one at least.
        headers: theirs.
        image_size: (height, width) that images are resized to; None: all must be of the first one's size.
        resize: one of `RESIZE_RULES`.
        channels: 1 (grey) or 3 (RGB); None: 3 if any of the headers has colour.
        rules: what pixel values mean, and what transparent pixels lie on.

    Attributes:
        sample_shape: (channels, height, width).
        with_alpha: names of the images with an alpha channel that are known before a warning tells of them.
        tells_alpha: warn of the first one that is read.

    Raises:
        MismatchError: an image that does not fit the first one.
    """

    def __init__(
        self,
        names: Sequence[str],
        headers: Sequence[Header],
        *,
        image_size: tuple[int, int] | None,
        resize: str,
        channels: int | None,
        rules: PixelRules,
    ):
        self.first, self.image_size, self.resize, self.rules = names[0], image_size, resize, rules
        self.with_alpha = {name for name, header in zip(names, headers, strict=False) if header.alpha}
        self.tells_alpha = self.told_alpha = False
        self.grey_was_guessed = channels is None and not any(header.colour for header in headers)
        channels = channels or (1 if self.grey_was_guessed else 3)
        height, width = image_size or (headers[0].height, headers[0].width)
        self.sample_shape = (channels, height, width)
        for name, header in zip(names, headers, strict=False):
            self.check(name, header)

    def check(self, name: str, header: Header) -> None:
        """Raise a MismatchError for a sound image that does not fit the first one."""
        height, width = self.sample_shape[1:]
        if self.grey_was_guessed and header.colour:
            raise MismatchError(f"{name} has colour where {self.first} has none: give channels (1 or 3)")
        if self.resize != "none" or (header.height, header.width) == (height, width):
            return
        if self.image_size is not None:
            raise MismatchError(f"{name} is {header.height}x{header.width}, not {height}x{width}, and resize is none")
        raise MismatchError(
            f"images differ in size, give image_size: {self.first} is {height}x{width}, "
            f"{name} is {header.height}x{header.width}"
        )

    def read(
        self, name: str, open_image: Callable[[], Image.Image], place: tuple[float, float] | None = None
    ) -> torch.Tensor:
        """Pixels (channels, height, width) uint8 of an image.

        Args:
            name: for messages.
            open_image: gives the opened image.
            place: of what is cropped, see `resized`.

        Raises:
            ValueError: it cannot be read, or does not fit.
        """
        try:
            with open_image() as image:
                header = read_header(image)
                self.check(name, header)
                if header.alpha and not self.told_alpha:
                    self.with_alpha.add(name)
                    if self.tells_alpha:
                        self.warn_of_alpha(f"{name} and maybe others have")
                pixels = decode(image, self.sample_shape[0], self.image_size, self.rules, self.resize, place)
                return torch.from_numpy(np.ascontiguousarray(pixels))
        except MismatchError:
            raise
        except Exception as error:  # image plugins raise all kinds on damaged bytes
            raise PICTURES.bad(name, error) from error

    def to_sample(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels as a sample, float32 in [-1, 1]."""
        return pixels.to(torch.float32) * (2 / self.rules.white) - 1

    def warn_of_alpha(self, which: str) -> None:
        """Warn of transparent images, if there are any; `which` begins the sentence."""
        if self.with_alpha:
            self.told_alpha = True
            warn_user(f"{which} an alpha channel: transparent pixels lie on {self.rules.background} (background)")


def draw(generator: np.random.Generator, crops: bool, flips: bool) -> tuple[tuple[float, float] | None, bool]:
    """What training does to an image by chance: the place where it is cropped, None for the middle, and a flip."""
    place = tuple(generator.random(2)) if crops else None
    return place, flips and bool(generator.random() < 0.5)

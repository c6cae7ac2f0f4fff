"""Numbers of any type to 8-bit pixel values: the one rule by which data sets, processors and pipelines read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageColor

NARROW = 2**14  # 16-bit values that all stay below are of 14 bits or fewer, or of a very dark picture: not ours to say


@dataclass(frozen=True)
class PixelRules:
    """How pictures become pixel values.

    Args:
        value_range: (low, high), the numbers that are black and white, of integers and floats of any type. None:
            uint8 is 0 to 255, uint16 0 to 65,535, floats 0 to 1, bool 0 and 1; other integers are refused, and so is
            uint16 whose values all stay below 16,384.
        background: colour that transparent pixels lie on, a name or "#rrggbb".
        white: the pixel value of white; pictures of 8 bits without a `value_range` keep their own values.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    value_range: tuple[float, float] | None = None
    background: str = "white"
    white: int = 255

    def __post_init__(self):
        object.__setattr__(self, "value_range", check_value_range(self.value_range))
        check_background(self.background)

    def to_pixels(self, values: np.ndarray) -> np.ndarray:
        """Pixel values, uint8, of an array of any shape; each is rounded to the nearest.

        Raises:
            ValueError: a type without a known range, NaN, or a value out of range; it names type, values and option.
        """
        dtype, found = values.dtype, _extremes(values)
        if dtype.kind == "b":
            return values.astype(np.uint8) * np.uint8(self.white)
        if dtype.kind not in "uif":
            raise ValueError(f"pixels must be numbers, got {dtype}")
        if not all(map(math.isfinite, found)):
            raise ValueError(f"pixels must be finite, got {dtype} with NaN or infinity: {found[0]} to {found[1]}")
        if self.value_range is not None:
            return self._scaled(values, found, *self.value_range)
        if dtype.kind == "f":
            if found[0] < 0 or found[1] > 1:
                raise ValueError(
                    f"float pixels must be in [0, 1], got {found[0]} to {found[1]} ({dtype}): give their value_range"
                )
            return (values * self.white).round().astype(np.uint8)
        if dtype == np.uint8:
            return values
        if dtype.kind == "i" or dtype.itemsize != 2:
            raise ValueError(f"{dtype} pixels, {found[0]} to {found[1]} here, have no known range: give value_range")
        if 0 < found[1] < NARROW:
            raise ValueError(
                f"uint16 pixels reach {found[1]} only, as those of fewer bits do: give value_range, such as 0 "
                f"{2 ** found[1].bit_length() - 1}, or 0 65535 where the picture is meant to be dark"
            )
        return np.rint(values * (self.white / 65535)).astype(np.uint8)

    def _scaled(self, values, found, low, high):
        """Pixel values by the explicit range."""
        shown = f"value_range={low:g} {high:g}"
        if values.dtype.itemsize == 1 and values.dtype.kind == "u" and (low < 0 or high > 255):
            raise ValueError(f"{shown} is more than a picture of 8 bits can hold: give 0 255 for such pictures")
        for value in found:
            if not low <= value <= high:
                raise ValueError(f"pixel value {value} ({values.dtype}) is outside {shown}")
        scaled = (values.astype(np.float64) - low) * (self.white / (high - low))
        return np.rint(scaled).astype(np.uint8)


def check_value_range(value_range: Any) -> tuple[float, float] | None:
    """(low, high) as a tuple, or None; a ValueError unless they are two finite numbers in order."""
    if value_range is None:
        return None
    pair = isinstance(value_range, Sequence) and not isinstance(value_range, str) and len(value_range) == 2
    numbers = pair and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value_range)
    if not numbers or not all(map(math.isfinite, value_range)) or not value_range[0] < value_range[1]:
        raise ValueError(f"value_range={value_range!r} must be two finite numbers, the lower one first")
    return (value_range[0], value_range[1])


def check_background(background: Any) -> None:
    """Raise a ValueError unless this is an opaque colour."""
    try:
        opaque = len(ImageColor.getrgb(background)) == 3
    except (AttributeError, TypeError, ValueError):
        opaque = False
    if not opaque:
        raise ValueError(f"background={background!r} must be a colour, such as white or '#ffffff'")


def lay_on(image: Image.Image, background: str) -> Image.Image:
    """A picture without transparency: as it is, or laid on a background, RGB."""
    if not image.has_transparency_data:
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def _extremes(values):
    """Lowest and highest value as Python numbers; zeros where there are none."""
    return (values.min().item(), values.max().item()) if values.size else (0, 0)

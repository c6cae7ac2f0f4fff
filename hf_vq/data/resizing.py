"""Pictures of any size to those of one size: cropped, padded or stretched."""

import re
from typing import Any

from PIL import Image, ImageColor

from hf_vq.data.pixels import PixelRules

RESIZE_RULES = ("crop", "pad", "stretch", "none")


def as_sides(image_size: Any) -> tuple[int, int] | None:
    """(height, width) in pixels of an `image_size`: 64 is a square, "64x96" or (64, 96) is height times width.

    Raises:
        ValueError: another form, or a side that is not positive.
    """
    if image_size is None:
        return None
    found = image_size
    if isinstance(image_size, str) and re.fullmatch(r"\d+(x\d+)?", image_size):
        found = [int(side) for side in image_size.split("x")]
    sides = list(found) if isinstance(found, tuple | list) else [found]
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"image_size={image_size!r} must be a side in pixels, or height x width such as 64x96")
    return sides[0], sides[1]


def pick_rule(resize: str | None, size: tuple[int, int] | None) -> str:
    """The rule that is meant: where none is given, "crop" to a size, and "none" without one.

    Raises:
        ValueError: an unknown rule, or one that needs a size.
    """
    if resize is None:
        return "none" if size is None else "crop"
    if resize not in RESIZE_RULES:
        raise ValueError(f"resize={resize!r} must be one of {', '.join(RESIZE_RULES)}")
    if size is None and resize != "none":
        raise ValueError(f"resize={resize!r} needs image_size")
    return resize


def resized(
    image: Image.Image, size: tuple[int, int], resize: str, fill: Any, place: tuple[float, float] | None = None
) -> Image.Image:
    """A picture in a size, by Lanczos.

    Args:
        image: of any mode that Pillow resizes.
        size: (height, width) in pixels.
        resize: "crop": the largest part of the shape of `size`; "pad": the whole picture, in the middle of a
            background; "stretch": the whole picture, in another shape; "none": as it is.
        fill: colour of the background, of the picture's mode.
        place: of the part, down and across, in [0, 1), evenly over all places that there are; None: the middle.
    """
    height, width = size
    if resize == "none" or image.size == (width, height):
        return image
    if resize == "crop":
        scale = min(image.height / height, image.width / width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        free = (image.height - inner[0], image.width - inner[1])
        if place is None:
            top, left = (room // 2 for room in free)
        else:
            top, left = (int((room + 1) * share) for room, share in zip(free, place, strict=True))
        image = image.crop((left, top, left + inner[1], top + inner[0]))
    if resize == "pad":
        scale = min(height / image.height, width / image.width)
        inner = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
        page = Image.new(image.mode, (width, height), fill)
        small = image.resize(inner[::-1], Image.Resampling.LANCZOS)
        page.paste(small, ((width - inner[1]) // 2, (height - inner[0]) // 2))
        return page
    return image.resize((width, height), Image.Resampling.LANCZOS)


def fill_colour(rules: PixelRules, channels: int) -> tuple[int, ...]:
    """Pixel values of a background, one for each channel."""
    colour = ImageColor.getcolor(rules.background, "RGB" if channels == 3 else "L")
    values = colour if isinstance(colour, tuple) else (colour,) * channels
    return tuple(round(value * rules.white / 255) for value in values)

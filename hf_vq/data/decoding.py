"""Image files to uint8 arrays, and the checks that find a bad file before any work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps

from hf_vq.data.kinds import FileKind
from hf_vq.data.pixels import NARROW, PixelRules, lay_on
from hf_vq.data.resizing import as_sides, fill_colour, pick_rule, resized

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")  # whose mode I is unsigned 16-bit
LOSSLESS_FORMATS = (None, "PNG", "BMP", "GIF", "PPM", "TGA", "QOI")  # None: made from an array
LOSSLESS_TIFF = ("raw", "group3", "group4", "tiff_ccitt", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG")  # Pillow knows these formats by name, but does not read them
EXIF_ORIENTATION = 0x0112  # values 5 to 8 swap width and height


@dataclass
class Header:
    """What the first bytes of an image tell: height and width in pixels, and whether it has colour and alpha."""

    height: int
    width: int
    colour: bool
    alpha: bool


def is_picture(path: Path) -> bool:
    """Whether a file is an image by its suffix, or where it has none by its first bytes."""
    if path.suffix:
        Image.init()
        kind = Image.EXTENSION.get(path.suffix.lower())
        return kind in Image.OPEN and kind not in NO_PICTURES
    try:
        with Image.open(path):
            return True
    except Exception:  # image plugins raise all kinds
        return False


PICTURES = FileKind(
    name="image",
    plural="images",
    one="an image",
    feature="Image",
    columns=("image", "img"),
    is_one=is_picture,
    open=Image.open,
    unknown="cannot identify image file",
)


def read_header(image: Image.Image) -> Header:
    """Return the `Header` of an opened, not yet decoded, PIL image."""
    width, height = image.size
    has_exif = image.format != "PNG" or "exif" in image.info  # to look further, getexif() would decode a PNG
    if has_exif and image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
        width, height = height, width
    return Header(height, width, image.mode not in GREY_MODES, image.has_transparency_data)


def is_deep(image: Image.Image) -> bool:
    """Whether an opened PIL image, not yet decoded, holds more than 8 bits a channel."""
    return image.mode[0] in "IF" or _loses_lower_bits(image)


def is_lossless(image: Image.Image) -> bool:
    """Whether an opened PIL image, not yet decoded, is of a format that keeps every pixel; False where in doubt.

    WebP has both kinds: "VP8L" in its RIFF chunks is lossless, "VP8 " is not.
    """
    if image.format == "WEBP":
        file = cast(Any, image).fp  # of the file that it was opened from
        file.seek(0)
        content = file.read()
        kind, position = content[12:16], 12
        while kind not in (b"VP8L", b"VP8 ", b"ANMF", b""):  # chunks: name, length, content, even padding
            length = int.from_bytes(content[position + 4 : position + 8], "little")
            position += 8 + length + length % 2
            kind = content[position : position + 4]
        return kind == b"VP8L"
    if image.format == "TIFF":
        return image.info.get("compression") in LOSSLESS_TIFF
    return image.format in LOSSLESS_FORMATS


def check_complete(image: Image.Image) -> None:
    """Raise if an opened PIL image is truncated, without decoding it where its format allows that.

    PNG chunks carry checksums and a JPEG ends with a marker; whatever remains in doubt is decoded. It consumes the
    image: open it again to read it.
    """
    if image.format == "PNG":
        image.verify()
        return
    if image.format == "JPEG":
        file = cast(Any, image).fp
        file.seek(-2, 2)
        if file.read(2) == b"\xff\xd9":
            return
        file.seek(0)
    image.load()


def decode(
    image: Image.Image,
    channels: int,
    image_size: int | tuple[int, int] | None = None,
    rules: PixelRules | None = None,
    resize: str | None = None,
    place: tuple[float, float] | None = None,
) -> np.ndarray:
    """Decode one opened PIL image.

    Args:
        image: PIL image of any mode but LAB, of several frames the first; EXIF orientation is applied.
        channels: 1 (grey) or 3 (RGB).
        image_size: what the image is resized to, see `as_sides`; None: it stays as it is.
        rules: what its numbers mean, and what transparent pixels and padded pictures lie on; None: the defaults.
        resize: see `pick_rule`.
        place: of what is cropped, see `resized`.

    Returns:
        (channels, height, width) uint8 array.

    Raises:
        ValueError: pixels out of range, or of no known range.
    """
    rules = rules or PixelRules()
    image = _to_8_bits(image, "L" if channels == 1 else "RGB", rules)
    size = as_sides(image_size)
    if size is not None:
        fill = fill_colour(rules, channels)
        image = resized(image, size, pick_rule(resize, size), fill if channels == 3 else fill[0], place)
    pixels = np.array(image)  # (height, width) or (height, width, channels)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_8_bits(image, mode, rules):
    """An image of 8 bits a channel, without transparency, upright, in mode L or RGB."""
    kind, cut = image.format, _loses_lower_bits(image)
    image = ImageOps.exif_transpose(image)
    if image.mode == "LAB":
        raise ValueError("mode LAB is not read: convert the image to RGB")
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if image.mode == "I" and kind in SIXTEEN_BIT_FORMATS:
            values = values.astype(np.uint16)
        clear = image.info.get("transparency")
        image = Image.fromarray(rules.to_pixels(values))
        if clear is not None:
            painted = Image.fromarray(values != clear)
            image = Image.composite(image.convert("RGB"), Image.new("RGB", image.size, rules.background), painted)
        return image.convert(mode)
    if cut:
        _check_cut(image, rules)
    image = lay_on(image, rules.background)
    image = (image.convert("RGB") if image.mode == "HSV" else image).convert(mode)
    if rules.value_range is not None and not cut:
        image = Image.fromarray(rules.to_pixels(np.asarray(image)))
    return image


def _loses_lower_bits(image):
    """Whether PIL reads 16-bit channels of this opened image as their upper 8 bits: colour, and grey with alpha."""
    if image.mode[0] in "IF":
        return False
    arguments = [tile[3] for tile in getattr(image, "tile", None) or ()]
    names = [one[0] if isinstance(one, tuple) and one else one for one in arguments]
    return any(isinstance(name, str) and ";16" in name for name in names)


def _check_cut(image, rules):
    """Raise a ValueError unless the upper 8 of 16 bits are the picture."""
    if rules.value_range not in (None, (0, 65535)):
        low, high = rules.value_range
        raise ValueError(
            f"value_range={low:g} {high:g}: of 16-bit colour only the upper 8 bits are read, as 0 65535; "
            "convert the image to 8 bits"
        )
    brightest = int(np.asarray(image)[..., :3].max())  # alpha left out
    if rules.value_range is None and 0 < brightest < NARROW // 256:
        raise ValueError(
            f"16-bit pixels reach {brightest * 256 + 255} at most, as those of fewer bits do: convert the image to 8 "
            "bits, or give value_range 0 65535 where it is meant to be dark"
        )

"""Image files to uint8 arrays, and the checks that find a bad file before any work."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
LOSSLESS_FORMATS = (None, "PNG", "BMP", "GIF", "PPM", "TGA", "QOI")  # None: made from an array
LOSSLESS_TIFF = ("raw", "group3", "group4", "tiff_ccitt", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
EXIF_ORIENTATION = 0x0112  # values 5 to 8 swap width and height


@dataclass
class Header:
    """What the first bytes of an image tell: height and width in pixels, and whether it has colour."""

    height: int
    width: int
    colour: bool


def read_header(image: Image.Image) -> Header:
    """Return the `Header` of an opened, not yet decoded, PIL image."""
    width, height = image.size
    has_exif = image.format != "PNG" or "exif" in image.info  # to look further, getexif() would decode a PNG
    if has_exif and image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
        width, height = height, width
    return Header(height, width, image.mode not in GREY_MODES)


def is_lossless(image: Image.Image) -> bool:
    """Whether an opened PIL image, not yet decoded, is of a format that keeps every pixel; False where in doubt.

    WebP has both kinds: "VP8L" in its RIFF chunks is lossless, "VP8 " is not.
    """
    if image.format == "WEBP":
        image.fp.seek(0)
        content = image.fp.read()
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
        image.fp.seek(-2, 2)
        if image.fp.read(2) == b"\xff\xd9":
            return
        image.fp.seek(0)
    image.load()


def decode(image: Image.Image, channels: int, image_size: int | None = None) -> np.ndarray:
    """Decode one opened PIL image.

    Args:
        image: PIL image; EXIF orientation is applied, 16-bit grey is scaled to 8 bits, alpha is dropped.
        channels: 1 (grey) or 3 (RGB).
        image_size: side in pixels of the square that the image is centre-cropped and resized (Lanczos) to.

    Returns:
        (channels, height, width) uint8 array.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the image to 8 bits")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.array(image)  # (height, width) or (height, width, channels)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

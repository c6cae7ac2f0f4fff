"""Cases of pictures: every type of pixel and mode, by every door that takes pictures."""

import warnings

import numpy as np
import torch
from behaviour_models import small_pipeline
from fault_kinds import Case, check, kind
from fault_models import make_autoencoder
from PIL import Image

from hf_vq.data.images import load_images
from hf_vq.modalities.image_processor import ImageProcessor

SIDE = 16
RAMP = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)  # 0 to 255
HALF = RAMP >= 100
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], axis=-1).astype(np.uint8)


def grey(values, white=255):
    """What grey values become, (1, 1, side, side)."""
    return torch.from_numpy(np.asarray(values) * (2 / white) - 1)[None, None].float()


def colour(image, channels):
    """What PIL itself makes of a picture, as a sample."""
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"), dtype=np.float64)
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(pixels * 2 / 255 - 1)[None].float()


def _palette():
    image = Image.fromarray(COLOURS).quantize(64)
    assert image.mode == "P"
    return image


# What a picture is, in words: how it is made, and what it must become; None: nobody knows, it must be refused.
ARRAYS = {
    "uint8": (lambda: RAMP.astype(np.uint8), grey(RAMP)),
    "uint16 to 65535": (lambda: (RAMP * 257).astype(np.uint16), grey(RAMP)),
    "uint16 to 4095": (lambda: (RAMP * 16).astype(np.uint16), None),
    "uint16 to 255": (lambda: RAMP.astype(np.uint16), None),
    "int16 from -1024": (lambda: (RAMP * 16 - 1024).astype(np.int16), None),
    "int8": (lambda: (RAMP - 128).astype(np.int8), None),
    "int32 to 100000": (lambda: (RAMP * 400).astype(np.int32), None),
    "int64 to 511": (lambda: RAMP * 2, None),
    "uint32 to 65535": (lambda: (RAMP * 257).astype(np.uint32), None),
    "float32 in [0, 1]": (lambda: (RAMP / 255).astype(np.float32), grey(RAMP)),
    "float16 in [0, 1]": (lambda: (RAMP / 255).astype(np.float16), grey(RAMP)),
    "float64 in [0, 1]": (lambda: RAMP / 255, grey(RAMP)),
    "float32 to 1.5": (lambda: (RAMP / 170).astype(np.float32), None),
    "float32 to 255": (lambda: RAMP.astype(np.float32), None),
    "float64 from -3": (lambda: RAMP / 64 - 3, None),
    "float32 with NaN": (lambda: np.where(RAMP == 7, np.nan, RAMP / 255).astype(np.float32), None),
}
MODES = {
    "L": (lambda: Image.fromarray(RAMP.astype(np.uint8)), ...),
    "1": (lambda: Image.fromarray(HALF), ...),
    "P": (_palette, ...),
    "RGB": (lambda: Image.fromarray(COLOURS), ...),
    "CMYK": (lambda: Image.fromarray(COLOURS).convert("CMYK"), ...),
    "YCbCr": (lambda: Image.fromarray(COLOURS).convert("YCbCr"), ...),
    "HSV": (lambda: Image.fromarray(COLOURS).convert("HSV"), ...),
    "LA, opaque": (lambda: Image.fromarray(RAMP.astype(np.uint8)).convert("LA"), ...),
    "RGBA, opaque": (lambda: Image.fromarray(COLOURS).convert("RGBA"), ...),
    "PA, opaque": (lambda: Image.fromarray(RAMP.astype(np.uint8)).convert("PA"), ...),
    "I;16 to 65535": (lambda: Image.fromarray((RAMP * 257).astype(np.uint16)), grey(RAMP)),
    "I;16 to 4095": (lambda: Image.fromarray((RAMP * 16).astype(np.uint16)), None),
    "I;16 to 255": (lambda: Image.fromarray(RAMP.astype(np.uint16)), None),
    "I to 100000": (lambda: Image.fromarray((RAMP * 400).astype(np.int32)), None),
    "I from -1024": (lambda: Image.fromarray((RAMP * 16 - 1024).astype(np.int32)), None),
    "F to 1": (lambda: Image.fromarray((RAMP / 255).astype(np.float32)), grey(RAMP)),
    "F to 4000": (lambda: Image.fromarray((RAMP * 16.0).astype(np.float32)), None),
}
HIDDEN = {  # a picture under alpha 0
    "RGBA": lambda: _with_alpha("RGB"),
    "LA": lambda: _with_alpha("L"),
    "P with a transparent colour": lambda: _transparent_palette(),
}


def _with_alpha(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    image.putalpha(Image.fromarray((HALF * 255).astype(np.uint8)))
    return image


def _transparent_palette():
    image = Image.fromarray((RAMP // 4).astype(np.uint8), "P")
    image.putpalette([value for index in range(64) for value in (index * 4, 255 - index, index)])
    image.info["transparency"] = bytes(0 if index < 20 else 255 for index in range(64))
    return image


def by_processor(picture, channels):
    return ImageProcessor(channels=channels)(picture)


def by_model(picture, channels):
    return make_autoencoder("VQVAE", ("ema", 9, {}), in_channels=channels).as_sample(picture)


def by_pipeline(picture, channels):
    """The sample that a pipeline completes; nothing of it is drawn anew."""
    pipe, seen = small_pipeline(), []
    pipe.set_progress_bar_config(disable=True)
    tokenize = pipe.autoencoder.tokenize

    def record(sample, *arguments, **options):
        seen.append(pipe.autoencoder.as_sample(sample))
        return tokenize(sample, *arguments, **options)

    pipe.autoencoder.tokenize = record
    pipe(class_labels=[0], image=picture, mask_image=torch.zeros(1, 1, SIDE, SIDE), output_type="pt")
    return seen[0]


def by_file(picture, channels, **options):
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    tiff = picture.mode in ("CMYK", "YCbCr", "F", "PA") or picture.mode.startswith("I")
    if picture.mode in ("HSV", "PA"):
        picture = picture.convert("RGB")
    picture.save("picture.tiff" if tiff else "picture.png", **_transparency(picture))
    return load_images(["picture.tiff" if tiff else "picture.png"], channels=channels, **options)[0]["sample"][None]


def _transparency(picture):
    return {"transparency": picture.info["transparency"]} if "transparency" in picture.info else {}


DOORS = {"processor": by_processor, "model": by_model, "pipeline": by_pipeline, "file": by_file}


@kind("pictures", "integers, floats and modes of pictures become what they are, or are refused, by every door")
def pictures_by_doors(random):
    for door in DOORS:
        modes = random.sample(list(MODES), 10)
        arrays = random.sample(list(ARRAYS), 9) if door != "file" else []
        for what in modes + arrays:
            channels = 1 if door == "pipeline" or what in arrays else random.choice([1, 3])
            case = (door, what, channels)
            unknown = {**MODES, **ARRAYS}[what][1] is None
            yield Case(
                f"{'array' if what in arrays else 'mode'} {what}, {channels} channels, {door}",
                lambda case=case: _reads(*case),
                "refuses" if unknown else "honest",
            )


def _reads(door, what, channels):
    make, wanted = {**MODES, **ARRAYS}[what]
    picture = make()
    if wanted is None:
        DOORS[door](picture, channels)
        return
    wanted = colour(picture, channels) if wanted is ... else wanted.expand(-1, channels, -1, -1)
    found = DOORS[door](picture, channels)
    check(found.shape == wanted.shape, f"shape {tuple(found.shape)}")
    difference = (found.float() - wanted).abs().max()
    check(difference < 3.1 / 255, f"values differ by up to {difference * 127.5:.0f} of 255 grey levels")


@kind("hidden pictures", "what alpha hides does not become the picture in silence")
def hidden_pictures(random):
    for door in ("processor", "file", "pipeline", "model"):
        what, channels = random.choice(list(HIDDEN)), 1 if door == "pipeline" else random.choice([1, 3])
        yield Case(f"{what}, {channels} channels, {door}", lambda case=(door, what, channels): _hides(*case))


def _hides(door, what, channels):
    picture = HIDDEN[what]()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = DOORS[door](picture, channels)
    hidden = found.movedim(1, -1)[0][~torch.from_numpy(HALF)] if "colour" not in what else found[..., :2, :]
    check(said or hidden.std() < 0.05, "the hidden picture is there, and nothing is said")


@kind("value ranges", "signed, wide and narrow integers with an explicit range")
def value_ranges(random):
    for _ in range(5):
        low, high = random.choice([(-1024, 3071), (0, 4095), (0, 1023), (-2000, 2000), (0, 100000), (100, 60000)])
        kinds = {"int32"} | ({"uint16"} if low >= 0 and high < 65536 else set())
        dtype = random.choice(sorted(kinds))
        yield Case(f"{dtype} from {low} to {high}", lambda case=(dtype, low, high): _in_range(*case), "works")


def _in_range(dtype, low, high):
    values = np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE).round().astype(dtype)
    found = by_file(Image.fromarray(values), 1, value_range=(low, high))
    wanted = torch.from_numpy((values.astype(np.float64) - low) / (high - low) * 2 - 1)[None, None]
    difference = (found - wanted).abs().max()
    check(difference < 3.1 / 255, f"values differ by up to {difference * 127.5:.0f} of 255 grey levels")

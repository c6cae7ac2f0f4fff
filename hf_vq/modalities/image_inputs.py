"""Pictures and masks that a pipeline is called with, in any form that diffusers takes, read as data sets are."""

import reprlib
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hf_vq.data.decoding import decode, is_deep
from hf_vq.data.pixels import PixelRules
from hf_vq.modalities.image_processor import ImageProcessor
from hf_vq.renaming import warn_user


def stock_images() -> VaeImageProcessor:
    """What takes pictures of floats in [0, 1] to samples in [-1, 1], as stock pipelines have it."""
    return VaeImageProcessor(vae_scale_factor=1, vae_latent_channels=0)  # 0: no picture is taken for latents


def stock_masks() -> VaeImageProcessor:
    """What takes masks of floats in [0, 1] to (batch, 1, height, width), 1 where something new is to be drawn."""
    return VaeImageProcessor(
        vae_scale_factor=1, vae_latent_channels=0, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )


def read_pictures(
    images: Any, channels: int, processor: ImageProcessor | None, height: int | None = None, width: int | None = None
) -> torch.Tensor:
    """Samples of pictures to complete.

    White is white in whatever type a picture comes: 255 of 8 bits, 1.0 of floats, True. Wider integers are read by the
    `value_range` of the model's processor, without one as `PixelRules` has it.

    Args:
        images: PIL image; array (height, width), (height, width, channels) or a batch of them; tensor (channels,
            height, width) or a batch; or a list of one of these kinds.
        channels: of the model; a PIL image is converted to 1 (grey) or 3 (RGB).
        processor: of the model, for `value_range` and `background`.
        height, width: to resize to, in pixels; None: as they come.

    Returns:
        (batch, channels, height, width) float32 in [-1, 1].

    Raises:
        ValueError: values out of range or of no known one, or a number of channels that is not the model's.
    """
    if processor is None:
        rules = PixelRules()
    else:
        rules = PixelRules(processor.value_range, processor.background)
    given = _each("image", images, lambda one: _of_known_range(one, "image", channels, rules))
    sample = stock_images().preprocess(given, height=height, width=width)
    if sample.shape[1] != channels:
        raise ValueError(f"image must have {channels} channels, got {tuple(sample.shape)}")
    return sample


def read_masks(masks: Any, height: int, width: int) -> torch.Tensor:
    """Masks (batch, 1, height, width) float32, 1 where something new is to be drawn.

    Args:
        masks: forms as of `read_pictures`, white (at least half) where something new is to be drawn; integers that are
            all 0 or 1 are a mask of such.
        height, width: in pixels.

    Raises:
        ValueError: values out of range.
    """
    given = _each("mask_image", masks, lambda one: _of_known_range(one, "mask_image", 1, PixelRules(), of_two=True))
    return stock_masks().preprocess(given, height=height, width=width)


def _each(name, images, read):
    if isinstance(images, list | tuple) and not images:
        raise ValueError(f"{name} must be one or more, got {images!r}")
    return [read(one) for one in images] if isinstance(images, list | tuple) else read(images)


def _of_known_range(picture, name, channels, rules, of_two=False):
    """A picture in a form that stock reads rightly: PIL in mode L or RGB, floats in [0, 1]."""
    try:
        if isinstance(picture, Image.Image):
            return _pil(picture, channels, rules)
        if isinstance(picture, torch.Tensor):
            if picture.is_floating_point():
                _check_unit(picture)
                return picture.float()
            return torch.from_numpy(_array(picture.cpu().numpy(), rules, of_two))
        if isinstance(picture, np.ndarray):
            return _array(picture, rules, of_two)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    raise ValueError(f"{name} must be PIL images, arrays or tensors, got {reprlib.repr(picture)}")


def _pil(picture, channels, rules):
    if channels not in (1, 3):
        raise ValueError(f"a PIL image has 1 or 3 channels, the model {channels}")
    if picture.has_transparency_data:
        warn_user(f"pictures have an alpha channel: transparent pixels lie on {rules.background} (background)")
    if not is_deep(picture):
        rules = PixelRules(background=rules.background)
    pixels = decode(picture, channels, rules=rules)
    return Image.fromarray(pixels[0] if channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _array(values, rules, of_two):
    """An array of any type as float32 in [0, 1]."""
    if values.dtype.kind == "f":
        _check_unit(values)
        return values.astype(np.float32)
    if of_two and values.dtype.kind in "ui" and np.isin(values, (0, 1)).all():
        return values.astype(np.float32)
    rules = PixelRules() if values.dtype == np.uint8 else rules
    return rules.to_pixels(values).astype(np.float32) / 255


def _check_unit(values):
    """Raise a ValueError unless all floats are in [0, 1]."""
    low, high = (float(values.min()), float(values.max())) if 0 not in values.shape else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"float pixels must be in [0, 1], got {low} to {high} ({values.dtype})")

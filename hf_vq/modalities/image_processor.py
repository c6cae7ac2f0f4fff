"""Pictures to samples and back, by the rule that training data are made by; saved with a model, for stock readers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hf_vq.arguments import check_fields
from hf_vq.data.decoding import decode
from hf_vq.data.image_dataset import ImageDataset
from hf_vq.data.image_stream import ImageStream
from hf_vq.data.pixels import PixelRules
from hf_vq.data.resizing import fill_colour, resized
from hf_vq.modalities.processor_files import read_processor, write_processor
from hf_vq.ranges import Number, OneOf, Range, Side, Width
from hf_vq.renaming import warn_user

STOCK_TYPE = "PerceiverImageProcessor"  # of transformers: crops to a square before it resizes, as `decode` does
STRETCHING_TYPE = "ViTImageProcessor"  # it resizes alone
LANCZOS = int(Image.Resampling.LANCZOS)
RULES = {"center_crop": "crop", "pad": "pad", "stretch": "stretch", "none": "none"}  # as data sets call them
OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass(frozen=True)
class ImageProcessor:
    """Makes samples of pictures, exactly as `hf_vq.data.images` does for training, and pictures of samples.

    Args:
        size: (height, width) in pixels of the samples that the model was trained on; None where that is not known.
        resize: how pictures come to `size`, by Lanczos: "center_crop": crop to the largest part of that shape in the
            middle; "pad": lay the whole picture on the background; "stretch": change its shape. "none": pictures stay
            as they come.
        channels: of the samples; a PIL image is converted to 1 (grey) or 3 (RGB).
        white: the pixel value that becomes 1.0.
        value_range: (low, high), the numbers that are black and white, of pictures of any type; None: 0 to 255 of
            8 bits, 0 to 65,535 of unsigned 16 bits, 0 to 1 of floats; other integers are refused.
        background: colour that transparent pixels lie on, a name or "#rrggbb".

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    size: tuple[Side, Side] | None = None
    resize: Annotated[str, OneOf(tuple(RULES))] = "center_crop"
    channels: Width = 3
    white: Annotated[int, Range(1, 255)] = 255
    value_range: tuple[Number, Number] | None = None
    background: str = "white"

    def __post_init__(self):
        check_fields(self)
        if self.size is not None:
            if len(self.size) != 2:
                raise ValueError(f"size={self.size!r} must be (height, width), positive integers, or None")
            object.__setattr__(self, "size", tuple(self.size))
        elif self.resize in ("pad", "stretch"):
            raise ValueError(f"resize={self.resize!r} needs a size")
        object.__setattr__(self, "value_range", self.rules.value_range)  # checked, as a tuple

    @property
    def rules(self) -> PixelRules:
        """How numbers become pixel values."""
        return PixelRules(self.value_range, self.background, self.white)

    @classmethod
    def from_dataset(cls, dataset: ImageDataset | ImageStream) -> "ImageProcessor":
        """The processor that makes the samples of an `ImageDataset` or `ImageStream`."""
        channels, height, width = dataset.sample_shape
        rule = "center_crop" if dataset.resize == "crop" else dataset.resize
        rules = dataset.rules
        return cls((height, width), rule, channels, rules.white, rules.value_range, rules.background)

    def __call__(self, images: Any, device: torch.device | str | None = None) -> torch.Tensor:
        """Samples of pictures.

        Args:
            images: PIL image; array (height, width), (height, width, channels) or a batch of them, of a type and range
                that `value_range` speaks of, rounded to pixel values; tensor of integers (channels, height, width) or
                a batch; or a list. Of grey arrays without the axis of the channel, the last axis must not look like
                one of colours. A float tensor is a sample already, and refused.
            device: of the result.

        Returns:
            (batch, channels, height, width) float32 in [-1, 1].

        Raises:
            ValueError: another type, number of channels or range, or sizes that differ.
        """
        pictures = images if isinstance(images, list | tuple) else [images]
        pixels = [one for picture in pictures for one in self._pixels(picture)]
        shapes = sorted({one.shape[1:] for one in pixels})
        if len(shapes) != 1:
            raise ValueError(f"images must be one or more, of one size where they are not resized; got {shapes}")
        values = torch.from_numpy(np.stack(pixels)).to(device)
        return values.to(torch.float32) * (2 / self.white) - 1

    def postprocess(
        self, sample: torch.Tensor, output_type: str = "pil"
    ) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Pictures of samples (batch, channels, height, width) in [-1, 1].

        Args:
            output_type: "pil", a list; "np", (batch, height, width, channels) in [0, 1]; "pt", (batch, channels,
                height, width) in [0, 1].
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        return VaeImageProcessor(vae_scale_factor=1).postprocess(sample, output_type=output_type)

    @property
    def resizes(self) -> bool:
        """Whether pictures are resized at all."""
        return self.size is not None and self.resize != "none"

    def loader_options(self) -> dict[str, Any]:
        """Arguments of `load_images` by which a data set gets this processor's size."""
        if not self.resizes:
            return {}
        return {"image_size": self.size, "resize": RULES[self.resize]}

    def differences(self, dataset: ImageDataset | ImageStream) -> list[str]:
        """How the samples of a data set are unlike this processor's, in words; none where they are alike."""
        channels, *size = dataset.sample_shape
        lines = []
        if self.size is not None and tuple(size) != self.size:
            lines.append(f"images are {_times(size)}, those of the model {_times(self.size)}")
        rules = (dataset.resize, RULES[self.resize])
        if rules[0] != rules[1] and "none" not in rules:
            lines.append(f"images come to their size by {rules[0]}, those of the model by {rules[1]}")
        if channels != self.channels:
            lines.append(f"images have {channels} channels, those of the model {self.channels}")
        if dataset.rules.white != self.white:
            lines.append(f"white is {dataset.rules.white} in the images, {self.white} in those of the model")
        for name in ("value_range", "background"):
            theirs, ours = getattr(dataset.rules, name), getattr(self, name)
            if theirs != ours:
                lines.append(f"{name} is {theirs or 'not given'} for the images, {ours or 'not given'} for the model")
        return lines

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`, which `transformers.AutoImageProcessor` reads without hf_vq."""
        write_processor(folder, self.to_dict())

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "ImageProcessor | None":
        """The processor of a folder or repository; arguments as in huggingface_hub.

        Returns:
            ImageProcessor; None where there is no `preprocessor_config.json`, and with a warning where it is broken
            or asks for what no ImageProcessor does.
        """
        return read_processor(
            cls,
            path_or_repo,
            "pictures are taken as they come",
            subfolder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )

    def to_dict(self) -> dict[str, Any]:
        """What the file holds: stock keys, and `num_channels`, `resize_rule` and `white` for people."""
        square = self.size is not None and self.size[0] == self.size[1]
        crops = self.resizes and self.resize == "center_crop" and square
        stretches = self.resizes and self.resize == "stretch"
        sides = {} if self.size is None else dict(zip(("height", "width"), self.size, strict=True))
        return {
            "image_processor_type": STRETCHING_TYPE if stretches else STOCK_TYPE,
            "do_convert_rgb": self.channels == 3,
            "do_center_crop": crops,
            "do_resize": crops or stretches,  # stock pads to no size, and crops to squares alone
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / self.white,
            "image_mean": [0.5] * self.channels,
            "image_std": [0.5] * self.channels,
            "resample": LANCZOS,
            **({"size": sides, "crop_size": sides} if sides else {}),
            "num_channels": self.channels,
            "resize_rule": self.resize,
            "white": self.white,
            **({} if self.value_range is None else {"value_range": list(self.value_range)}),
            **({} if self.background == "white" else {"background": self.background}),
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ImageProcessor | None":
        """The processor that does what a `preprocessor_config.json` says; None where none of ours does."""
        try:
            rule = config.get("resize_rule", "center_crop")
            size = (config["size"]["height"], config["size"]["width"]) if "size" in config else None
            if rule == "center_crop" and not config["do_resize"] and size and size[0] == size[1]:
                size = None  # of stock, where we gave none
            found = cls(
                size,
                rule,
                len(config["image_mean"]),
                round(1 / config["rescale_factor"]),
                config.get("value_range"),
                config.get("background", "white"),
            )
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError):
            return None
        meaning, ignored = found.to_dict(), {"image_processor_type", "resample", "do_convert_rgb"}
        if meaning["do_resize"]:
            does_so = str(config.get("image_processor_type")).startswith(meaning["image_processor_type"])
            if not does_so or config.get("resample") != LANCZOS:
                return None
        else:
            ignored |= {"size", "crop_size"}
        same = all(config.get(name, value) == value for name, value in meaning.items() if name not in ignored)
        return found if same else None

    def _pixels(self, picture):
        """Pixel values of one picture or of a batch: list of (channels, height, width) uint8 arrays."""
        size, rule = (self.size, RULES[self.resize]) if self.resizes else (None, None)
        if isinstance(picture, Image.Image):
            if self.channels not in (1, 3):
                raise ValueError(f"images: a PIL image has 1 or 3 channels, the model {self.channels}")
            if picture.has_transparency_data:
                warn_user(f"pictures have an alpha channel: transparent pixels lie on {self.background} (background)")
            found = [decode(picture, self.channels, size, self.rules, rule)]
        else:
            planes = self._planes(picture)  # (batch, channels, height, width)
            fill = fill_colour(self.rules, self.channels)
            found = [
                np.stack([_plane(one, size, rule, value) for one, value in zip(picture, fill, strict=True)])
                for picture in planes
            ]
        brightest = max(int(one.max()) for one in found)
        if brightest > self.white:
            raise ValueError(f"images must have pixel values up to white={self.white}, got {brightest}")
        return found

    def _planes(self, picture):
        """Any array or tensor as (batch, channels, height, width) uint8."""
        shape = tuple(getattr(picture, "shape", ()))
        if isinstance(picture, torch.Tensor):
            if picture.is_floating_point() or picture.is_complex():
                raise ValueError(f"images: a tensor must be uint8, got {picture.dtype}; a float tensor is a sample")
            planes = self._rounded(picture.cpu().numpy())
            planes = planes[None] if planes.ndim == 3 else planes
        elif isinstance(picture, np.ndarray):
            planes = self._rounded(picture)
            if planes.ndim == 2 or (planes.ndim == 3 and planes.shape[-1] != self.channels and self.channels == 1):
                if planes.ndim == 3 and shape[-1] in (2, 3, 4):  # 2: grey with alpha
                    raise ValueError(
                        f"images must have 1 channel, got shape {shape}, which looks like a picture with colours or "
                        "alpha: PIL images are converted; grey arrays of this width take a last axis of 1"
                    )
                planes = planes[..., None]  # grey: the axis of the channel is left out
            planes = planes[None] if planes.ndim == 3 else planes
            planes = np.moveaxis(planes, -1, 1) if planes.ndim == 4 else planes
        else:
            raise ValueError(
                f"images must be PIL images, arrays, uint8 tensors or a list, got {type(picture).__name__}"
            )
        if planes.ndim != 4 or planes.shape[1] != self.channels:
            raise ValueError(f"images must have {self.channels} channels, got shape {shape}")
        if planes.size == 0:
            raise ValueError(f"images must have pixels, got shape {shape}")
        return np.ascontiguousarray(planes)

    def _rounded(self, picture):
        """An array of any type as uint8 pixel values."""
        try:
            return self.rules.to_pixels(picture)
        except ValueError as error:
            raise ValueError(f"images: {error}") from error


def _plane(values, size, rule, fill):
    """One channel (height, width) uint8, resized."""
    return values if size is None else np.asarray(resized(Image.fromarray(values), size, rule, fill))


def _times(size):
    return "x".join(map(str, size))

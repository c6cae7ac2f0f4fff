"""Activations of whole models as features of images: of our autoencoders, and of classifiers of transformers."""

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.grids import as_grids
from hf_vq.networks.features import FeatureExtractor

PROBED_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # pixels a side


class AutoencoderFeatures(FeatureExtractor):
    """The encoder of an autoencoder of images: what its stages give on the way down, then its latents.

    A stage is an outermost entry of a list of modules of the encoder, which is how all our families and those of
    diffusers are built. Tokens of a transformer count as the map of the latents' size. What a hierarchy computes on
    its way up again, from codes, is left out: no gradient passes through codes.

    Args:
        autoencoder: any of ours with two axes of space; images are normalised as it does it itself.
        source: where it comes from, for people.

    Raises:
        ValueError: an autoencoder of something else than images.
    """

    def __init__(self, autoencoder: Any, source: str):
        super().__init__()
        if autoencoder.space_dims != 2:
            raise ValueError(f"{source} holds a {type(autoencoder).__name__}, which is no autoencoder of images")
        self.autoencoder = autoencoder
        self.in_channels = autoencoder.in_channels
        self.smallest_size = max(autoencoder.grid_strides[0])
        self.freeze(source)

    def forward(self, sample: torch.Tensor) -> list[torch.Tensor]:
        with self._recorded_stages() as outputs:
            normalized, _ = self.autoencoder.normalize(self.as_input(sample), None)
            latents = as_grids(self.autoencoder.encode(normalized).latents)
        found = [_as_map(output, tuple(latents[0].shape[2:])) for output in outputs]
        maps = [one for one in found if one is not None and not any(one is each for each in latents)]
        sizes = itertools.accumulate(map(_area, maps), min)  # the smallest so far: what is larger is on its way up
        down = [one for one, size in zip(maps, sizes, strict=True) if _area(one) == size]
        return sorted([*down, *reversed(latents)], key=_area, reverse=True)

    @contextmanager
    def _recorded_stages(self) -> Iterator[list[torch.Tensor]]:
        """Within the `with` block, what stages return is added to the list, in the order of computation."""
        outputs: list[torch.Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))
            for stage in self._stages()
        ]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _stages(self) -> Iterator[nn.Module]:
        quantizers = {module for each in self.autoencoder.quantizers for module in each.modules()}
        lists: list[str] = []
        for name, module in self.autoencoder.named_modules():
            within = name.startswith(tuple(f"{each}." for each in lists))
            if isinstance(module, nn.ModuleList | nn.Sequential) and module not in quantizers and not within:
                lists.append(name)
                yield from module


class ClassifierFeatures(FeatureExtractor):
    """The hidden states of an image classifier of transformers, as maps; tokens beside those of patches are left out.

    Images come at their own size. A network that takes one size only, as most vision transformers do, gets them
    stretched to it (bilinear, antialiased), which is found out when this is built.

    Args:
        classifier: an `AutoModelForImageClassification`.
        processor: the content of its preprocessor_config.json, of which scale, mean and deviation count.
        source: where it comes from, for people.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, classifier: Any, processor: Mapping[str, Any], source: str):
        super().__init__()
        self.classifier = classifier
        self.in_channels = getattr(classifier.config, "num_channels", 3)
        mean, deviation = _pixel_scale(processor, source)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))
        self.freeze(source)
        self.only_size, self.smallest_size = self._probe()

    def forward(self, sample: torch.Tensor) -> list[torch.Tensor]:
        sample = self.as_input(sample)
        if self.only_size is not None and tuple(sample.shape[2:]) != self.only_size:
            sample = F.interpolate(sample, self.only_size, mode="bilinear", antialias=True)
        return self._hidden_maps((sample - self.mean) / self.deviation)

    def _hidden_maps(self, pixels):
        output = self.classifier(pixel_values=pixels, output_hidden_states=True)
        states = output.get("reshaped_hidden_states") or output.get("hidden_states")
        if not states:
            raise TypeError(f"{type(self.classifier).__name__} of transformers gives no hidden states")
        maps = [_as_map(state, self._grid(state, pixels)) for state in states]
        return [state for state in maps if state is not None]

    def _grid(self, state, pixels):
        """Height and width of the map that tokens (batch, length, width) are of."""
        height, width = pixels.shape[2:]
        patch = getattr(self.classifier.config, "patch_size", None)
        if isinstance(patch, int) and state.ndim == 3 and (height // patch) * (width // patch) <= state.shape[1]:
            return height // patch, width // patch
        return tuple(math.isqrt(state.shape[1] * one // other) for one, other in ((height, width), (width, height)))

    @torch.no_grad()
    def _probe(self):
        """The only size that the network takes, or None, and the smallest one, in pixels a side."""
        only: Any = getattr(self.classifier.config, "image_size", None)
        only = (only, only) if isinstance(only, int) else only and tuple(only)
        for size in PROBED_SIZES:
            pixels = torch.zeros(1, self.in_channels, size, size, device=self.mean.device)
            try:
                works = all(_area(state) for state in self._hidden_maps(pixels))
            except (RuntimeError, ValueError, IndexError):  # as the layers say it that an image is too small
                continue
            if works and (size, size) != only:
                return None, size
        if only is None:
            raise ValueError(
                f"{self.identity['source']}: its {type(self.classifier).__name__} takes images of none of the sizes "
                f"{PROBED_SIZES}, and its config has no image_size"
            )
        return only, 1


def _pixel_scale(processor: Mapping[str, Any], source: str) -> tuple[list[float], list[float]]:
    """Mean and deviation, of values in [-1, 1], by which the processor of a classifier normalises each channel."""
    factor = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    offset = 1.0 if processor.get("rescale_offset") else 0.0
    mean, deviation = [0.0], [1.0]
    if processor.get("do_normalize", True):
        mean, deviation = processor.get("image_mean", []), processor.get("image_std", [])
        if not (isinstance(mean, list) and isinstance(deviation, list) and len(mean) == len(deviation) > 0):
            raise ValueError(
                f"{source}: preprocessor_config.json must have lists image_mean and image_std, of one number a channel"
            )
    # ((x + 1) / 2 * factor - offset - mean) / deviation
    return [2 * (offset + one) / factor - 1 for one in mean], [2 * one / factor for one in deviation]


def _as_map(output: Any, grid: tuple[int, ...]) -> torch.Tensor | None:
    """A map as it is; of tokens (batch, length, width) the last ones, which a grid has room for, as a map; or None."""
    if not isinstance(output, torch.Tensor) or output.ndim not in (3, 4):
        return None
    if output.ndim == 4:
        return output
    length = grid[0] * grid[1]
    if not 0 < length <= output.shape[1]:
        return None
    return output[:, -length:].transpose(1, 2).unflatten(2, grid)


def _area(activations: torch.Tensor) -> int:
    return activations.shape[2] * activations.shape[3]

"""Large samples in flat memory: a network that sees only near pixels runs tile by tile, as on the whole."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from types import UnionType
from typing import Any, cast

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_vq.autoencoders.images.tiles import WholeSampleNorms, tiled
from hf_vq.hosts import ModelHost


@dataclass
class LocalPart:
    """A part of a network whose output depends on near input alone, but for the statistics of its GroupNorms.

    Attributes:
        function: (batch, channels, *space) to (batch, other channels, *space x stride_in / stride_out).
        modules: what it runs, in this order; convolutions are padded evenly, up to one cell.
        stride_in, stride_out: sample pixels per cell of its input and of its output.
    """

    function: Callable
    modules: Sequence[nn.Module]
    stride_in: int
    stride_out: int

    @property
    def unit(self) -> int:
        """Input cells in an output cell, where it is the coarser."""
        return max(1, self.stride_out // self.stride_in)

    @property
    def halo(self) -> int:
        """Input cells around a tile that can change it, rounded up to whole output cells."""
        reach, cell = Fraction(0), Fraction(1)  # in input cells: how far we look, and the cell we stand in
        for module in self.each(nn.Module):
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                reach += _reach(module) * cell
                cell *= _first(module.stride)
            elif isinstance(module, nn.ConvTranspose2d):
                cell /= _first(module.stride)
                reach += _reach(module) * cell
            elif isinstance(module, nn.PixelShuffle):
                cell /= module.upscale_factor
            elif isinstance(module, nn.Upsample | Upsample2D):
                cell /= 2 if isinstance(module, Upsample2D) else int(cast(float, module.scale_factor))
        if cell != Fraction(self.stride_out, self.stride_in):
            raise ValueError(
                f"modules must lead from stride_in {self.stride_in} to stride_out {self.stride_out}, but their cells "
                f"grow {cell} times"
            )
        return math.ceil(reach / self.unit) * self.unit

    def each(self, kind: type | UnionType) -> list:
        return [module for root in self.modules for module in root.modules() if isinstance(module, kind)]


class TilingMixin(ModelHost):
    """Tiles and slices of an autoencoder; a subclass gives `local_parts` and runs each part by `in_tiles`."""

    use_tiling = False
    use_slicing = False
    tile_sample_size: Any = None  # int where tiling is on
    downsample_factor: Any  # int: tiles are square
    exact_tiling = False

    def local_parts(self) -> tuple[LocalPart, ...]:
        """The LocalParts of the network."""
        raise NotImplementedError(f"{type(self).__name__} has no tiling")

    def enable_tiling(self, tile_sample_size: int = 256, exact: bool = False) -> None:
        """Encodes and decodes tile by tile: full-resolution activations are held for one tile at a time.

        Every tile sees as far as the network does, so without GroupNorm the result is that of the whole sample. A
        VQModel runs its lowest resolution, or all from its first attention on, on the whole map; the GroupNorms of
        its tiled parts share statistics estimated on nine patches of the sample, a quarter tile wide, unless `exact`.
        Gradients take the statistics as constants.

        Args:
            tile_sample_size: side of a tile in pixels, without the border that overlaps its neighbours.
            exact: GroupNorms have the statistics of the whole sample, found norm after norm. For n of them in a tiled
                part every tile runs n + 1 times, once to each norm and once to the end: a VQModel of factor 8 with
                one layer per block has 6 in its encoder and 13 in its decoder.

        Raises:
            ValueError: a size that is not a positive multiple of the downsampling, or a network that attends at full
                resolution.
        """
        factor = self.downsample_factor
        if type(tile_sample_size) is not int or tile_sample_size < 1 or tile_sample_size % factor:
            raise ValueError(
                f"tile_sample_size must be a positive multiple of {factor}, the downsampling; got {tile_sample_size!r}"
            )
        for part in self.local_parts():
            _ = part.halo  # raises where the parts do not fit
        self.use_tiling, self.tile_sample_size, self.exact_tiling = True, tile_sample_size, exact

    def disable_tiling(self) -> None:
        """Encodes and decodes whole samples again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Encodes and decodes one item of the batch at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encodes and decodes whole batches again."""
        self.use_slicing = False

    def in_slices(self, function: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """function(hidden), one item of the batch at a time where slicing is on."""
        if not self.use_slicing or len(hidden) < 2:
            return function(hidden)
        return torch.cat([function(item) for item in hidden.split(1)])

    def in_tiles(self, part: LocalPart, hidden: torch.Tensor) -> torch.Tensor:
        """part.function(hidden), tile by tile where tiling is on.

        Raises:
            ValueError: a BatchNorm in training mode, whose statistics would be those of a tile.
        """
        if not self.use_tiling:
            return part.function(hidden)
        if any(norm.training for norm in part.each(_BatchNorm)):
            raise ValueError("tiling needs BatchNorm in eval mode: call eval() or disable_tiling()")
        core, halo, norms = self.tile_sample_size // part.stride_in, part.halo, part.each(nn.GroupNorm)
        run = partial(tiled, part.function, hidden, core, halo, part.stride_in, part.stride_out)
        if not norms or max(hidden.shape[2:]) <= core:
            return run()
        with WholeSampleNorms(norms) as whole:
            if self.exact_tiling:
                whole.measure(part.function, hidden, core, halo)
            else:
                whole.estimate(part.function, hidden, core, halo, part.unit)
            return run()


def _reach(module):
    """How far an evenly padded kernel reaches beyond the cells of its stride, in its finer cells."""
    kernel, dilation = _first(module.kernel_size), _first(getattr(module, "dilation", 1))
    return max(0, (kernel - 1) * dilation + 1 - _first(module.stride) + 1) // 2


def _first(size):
    return size if isinstance(size, int) else size[0]

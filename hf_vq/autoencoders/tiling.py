"""Large samples in flat memory: a network that sees only near pixels runs tile by tile, as on the whole."""

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_vq.quantizers.nearest import widest_float


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
    def halo(self):
        """Input cells around a tile that can change it, rounded up to whole output cells."""
        reach, cell = Fraction(0), Fraction(1)  # in input cells: how far we look, and the cell we stand in
        for module in self.each(nn.Module):
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                reach += _reach(module) * cell
                cell *= _first(module.stride)
            elif isinstance(module, nn.ConvTranspose2d):
                cell /= _first(module.stride)
                reach += _reach(module) * cell
            elif isinstance(module, nn.Upsample | Upsample2D):
                cell /= 2 if isinstance(module, Upsample2D) else int(module.scale_factor)
        if cell != Fraction(self.stride_out, self.stride_in):
            raise ValueError(
                f"modules must lead from stride_in {self.stride_in} to stride_out {self.stride_out}, but their cells "
                f"grow {cell} times"
            )
        unit = max(1, self.stride_out // self.stride_in)
        return math.ceil(reach / unit) * unit

    def each(self, kind):
        return [module for root in self.modules for module in root.modules() if isinstance(module, kind)]


class TilingMixin:
    """Tiles and slices of an autoencoder; a subclass gives `local_parts` and runs each part by `in_tiles`."""

    use_tiling = False
    use_slicing = False
    tile_sample_size = None
    exact_tiling = False

    def local_parts(self):
        """The LocalParts of the network."""
        raise NotImplementedError(f"{type(self).__name__} has no tiling")

    def enable_tiling(self, tile_sample_size=256, exact=False):
        """Encodes and decodes tile by tile: memory no longer grows with the sample but for its codes and its pixels.

        Every tile sees as far as the network does, so without GroupNorm the result is that of the whole sample. With
        GroupNorm (VQModel) the part from the first attention on runs on the whole low-resolution map, and the norms
        before it (in the decoder: after the last) see a tile only, unless `exact`.

        Args:
            tile_sample_size: side of a tile in pixels, without the border that overlaps its neighbours.
            exact: GroupNorms have the statistics of the whole sample. For n such norms in tiled parts every tile runs
                up to n + 1 times, once to each norm and once to the end: a VQModel of factor 8 with one layer per
                block has 6 in its encoder and 13 in its decoder. Gradients take the statistics as constants.

        Raises:
            ValueError: a size that is not a positive multiple of the downsampling, or a network that attends at full
                resolution.
        """
        factor = self.downsample_factor
        if not isinstance(tile_sample_size, int) or tile_sample_size < 1 or tile_sample_size % factor:
            raise ValueError(
                f"tile_sample_size must be a positive multiple of {factor}, the downsampling; got {tile_sample_size!r}"
            )
        for part in self.local_parts():
            _ = part.halo  # raises where the parts do not fit
        self.use_tiling, self.tile_sample_size, self.exact_tiling = True, tile_sample_size, exact

    def disable_tiling(self):
        """Encodes and decodes whole samples again."""
        self.use_tiling = False

    def enable_slicing(self):
        """Encodes and decodes one item of the batch at a time."""
        self.use_slicing = True

    def disable_slicing(self):
        """Encodes and decodes whole batches again."""
        self.use_slicing = False

    def in_slices(self, function, hidden):
        """function(hidden), one item of the batch at a time where slicing is on."""
        if not self.use_slicing or len(hidden) < 2:
            return function(hidden)
        return torch.cat([function(item) for item in hidden.split(1)])

    def in_tiles(self, part, hidden):
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
        if not self.exact_tiling or not norms or max(hidden.shape[2:]) <= core:
            return run()
        with WholeSampleNorms(norms).measured(part.function, hidden, core, halo):
            return run()


class WholeSampleNorms:
    """GroupNorms (https://arxiv.org/abs/1803.08494, eq. 7) with the statistics of a sample that is seen in tiles.

    A norm without statistics gathers those of its tile and ends the tile's run; the next ones follow once it has them.
    """

    def __init__(self, norms):
        self.norms = norms
        self.statistics = {}  # norm -> (mean, variance), each (batch, groups)

    @contextmanager
    def measured(self, function, sample, core, halo):
        """Measures norm after norm, in the order in which `function` meets them; inside, they use what was found."""
        replaced = {norm: vars(norm).get("forward") for norm in self.norms}  # offloading puts its own forward there
        try:
            for norm in self.norms:
                norm.forward = partial(self._forward, norm)
            for _ in self.norms:
                self._measure_next(function, sample, core, halo)
            yield
        finally:
            for norm, forward in replaced.items():
                del norm.forward
                if forward is not None:
                    norm.forward = forward

    @torch.no_grad()
    def _measure_next(self, function, sample, core, halo):
        self.gathered, self.counted = 0, 0
        for around, inside, _ in _tiles(sample.shape[2:], core, halo):
            tile = sample[(..., *around)]
            self.inside, self.space = inside, tile.shape[2:]
            try:
                function(tile)
            except _Measured as measured:
                norm = measured.norm
        mean, square = self.gathered / self.counted
        self.statistics[norm] = mean, square - mean.square()

    def _forward(self, norm, hidden):
        if norm in self.statistics:
            return self._normalize(norm, hidden)
        inside = map(_scaled, self.inside, hidden.shape[2:], self.space)
        own = hidden[(..., *inside)].to(widest_float(hidden.device)).reshape(len(hidden), norm.num_groups, -1)
        self.gathered = self.gathered + torch.stack([own.sum(dim=2), own.square().sum(dim=2)])
        self.counted += own.shape[2]
        raise _Measured(norm)

    def _normalize(self, norm, hidden):
        channels_per_group = norm.num_channels // norm.num_groups
        mean, variance = (value.repeat_interleave(channels_per_group, dim=1) for value in self.statistics[norm])
        scale = (variance + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        shift = -mean * scale
        if norm.affine:
            shift = shift + norm.bias
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scale, shift = (value.to(wide)[(..., *[None] * (hidden.ndim - 2))] for value in (scale, shift))
        return torch.addcmul(shift, hidden.to(wide), scale).to(hidden.dtype)


class _Measured(Exception):
    def __init__(self, norm):
        self.norm = norm


def tiled(function, sample, core, halo, scale_up=1, scale_down=1):
    """function(sample), made tile by tile on the sample's device.

    Args:
        function: (batch, channels, *space) to (batch, other channels, *space x scale_up / scale_down).
        sample: (batch, channels, *space).
        core: side of a tile in input cells, without its halo; a multiple of scale_down / scale_up.
        halo: input cells that a tile sees beyond its core, up to the border of the sample; likewise a multiple.
        scale_up, scale_down: output sides are input sides x scale_up / scale_down.
    """
    output, space = None, sample.shape[2:]
    for around, inside, own in _tiles(space, core, halo):
        result = function(sample[(..., *around)])
        if output is None:
            output = result.new_empty((*result.shape[:2], *(side * scale_up // scale_down for side in space)))
        own, inside = ([_scaled(cut, scale_up, scale_down) for cut in cuts] for cuts in (own, inside))
        output[(..., *own)] = result[(..., *inside)]
    return output


def _tiles(space, core, halo):
    """For every tile: its slices of the sample with halo, of itself without, of the sample without."""

    def along(side):
        for start in range(0, side, core):
            stop, before = min(start + core, side), max(start - halo, 0)
            yield slice(before, min(stop + halo, side)), slice(start - before, stop - before), slice(start, stop)

    for axes in itertools.product(*(list(along(side)) for side in space)):
        yield tuple(zip(*axes, strict=True))


def _scaled(cut, scale_up, scale_down):
    return slice(cut.start * scale_up // scale_down, cut.stop * scale_up // scale_down)


def _reach(module):
    """How far an evenly padded kernel reaches beyond the cells of its stride, in its finer cells."""
    kernel, dilation = _first(module.kernel_size), _first(getattr(module, "dilation", 1))
    return max(0, (kernel - 1) * dilation + 1 - _first(module.stride) + 1) // 2


def _first(size):
    return size if isinstance(size, int) else size[0]

"""Runs a function tile by tile, with GroupNorms that have the statistics of more than the tile."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from hf_vq.quantizers.nearest import widest_float

PATCHES = 3  # along each axis, for estimated statistics
PATCHES_PER_TILE = 4  # the side of a patch is that of a tile over this


def tiled(
    function: Callable[[torch.Tensor], torch.Tensor],
    sample: torch.Tensor,
    core: int,
    halo: int,
    scale_up: int = 1,
    scale_down: int = 1,
) -> torch.Tensor:
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


class WholeSampleNorms:
    """GroupNorms (https://arxiv.org/abs/1803.08494, eq. 7) with statistics of a sample that is seen in tiles.

    A context: inside, after `measure` or `estimate`, the norms use what was found instead of their input's statistics.

    Args:
        norms: the GroupNorms that the function runs, each once.
    """

    def __init__(self, norms: Sequence[nn.GroupNorm]):
        self.norms = norms
        self.statistics = {}  # norm -> (mean, variance), each (batch, groups)

    def __enter__(self):
        self.replaced = {norm: vars(norm).get("forward") for norm in self.norms}  # offloading puts a forward there
        for norm in self.norms:
            norm.forward = partial(self._normalize, norm)
        return self

    def __exit__(self, *error):
        for norm, forward in self.replaced.items():
            del norm.forward
            if forward is not None:
                norm.forward = forward

    @torch.no_grad()
    def measure(
        self, function: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor, core: int, halo: int
    ) -> None:
        """Exact statistics: norm after norm, in the order in which `function` meets them, a pass over all tiles.

        A norm without statistics gathers those of its tile and ends the tile's run.
        """
        self._on_missing = self._gather_and_stop
        for _ in self.norms:
            self.sums, self.count = 0, 0
            for around, inside, _ in _tiles(sample.shape[2:], core, halo):
                tile = sample[(..., *around)]
                self.inside, self.space = inside, tile.shape[2:]
                try:
                    function(tile)
                except _Gathered as gathered:
                    norm = gathered.norm
            self.statistics[norm] = self._found()

    @torch.no_grad()
    def estimate(
        self, function: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor, core: int, halo: int, unit: int
    ) -> None:
        """Statistics of patches on a grid over the sample, of all norms in one run.

        Args:
            unit: patches begin and end at multiples of so many cells.
        """
        self._on_missing = self._estimate_and_go_on
        width = max(1, core // PATCHES_PER_TILE // unit) * unit + 2 * halo
        places = itertools.product(*(_patches(side, width, halo, unit) for side in sample.shape[2:]))
        around, self.insides = zip(*(zip(*axes, strict=True) for axes in places), strict=True)
        patches = torch.cat([sample[(..., *place)] for place in around])  # (patches x batch, channels, *space)
        self.batch, self.space = len(sample), patches.shape[2:]
        function(patches)
        self.statistics = {norm: [value[: self.batch] for value in both] for norm, both in self.statistics.items()}

    def _gather(self, norm, hidden, inside):
        """Adds what a tile holds for itself, without halo."""
        inside = map(_scaled, inside, hidden.shape[2:], self.space)
        own = hidden[(..., *inside)].to(widest_float(hidden.device)).reshape(len(hidden), norm.num_groups, -1)
        self.sums = self.sums + torch.stack([own.sum(dim=2), own.square().sum(dim=2)])
        self.count += own.shape[2]

    def _found(self):
        mean, square = self.sums / self.count
        return mean, square - mean.square()

    def _gather_and_stop(self, norm, hidden):
        self._gather(norm, hidden, self.inside)
        raise _Gathered(norm)

    def _estimate_and_go_on(self, norm, hidden):
        self.sums, self.count = 0, 0
        for patch, inside in zip(hidden.split(self.batch), self.insides, strict=True):
            self._gather(norm, patch, inside)
        self.statistics[norm] = [value.repeat(len(self.insides), 1) for value in self._found()]

    def _normalize(self, norm, hidden):
        if norm not in self.statistics:
            self._on_missing(norm, hidden)
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


class _Gathered(Exception):
    """Ends the run of a tile at the norm whose statistics it gave."""

    def __init__(self, norm):
        self.norm = norm


def _tiles(space, core, halo):
    """For every tile: its slices of the sample with halo, of itself without, of the sample without."""

    def along(side):
        for start in range(0, side, core):
            stop, before = min(start + core, side), max(start - halo, 0)
            yield slice(before, min(stop + halo, side)), slice(start - before, stop - before), slice(start, stop)

    for axes in itertools.product(*(list(along(side)) for side in space)):
        yield tuple(zip(*axes, strict=True))


def _patches(side, width, halo, unit):
    """Patches from border to border: their slices of the side, and of themselves without halo."""
    if side <= width:
        return [(slice(0, side), slice(0, side))]
    starts = [(side - width) * i // (PATCHES - 1) // unit * unit for i in range(PATCHES)]
    return [
        (slice(start, start + width), slice(halo if start else 0, width - halo if start + width < side else width))
        for start in starts
    ]


def _scaled(cut, scale_up, scale_down):
    return slice(cut.start * scale_up // scale_down, cut.stop * scale_up // scale_down)

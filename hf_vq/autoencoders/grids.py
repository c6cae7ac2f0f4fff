"""Geometry: from the space of a sample to its grids of codes, along any number of axes.

A hierarchy has several *grids*, coarse to fine. Residual codes have *levels* inside a grid, an axis before its own.
"""

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hf_vq.grids import as_grids
from hf_vq.hosts import ModelHost
from hf_vq.quantizers import Quantizer
from hf_vq.quantizers.checks import check_mask

AXES = {1: ("length",), 2: ("height", "width"), 3: ("time", "height", "width")}


class Geometry(ModelHost):
    """The shapes of an autoencoder's samples and codes; a subclass gives `quantizers` and `downsample_factor`.

    Class attributes:
        space_dims: axes of space in a sample (batch, channels, *space).
        hierarchical: whether there are several grids of codes, and codes are a tuple.
    """

    space_dims: int
    hierarchical = False
    quantizers: Sequence[Quantizer]
    downsample_factor: int | tuple[int, ...]

    @property
    def in_channels(self) -> int:
        """Channels of a sample."""
        return self.config.in_channels

    @property
    def downsample_factors(self) -> tuple[int | tuple[int, ...], ...]:
        """Sample values in a cell, along every axis or a tuple of one an axis; of every grid, coarse to fine."""
        return (self.downsample_factor,)

    @property
    def grid_strides(self) -> tuple[tuple[int, ...], ...]:
        """Sample values in a cell: of every grid, coarse to fine, a tuple of one an axis."""
        return tuple(
            tuple(factor) if isinstance(factor, tuple) else (factor,) * self.space_dims
            for factor in self.downsample_factors
        )

    @property
    def grid_names(self) -> tuple[str, ...]:
        """Name of every grid, coarse to fine."""
        return ("codes",)

    @property
    def grid_dims(self) -> int:
        """Axes of the codes of one sample and grid, that of levels included."""
        return self.space_dims + (self.num_levels > 1)

    @property
    def num_levels(self) -> int:
        """Codes per grid position; with more than one, codes have a levels axis after the batch."""
        return self.quantizers[0].num_levels

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of every quantizer, coarse to fine."""
        return tuple(quantizer.codebook_size for quantizer in self.quantizers)

    @property
    def codebook_size(self) -> int | tuple[int, ...]:
        """Number of codes; a tuple where the grids of a hierarchy differ."""
        sizes = self.codebook_sizes
        return sizes[0] if len(set(sizes)) == 1 else sizes

    def code_shape(self, sample_shape: Sequence[int]) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
        """Shape of the codes of one sample: the grid, after the number of levels where there are several.

        Of a hierarchy, a tuple of such shapes, coarse to fine.

        Args:
            sample_shape: (channels, *space), without the batch.

        Raises:
            ValueError: another number of channels, or a side that the downsampling does not divide.
        """
        shapes = self.code_shapes(sample_shape)
        return shapes if self.hierarchical else shapes[0]

    def code_shapes(self, sample_shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """`code_shape` of every grid, coarse to fine: a tuple also where there is one."""
        channels, *space = sample_shape
        if channels != self.in_channels:
            raise ValueError(f"sample must have {self.in_channels} channels, got shape {tuple(sample_shape)}")
        self.check_space(space, sample_shape)
        levels = () if self.num_levels == 1 else (self.num_levels,)
        return tuple(
            (*levels, *(side // stride for side, stride in zip(space, strides, strict=True)))
            for strides in self.grid_strides
        )

    def check_space(self, space: Sequence[int], sample_shape: Sequence[int]) -> None:
        """Raise a ValueError unless a sample can have these sides."""
        strides = self.grid_strides[0]
        divided = len(space) == self.space_dims and all(
            side >= 1 and side % stride == 0 for side, stride in zip(space, strides, strict=True)
        )
        if not divided:
            factor = strides[0] if len(set(strides)) == 1 else strides
            raise ValueError(
                f"sample must be (channels, {', '.join(self.axes)}) with sides that {factor}, the downsampling, "
                f"divides; got shape {tuple(sample_shape)}"
            )

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of space."""
        return AXES.get(self.space_dims, tuple(f"axis_{axis}" for axis in range(self.space_dims)))

    def check_sample(self, sample: torch.Tensor) -> None:
        """Raise a ValueError unless a sample is floating point and of a shape that this model takes."""
        if not sample.is_floating_point() or sample.ndim != 2 + self.space_dims:
            raise ValueError(
                f"sample must be floating point, (batch, channels, {', '.join(self.axes)}) in [-1, 1]; got "
                f"{sample.dtype} of shape {tuple(sample.shape)}"
            )
        self.code_shape(tuple(sample.shape[1:]))

    def check_codes(self, codes: Any) -> None:
        """Raise a ValueError unless codes are a batch of grids of this model, of a hierarchy a tuple of them."""
        levels = () if self.num_levels == 1 else ("levels",)
        grids, wanted = as_grids(codes), f"(batch, {', '.join((*levels, *self.axes))})"
        if self.hierarchical:
            names = ", ".join(self.grid_names)
            wanted = f"a tuple of {len(self.quantizers)}, one for each grid ({names}), of {wanted}"
        alone = isinstance(codes, torch.Tensor)
        if (
            alone == self.hierarchical
            or len(grids) != len(self.quantizers)
            or any(one is not None and one.ndim != 1 + self.grid_dims for one in grids)
        ):
            got = " and ".join("None" if one is None else str(tuple(one.shape)) for one in grids)
            raise ValueError(
                f"codes must be {wanted}, got {'' if alone else 'a tuple of '}{got}: hf_vq.unflatten_codes makes "
                "grids of flattened codes"
            )

    # Padding

    def without_padding(
        self, sample: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """A sample that is 0 where it is padding, and the mask of every grid; None for each without a mask.

        Args:
            sample: (batch, channels, *space).
            padding_mask: (batch, *space) bool, True = real; None: all is real.

        Returns:
            The sample, and a tuple of (batch, *grid) bool, coarse to fine: cells with anything real in them.

        Raises:
            ValueError: a mask of another type or shape, a sample that is nothing but padding, or padding where a
                BatchNorm in training mode would take it into its statistics.
        """
        if padding_mask is None:
            return sample, (None,) * len(self.quantizers)
        shape = (sample.shape[0], *sample.shape[2:])
        check_mask(padding_mask, shape)
        self.check_sample(sample)
        self._check_padding(padding_mask)
        masks = tuple(_cells_with_any(padding_mask, strides) for strides in self.grid_strides)
        return sample.masked_fill(~padding_mask[:, None], 0), masks

    def _check_padding(self, padding_mask: torch.Tensor) -> None:
        padded = True  # perhaps
        if not torch.compiler.is_compiling():  # a look at the values would break the graph
            empty = ~padding_mask.flatten(1).any(dim=1)
            if empty.any():
                rows = empty.nonzero()[:, 0].tolist()
                raise ValueError(f"padding_mask must be True somewhere in each sample, it is False all over in {rows}")
            padded = not padding_mask.all()
        if padded and any(isinstance(m, _BatchNorm) and m.training for m in self.modules()):
            raise ValueError(
                "padding_mask with padding given to a model with BatchNorm in training mode, whose statistics would "
                "count it: use norm='none', samples of one size, or eval()"
            )

    def real_length(self, padding_mask: torch.Tensor | None) -> torch.Tensor | None:
        """How far each sample of a padded batch is real, as `TokenizerOutput.length`; None without a mask.

        Raises:
            ValueError: what is real is no box that begins at the start of every axis.
        """
        if padding_mask is None:
            return None
        lengths, box = [], torch.ones_like(padding_mask)
        for axis in range(1, padding_mask.ndim):
            others = [other for other in range(1, padding_mask.ndim) if other != axis]
            real = padding_mask.any(dim=others) if others else padding_mask  # (batch, side)
            lengths.append(real.sum(dim=1))
            inside = torch.arange(real.shape[1], device=real.device) < lengths[-1][:, None]
            box &= inside.view(len(real), *(-1 if other == axis else 1 for other in range(1, padding_mask.ndim)))
        if not torch.equal(box, padding_mask):
            raise ValueError("padding_mask must be True from the start of every axis up to a length of each sample")
        return lengths[0] if len(lengths) == 1 else torch.stack(lengths, dim=1)

    def grid_lengths(self, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Real cells along the first axis of every grid, coarse to fine, each (batch,) int64.

        Args:
            length: as of `real_length`.
        """
        first = length if length.ndim == 1 else length[:, 0]
        return tuple((first + strides[0] - 1) // strides[0] for strides in self.grid_strides)

    def check_length(self, length: Any, codes: Any) -> torch.Tensor:
        """Lengths of what codes decode to, (batch, 1) or (batch, space_dims) int64.

        Args:
            length: an integer for all samples, (batch,) along the first axis, or (batch, space_dims).
            codes: as of `detokenize`.

        Raises:
            ValueError: another type or shape, or lengths outside [1, the side that the codes decode to].
        """
        coarsest = as_grids(codes)[0]
        batch, dims = len(coarsest), self.space_dims
        wanted = f"length must be integers, one, ({batch},) or ({batch}, {dims})"
        try:
            lengths = torch.as_tensor(length)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{wanted}; got {reprlib.repr(length)}") from error
        numbers = lengths if lengths.ndim > 0 else lengths.expand(batch)
        numbers = numbers[:, None] if numbers.ndim == 1 else numbers
        whole = not lengths.is_floating_point() and not lengths.is_complex() and lengths.dtype != torch.bool
        if not whole or numbers.ndim != 2 or len(numbers) != batch or numbers.shape[1] not in (1, dims):
            raise ValueError(f"{wanted}; got {reprlib.repr(length)}, {lengths.dtype} of shape {tuple(lengths.shape)}")
        sides = self.decoded_space(coarsest.shape[-dims:])
        for ends, side in zip(numbers.unbind(1), sides, strict=False):
            for end in ends.tolist():
                if not 1 <= end <= side:
                    raise ValueError(
                        f"length must be at least 1 and at most {side}, what the codes decode to; got {end}"
                    )
        return numbers.long()

    def decoded_space(self, grid: Sequence[int]) -> list[int]:
        """Sides of the samples that a coarsest grid of these sides decodes to."""
        return [cells * stride for cells, stride in zip(grid, self.grid_strides[0], strict=True)]

    def cut_to_length(self, sample: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """A decoded batch up to its longest sample, with 0 where a shorter one has ended.

        Args:
            sample: (batch, channels, *space).
            length: as `check_length` gave it.
        """
        for axis, ends in enumerate(length.to(sample.device).unbind(1), start=2):
            longest = int(ends.max())
            sample = sample.narrow(axis, 0, longest)
            inside = torch.arange(longest, device=sample.device) < ends[:, None]  # (batch, longest)
            sample = sample.where(inside.view(-1, *(longest if at == axis else 1 for at in range(1, sample.ndim))), 0)
        return sample


def mean_of_real(values: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """Mean of values (batch, channels, *space) that are no padding; of all without a mask.

    Args:
        padding_mask: (batch, *space) bool, True = real, or None.
    """
    if padding_mask is None:
        return values.mean()
    real = padding_mask[:, None]
    return values.masked_fill(~real, 0).sum() / (real.sum() * values.shape[1]).clamp_min(1)


def mean_distance(
    distance: Callable[..., torch.Tensor], one: torch.Tensor, other: torch.Tensor, padding_mask: torch.Tensor | None
) -> torch.Tensor:
    """Mean distance of two tensors (batch, channels, *space), over what is no padding.

    Args:
        distance: such as `F.mse_loss`.
        padding_mask: (batch, *space) bool, True = real, or None.
    """
    if padding_mask is None:
        return distance(one, other)
    return mean_of_real(distance(one, other, reduction="none"), padding_mask)


def _cells_with_any(mask, strides):
    """(batch, *space) bool to (batch, *grid): whether anything in a cell is True."""
    for axis, stride in enumerate(strides, start=1):
        mask = mask.unflatten(axis, (mask.shape[axis] // stride, stride)).any(dim=axis + 1)
    return mask

"""Items of a data set to the batches that autoencoders take; samples of different lengths in one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset, Subset, default_collate

from hf_vq.arguments import checked
from hf_vq.ranges import Side

STOCK_NAME = "pixel_values"  # what image data sets of transformers call a sample


def sample_of(item: Mapping[str, Any]) -> torch.Tensor:
    """The sample of an item, (channels, *space) in [-1, 1], called "sample" or "pixel_values".

    Raises:
        ValueError: it has neither.
    """
    for name in ("sample", STOCK_NAME):
        if name in item:
            return item[name]
    raise ValueError(f"an item of the data set must have 'sample' or {STOCK_NAME!r}, it has {sorted(item)}")


class SampleCollator:
    """Items of a data set to a batch; it pads samples with 0 at the end where it is told to.

    A padded batch has a `padding_mask` (batch, *space) bool, True = real.

    Args:
        multiples: for every axis of space, what the padded sides are multiples of; None: no padding.
        sides: what the padded sides are at least, so that all batches are alike.
    """

    @checked
    def __init__(self, multiples: Sequence[Side] | None = None, sides: Sequence[Side] | None = None):
        self.multiples, self.sides = multiples, sides

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Items `{"sample" or "pixel_values": (channels, *space), ...}` as a dict of tensors (batch, ...), of which
        `sample` is one.

        Raises:
            ValueError: an item without a sample, or samples that differ in shape, where none are to be padded.
        """
        samples = [sample_of(item) for item in items]
        spaces = [tuple(sample.shape[1:]) for sample in samples]
        rest = [{name: value for name, value in item.items() if name not in ("sample", STOCK_NAME)} for item in items]
        batch = default_collate(rest) if rest[0] else {}
        if self.multiples is None:
            for space in spaces:
                if space != spaces[0]:
                    raise ValueError(
                        f"samples differ in shape, {spaces[0]} and {space}: a data set of such samples says so by "
                        "variable_length = True"
                    )
            return {"sample": default_collate(samples), **batch}
        if len(self.multiples) != len(spaces[0]):
            raise ValueError(f"multiples must be {len(spaces[0])}, one for each axis, got {self.multiples!r}")
        longest = (max(sides) for sides in zip(*spaces, *([self.sides] if self.sides else []), strict=True))
        sides = [-(-side // multiple) * multiple for side, multiple in zip(longest, self.multiples, strict=True)]
        mask = torch.zeros(len(items), *sides, dtype=torch.bool)
        padded = samples[0].new_zeros(len(items), samples[0].shape[0], *sides)
        for index, (sample, space) in enumerate(zip(samples, spaces, strict=True)):
            inside = tuple(slice(0, side) for side in space)
            padded[index][:, *inside] = sample
            mask[index][inside] = True
        return {**batch, "sample": padded, "padding_mask": mask}


def collator_for(autoencoder: Any, dataset: Any, whole: bool = False) -> SampleCollator:
    """The `SampleCollator` of a data set's samples for an autoencoder.

    Args:
        autoencoder: its downsampling says what padded sides are multiples of.
        dataset: with `variable_length` True where its samples differ in length.
        whole: pad all batches to the data set's longest sample, `dataset.sample_shape`.
    """
    if not has_variable_length(dataset):
        return SampleCollator()
    return SampleCollator(autoencoder.grid_strides[0], dataset.sample_shape[1:] if whole else None)


def padded_shape(autoencoder: Any, dataset: Any) -> tuple[int, ...]:
    """(channels, *space) of a data set's samples, of the longest where they differ, as batches for an autoencoder are.

    Args:
        autoencoder: its downsampling says what padded sides are multiples of.
        dataset: with `sample_shape`.
    """
    channels, *space = dataset.sample_shape
    if not has_variable_length(dataset):
        return (channels, *space)
    strides = autoencoder.grid_strides[0]
    return (channels, *(-(-side // stride) * stride for side, stride in zip(space, strides, strict=True)))


def is_stream(dataset: Any) -> bool:
    """Whether a data set can only be gone through: an `IterableDataset` of torch or of datasets."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def has_variable_length(dataset: Any) -> bool:
    """Whether samples of a data set, or of the one that it is part of, differ in length, by its own word."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "variable_length", False)


def padding_of(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keyword argument of an autoencoder that a padded batch needs; none for another."""
    return {"padding_mask": batch["padding_mask"]} if "padding_mask" in batch else {}

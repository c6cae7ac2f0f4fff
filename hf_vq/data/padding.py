"""Samples of different lengths in one batch."""

import torch
from torch.utils.data import default_collate


class SampleCollator:
    """Items of a data set to a batch; shorter samples are padded with 0 at the end, and `padding_mask` says where.

    Where all samples are of one shape they are stacked and nothing else, unless `pad` is True. The batch of padded
    samples has a `padding_mask` (batch, *space) bool, True = real.

    Args:
        multiples: for every axis of space, what the padded sides are multiples of.
        pad: pad whatever the shapes are: of a data set whose samples differ.
        sides: what the padded sides are at least, so that all batches are alike.
    """

    def __init__(self, multiples, pad=False, sides=None):
        self.multiples, self.pad = tuple(multiples), pad
        self.sides = tuple(sides or (1,) * len(self.multiples))

    def __call__(self, items):
        spaces = [tuple(item["sample"].shape[1:]) for item in items]
        if not self.pad and len(set(spaces)) == 1:
            return default_collate(items)
        sides = [
            -(-max(side) // multiple) * multiple
            for side, multiple in zip(zip(self.sides, *spaces, strict=True), self.multiples, strict=True)
        ]
        mask = torch.zeros(len(items), *sides, dtype=torch.bool)
        samples = items[0]["sample"].new_zeros(len(items), items[0]["sample"].shape[0], *sides)
        for index, (item, space) in enumerate(zip(items, spaces, strict=True)):
            inside = tuple(slice(0, side) for side in space)
            samples[(index, slice(None), *inside)] = item["sample"]
            mask[(index, *inside)] = True
        rest = default_collate([{name: value for name, value in item.items() if name != "sample"} for item in items])
        return {**rest, "sample": samples, "padding_mask": mask}


def collator_for(autoencoder, dataset, whole=False):
    """The `SampleCollator` of a data set's samples for an autoencoder.

    Args:
        autoencoder: its downsampling says what sides must be multiples of.
        dataset: with `variable_length` True where its samples differ in length.
        whole: pad all batches to the data set's longest sample, `dataset.sample_shape`.
    """
    pad = getattr(dataset, "variable_length", False)
    sides = dataset.sample_shape[1:] if whole and pad else None
    return SampleCollator(autoencoder.grid_strides[0], pad, sides)

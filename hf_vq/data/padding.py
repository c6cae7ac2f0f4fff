"""Samples of different lengths in one batch."""

import torch
from torch.utils.data import default_collate


class SampleCollator:
    """Items of a data set to a batch; it pads samples with 0 at the end where it is told to.

    A padded batch has a `padding_mask` (batch, *space) bool, True = real.

    Args:
        multiples: for every axis of space, what the padded sides are multiples of; None: no padding.
        sides: what the padded sides are at least, so that all batches are alike.
    """

    def __init__(self, multiples=None, sides=None):
        self.multiples, self.sides = multiples, sides

    def __call__(self, items):
        """Items `{"sample": (channels, *space), ...}` as a dict of tensors (batch, ...).

        Raises:
            ValueError: samples that differ in shape, where none are to be padded.
        """
        spaces = [tuple(item["sample"].shape[1:]) for item in items]
        if self.multiples is None:
            for space in spaces:
                if space != spaces[0]:
                    raise ValueError(
                        f"samples differ in shape, {spaces[0]} and {space}: a data set of such samples says so by "
                        "variable_length = True"
                    )
            return default_collate(items)
        longest = (max(sides) for sides in zip(*spaces, *([self.sides] if self.sides else []), strict=True))
        sides = [-(-side // multiple) * multiple for side, multiple in zip(longest, self.multiples, strict=True)]
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
        autoencoder: its downsampling says what padded sides are multiples of.
        dataset: with `variable_length` True where its samples differ in length.
        whole: pad all batches to the data set's longest sample, `dataset.sample_shape`.
    """
    if not has_variable_length(dataset):
        return SampleCollator()
    return SampleCollator(autoencoder.grid_strides[0], dataset.sample_shape[1:] if whole else None)


def has_variable_length(dataset):
    """Whether samples of a data set differ in length, by its own word."""
    return getattr(dataset, "variable_length", False)


def padding_of(batch):
    """The keyword argument of an autoencoder that a padded batch needs; none for another."""
    return {"padding_mask": batch["padding_mask"]} if "padding_mask" in batch else {}

"""Samples of a padded batch without their padding, for metrics that look at more than single values."""

from collections.abc import Iterator

import torch


def real_parts(padding_mask: torch.Tensor | None, *batches: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches as they are, or item by item without padding.

    Args:
        padding_mask: (batch, *space) bool, True = real, which is what begins every axis. None: all is real.
        batches: (batch, channels, *space) each.

    Returns:
        An iterator over tuples of one part of each batch, of one shape.
    """
    if padding_mask is None:
        yield batches
        return
    for index, mask in enumerate(padding_mask):
        axes = range(mask.ndim)
        inside = [slice(int(mask.any(dim=[other for other in axes if other != axis]).sum())) for axis in axes]
        yield tuple(batch[index : index + 1, :, *inside] for batch in batches)

"""Sums over all processes, and what they share; with one process they are the plain local thing."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


def is_distributed() -> bool:
    """Whether several processes run together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def join_processes() -> tuple[int, int]:
    """Number of this process, and of all, of those that torchrun or accelerate has started; they are connected."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from accelerate import PartialState  # seconds to import, for nothing in one process

        if not dist.is_initialized():
            PartialState._reset_state()  # that of a training before, which has parted
        PartialState()
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


@contextlib.contextmanager
def without_stride_warnings() -> Iterator[None]:
    """Within the `with` block torch does not warn of gradients of other strides than their place in a message has.

    Those of convolutions with one channel, or of one position, have them; they are the same numbers in the same order.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        yield


def count_processes() -> int:
    """How many processes run together."""
    return dist.get_world_size() if is_distributed() else 1


def of_the_first(value: Item) -> Item:
    """What the first process has, in all of them."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def wait_for_all() -> None:
    """Wait until all processes are here."""
    if is_distributed():
        dist.barrier()


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Tensors (n, ...) of all processes, one after the other; n may differ."""
    if not is_distributed():
        return tensor
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(tensor)], device=tensor.device))
    padded = tensor.new_zeros(int(max(sizes)), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place, and return it: what must keep its own count gives a clone."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor

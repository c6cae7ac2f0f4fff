"""Sums over all processes; with one process they are the plain local thing."""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether several processes run together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over all processes, in place, and return it: what must keep its own count gives a clone."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor

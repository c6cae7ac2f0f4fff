"""Sums over all processes; with one process they are the plain local thing."""

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether several processes run together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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

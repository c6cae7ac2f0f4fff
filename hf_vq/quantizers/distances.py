"""Logits of codes by their distances, at a temperature that fits latents of any size."""

import torch

from hf_vq.processes import sum_over_processes

_LEAST_DISTANCE = 1e-12  # where every latent is a code


@torch.no_grad()
def mean_distance(
    rows: torch.Tensor, nearest: torch.Tensor, counted: torch.Tensor | None, training: bool
) -> torch.Tensor:
    """The mean of |z - e|^2 over latents z and their nearest codes e, ().

    Args:
        rows: (n, dim) latents.
        nearest: (n, dim) vectors of their codes.
        counted: (n,) bool, rows that count; None: all.
        training: all processes take part, and get the same.
    """
    distances = (rows - nearest).square().sum(dim=1)
    ones = torch.ones_like(distances) if counted is None else counted.to(distances.dtype)
    sums = torch.stack([torch.where(ones > 0, distances, 0).sum(), ones.sum()])
    if training:
        sums = sum_over_processes(sums)
    return (sums[0] / sums[1].clamp_min(1)).clamp_min(_LEAST_DISTANCE)


def distance_logits(rows: torch.Tensor, codebook: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """-|z - e|^2 / temperature but for |z|^2, which is the same for all codes: (n, codebook_size).

    Args:
        rows: (n, dim) latents z.
        codebook: (codebook_size, dim) of all e.
        temperature: above 0, ().
    """
    return (2 * rows @ codebook.T - codebook.square().sum(dim=1)) / temperature

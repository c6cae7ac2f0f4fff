"""K-means over all processes: where a codebook starts."""

import torch

from hf_vq.processes import sum_over_processes
from hf_vq.quantizers.distributed import draw_rows
from hf_vq.quantizers.lookup import sum_by_code
from hf_vq.quantizers.nearest import nearest_codes


def cluster_statistics(
    rows: torch.Tensor, codes: torch.Tensor, codebook_size: int, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many rows took each code, and their sum, over all processes.

    Args:
        rows: (n, dim).
        codes: (n,) int64.
        codebook_size: number of codes.
        valid: (n,) bool, rows that count; None: all.

    Returns:
        counts (codebook_size,) and sums (codebook_size, dim), in the dtype of `rows`.
    """
    if valid is None:
        ones = rows.new_ones(rows.shape[0])
    else:
        ones, rows = valid.to(rows.dtype), torch.where(valid[:, None], rows, 0)
    counts, sums = sum_by_code(ones, codes, codebook_size), sum_by_code(rows, codes, codebook_size)
    return sum_over_processes(counts), sum_over_processes(sums)


def kmeans(
    rows: torch.Tensor, codebook_size: int, iterations: int = 10
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Lloyd's algorithm from random rows; an empty cluster starts again at a random row.

    Args:
        rows: (n, dim) of this process.
        codebook_size: number of clusters.
        iterations: passes over the rows.

    Returns:
        centroids (codebook_size, dim) and counts (codebook_size,), the same on every process; None and None where
        no process has a row.
    """
    if sum_over_processes(torch.tensor(rows.shape[0], device=rows.device)) == 0:
        return None, None
    centroids = draw_rows(rows, codebook_size)
    for _ in range(iterations):
        counts, sums = cluster_statistics(rows, nearest_codes(rows, centroids), codebook_size)
        means = sums / counts.clamp_min(1)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, draw_rows(rows, codebook_size))
    counts, _ = cluster_statistics(rows, nearest_codes(rows, centroids), codebook_size)
    return centroids, counts

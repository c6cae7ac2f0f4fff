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


REDRAWS = 10  # of centroids that are copies of others
APART = 1e-3  # of the spread of centroids, by which copies are told


def _drawn_apart(rows: torch.Tensor, centroids: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Centroids (n, dim) whose unused ones are random rows, as far as there are some not copies of one another.

    Where much of the data is alike, as silence is, many centroids would be one, and every row like it would have to
    be told from all of them.

    Args:
        rows: (n, dim) of this process.
        centroids: (codebook_size, dim), the same on every process.
        used: (codebook_size,) bool.
    """
    places = torch.arange(len(centroids), device=rows.device)
    missing = ~used
    for _ in range(REDRAWS):
        centroids = torch.where(missing[:, None], draw_rows(rows, len(centroids)), centroids)
        cells = (centroids / (APART * centroids.std(dim=0)).clamp_min(torch.finfo(rows.dtype).tiny)).round()
        alike = torch.unique(cells, dim=0, return_inverse=True)[1]
        order = places + len(centroids) * ~used  # those that are used come first
        first = torch.full_like(places, 2 * len(centroids)).scatter_reduce(0, alike, order, "amin")
        missing = (order != first[alike]) & ~used
        if not missing.any():
            break
    return centroids


def kmeans(rows: torch.Tensor, codebook_size: int, iterations: int = 10) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Lloyd's algorithm from random rows that are apart; an empty cluster starts again at such a row.

    Args:
        rows: (n, dim) of this process.
        codebook_size: number of clusters.
        iterations: passes over the rows.

    Returns:
        centroids (codebook_size, dim) and counts (codebook_size,), the same on every process; None where no process
        has a row.
    """
    if sum_over_processes(torch.tensor(rows.shape[0], device=rows.device)) == 0:
        return None
    used = torch.zeros(codebook_size, dtype=torch.bool, device=rows.device)
    centroids = _drawn_apart(rows, rows.new_zeros(codebook_size, rows.shape[1]), used)
    for _ in range(iterations):
        counts, sums = cluster_statistics(rows, nearest_codes(rows, centroids), codebook_size)
        means = sums / counts.clamp_min(1)[:, None]
        centroids = _drawn_apart(rows, means, counts > 0)
    counts, _ = cluster_statistics(rows, nearest_codes(rows, centroids), codebook_size)
    return centroids, counts

"""Random rows of all processes; with one process they are the plain local thing."""

import torch
import torch.distributed as dist

from hf_vq.processes import is_distributed
from hf_vq.quantizers.nearest import widest_float


def draw_rows(rows: torch.Tensor, count: int, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Rows drawn uniformly, with replacement, from those of all processes: the same draw on every process.

    Two processes with half a batch each draw what one process with the whole batch draws from the same seed.

    Args:
        rows: (n, dim) of this process.
        count: how many to draw.
        valid: (n,) bool, rows that may be drawn; None: all.

    Returns:
        (count, dim).
    """
    if rows.shape[0] == 0:  # a row that nobody may draw, so that there is something to index
        rows, valid = rows.new_zeros(1, rows.shape[1]), torch.zeros(1, dtype=torch.bool, device=rows.device)
    chosen = torch.rand(count, device=rows.device, dtype=widest_float(rows.device))
    ones = torch.ones(rows.shape[0], device=rows.device, dtype=torch.int64) if valid is None else valid.long()
    ends = ones.cumsum(0)  # rows drawn by rank among the valid ones, without a data-dependent shape
    if not is_distributed():
        return rows[_positions(ends, (chosen * ends[-1]).long())]
    rank, sizes = dist.get_rank(), torch.zeros(dist.get_world_size(), device=rows.device, dtype=torch.int64)
    sizes[rank] = ends[-1]
    dist.all_reduce(sizes)
    if rank != 0:
        chosen.zero_()
    dist.all_reduce(chosen)
    local = (chosen * sizes.sum()).long() - sizes[:rank].sum()
    mine = (local >= 0) & (local < ends[-1])
    drawn = torch.where(mine[:, None], rows[_positions(ends, local.clamp_min(0))], 0)
    dist.all_reduce(drawn)
    return drawn


def _positions(ends, ranks):
    """Position of the valid row of each rank (0 is the first valid row); the last position beyond the end."""
    return torch.searchsorted(ends, ranks, right=True).clamp_max(ends.shape[0] - 1)

"""Entropies of soft code assignments: each latent should decide for one code, all together should use all of them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from hf_vq.quantizers.gradients import masked_mean

_SCORES_PER_CHUNK = 1 << 24  # floats of one chunk of scores (64 MiB)


def in_chunks(
    function: Callable[..., tuple[torch.Tensor, ...]], rows: torch.Tensor, *others: torch.Tensor, width: int
) -> list[tuple[torch.Tensor, ...]]:
    """`function(chunk of rows, chunk of others...)` by chunks of rows that it computes again for the gradient.

    So what it makes of n x width numbers lives for one chunk at a time.

    Args:
        function: takes tensors, gives a tuple of tensors.
        rows: (n, dim).
        others: tensors of n rows.
        width: numbers per row that `function` makes inside.

    Returns:
        list of its results.
    """
    size = max(1, _SCORES_PER_CHUNK // width)
    if rows.shape[0] <= size:
        return [function(rows, *others)]
    chunks = zip(*(tensor.split(size) for tensor in (rows, *others)), strict=True)
    return [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]


def entropy(probabilities: torch.Tensor, floor: float = 0.0, offset: float = 0.0) -> torch.Tensor:
    """Entropy in nats of probabilities (..., n), with log(max(p, floor) + offset) where originals guard it so."""
    guarded = probabilities.clamp_min(max(floor, torch.finfo(probabilities.dtype).tiny)) + offset
    return -(probabilities * guarded.log()).sum(dim=-1)


def assignment_entropies(
    rows: torch.Tensor,
    codebook: torch.Tensor,
    temperature: float,
    valid: torch.Tensor | None = None,
    metric: str = "euclidean",
    offset: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropies of softmax(-|x - e|^2 / temperature), or of softmax(x.e / temperature).

    Args:
        rows: (n, dim).
        codebook: (codebook_size, dim).
        temperature: above 0.
        valid: (n,) bool; None: all.
        metric: "euclidean" or "dot".
        offset: added inside the logarithm of the mean assignment.

    Returns:
        mean entropy of the rows' assignments, and entropy of their mean assignment, both scalars in nats.
    """
    weights = rows.new_ones(rows.shape[0]) if valid is None else valid.to(rows.dtype)

    def assign(rows, weights):
        scores = rows @ codebook.T
        if metric == "euclidean":  # |x|^2 is the same for all codes
            scores = 2 * scores - codebook.square().sum(dim=1)
        logarithms = (scores / temperature).log_softmax(dim=1)
        probabilities = logarithms.exp()
        return -((probabilities * logarithms).sum(dim=1) * weights).sum(), weights @ probabilities

    parts = in_chunks(assign, rows, weights, width=codebook.shape[0])
    count = weights.sum().clamp_min(1)
    each = sum(part[0] for part in parts) / count
    return each, entropy(sum(part[1] for part in parts) / count, offset=offset)


def bit_entropies(
    log_odds: torch.Tensor, valid: torch.Tensor | None = None, groups: int = 1, floor: float = 0.0, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same two entropies where codes are signs, so that assignments are products over bits.

    The mean assignment of n rows to 2^bits codes is a product of two n x 2^(bits/2) tables: exact, and small.

    Args:
        log_odds: (n, bits), log p(+1) / p(-1) of every bit.
        valid: (n,) bool; None: all.
        groups: bits are split in so many groups, whose mean assignments count as independent (an upper bound, as in
            https://arxiv.org/abs/2406.07548, section 4).
        floor, offset: see `entropy`.
    """
    positive, negative = log_odds.sigmoid(), (-log_odds).sigmoid()
    surprise = positive * F.logsigmoid(log_odds) + negative * F.logsigmoid(-log_odds)
    each = masked_mean(-surprise.sum(dim=1), valid)
    weights = log_odds.new_ones(log_odds.shape[0]) if valid is None else valid.to(log_odds.dtype)
    weights = weights / weights.sum().clamp_min(1)
    both = torch.stack([negative, positive], dim=2)  # (n, bits, 2)
    together = sum(
        entropy(_mean_assignment(part, weights), floor, offset) for part in both.tensor_split(groups, dim=1)
    )
    return each, together


def _mean_assignment(bits, weights):
    """Weighted mean over rows of the product of bits (n, bits, 2): (2^bits,)."""
    first, second = (_product(half) for half in bits.tensor_split(2, dim=1))
    return ((first * weights[:, None]).T @ second).flatten()


def _product(bits):
    """Probabilities (n, 2^bits) of all combinations of bits (n, bits, 2)."""
    table = bits.new_ones(bits.shape[0], 1)
    for bit in bits.unbind(dim=1):
        table = (table[:, :, None] * bit[:, None]).flatten(1)
    return table

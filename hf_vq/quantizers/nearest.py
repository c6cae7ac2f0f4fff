"""The one nearest-code search: exact float32 decisions, memory that grows with N and never with N x K."""

import functools
import importlib
import importlib.util

import torch
import torch.nn.functional as F

_SCORES_PER_BLOCK = {"cpu": 1 << 20, "other": 1 << 26}  # floats at a time; on a CPU they stay near the cache
_PAIRS_PER_BLOCK = 1 << 16  # (row, code) pairs that are compared exactly at a time


def nearest_codes(latents: torch.Tensor, codebook: torch.Tensor, metric: str = "euclidean") -> torch.Tensor:
    """Index of the codebook vector with the smallest distance to each row, or with the largest dot product.

    Scores come from blocks of one matmul; a row whose best two codes are closer than rounding could decide is
    compared again in float64, so the answer depends neither on the batch around a row nor on the autocast. Of equal
    distances the lowest index wins.

    Args:
        latents: (rows, dim) floating point; half precision is compared in float32.
        codebook: (codebook_size, dim).
        metric: "euclidean", or "dot": the largest dot product.

    Returns:
        (rows,) int64.

    Raises:
        RuntimeError: latents hold NaN or infinity (on the CPU; on a GPU such rows answer 0).
    """
    exact = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    return _nearest(latents.detach().to(exact), codebook.detach().to(exact), metric == "dot")


@torch.library.custom_op("hf_vq::nearest_codes", mutates_args=())
def _nearest(latents: torch.Tensor, codebook: torch.Tensor, dot: bool) -> torch.Tensor:
    with torch.autocast(latents.device.type, enabled=False), _full_float32():
        lengths = torch.linalg.vector_norm(latents, dim=1)
        if latents.device.type == "cpu" and not lengths.sum().isfinite():
            _check_finite(latents)
        rounding = _rounding(lengths, codebook)
        if latents.is_cuda and latents.dtype == torch.float32 and len(latents) and fused_search() is not None:
            return torch.where(lengths.isfinite(), search_fused(latents, codebook, rounding, dot), 0)
        return _search(latents, codebook, rounding, dot)


@functools.cache
def fused_search():
    """The module with the Triton kernel, or None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("hf_vq.quantizers.nearest_triton")


def search_fused(latents, codebook, rounding, dot):
    """The search by the Triton kernel: `_search` decides the rows that rounding leaves open."""
    biased = torch.cat([codebook, _biases(codebook, dot)[:, None]], dim=1)
    best, codes, second = fused_search().best_two(latents, biased)
    close = (second >= best - rounding).nonzero()[:, 0]
    codes[close] = _search(latents[close], codebook, rounding[close], dot)
    return codes


def _search(latents, codebook, rounding, dot):
    none = torch.empty(0, dtype=torch.int64, device=latents.device)
    return torch.cat([none, *_search_blocks(latents, codebook, rounding, dot)])


def _biases(codebook, dot):
    """What each code adds to x.e so that the largest is the nearest: x.e - |e|^2 / 2 falls with |x - e|^2."""
    return codebook.new_zeros(codebook.shape[0]) if dot else -0.5 * codebook.square().sum(dim=1)


def _search_blocks(latents, codebook, rounding, dot):
    """Codes of one block of rows after the other."""
    codebook_size = codebook.shape[0]
    # columns of scores are faster where there are many codes, rows of scores where there are few (both measured)
    by_column = codebook_size >= 4096
    members = 1 if codebook_size < 256 else 64 if by_column else 16
    padding = -codebook_size % members
    biases = _biases(codebook, dot)
    if padding:
        biases, codebook = F.pad(biases, (0, padding), value=-torch.inf), F.pad(codebook, (0, 0, 0, padding))
    size = codebook.shape[0]
    scores_per_block = _SCORES_PER_BLOCK["cpu" if latents.device.type == "cpu" else "other"]
    rows_per_block = max(1, min(len(latents), scores_per_block // size))
    buffer = latents.new_empty(rows_per_block * size)
    for start in range(0, len(latents), rows_per_block):
        block, slack = latents[start : start + rows_per_block], rounding[start : start + rows_per_block]
        out = buffer[: size * len(block)]
        if by_column:  # groups of neighbours
            columns = torch.addmm(biases[:, None], codebook, block.T, out=out.view(size, -1))
            group_best = columns.unflatten(0, (-1, members)).amax(dim=1).T
            scores, steps = columns.T, (1, members)
        else:  # groups of codes that lie `size / members` apart
            scores = torch.addmm(biases, block, codebook.T, out=out.view(-1, size))
            group_best = scores.unflatten(1, (members, -1)).amax(dim=1)
            steps = (size // members, 1)
        best, codes, second = _best_two(scores, group_best, members, *steps)
        unsure = second >= best - slack
        if unsure.any():
            rows = unsure.nonzero()[:, 0]
            rivals = scores[rows, :codebook_size] >= (best - slack)[rows, None]
            codes[rows] = _decide_exactly(block[rows], codebook[:codebook_size], rivals, dot)
        yield codes


def _best_two(scores, group_best, members, member_step, group_step):
    """Best score of each row, its code, and the second best score, without another pass over all scores.

    Args:
        scores: (rows, codes).
        group_best: (rows, groups), the best score of each group of codes.
        members: codes of a group; code = member_step x member + group_step x group.
    """
    best, group = group_best.max(dim=1)
    places = group_step * group[:, None] + member_step * torch.arange(members, device=scores.device)
    inside = scores.gather(1, places)  # (rows, members)
    member = inside.max(dim=1).indices
    group_best.scatter_(1, group[:, None], -torch.inf)
    inside.scatter_(1, member[:, None], -torch.inf)
    second = torch.maximum(group_best.amax(dim=1), inside.amax(dim=1))
    return best, group_step * group + member_step * member, second


def _check_finite(latents):
    bad = (~torch.isfinite(latents).all(dim=1)).sum().item()
    if bad:
        raise RuntimeError(f"latents: {bad} of {len(latents)} vectors hold NaN or infinity: the encoder diverged")


@_nearest.register_fake
def _(latents, codebook, dot):
    return torch.empty(latents.shape[0], dtype=torch.int64, device=latents.device)


def widest_float(device):
    """float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rounding(lengths, codebook):
    """A bound, per row, on how far two of its scores can lie apart by rounding alone."""  # (rows,)
    longest = torch.linalg.vector_norm(codebook, dim=1).amax()
    return longest * (lengths + longest) * torch.finfo(lengths.dtype).eps * (4 + 2 * codebook.shape[1] ** 0.5)


def _decide_exactly(latents, codebook, rivals, dot):
    """The nearest code of each row among its rivals, by differences in the widest float.

    Args:
        latents: (rows, dim).
        codebook: (codebook_size, dim).
        rivals: (rows, codebook_size) bool.
        dot: compare dot products instead.
    """

    def distance(rows, codes):
        rows, codes = latents[rows].to(wide), codebook[codes].to(wide)
        return -(rows * codes).sum(dim=1) if dot else (rows - codes).square().sum(dim=1)

    rows, codes = rivals.nonzero(as_tuple=True)
    wide = widest_float(latents.device)
    distances = torch.cat(
        [distance(r, c) for r, c in zip(rows.split(_PAIRS_PER_BLOCK), codes.split(_PAIRS_PER_BLOCK), strict=True)]
    )
    smallest = distances.new_full((latents.shape[0],), float("inf")).scatter_reduce(0, rows, distances, "amin")
    codes = torch.where(distances == smallest[rows], codes, codebook.shape[0] - 1)
    return codes.new_full((latents.shape[0],), codebook.shape[0] - 1).scatter_reduce(0, rows, codes, "amin")


class _full_float32:
    """Within it float32 matmuls on a GPU use float32, not TF32."""

    def __enter__(self):
        self.before = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "ieee"

    def __exit__(self, *error):
        torch.backends.cuda.matmul.fp32_precision = self.before

"""The one nearest-code search: exact float32 decisions, memory that grows with N and never with N x K."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F

_SCORES_PER_TILE = 1 << 20  # floats at a time: they stay near a CPU's cache
_CODES_PER_TILE = 1 << 14
_PAIRS_PER_BLOCK = 1 << 16  # (row, code) pairs that are compared exactly at a time
_MANY_RIVALS = 4  # of a row, on average: then codes that are copies are looked for


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
        fused = fused_search() if latents.is_cuda and latents.dtype == torch.float32 else None
        middle = None if dot else _far_middle(codebook)
        if middle is not None:  # differences of what lies close together are exact, their products far from rounding
            latents, codebook = latents - middle, codebook - middle
            lengths = torch.where(lengths.isfinite(), torch.linalg.vector_norm(latents, dim=1), lengths)
        codes = search(latents, codebook, lengths, dot, best_two if fused is None else fused.best_two)
        return codes if latents.device.type == "cpu" else torch.where(lengths.isfinite(), codes, 0)


@functools.cache
def fused_search() -> ModuleType | None:
    """The module with the Triton kernel, or None where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module("hf_vq.quantizers.nearest_triton")


def search(
    latents: torch.Tensor,
    codebook: torch.Tensor,
    lengths: torch.Tensor,
    dot: bool,
    best_two: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The codes of the best scores; where the second best is as good as the best but for rounding, the exact best.

    Args:
        latents: (rows, dim).
        codebook: (codebook_size, dim).
        lengths: (rows,) of the latents.
        dot: compare dot products.
        best_two: what finds best scores, their codes and second best scores.
    """
    # a code adds to x.e what makes the largest the nearest: x.e - |e|^2 / 2 falls with |x - e|^2
    norms = torch.linalg.vector_norm(codebook, dim=1)  # without a copy of the codebook, as squares would be
    biases = torch.zeros_like(norms) if dot else -0.5 * norms.square()
    best, codes, second = best_two(latents, codebook, biases)
    rounding = _rounding(lengths, norms.amax(), codebook.shape[1])
    close = (second >= best - rounding).nonzero()[:, 0]
    firsts = None
    for rows in close.split(max(1, _SCORES_PER_TILE // len(codebook))) if len(close) else ():
        scores = torch.addmm(biases, latents[rows], codebook.T)
        rivals = scores >= (scores.amax(dim=1) - rounding[rows])[:, None]
        if rivals.sum() > _MANY_RIVALS * len(rows):
            firsts = _first_of_copies(codebook) if firsts is None else firsts
            rivals &= firsts
        codes[rows] = _decide_exactly(latents[rows], codebook, rivals, dot)
    return codes


def best_two(
    latents: torch.Tensor, codebook: torch.Tensor, biases: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Best score of each row, its code, and the second best score, tile by tile.

    Args:
        latents: (rows, dim).
        codebook: (codebook_size, dim).
        biases: (codebook_size,), added to the dot products.
    """
    rows = len(latents)
    best, second = latents.new_full((2, rows), -torch.inf)
    codes = torch.zeros(rows, dtype=torch.int64, device=latents.device)
    # columns of scores are faster where there are many codes, rows of scores where there are few (both measured)
    by_column = len(codebook) >= 4096
    members = 64 if by_column else 16 if len(codebook) >= 256 else 4
    padding = -len(codebook) % members
    if padding:
        codebook, biases = F.pad(codebook, (0, 0, 0, padding)), F.pad(biases, (0, padding), value=-torch.inf)
    size = min(len(codebook), _CODES_PER_TILE)
    buffer = latents.new_empty(size * min(rows, _SCORES_PER_TILE // size))
    for first in range(0, len(codebook), size):
        vectors, added = codebook[first : first + size], biases[first : first + size]
        for start in range(0, rows, _SCORES_PER_TILE // size):
            block = slice(start, min(rows, start + _SCORES_PER_TILE // size))
            tile = _score_by_column if by_column else _score_by_row
            out = buffer[: len(vectors) * (block.stop - start)]
            tile_best, tile_codes, tile_second = _two_of(*tile(latents[block], vectors, added, members, out))
            runner_up = torch.minimum(best[block], tile_best)
            second[block] = torch.maximum(torch.maximum(second[block], tile_second), runner_up)
            codes[block] = torch.where(tile_best > best[block], tile_codes + first, codes[block])
            best[block] = torch.maximum(best[block], tile_best)
    return best, codes, second


def _score_by_column(rows, vectors, biases, members, out):
    """Scores (rows, codes), the best of each group of neighbours (rows, groups), and the steps between codes."""
    columns = torch.addmm(biases[:, None], vectors, rows.T, out=out.view(len(vectors), -1))
    return columns.T, columns.unflatten(0, (-1, members)).amax(dim=1).T, 1, members


def _score_by_row(rows, vectors, biases, members, out):
    """The same, where the codes of a group lie `codes / members` apart."""
    scores = torch.addmm(biases, rows, vectors.T, out=out.view(len(rows), -1))
    return scores, scores.unflatten(1, (members, -1)).amax(dim=1), len(vectors) // members, 1


def _two_of(scores, group_best, member_step, group_step):
    """Best score of each row, its code, and the second best score, without another pass over all scores.

    Args:
        scores: (rows, codes).
        group_best: (rows, groups), the best score of each group.
        member_step, group_step: code = member_step x member + group_step x group.
    """
    members = scores.shape[1] // group_best.shape[1]
    best, group = group_best.max(dim=1)
    places = group_step * group[:, None] + member_step * torch.arange(members, device=scores.device)
    inside = scores.gather(1, places)  # (rows, members)
    member = inside.max(dim=1).indices
    group_best.scatter_(1, group[:, None], -torch.inf)
    inside.scatter_(1, member[:, None], -torch.inf)
    second = torch.maximum(group_best.amax(dim=1), inside.amax(dim=1))
    return best, group_step * group + member_step * member, second


def _far_middle(codebook):
    """The mean code, (dim,), where it is longer than the codes are far from it: all would look alike. Else None."""
    middle = codebook.mean(dim=0)
    spread = codebook.square().mean(dim=0).sum() - middle.square().sum()
    return middle if middle.square().sum() > spread else None


def _check_finite(latents):
    bad = (~torch.isfinite(latents).all(dim=1)).sum().item()
    if bad:
        raise RuntimeError(f"latents: {bad} of {len(latents)} vectors hold NaN or infinity")


@_nearest.register_fake
def _(latents, codebook, dot):
    return torch.empty(latents.shape[0], dtype=torch.int64, device=latents.device)


def _first_of_copies(codebook):
    """Which codes, (codebook_size,) bool, are not copies of one before them: no copy is ever the answer."""
    alike = torch.unique(codebook, dim=0, return_inverse=True)[1]
    places = torch.arange(len(codebook), device=codebook.device)
    return torch.full_like(places, len(codebook)).scatter_reduce(0, alike, places, "amin")[alike] == places


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rounding(lengths, longest, dim):
    """A bound, per row, on how far two of its scores can lie apart by rounding alone."""  # (rows,)
    return longest * (lengths + longest) * torch.finfo(lengths.dtype).eps * (4 + 2 * dim**0.5)


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

"""The one nearest-code search: exact float32 decisions, memory that grows with N and never with N x K."""

import torch

_SCORES_PER_BLOCK = 1 << 21  # floats of one block of scores (8 MiB): stays near the cache
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
    if latents.device.type == "cpu" and not torch.isfinite(latents).all():
        bad = (~torch.isfinite(latents).all(dim=1)).sum().item()
        raise RuntimeError(f"latents: {bad} of {latents.shape[0]} vectors hold NaN or infinity: the encoder diverged")
    codes = torch.empty(latents.shape[0], dtype=torch.int64, device=latents.device)
    rows_per_block = max(1, _SCORES_PER_BLOCK // codebook.shape[0])
    with torch.autocast(latents.device.type, enabled=False), _full_float32():
        half_norms = codebook.new_zeros(codebook.shape[0]) if dot else -0.5 * codebook.square().sum(dim=1)
        rounding = _rounding(latents, codebook)
        for start in range(0, latents.shape[0], rows_per_block):
            block = slice(start, start + rows_per_block)
            # largest x.e - |e|^2 / 2 is smallest |x - e|^2; `max` over rows is several times faster than `argmin`
            scores = torch.addmm(half_norms, latents[block], codebook.T)
            best, codes[block] = scores.max(dim=1)
            rivals = scores >= (best - rounding[block])[:, None]
            unsure = rivals.sum(dim=1) > 1
            if unsure.any():
                rows = unsure.nonzero()[:, 0]
                codes[rows + start] = _decide_exactly(latents[block][rows], codebook, rivals[rows], dot)
    return codes


@_nearest.register_fake
def _(latents, codebook, dot):
    return torch.empty(latents.shape[0], dtype=torch.int64, device=latents.device)


def widest_float(device):
    """float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _rounding(latents, codebook):
    """A bound, per row, on how far two of its scores can lie apart by rounding alone."""  # (rows,)
    longest = torch.linalg.vector_norm(codebook, dim=1).amax()
    scale = longest * (torch.linalg.vector_norm(latents, dim=1) + longest)
    return scale * torch.finfo(latents.dtype).eps * (4 + 2 * latents.shape[1] ** 0.5)


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

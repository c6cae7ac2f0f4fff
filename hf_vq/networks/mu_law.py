"""Waveforms as mu-law codes and back."""

from math import log1p

import torch

from hf_vq.arguments import checked
from hf_vq.grids import as_int64


@checked
def mu_law_encode(waveforms: torch.Tensor, codebook_size: int = 256) -> torch.Tensor:
    """Compress amplitudes by the mu-law and round them to codes (ITU-T G.711; https://arxiv.org/abs/1609.03499, 2.2).

    The law is the continuous one, sign(x) ln(1 + mu |x|) / ln(1 + mu) with mu = codebook_size - 1, not the piecewise
    linear approximation of telephone hardware.

    Args:
        waveforms: float in [-1, 1], any shape.
        codebook_size: number of codes, at least 2.

    Returns:
        int64 of the same shape, in [0, codebook_size); monotonic in the amplitude.

    Raises:
        ValueError: amplitudes that are not floats in [-1, 1], or fewer than 2 codes.
    """
    _check_size(codebook_size)
    if not waveforms.is_floating_point():
        raise ValueError(f"waveforms must be floats, got {waveforms.dtype}")
    waveforms = waveforms.to(torch.promote_types(waveforms.dtype, torch.float32))
    if not (waveforms.abs() <= 1).all():
        raise ValueError(f"waveforms must be in [-1, 1], got a largest magnitude of {waveforms.abs().max().item()}")
    mu = codebook_size - 1
    compressed = waveforms.sign() * torch.log1p(mu * waveforms.abs()) / log1p(mu)  # in [-1, 1]
    return ((compressed + 1) / 2 * mu + 0.5).floor().to(torch.int64)


@checked
def mu_law_decode(codes: torch.Tensor, codebook_size: int = 256) -> torch.Tensor:
    """Amplitudes of mu-law codes, the inverse of `mu_law_encode` up to rounding; encoding them gives the codes again.

    Args:
        codes: of any integer type, in [0, codebook_size), any shape.
        codebook_size: number of codes, at least 2.

    Returns:
        float32 of the same shape, in [-1, 1].

    Raises:
        ValueError: codes of another type or out of range, or fewer than 2 codes.
    """
    _check_size(codebook_size)
    codes = as_int64("codes", codes)
    if ((codes < 0) | (codes >= codebook_size)).any():
        raise ValueError(f"codes must be in [0, {codebook_size}), got {codes.min().item()} to {codes.max().item()}")
    mu = codebook_size - 1
    compressed = codes / mu * 2 - 1
    return (compressed.sign() * torch.expm1(compressed.abs() * log1p(mu)) / mu).clamp(-1, 1)


def _check_size(codebook_size: int) -> None:
    if codebook_size < 2:
        raise ValueError(f"codebook_size must be at least 2, got {codebook_size}")

"""Code vectors by index and its transpose, sums of rows by code: operators that torch.compile does not look into.

Left to inductor, a lookup's gradient on the CPU can write beyond its tensor (pytorch/pytorch#191837).
"""

import torch
import torch.nn.functional as F


def lookup(codes: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Vectors (*codes.shape, dim) of codes in a codebook (codebook_size, dim); differentiable in the codebook."""
    return _lookup(codes, codebook)


def sum_by_code(rows: torch.Tensor, codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Sum of the rows (n, dim) or (n,) that took each code: (codebook_size, dim) or (codebook_size,)."""
    return _sum_by_code(rows, codes, codebook_size)


@torch.library.custom_op("hf_vq::lookup", mutates_args=())
def _lookup(codes: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return F.embedding(codes, codebook)


@_lookup.register_fake
def _(codes, codebook):
    return codebook.new_empty(*codes.shape, codebook.shape[1])


@torch.library.custom_op("hf_vq::sum_by_code", mutates_args=())
def _sum_by_code(rows: torch.Tensor, codes: torch.Tensor, codebook_size: int) -> torch.Tensor:
    return rows.new_zeros(codebook_size, *rows.shape[1:]).index_add_(0, codes, rows)


@_sum_by_code.register_fake
def _(rows, codes, codebook_size):
    return rows.new_empty(codebook_size, *rows.shape[1:])


def _keep_codes(ctx, inputs, output):
    ctx.codes, ctx.codebook_size = inputs[0], inputs[1].shape[0]


def _lookup_backward(ctx, grad):
    return None, sum_by_code(grad.flatten(0, -2), ctx.codes.flatten(), ctx.codebook_size)


_lookup.register_autograd(_lookup_backward, setup_context=_keep_codes)

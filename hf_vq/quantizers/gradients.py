"""How gradients pass a quantizer, and means that leave padding out."""

from typing import Any

import torch
import torch.nn.functional as F

SHORTEST = 1e-12  # length of a vector below which its direction is noise


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """The value of `quantized`, to the last bit, with the gradient of `latents` (VQ-VAE, section 3.2)."""
    return quantized.detach() + (latents - latents.detach())


def rotate(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """The value of `quantized` with the gradient of the rotation and scaling that carries the latent there.

    The rotation trick (https://arxiv.org/abs/2410.06424, section 4.2): angle and ratio of norms count as constants.

    Args:
        latents, quantized: (n, dim).
    """
    rows, target = latents.detach(), quantized.detach()
    length = rows.norm(dim=1, keepdim=True).clamp_min(1e-6)
    scale = target.norm(dim=1, keepdim=True) / length
    source, target_direction = rows / length, F.normalize(target, dim=1, eps=1e-6)
    mirror = F.normalize(source + target_direction, dim=1, eps=1e-6)
    rotated = (
        latents
        - 2 * (latents * mirror).sum(dim=1, keepdim=True) * mirror
        + 2 * (latents * source).sum(dim=1, keepdim=True) * target_direction
    )
    return straight_through(scale * rotated, target)


def directions(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (n, dim) scaled to length 1.

    Those of 1e-12 or less have no direction: they stay shorter and get no gradient, which would be that of the length
    divided by 1e-12.
    """
    short = torch.linalg.vector_norm(vectors.detach(), dim=1, keepdim=True) <= SHORTEST
    return F.normalize(torch.where(short, vectors.detach(), vectors), dim=1, eps=SHORTEST)


class Widened(torch.autograd.Function):
    """Half precision to float32; the gradient of what is beyond half precision is its largest number, not infinity."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.dtype = tensor.dtype
        return tensor.float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        largest = torch.finfo(ctx.dtype).max
        return gradient.clamp(-largest, largest).to(ctx.dtype)


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float32 where it was in half precision, see `Widened`; others as they are."""
    return Widened.apply(tensor) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def masked_mean(values: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Mean of the valid ones of values (n,); 0 where there are none.

    Args:
        valid: (n,) bool; None: all.
    """
    if valid is None:
        return values.sum() / max(values.shape[0], 1)
    return torch.where(valid, values, 0).sum() / valid.sum().clamp_min(1)


def masked_mse(input: torch.Tensor, target: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared error of the valid rows of input and target, (n, dim)."""
    return masked_mean((input - target).square().mean(dim=1), valid)

"""What every quantizer answers, and what every quantizer needs: rows, masked means, state that stays float32."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class QuantizerOutput(ModelOutput):
    """Result of a quantizer.

    Attributes:
        latents: (batch, dim, *grid) quantized; the gradient passes straight through.
        codes: (batch, *grid) int64; (batch, levels, *grid) where there are levels.
        loss: scalar, the weighted sum of this quantizer's terms.
        losses: the terms by name, before weighting.
    """

    latents: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


class Quantizer(nn.Module):
    """Base of all quantizers: latents (batch, dim, *grid) to codes (batch, *grid) and back."""

    num_levels = 1

    def _apply(self, fn, recurse=True):
        """Moves to a device, never to half precision: averages and codebooks stay at least float32.

        (A bfloat16 average of the constant 10 stops at 4.0 with decay 0.999.)
        """

        def move(tensor):
            moved = fn(tensor)
            if moved.dtype in (torch.float16, torch.bfloat16):
                moved = tensor.to(device=moved.device)
            return moved

        return super()._apply(move, recurse)

    def to_rows(self, latents):
        """(batch, dim, *grid) -> (batch x positions, dim), at least float32."""
        if latents.ndim < 2 or latents.shape[1] != self.dim:
            raise ValueError(f"latents must be (batch, {self.dim}, *grid), got shape {tuple(latents.shape)}")
        rows = latents.movedim(1, -1).reshape(-1, self.dim)
        return rows.to(torch.promote_types(rows.dtype, torch.float32))

    def check_mask(self, latents, padding_mask):
        """The mask as flat rows, (batch x positions,) bool, or None."""
        if padding_mask is None:
            return None
        expected = (latents.shape[0], *latents.shape[2:])
        if padding_mask.dtype != torch.bool or tuple(padding_mask.shape) != expected:
            raise ValueError(
                f"padding_mask must be bool of shape {expected} (True = real), got {padding_mask.dtype} of shape "
                f"{tuple(padding_mask.shape)}"
            )
        return padding_mask.reshape(-1)


def to_grid(rows, latents):
    """Rows (batch x positions, dim) back to the shape and dtype of `latents`."""
    return rows.view(latents.shape[0], *latents.shape[2:], -1).movedim(-1, 1).to(latents.dtype)


def masked_mse(input, target, valid=None):
    """Mean squared error of the valid rows.

    Args:
        input, target: (n, dim).
        valid: (n,) bool; None: all.
    """
    error = (input - target).square().mean(dim=1)
    if valid is None:
        return error.mean()
    return torch.where(valid, error, 0).sum() / valid.sum().clamp_min(1)


def straight_through(latents, quantized):
    """The value of `quantized`, to the last bit, with the gradient of `latents` (VQ-VAE, section 3.2)."""
    return quantized.detach() + (latents - latents.detach())


def check_positive_int(**values):
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_range(low, high, **values):
    """Each value must lie in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value!r}")

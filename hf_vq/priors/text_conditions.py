"""Text as a condition: the states of a text encoder, and which of them are words."""

import math
from typing import Any

import torch

from hf_vq.priors.conditions import Condition

TEXT, TEXT_MASK = "encoder_hidden_states", "encoder_attention_mask"  # as of diffusers' models


class TextCondition(Condition):
    """States of a text encoder, `encoder_hidden_states` (batch, length, width) floats.

    Where training or guidance leaves a text out, NaN stands in its place until the network is reached, which puts
    its null text there: `fill_text`.

    Args:
        width: of a state; 0 is a prior without text.
        length: states of every text; 0: any, the same in a batch.
        dropout_prob: see `Condition`.
    """

    def __init__(self, width: int, length: int, dropout_prob: float = 0.0):
        super().__init__(
            TEXT,
            taken=width > 0,
            having=f"has cross_attention_dim={width}",
            lacking="has no text (cross_attention_dim=0)",
            dropout_prob=dropout_prob,
        )
        self.width, self.length, self.null_value = width, length, math.nan  # type: ignore[assignment]

    def check_value(self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None) -> torch.Tensor:
        value = torch.as_tensor(value)
        if not value.is_floating_point():
            raise ValueError(f"encoder_hidden_states must be floats, got {value.dtype}")
        fits = (
            value.ndim == 3 and value.numel() and self.length in (0, value.shape[1]) and value.shape[2] == self.width
        )
        if not fits or batch_size not in (None, len(value)):
            wanted = f"({batch_size or 'batch'}, {self.length or 'length'}, {self.width})"
            raise ValueError(f"encoder_hidden_states must be {wanted}, got {tuple(value.shape)}")
        if not torch.compiler.is_compiling() and not value.isfinite().all():
            raise ValueError("encoder_hidden_states must be finite, got NaN or infinity")
        return value


class TextMaskCondition(Condition):
    """Which states of a text count, `encoder_attention_mask` (batch, length), 1 or True where they do; all if absent.

    Args:
        taken: see `Condition`.
    """

    def __init__(self, taken: bool):
        super().__init__(TEXT_MASK, taken, lacking="has no text (cross_attention_dim=0)", optional=True)

    def check_value(self, value: Any, batch_size: int | None, code_shape: tuple[int, ...] | None) -> torch.Tensor:
        value = torch.as_tensor(value)
        value = value if value.dtype == torch.bool else self.check_integers(value)
        if value.ndim != 2 or value.numel() == 0 or batch_size not in (None, len(value)):
            raise ValueError(f"{self.name} must be ({batch_size or 'batch'}, length), got {tuple(value.shape)}")
        if not torch.compiler.is_compiling() and ((value != 0) & (value != 1)).any():
            raise ValueError(f"{self.name} must be 0 or 1, got values from {value.min()} to {value.max()}")
        if not torch.compiler.is_compiling() and (value == 0).all(dim=1).any():
            raise ValueError(f"{self.name} must leave at least one state of every text, got a row of zeros")
        return value


def fill_text(
    states: torch.Tensor, mask: torch.Tensor | None, null_text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Puts the null text where there is none.

    Args:
        states: (batch, length, width), NaN where a text is left out.
        mask: (batch, length) of 0 and 1, or None.
        null_text: (length, width), or of one state, which then stands for all.

    Returns:
        The states, and the mask as bool, all of which counts in the null text.
    """
    absent = states[:, :1, :1].isnan()  # (batch, 1, 1)
    states = torch.where(absent, null_text.to(states.dtype), states)
    return states, None if mask is None else mask.bool() | absent[..., 0]

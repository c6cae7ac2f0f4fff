"""What a prior's sequence is made of: how its elements are checked, drawn from logits and rated by them."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F

from hf_vq.priors.inputs import IGNORED, check_values
from hf_vq.priors.sampling import sample_codes

IMPOSSIBLE = -104.0  # nats: a smaller log-probability is 0 in float32, such as that of a masked code


class Tokens(Protocol):
    """The elements of the grids of an `AutoregressivePrior`, and what its logits say of them.

    Attributes:
        known_name: of the option of `sample` that keeps given elements.
        dtype: of drawn grids.
        draws: uniform numbers that one element takes.
    """

    known_name: str
    dtype: torch.dtype
    draws: int

    def check(self, grids: torch.Tensor, labels: torch.Tensor | None, grid_dims: int) -> None:
        """Raise a `ValueError` unless grids (batch, *grid), and targets where given, are such elements.

        Codes come as int64, whatever integers were given: the prior has read them.
        """

    def check_known(self, known: torch.Tensor, mask: torch.Tensor, shape: tuple[int, ...]) -> None:
        """Raise a `ValueError` unless known elements of this shape are such where the mask is True."""

    def nats(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        """Negative log-probabilities of targets (batch, *grid), 0 where ignored; "mean" is over those not ignored."""

    def draw(self, logits: torch.Tensor, uniforms: torch.Tensor, **options: Any) -> torch.Tensor:
        """Elements (batch,) from logits (batch, ...) and numbers in [0, 1): (batch,), or (draws, batch) of several."""

    def others(self, elements: torch.Tensor) -> torch.Tensor:
        """Elements that differ from those of (batch, count) wherever there are others."""

    def comparable(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits (..., k) as numbers (..., k) that are equal where, and differ as much as, the distributions do.

        Log-probabilities are at least `IMPOSSIBLE`; NaN where logits are NaN or give no distribution.
        """


class CodeTokens:
    """Codes in [0, codebook_size), of which logits are those of a softmax; `Tokens` says what the methods do."""

    known_name, dtype, draws = "known_codes", torch.int64, 1

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size

    def check(self, grids: torch.Tensor, labels: torch.Tensor | None, grid_dims: int) -> None:
        if grids.ndim != 1 + grid_dims or grids.numel() == 0:
            raise ValueError(f"codes must be (batch, *grid) with {grid_dims} grid axes, got {tuple(grids.shape)}")
        check_values("codes", grids, self.codebook_size)
        if labels is None:
            return
        if labels.shape != grids.shape:
            raise ValueError(f"labels must have the shape of codes {tuple(grids.shape)}, got {tuple(labels.shape)}")
        check_values("labels", labels.masked_fill(labels == IGNORED, 0), self.codebook_size)

    def check_known(self, known: torch.Tensor, mask: torch.Tensor, shape: tuple[int, ...]) -> None:
        if known.shape != shape:
            raise ValueError(f"known_codes must be {shape}, got {tuple(known.shape)}")
        check_values("known_codes", known.masked_fill(~mask, 0), self.codebook_size)

    def nats(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.movedim(-1, 1), targets, ignore_index=IGNORED, reduction=reduction)

    def draw(self, logits: torch.Tensor, uniforms: torch.Tensor, **options: Any) -> torch.Tensor:
        return sample_codes(logits, uniforms, **options)

    def others(self, elements: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(elements.shape[1], device=elements.device) % max(1, self.codebook_size - 1)
        return (elements + 1 + steps) % self.codebook_size

    def comparable(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.log_softmax(dim=-1).clamp(min=IMPOSSIBLE)

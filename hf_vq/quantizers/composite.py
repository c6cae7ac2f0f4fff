"""What quantizers made of quantizers share."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import nn

from hf_vq.quantizers.base import Quantizer, read_codes
from hf_vq.quantizers.registry import make_quantizer
from hf_vq.ranges import Codebook, Depth, OneOf, QuantizerType, Width

MOST_VECTORS = 2**24  # that a table of code vectors may have


class CompositeQuantizer(Quantizer):
    """Base of quantizers whose parts, `levels`, are quantizers of rows; with one level codes have no axis for it.

    Args:
        codebook_size: number of codes of each level.
        dim: width of the latents.
        num_parts: quantizers in `levels`.
        part_dim: width of what a part quantizes.
        part_type: their `quantizer_type`.
        part_config: their options.
        code_dim: see `Quantizer`.
        loss_reduction: "mean" or "sum" of the parts' losses.
    """

    levels: Any  # nn.ModuleList of quantizers
    lowest_code = 0
    can_be_level = False
    _codebook_updates = "forward"

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        num_parts: Depth,
        part_dim: Width,
        part_type: QuantizerType,
        part_config: dict | None,
        code_dim: Width | None = None,
        loss_reduction: Annotated[str, OneOf(("mean", "sum"))] = "mean",
    ):
        super().__init__(codebook_size, dim, code_dim)
        self.loss_reduction = loss_reduction
        self.levels = nn.ModuleList(
            make_quantizer(part_type, codebook_size, part_dim, part_config) for _ in range(num_parts)
        )

    @property  # type: ignore[misc]  # set by none: its parts tell
    def initialized(self) -> bool:
        return all(part.initialized for part in self.levels) and (self.fitted is None or self.fitted.started)

    @property
    def started(self) -> bool:
        return all(part.started for part in self.levels)

    @property
    def bits_per_token(self) -> float:
        return self.num_levels * self.levels[0].bits_per_token / self.levels[0].num_levels

    @property
    def codebook_updates(self) -> str:
        return self._codebook_updates

    @codebook_updates.setter
    def codebook_updates(self, mode: str) -> None:
        self._codebook_updates = mode
        for part in self.levels:
            part.codebook_updates = mode

    def update_codebook(self) -> None:
        super().update_codebook()
        for part in self.levels:
            part.update_codebook()

    def resize(self, codebook_size: int) -> torch.Tensor:
        """Resizes every codebook; see `CodebookSurgery`.

        Returns:
            (codebooks, codebook_size) int64, the origins of every codebook's codes.
        """
        origins = torch.stack([part.resize(codebook_size) for part in self.levels])
        self.codebook_size = codebook_size
        return origins.flatten(0, -2)

    @torch.no_grad()
    def code_vectors(self) -> torch.Tensor:
        """What the codes of each level add to the latents, (num_levels, codebook_size, dim).

        Where it is the same at all levels, as of one codebook for all, (1, codebook_size, dim).

        Raises:
            ValueError: levels behind a linear map, whose sum is not yet the latents, or more codes than a table holds.
        """
        if self.codebook_size > MOST_VECTORS:
            raise ValueError(
                f"codebook_size={self.codebook_size} is too large for a table of code vectors (at most {MOST_VECTORS})"
            )
        if not isinstance(self.project_out, nn.Identity):
            raise ValueError("codes have no vectors that add up to latents where the quantizer has a code_dim")
        vectors = self._level_vectors(torch.arange(self.codebook_size, device=self._one.device))
        return vectors[:1] if torch.equal(vectors, vectors[:1].expand_as(vectors)) else vectors

    def _level_vectors(self, codes):
        """Vectors (num_levels, n, dim) of codes (n,) at every level."""
        raise NotImplementedError

    def _reduce_losses(self, outputs: Sequence[Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and every term of several parts' outputs, as one loss."""
        count = len(outputs) if self.loss_reduction == "mean" else 1
        terms = [output.losses for output in outputs]
        losses = {name: sum(each[name] for each in terms) / count for name in terms[0]}
        return sum(output.loss for output in outputs) / count, losses

    def _check_levels(self, count):
        if count != self.num_levels:
            raise ValueError(f"codes must be (batch, {self.num_levels}, *grid), got {count} levels")

    def _code_grid(self, codes, latents):
        return super()._code_grid(codes[:, 0] if self.num_levels == 1 else codes, latents)

    def _code_rows(self, codes):
        codes = read_codes(codes, self.codebook_size, self.lowest_code)
        if self.num_levels == 1:
            return codes.reshape(-1, 1), codes.shape
        if codes.ndim < 2:
            raise ValueError(f"codes must be (batch, {self.num_levels}, *grid), got shape {tuple(codes.shape)}")
        self._check_levels(codes.shape[1])
        rows = codes.movedim(1, -1)
        return rows.reshape(-1, codes.shape[1]), rows.shape[:-1]

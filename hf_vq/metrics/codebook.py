"""How well a codebook is used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_vq.arguments import checked
from hf_vq.grids import as_int64
from hf_vq.metrics.counts import CodeCounts


@dataclass
class CodebookUsageOutput:
    """Use of one codebook, or of each level's in a list.

    Attributes:
        usage: share of the codes that occurred, in [0, 1].
        perplexity: exp of the entropy of the codes, in [1, codebook_size].
        dead_codes: how many codes never occurred.
        counts: (codebook_size,) int64, how often each occurred; (num_levels, codebook_size) with levels. Of a codebook
            of more than 2^20 codes, those that occurred alone, in order, one level after the other in one row.
    """

    usage: float | list[float]
    perplexity: float | list[float]
    dead_codes: int | list[int]
    counts: torch.Tensor


class CodebookUsage(nn.Module):
    """Counts codes over an epoch; the result depends neither on the batch size nor on the number of processes.

    Of a large codebook it keeps the codes that occurred alone: memory does not grow with `codebook_size`.

    Args:
        codebook_size: number of codes.
        num_levels: more than one for residual quantizers, whose codes are (batch, levels, *grid).
    """

    levels: Any  # nn.ModuleList of CodeCounts

    @checked
    def __init__(self, codebook_size: int, num_levels: int = 1):
        super().__init__()
        self.codebook_size, self.num_levels = codebook_size, num_levels
        self.levels = nn.ModuleList(CodeCounts(codebook_size) for _ in range(num_levels))

    def reset(self) -> None:
        for level in self.levels:
            level.reset()

    @torch.no_grad()
    def update(self, codes: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Adds codes, (batch, *grid) or (batch, levels, *grid), of any integer type.

        Args:
            mask: (batch, *grid) bool, the cells that count; None: all.

        Raises:
            ValueError: codes outside [0, codebook_size), or another number of levels.
        """
        codes = as_int64("codes", codes)
        if self.num_levels > 1 and (codes.ndim < 2 or codes.shape[1] != self.num_levels):
            raise ValueError(f"codes must be (batch, {self.num_levels}, *grid), got shape {tuple(codes.shape)}")
        for counts, level in zip(self.levels, codes.movedim(1, 0) if self.num_levels > 1 else [codes], strict=True):
            counts.add(level.reshape(-1) if mask is None else level[mask])

    @torch.no_grad()
    def compute(self) -> CodebookUsageOutput:
        """The use of all codes counted since `reset`, on all processes."""
        levels, size = [level.compute() for level in self.levels], self.codebook_size
        if self.levels[0].dense:
            counts = torch.stack(levels)
            perplexity, dead = _perplexity(counts).tolist(), (counts == 0).sum(dim=1).tolist()
            usage = [1 - d / size for d in dead]
        else:
            counts = torch.cat(levels)
            perplexity, dead = [_perplexity(level).item() for level in levels], [size - len(level) for level in levels]
            usage = [len(level) / size for level in levels]  # 1 minus so many dead ones' share would be 0
        if self.num_levels == 1:
            return CodebookUsageOutput(usage[0], perplexity[0], dead[0], levels[0])
        return CodebookUsageOutput(usage, perplexity, dead, counts)


class HierarchyUsage(nn.Module):
    """`CodebookUsage` of every quantizer of an autoencoder, one or several.

    Args:
        codebook_sizes: number of codes of every quantizer, coarse to fine.
        num_levels: levels of each quantizer.
    """

    parts: Any  # nn.ModuleList of CodebookUsage

    @checked
    def __init__(self, codebook_sizes: Sequence[int], num_levels: int = 1):
        super().__init__()
        self.parts = nn.ModuleList(CodebookUsage(size, num_levels) for size in codebook_sizes)

    def update(self, grids: Sequence[torch.Tensor], masks: Sequence[torch.Tensor | None] | None = None) -> None:
        """Adds codes.

        Args:
            grids: a tuple of the codes of every grid, coarse to fine.
            masks: of every grid, see `CodebookUsage.update`; None: all codes count.
        """
        for part, grid, mask in zip(self.parts, grids, masks or (None,) * len(self.parts), strict=True):
            part.update(grid, mask)

    def compute(self) -> CodebookUsageOutput:
        """The use of every level of every grid, lists of one entry per level, grid by grid."""
        outputs = [part.compute() for part in self.parts]
        if len(outputs) == 1 and self.parts[0].num_levels == 1:
            return outputs[0]
        return CodebookUsageOutput(
            usage=[value for output in outputs for value in _as_list(output.usage)],
            perplexity=[value for output in outputs for value in _as_list(output.perplexity)],
            dead_codes=[value for output in outputs for value in _as_list(output.dead_codes)],
            counts=torch.cat([output.counts.flatten() for output in outputs]),
        )


def _perplexity(counts):
    """exp of the entropy along the last axis."""
    share = counts.double() / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    return torch.special.entr(share).sum(dim=-1).exp()


def _as_list(value):
    return value if isinstance(value, list) else [value]

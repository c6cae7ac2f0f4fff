"""Product quantization: the channels are split into groups, each with its own codebook."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F

from hf_vq.quantizers.composite import CompositeQuantizer
from hf_vq.ranges import Codebook, Depth, OneOf, QuantizerType, Width
from hf_vq.registry import register


@register("product")
class ProductQuantizer(CompositeQuantizer):
    """Several codes per position, each for some of the channels (the ten codebooks of VQ-VAE's CIFAR-10 model).

    With `group_type="residual"` it is grouped residual quantization (HiFi-Codec, https://arxiv.org/abs/2305.02765).
    Codes are (batch, groups x levels, *grid), all levels of the first group first.

    Args:
        codebook_size: number of codes of each group.
        dim: width of the latents.
        groups: how many; they divide `dim`.
        group_type: the `quantizer_type` of a group.
        group_config: the options of a group's quantizer.
        loss_reduction: the loss is the "mean" over groups: where terms are mean squared errors over channels, that of
            all channels, whatever the number of groups. Or it is their "sum", where each group counts as a whole
            quantizer.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        groups: Depth = 2,
        group_type: QuantizerType = "ema",
        group_config: dict | None = None,
        loss_reduction: Annotated[str, OneOf(("mean", "sum"))] = "mean",
    ):
        if dim % groups:
            raise ValueError(f"groups must divide the width of the latents, {dim}; got {groups}")
        super().__init__(
            codebook_size, dim, groups, dim // groups, group_type, group_config, loss_reduction=loss_reduction
        )
        self.num_levels = sum(group.num_levels for group in self.levels)
        self.lowest_code = getattr(self.levels[0], "lowest_code", 0)

    @classmethod
    def part_types(cls, options: dict[str, Any]) -> dict[str, str]:
        return {"group_config": options.get("group_type", "ema")}

    def _quantize(self, rows, valid, counted, batch_size):
        outputs = [group(part, counted) for group, part in self._split(rows)]
        codes = torch.cat([_with_levels(output.codes) for output in outputs], dim=1)
        return torch.cat([output.latents for output in outputs], dim=1), codes, *self._reduce_losses(outputs)

    def _codes(self, rows):
        return torch.cat([_with_levels(group.tokenize(part)) for group, part in self._split(rows)], dim=1)

    def _vectors(self, codes):
        parts = zip(self.levels, codes.tensor_split(len(self.levels), dim=1), strict=True)
        return torch.cat(
            [group.detokenize(part if group.num_levels > 1 else part[:, 0]) for group, part in parts], dim=1
        )

    def _level_vectors(self, codes):
        blocks = []
        for index, group in enumerate(self.levels):
            own = group.code_vectors() if group.num_levels > 1 else group.detokenize(codes)[None]
            own = own.expand(group.num_levels, -1, -1)  # one codebook may serve all levels of a group
            width = own.shape[-1]
            blocks.append(F.pad(own, (index * width, self.dim - (index + 1) * width)))
        return torch.cat(blocks)

    def _initialize(self, rows):
        started = [group.initialize(part) for group, part in self._split(rows)]
        return any(started)

    def _split(self, rows):
        return zip(self.levels, rows.split(self.dim // len(self.levels), dim=1), strict=True)


def _with_levels(codes):
    """Codes of rows, (n,) or (n, levels), as (n, levels)."""
    return codes if codes.ndim == 2 else codes[:, None]

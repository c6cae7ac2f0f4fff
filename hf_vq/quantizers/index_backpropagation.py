"""A codebook whose every vector learns from every latent."""

from typing import Any

import torch
from torch import nn

from hf_vq.quantizers.codebook import CodebookQuantizer
from hf_vq.quantizers.entropy import in_chunks
from hf_vq.quantizers.gradients import masked_mse
from hf_vq.ranges import Codebook, Positive, Share, Weight, Width
from hf_vq.registry import register


@register("index_backpropagation")
class IndexBackpropagationQuantizer(CodebookQuantizer):
    """IBQ (https://arxiv.org/abs/2412.02692): the code of the largest dot product, with the softmax's gradient.

    The value is the code's vector e; the gradient is that of the mixture softmax(z E^T) E, so that it reaches all
    codes. loss = ||q - z||^2 + ||sg[e] - z||^2 + beta ||e - sg[z]||^2, where q is e with that gradient.

    Args:
        codebook_size: number of codes.
        dim: width of the latents.
        beta: weight of the codebook term, 0 or more.
        entropy_weight: of the entropy penalty, 0 or more. Configs that were saved without it mean 0, with which few
            codes come into use.
        code_dim, entropy_temperature, entropy_offset, diversity: see `CodebookQuantizer`.

    Raises:
        ValueError: an argument out of its range.
    """

    metric = "dot"
    stock_compatible = False
    can_be_level = False

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        beta: Weight = 0.25,
        code_dim: Width | None = None,
        entropy_weight: Weight = 0.05,
        entropy_temperature: Positive = 0.01,
        entropy_offset: Share = 0.0,
        diversity: Weight = 1.0,
    ):
        super().__init__(
            codebook_size,
            dim,
            beta=beta,
            kmeans_init=False,
            restart_threshold=0.0,
            code_dim=code_dim,
            entropy_weight=entropy_weight,
            entropy_temperature=entropy_temperature,
            entropy_offset=entropy_offset,
            diversity=diversity,
        )
        self.embedding = nn.Embedding(codebook_size, self.code_dim, _weight=self.first_codebook())

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """There was no entropy penalty."""
        return {"entropy_weight": 0.0}

    def _pass_gradient(self, rows, compared, quantized, codebook):
        def mix(rows):
            return ((rows @ codebook.T).softmax(dim=1) @ codebook.detach(),)

        mixtures = [mixture for (mixture,) in in_chunks(mix, compared, width=self.codebook_size)]
        mixture = torch.cat(mixtures)
        return quantized + (mixture - mixture.detach())

    def _losses(self, rows, quantized, passed, valid):
        losses = {
            "commitment": masked_mse(rows, quantized.detach(), valid),
            "codebook": masked_mse(quantized, rows.detach(), valid),
            "index": masked_mse(passed, rows, valid),
        }
        return losses["index"] + losses["commitment"] + self.beta * losses["codebook"], losses

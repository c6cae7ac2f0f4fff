"""Embeddings whose gradient is right however often a code occurs."""

import torch
import torch.nn.functional as F
from torch import nn

HALF = (torch.float16, torch.bfloat16)


class SummedEmbedding(nn.Embedding):
    """`nn.Embedding` that sums the gradient of a row in float32.

    In bfloat16 a sum of ones on the CPU ends at 256, since 257 is no bfloat16: a frequent code would learn as a rare
    one. The values and, in float32, everything are those of `nn.Embedding`.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        plain = self.padding_idx is None and self.max_norm is None and not self.sparse and not self.scale_grad_by_freq
        if self.weight.dtype in HALF and torch.is_grad_enabled() and plain:
            return F.embedding(input, self.weight.float()).to(self.weight.dtype)
        return super().forward(input)


def sum_in_float32(model: nn.Module) -> None:
    """Makes a `SummedEmbedding` of every plain `nn.Embedding` in a model, its own or of another library."""
    for module in model.modules():
        if type(module) is nn.Embedding:
            module.__class__ = SummedEmbedding

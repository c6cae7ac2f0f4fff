"""Layers of the conditioned transformer: a norm modulated by a number, attention to all positions, an MLP."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.networks.transformer import ACTIVATIONS, attend

LARGEST_TIME = 4000.0  # that of the last timestep, in the unit of sinusoids


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the timestep in geometric frequencies, the last timesteps at 4000.

    Args:
        num_embeddings: timesteps.
        hidden_size: width, even and at least 4.
    """

    def __init__(self, num_embeddings: int, hidden_size: int):
        super().__init__()
        self.num_embeddings, self.hidden_size = num_embeddings, hidden_size

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Float32 vectors (batch, hidden_size) of integers (batch,)."""
        half = self.hidden_size // 2
        rates = torch.exp(torch.arange(half, device=numbers.device) * (-math.log(10_000) / (half - 1)))
        angles = (numbers / self.num_embeddings * LARGEST_TIME)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


EMBEDDINGS = {"learned": nn.Embedding, "sinusoidal": SinusoidalEmbedding}


class AdaptiveLayerNorm(nn.Module):
    """LayerNorm whose scale and shift depend on a number, as in VQ-Diffusion (https://arxiv.org/abs/2111.14822).

    Args:
        hidden_size: width.
        num_embeddings: how many numbers there are.
        embedding: "learned", a table of their own, or "sinusoidal".
    """

    def __init__(self, hidden_size: int, num_embeddings: int, embedding: str = "learned"):
        super().__init__()
        self.embedding = EMBEDDINGS[embedding](num_embeddings, hidden_size)
        self.linear = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, hidden: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Normalised hidden (batch, positions, hidden_size), modulated by integers (batch,)."""
        features = F.silu(self.embedding(numbers)).to(self.linear.weight.dtype)
        scale, shift = self.linear(features)[:, None].chunk(2, dim=-1)  # (batch, 1, hidden_size) each
        return F.layer_norm(hidden, hidden.shape[-1:]) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head attention of all positions to all, or to the vectors of a text.

    Args:
        hidden_size: width, a multiple of `num_heads`.
        num_heads: heads.
        dropout: of the attention weights.
        bias: whether queries, keys and values have biases; the output always has one.
        context_size: width of the text; 0: the positions look at themselves.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float, bias: bool, context_size: int = 0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.key_value = nn.Linear(context_size or hidden_size, 2 * hidden_size, bias=bias)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden: torch.Tensor,
        implementation: str,
        context: torch.Tensor | None = None,
        key_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        keys_values = self.key_value(hidden if context is None else context).chunk(2, dim=-1)
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, positions, head_dim)
            for part in (self.query(hidden), *keys_values)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = attend(queries, keys, values, implementation, dropout, causal=False, key_mask=key_mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with an activation between.

    Args:
        hidden_size: width.
        intermediate_size: width between.
        kind: "linear", each position alone, or "conv", of a grid of two axes with its neighbours (kernels of 3).
        activation: of `ACTIVATIONS`; or "geglu" (https://arxiv.org/abs/2002.05202), where the first layer is twice as
            wide, and GELU of its second half gates the first.
    """

    def __init__(self, hidden_size: int, intermediate_size: int, kind: str, activation: str):
        super().__init__()
        self.kind, self.gated = kind, activation == "geglu"
        self.activation = ACTIVATIONS["gelu" if self.gated else activation]
        widths = (hidden_size, intermediate_size * (2 if self.gated else 1)), (intermediate_size, hidden_size)
        self.expand, self.contract = (
            nn.Linear(*each) if kind == "linear" else nn.Conv2d(*each, kernel_size=3, padding=1) for each in widths
        )

    def forward(self, hidden: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        if self.kind == "conv":
            hidden = hidden.transpose(1, 2).unflatten(-1, grid)  # (batch, hidden_size, height, width)
        hidden = self.expand(hidden)
        if self.gated:
            hidden, gate = hidden.chunk(2, dim=1 if self.kind == "conv" else -1)
            hidden = hidden * self.activation(gate)
        else:
            hidden = self.activation(hidden)
        hidden = self.contract(hidden)
        return hidden.flatten(2).transpose(1, 2) if self.kind == "conv" else hidden

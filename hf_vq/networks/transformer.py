"""The causal transformer of GPT-2 with pre-LayerNorm blocks, and keys and values cached in memory allocated once."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_vq.arguments import checked
from hf_vq.ranges import Chance, Depth, OneOf, Width

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda inputs: F.gelu(inputs, approximate="tanh"),
    "quick_gelu": lambda inputs: inputs * torch.sigmoid(1.702 * inputs),
}
IMPLEMENTATIONS = ("sdpa", "eager")


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    implementation: str,
    dropout: float = 0.0,
    *,
    causal: bool = True,
    key_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of queries to keys.

    Args:
        queries: (batch, heads, positions, head_dim); causal ones are one position, or as many as keys.
        keys, values: (batch, heads, key_positions, head_dim).
        implementation: "sdpa" (torch's fused kernels) or "eager" (two products and a softmax in float32).
        dropout: of the attention weights.
        causal: no position sees a later one; a single query sees all keys either way.
        key_mask: (batch, key_positions) bool, True = real; others are not seen, and where no key is real the result
            is 0. Not together with `causal`.

    Returns:
        (batch, heads, positions, head_dim).
    """
    causal = causal and queries.shape[-2] > 1
    mask = None if key_mask is None else key_mask[:, None, None]  # (batch, 1, 1, key_positions)
    if implementation == "sdpa":
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout_p=dropout, is_causal=causal)
    scores = queries @ keys.transpose(-2, -1) * queries.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)  # finite: of a row with no key no NaN
    weights = scores.softmax(dim=-1, dtype=torch.float32)
    if key_mask is not None:
        weights = weights.masked_fill(~mask, 0.0)  # type: ignore[operator]
    return F.dropout(weights.to(values.dtype), dropout) @ values


class KeyValueCache:
    """Keys and values of all layers for the positions seen so far, in memory allocated once.

    Args:
        transformer: whose keys and values they are; its blocks give dtypes and devices.
        batch_size: sequences.
        length: positions that fit.

    Attributes:
        filled: positions seen. Setting it to 0 starts anew in the same memory.
    """

    def __init__(self, transformer: "Transformer", batch_size: int, length: int):
        self.layers = [
            [block.qkv.weight.new_empty(batch_size, block.num_heads, length, block.head_dim) for _ in "kv"]
            for block in transformer.blocks
        ]
        self.length, self.filled = length, 0

    def extend(self, layer: int, *keys_values: torch.Tensor) -> list[torch.Tensor]:
        """Keep keys and values (batch, heads, new, head_dim) of one layer; returns all that it has so far."""
        new = keys_values[0].shape[2]
        for kept, states in zip(self.layers[layer], keys_values, strict=True):
            kept.narrow(2, self.filled, new).copy_(states)
        return [kept.narrow(2, 0, self.filled + new) for kept in self.layers[layer]]


class TransformerBlock(GradientCheckpointingLayer):
    """Attention and MLP, each after a LayerNorm and added to its input; arguments as of `Transformer`."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        attention_dropout: float,
        attention_bias: bool,
        mlp_bias: bool,
        activation: str,
    ):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_size // num_heads
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.activation = ACTIVATIONS[activation]
        self.norm1 = nn.LayerNorm(hidden_size)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=attention_bias)  # one product instead of three
        self.output = nn.Linear(hidden_size, hidden_size, bias=attention_bias)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.expand = nn.Linear(hidden_size, 4 * hidden_size, bias=mlp_bias)
        self.contract = nn.Linear(4 * hidden_size, hidden_size, bias=mlp_bias)

    def forward(
        self, hidden: torch.Tensor, implementation: str, cache: KeyValueCache | None = None, layer: int = 0
    ) -> torch.Tensor:
        batch_size, positions, width = hidden.shape
        qkv = self.qkv(self.norm1(hidden)).view(batch_size, positions, 3, self.num_heads, self.head_dim)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind()  # (batch, heads, positions, head_dim) each
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        attention_dropout = self.attention_dropout if self.training else 0.0
        mixed = attend(queries, keys, values, implementation, attention_dropout).transpose(1, 2)
        hidden = hidden + self._drop(self.output(mixed.reshape(batch_size, positions, width)))
        return hidden + self._drop(self.contract(self.activation(self.expand(self.norm2(hidden)))))

    def _drop(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.dropout(hidden, self.dropout) if self.training and self.dropout else hidden


class Transformer(nn.Module):
    """A stack of causal pre-LayerNorm blocks (GPT-2, section 2.3, as in minGPT), without embeddings and final norm.

    Args:
        num_layers: blocks.
        hidden_size: width, a multiple of `num_heads`; the MLPs are four times as wide.
        num_heads: heads of attention.
        dropout: of what attention and MLP add.
        attention_dropout: of the attention weights.
        attention_bias, mlp_bias: whether the linear layers of attention and MLP have biases.
        activation: "gelu" (exact), "gelu_tanh" (its approximation by tanh) or "quick_gelu", x sigmoid(1.702 x).

    Raises:
        ValueError: an argument out of its range, named with its value.
    """

    blocks: Any  # nn.ModuleList of TransformerBlock

    @checked
    def __init__(
        self,
        num_layers: Depth,
        hidden_size: Width,
        num_heads: Depth,
        *,
        dropout: Chance = 0.0,
        attention_dropout: Chance = 0.0,
        attention_bias: bool = True,
        mlp_bias: bool = True,
        activation: Annotated[str, OneOf(ACTIVATIONS)] = "gelu",
    ):
        super().__init__()
        check_heads(hidden_size, num_heads)
        block = (hidden_size, num_heads, dropout, attention_dropout, attention_bias, mlp_bias, activation)
        self.blocks = nn.ModuleList(TransformerBlock(*block) for _ in range(num_layers))

    def forward(
        self, hidden: torch.Tensor, implementation: str = "sdpa", cache: KeyValueCache | None = None
    ) -> torch.Tensor:
        """Each position from itself and those before it.

        Args:
            hidden: (batch, positions, hidden_size); with a cache these positions follow those that it has.
            implementation: "sdpa" or "eager".
            cache: takes the keys and values; a filled one goes on by one position at a time.

        Returns:
            (batch, positions, hidden_size).

        Raises:
            ValueError: an unknown implementation, or positions that the cache cannot take.
        """
        check_implementation(implementation)
        positions = hidden.shape[1]
        if cache is not None and (cache.filled + positions > cache.length or (cache.filled and positions > 1)):
            raise ValueError(
                f"hidden has {positions} positions for a cache with {cache.filled} of {cache.length} filled: a filled "
                "one goes on by one position at a time, up to its length"
            )
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, implementation, cache, layer)
        if cache is not None:
            cache.filled += positions
        return hidden


def check_implementation(implementation: str) -> None:
    """Raise a `ValueError` for an implementation of attention that `attend` does not know."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}")


def check_heads(hidden_size: int, num_heads: int, kind: str = "") -> None:
    """Raise a `ValueError` for a width that the heads do not divide.

    Args:
        hidden_size, num_heads: of the `Transformer`, in their ranges.
        kind: what the message puts into `num_heads` where a model has several, such as "depth_".
    """
    if hidden_size % num_heads:
        raise ValueError(f"hidden_size must be a multiple of num_{kind}heads={num_heads}, got {hidden_size}")


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """GPT-2's initial weights of one module: normal of deviation 0.02, zero biases; torch's own of convolutions."""
    if isinstance(module, nn.Linear | nn.Embedding):
        init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        init.kaiming_uniform_(module.weight, a=5**0.5)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
    bias = getattr(module, "bias", None)
    if bias is not None:
        init.zeros_(bias)

"""Cached sampling of Llama decoders: a cache allocated once, fused weights, and no module between two products."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm


@dataclass
class LayerWeights:
    """One decoder layer as four matrices for `features @ matrix`, with the scales of its norms multiplied in.

    The values of a query and of a key are reordered within each head, so that the two that rotate together are
    neighbours, a complex number; products of queries and keys stay the same.

    Attributes:
        attention_in: (hidden_size, (num_heads + 2 * num_key_value_heads) * head_dim): queries, keys, values.
        attention_out: (num_heads * head_dim, hidden_size).
        mlp_in: (hidden_size, 2 * intermediate_size): the gate, then what it gates.
        mlp_out: (intermediate_size, hidden_size).
    """

    attention_in: torch.Tensor
    attention_out: torch.Tensor
    mlp_in: torch.Tensor
    mlp_out: torch.Tensor

    @classmethod
    def of(cls, layer: LlamaDecoderLayer) -> "LayerWeights":
        attention, mlp = layer.self_attn, layer.mlp
        rotating = [pair_neighbours(one.weight, attention.head_dim) for one in (attention.q_proj, attention.k_proj)]
        attention_in = torch.cat([*rotating, attention.v_proj.weight]) * layer.input_layernorm.weight
        mlp_in = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * layer.post_attention_layernorm.weight
        matrices = (attention_in, attention.o_proj.weight, mlp_in, mlp.down_proj.weight)
        return cls(*(matrix.T.contiguous() for matrix in matrices))


def pair_neighbours(values: torch.Tensor, head_dim: int) -> torch.Tensor:
    """From Llama's order of a head, where value i rotates with i + head_dim / 2, to neighbours that rotate together.

    Args:
        values: (heads * head_dim, ...).
    """
    return values.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


class DecoderState:
    """The cache and the fused weights of a Llama decoder that takes a prompt, then one token of every row at a time.

    Its attention reads the filled part of the cache only. The many small operations of a step cost more than its
    products where rows are few, so buffers and views of them are made once.

    Args:
        layers: `LlamaDecoderLayer`s, in eval mode and without gradients.
        norm: the norm at their end.
        head: (num_logits, hidden_size), the wanted rows of the output matrix.
        cosines, sines: (positions, head_dim / 2) of the rotary angles, for every position there will be.
        num_rows: sequences side by side.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        head: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        num_rows: int,
    ):
        first, end = cast(LlamaDecoderLayer, layers[0]), cast(LlamaRMSNorm, norm)
        attention: Any = first.self_attn
        wide = torch.promote_types(head.dtype, torch.float32)
        head_dim, hidden_size = attention.head_dim, first.hidden_size
        queries_dim, keys_dim = attention.q_proj.out_features, attention.k_proj.out_features
        num_keys = keys_dim // head_dim
        self.layers = [LayerWeights.of(cast(LlamaDecoderLayer, layer)) for layer in layers]
        self.head = (head * end.weight).T.contiguous()
        self.rotations = torch.complex(cosines.to(wide), sines.to(wide))
        self.epsilon: float = end.variance_epsilon
        self.epsilon_tensor = torch.tensor(self.epsilon, dtype=wide, device=head.device)
        self.scaling, self.hidden_size, self.num_rows, self.wide = attention.scaling, hidden_size, num_rows, wide
        self.position = 0
        self.features: Any = None  # (rows, hidden_size) after the newest token
        # SDPA is made for long queries: on a CPU three plain operations are faster for a single one
        self.plain_attention = head.device.type == "cpu" and head.dtype == wide

        self.cache: Any = head.new_empty(len(layers), 2, num_rows * num_keys, len(cosines), head_dim)
        self.normed = head.new_empty(num_rows, hidden_size)
        self.projected = head.new_empty(num_rows, queries_dim + 2 * keys_dim)
        self.exact = self.projected if head.dtype == wide else self.projected.to(wide)  # angles need the precision
        rotating, values = self.exact[:, : queries_dim + keys_dim], self.exact[:, queries_dim:]
        self.rotating = torch.view_as_complex(rotating.unflatten(1, (-1, head_dim // 2, 2)))
        self.new_queries = self.exact[:, :queries_dim].unflatten(1, (num_keys, -1, head_dim))
        self.new_pairs = values.unflatten(1, (2, num_keys, head_dim)).transpose(0, 1)  # keys and values
        self.queries = head.new_empty(self.new_queries.shape)
        self.grouped_queries = self.queries.flatten(0, 1)  # (rows * key heads, queries of each, head_dim)
        self.attended = torch.empty_like(self.grouped_queries)
        self.flat_attended = self.attended.view(num_rows, queries_dim)
        self.gated = head.new_empty(num_rows, 2 * first.mlp.intermediate_size)
        self.gate, self.up = self.gated.chunk(2, dim=1)
        self.nothing = head.new_zeros(())

    def prefill(self, features: torch.Tensor) -> None:
        """Take the first tokens of every row in one pass, (rows, positions, hidden_size) embedded."""
        _, _, num_keys, head_dim = self.new_pairs.shape
        length = features.shape[1]
        rotation = self.rotations[:length, None]
        for layer, cache in zip(self.layers, self.cache, strict=True):
            heads = (self.normalize_many(features) @ layer.attention_in).unflatten(2, (-1, head_dim))
            pairs = heads[:, :, :-num_keys].to(self.wide).unflatten(3, (-1, 2))
            rotated = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(3).to(heads.dtype)
            parts = (rotated[:, :, :-num_keys], rotated[:, :, -num_keys:], heads[:, :, -num_keys:])
            queries, keys, values = (part.transpose(1, 2) for part in parts)  # (rows, heads, positions, head_dim)
            cache[:, :, :length] = torch.stack([keys, values]).flatten(1, 2)
            attended = F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=self.scaling, enable_gqa=True
            )
            features = features + attended.transpose(1, 2).flatten(2) @ layer.attention_out
            gate, up = (self.normalize_many(features) @ layer.mlp_in).chunk(2, dim=2)
            features = features + (F.silu(gate) * up) @ layer.mlp_out
        self.position = length

    def advance(self, features: torch.Tensor) -> None:
        """Take the next tokens, (rows, positions, hidden_size) embedded: several the first time, then one by one."""
        if features.shape[1] > 1:
            self.prefill(features[:, :-1])
        self.step(features[:, -1])

    def step(self, features: torch.Tensor) -> None:
        """Take the next token, (rows, hidden_size) embedded; `features` are then its last ones, before the norm."""
        position = self.position
        filled = self.cache[:, :, :, : position + 1]
        rotation = self.rotations[position]
        slots = self.cache[:, :, :, position].unflatten(2, self.new_pairs.shape[1:3]).unbind(0)
        keys, values = filled[:, 0].transpose(2, 3).unbind(0), filled[:, 1].unbind(0)
        for layer, slot, key, value in zip(self.layers, slots, keys, values, strict=True):
            torch.mm(self.normalize(features), layer.attention_in, out=self.projected)
            if self.exact is not self.projected:
                self.exact.copy_(self.projected)
            self.rotating.mul_(rotation)
            self.queries.copy_(self.new_queries)
            slot.copy_(self.new_pairs)
            features = torch.addmm(features, self.attend(key, value), layer.attention_out)
            torch.mm(self.normalize(features), layer.mlp_in, out=self.gated)
            features = torch.addmm(features, F.silu(self.gate).mul_(self.up), layer.mlp_out)
        self.features = features
        self.position += 1

    def logits(self) -> torch.Tensor:
        """Logits (rows, num_logits) after the newest token."""
        return torch.mm(self.normalize(self.features), self.head)

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Divide rows by their root mean square; the scales of the norm are in the matrix that follows."""
        if features.is_cuda:
            return self.normalize_many(features)
        norm = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=self.wide)
        scale = torch.addcmul(self.epsilon_tensor, norm, norm, value=1 / self.hidden_size).rsqrt_()
        return torch.mul(features, scale, out=self.normed)

    def normalize_many(self, features: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(features, (self.hidden_size,), eps=self.epsilon)

    def attend(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What the new queries find, (rows, num_heads * head_dim).

        Args:
            keys: (rows * key heads, head_dim, filled).
            values: (rows * key heads, filled, head_dim).
        """
        if self.plain_attention:
            scores = torch.baddbmm(self.nothing, self.grouped_queries, keys, beta=0, alpha=self.scaling)
            torch.bmm(scores.softmax(dim=2), values, out=self.attended)
            return self.flat_attended
        attended = F.scaled_dot_product_attention(
            self.grouped_queries[None], keys.transpose(1, 2)[None], values[None], scale=self.scaling
        )
        return attended.reshape(self.num_rows, -1)

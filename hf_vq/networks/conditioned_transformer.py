"""The transformer of VQ-Diffusion: positions see each other and a text; timestep and class modulate its norms."""

from math import prod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_vq.arguments import checked
from hf_vq.networks.conditioned_layers import EMBEDDINGS, MLP, AdaptiveLayerNorm, Attention
from hf_vq.networks.transformer import ACTIVATIONS, check_heads, check_implementation
from hf_vq.ranges import Chance, Depth, FreeWidth, Labels, OneOf, Width

MLP_KINDS = ("linear", "conv")
MLP_ACTIVATIONS = (*ACTIVATIONS, "geglu")


class ConditionedBlock(GradientCheckpointingLayer):
    """Self-attention, attention to a text and MLP, each after a norm and added to its input.

    Arguments as of `ConditionedTransformer`, but for `intermediate_size`, which must be given.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        num_timesteps: int,
        num_classes: int,
        cross_attention_dim: int,
        mlp: str,
        activation: str,
        attention_bias: bool,
        timestep_embedding: str,
        dropout: float,
        attention_dropout: float,
    ):
        super().__init__()
        self.dropout = dropout
        attention = (hidden_size, num_heads, attention_dropout, attention_bias)
        timed = (hidden_size, num_timesteps, timestep_embedding)
        self.norm = _norm(*timed)
        self.attention = Attention(*attention)
        if cross_attention_dim:
            self.cross_norm = _norm(*timed)
            self.cross_attention = Attention(*attention, cross_attention_dim)
        self.mlp_norm = _norm(hidden_size, num_classes)
        self.mlp = MLP(hidden_size, intermediate_size, mlp, activation)

    def forward(
        self,
        hidden: torch.Tensor,
        grid: tuple[int, ...],
        implementation: str,
        timesteps: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        normed = _normed(self.norm, hidden, timesteps)
        hidden = hidden + self._drop(self.attention(normed, implementation, key_mask=padding_mask))
        if context is not None:
            normed = _normed(self.cross_norm, hidden, timesteps)
            hidden = hidden + self._drop(self.cross_attention(normed, implementation, context, context_mask))
        return hidden + self._drop(self.mlp(_normed(self.mlp_norm, hidden, class_labels), grid))

    def _drop(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.dropout(hidden, self.dropout) if self.training and self.dropout else hidden


def _norm(hidden_size, num_embeddings, embedding="learned"):
    return AdaptiveLayerNorm(hidden_size, num_embeddings, embedding) if num_embeddings else nn.LayerNorm(hidden_size)


def _normed(norm, hidden, numbers):
    return norm(hidden, numbers) if isinstance(norm, AdaptiveLayerNorm) else norm(hidden)


class ConditionedTransformer(nn.Module):
    """A stack of bidirectional pre-norm blocks (VQ-Diffusion, https://arxiv.org/abs/2111.14822, section 4.2).

    It has no embeddings of codes and no final norm. The timestep modulates the norms before the attentions, the class
    that before the MLP, each from an embedding of its own; a norm that nothing modulates is a plain LayerNorm.

    Args:
        num_layers: blocks.
        hidden_size: width, a multiple of `num_heads`.
        num_heads: heads of each attention.
        num_timesteps: timesteps; 0: there is none.
        num_classes: classes, with a null class where there is one; 0: there is none.
        cross_attention_dim: width of the text; 0: no block looks at one.
        intermediate_size: width inside the MLPs; None: four times `hidden_size`.
        mlp: "linear", or "conv" for grids of two axes, see `MLP`.
        activation: "gelu", "gelu_tanh", "quick_gelu" or the gated "geglu".
        attention_bias: whether queries, keys and values have biases.
        timestep_embedding: "learned" or "sinusoidal".
        dropout: of what attention and MLP add.
        attention_dropout: of the attention weights.

    Raises:
        ValueError: an argument out of its range, named with its value.
    """

    blocks: Any  # nn.ModuleList of ConditionedBlock

    @checked
    def __init__(
        self,
        num_layers: Depth,
        hidden_size: Width,
        num_heads: Depth,
        *,
        num_timesteps: Labels = 0,
        num_classes: Labels = 0,
        cross_attention_dim: FreeWidth = 0,
        intermediate_size: Width | None = None,
        mlp: Annotated[str, OneOf(MLP_KINDS)] = "linear",
        activation: Annotated[str, OneOf(MLP_ACTIVATIONS)] = "gelu",
        attention_bias: bool = True,
        timestep_embedding: Annotated[str, OneOf(EMBEDDINGS)] = "learned",
        dropout: Chance = 0.0,
        attention_dropout: Chance = 0.0,
    ):
        super().__init__()
        check_heads(hidden_size, num_heads)
        if timestep_embedding == "sinusoidal" and (hidden_size % 2 or hidden_size < 4):
            raise ValueError(f"hidden_size must be even and at least 4 for sinusoidal timesteps, got {hidden_size}")
        self.hidden_size, self.mlp = hidden_size, mlp
        self.num_timesteps, self.num_classes = num_timesteps, num_classes
        self.cross_attention_dim = cross_attention_dim
        self.blocks = nn.ModuleList(
            ConditionedBlock(
                hidden_size,
                num_heads,
                intermediate_size or 4 * hidden_size,
                num_timesteps,
                num_classes,
                cross_attention_dim,
                mlp,
                activation,
                attention_bias,
                timestep_embedding,
                dropout,
                attention_dropout,
            )
            for _ in range(num_layers)
        )

    def forward(
        self,
        hidden: torch.Tensor,
        grid: tuple[int, ...],
        timesteps: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        implementation: str = "sdpa",
    ) -> torch.Tensor:
        """Each position from all of them.

        Args:
            hidden: (batch, positions, hidden_size), the grid in raster order.
            grid: its sizes.
            timesteps: (batch,) integers in [0, num_timesteps), where there are timesteps.
            class_labels: (batch,) integers in [0, num_classes), where there are classes.
            encoder_hidden_states: (batch, length, cross_attention_dim), the text, where blocks look at one.
            encoder_attention_mask: (batch, length) bool, True = real; None: all are. The others have no influence.
            padding_mask: (batch, positions) bool, True = real; None: all are. No position sees the others.
            implementation: "sdpa" or "eager", see `attend`.

        Returns:
            (batch, positions, hidden_size).

        Raises:
            ValueError: a condition that is missing, that there is no place for, or of another shape; or another grid.
        """
        check_implementation(implementation)
        self._check(hidden, tuple(grid))
        batch_size = len(hidden)
        _check_condition("timesteps", timesteps, bool(self.num_timesteps), (batch_size,))
        _check_condition("class_labels", class_labels, bool(self.num_classes), (batch_size,))
        text, text_mask = encoder_hidden_states, encoder_attention_mask
        length = text.shape[1] if text is not None and text.dim() == 3 else 0
        text_shape = (batch_size, length, self.cross_attention_dim)
        _check_condition("encoder_hidden_states", text, bool(self.cross_attention_dim), text_shape)
        if text_mask is not None:
            _check_condition("encoder_attention_mask", text_mask, text is not None, (batch_size, length))
            text_mask = text_mask.bool()
        for block in self.blocks:
            hidden = block(hidden, tuple(grid), implementation, timesteps, class_labels, text, text_mask, padding_mask)
        return hidden

    def _check(self, hidden, grid):
        if hidden.dim() != 3 or hidden.shape[1:] != (prod(grid), self.hidden_size):
            shape = ("batch", prod(grid), self.hidden_size)
            raise ValueError(f"hidden must have shape {shape} for the grid {grid}, got {tuple(hidden.shape)}")
        if self.mlp == "conv" and len(grid) != 2:
            raise ValueError(f"grid must have two axes for mlp='conv', got {grid}")


def _check_condition(name, given, wanted, shape):
    if (given is not None) != wanted:
        raise ValueError(f"{name} must {'be given' if wanted else 'be None: the transformer has no place for them'}")
    if given is not None and tuple(given.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(given.shape)}")

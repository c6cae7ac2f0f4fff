"""Layers of PixelSNAIL: gated residual layers, causal by the shape of their kernels, and strictly causal attention."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_vq.priors.pixelcnn_layers import ShiftedConv2d

NUM_COORDINATES = 2  # row and column, as channels of the background


def pointwise_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(in_channels, out_channels, 1)


def centered_conv(in_channels: int, out_channels: int, kernel_size: int) -> ShiftedConv2d:
    """A convolution around each position, of a grid that is wholly known; it takes codes too, as one-hot vectors."""
    around = (-(kernel_size // 2), kernel_size // 2)
    return ShiftedConv2d(in_channels, out_channels, around, around)


def coordinates(grid: tuple[int, ...], like: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Where each position lies, (1, 2, height, width): row and column, from -0.5 on and below 0.5.

    Of items with `lengths` (batch,) rows, (batch, 2, height, width), as if each were a grid of its own.
    """
    height, width = grid
    heights = height if lengths is None else lengths[:, None]
    rows = torch.arange(height, device=like.device).view(1, -1) / heights - 0.5
    columns = torch.arange(width, device=like.device) / width - 0.5
    shape = (len(rows), height, width)
    return torch.stack([rows[:, :, None].expand(shape), columns.expand(shape)], dim=1).to(like.dtype)


class RasterConv2d(ShiftedConv2d):
    """`ShiftedConv2d` of columns on the left, where left of a row lies the end of the row above, as in raster order.

    Args:
        in_channels, out_channels, rows: of a `ShiftedConv2d`.
        reach: columns on the left of a position.
    """

    def __init__(self, in_channels: int, out_channels: int, rows: tuple[int, int], reach: int):
        super().__init__(in_channels, out_channels, rows, (-reach, -1))
        self.reach, self.margins = reach, (0, *self.margins[1:])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outside = 0 if inputs.is_floating_point() else -1
        width, before = inputs.shape[-1], F.pad(inputs.flatten(-2), (self.reach, 0), value=outside)
        return super().forward(before.unfold(-1, self.reach + width, width))  # (batch, out_channels, height, width)


def left_conv(
    in_channels: int, out_channels: int, rows: tuple[int, int], reach: int, sees_row_ends: bool
) -> ShiftedConv2d:
    """The convolution over `reach` columns on the left: those of the same row alone, or as in raster order."""
    if sees_row_ends:
        return RasterConv2d(in_channels, out_channels, rows, reach)
    return ShiftedConv2d(in_channels, out_channels, rows, (-reach, -1))


class FirstConv2d(nn.Module):
    """First layer, of one-hot codes: the rows above a position, and the columns on its left in these and its own row.

    There is nothing above the first row and nothing left of the first column, or of the first position where row ends
    are seen: not even a bias.

    Args:
        codebook_size: number of codes.
        out_channels: channels of the output.
        kernel_size: odd; rows and columns within `kernel_size // 2` are read.
        sees_row_ends: left of a row lies the end of the row above.
    """

    def __init__(self, codebook_size: int, out_channels: int, kernel_size: int, sees_row_ends: bool):
        super().__init__()
        reach = max(kernel_size // 2, 2 if sees_row_ends else 1)
        self.above = ShiftedConv2d(codebook_size, out_channels, (-reach, -1), (-reach, reach))
        self.left = left_conv(codebook_size, out_channels, (-reach, 0), reach, sees_row_ends)
        self.sees_row_ends = sees_row_ends

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        above = F.pad(self.above(codes)[:, :, 1:], (0, 0, 1, 0))
        left = self.left(codes)
        if self.sees_row_ends:
            left = F.pad(left.flatten(2)[..., 1:], (1, 0)).view_as(left)
        else:
            left = F.pad(left[..., 1:], (1, 0))
        return above + left  # (batch, out_channels, height, width)


class CausalConv2d(nn.Module):
    """Convolution over the rows above and, in the position's own row, the columns on its left; two dense ones.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd; `kernel_size - 1` rows above, and columns within `kernel_size // 2`.
        sees_row_ends: left of a row lies the end of the row above.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, sees_row_ends: bool):
        super().__init__()
        reach = kernel_size // 2
        self.above = ShiftedConv2d(in_channels, out_channels, (1 - kernel_size, -1), (-reach, reach), bias=False)
        self.left = left_conv(in_channels, out_channels, (0, 0), reach, sees_row_ends)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.left(inputs) + self.above(inputs)


class GatedResidualLayer(nn.Module):
    """Two convolutions after ELUs and a gated linear unit, added to the input.

    Args:
        channels: of input and output.
        hidden_channels: between the two convolutions.
        make_conv: from input and output channels to a convolution.
        dropout: before the second convolution.
        extra_channels: of a second input; 0 is none.
        condition_channels: of a condition, added to the gates; 0 is none.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        make_conv: Callable[[int, int], nn.Module],
        dropout: float,
        extra_channels: int = 0,
        condition_channels: int = 0,
    ):
        super().__init__()
        self.conv1 = make_conv(channels, hidden_channels)
        self.conv2 = make_conv(hidden_channels, 2 * channels)
        self.extra = pointwise_conv(extra_channels, hidden_channels) if extra_channels else None
        self.condition = nn.Conv2d(condition_channels, 2 * channels, 1, bias=False) if condition_channels else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, inputs: torch.Tensor, extra: torch.Tensor | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = self.conv1(F.elu(inputs))  # (batch, hidden_channels, height, width)
        if extra is not None:
            hidden = hidden + self.extra(F.elu(extra))
        gates = self.conv2(self.dropout(F.elu(hidden)))
        if condition is not None:
            gates = gates + self.condition(condition)
        return inputs + F.glu(gates, dim=1)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention written out; arguments and results as in transformers' attention interface."""
    scores = query @ key.transpose(2, 3) * scaling  # (batch, heads, queries, keys)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class CausalAttention(nn.Module):
    """Attention of every position to those before it in raster order, itself excluded; zeros for the first.

    Args:
        config: the `PixelSNAILConfig`.
        query_channels: of what queries are made of.
        key_channels: of what keys and values are made of.
        channels: of the output, a multiple of the number of heads.
    """

    def __init__(self, config: Any, query_channels: int, key_channels: int, channels: int):
        super().__init__()
        self.config = config
        self.num_heads, self.head_dim = config.num_attention_heads, channels // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.query = nn.Linear(query_channels, channels)
        self.key = nn.Linear(key_channels, channels)
        self.value = nn.Linear(key_channels, channels)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        grid, num_codes = queries.shape[2:], queries.shape[2] * queries.shape[3]
        if num_codes == 1:
            return queries.new_zeros(queries.shape[0], self.query.out_features, *grid)
        # without the first query and the last key, plain causal attention excludes the position itself
        queries = queries.flatten(2).transpose(1, 2)[:, 1:]  # (batch, positions - 1, channels)
        keys = keys.flatten(2).transpose(1, 2)[:, :-1]
        heads = (projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for projection, x in
                 ((self.query, queries), (self.key, keys), (self.value, keys)))  # fmt: skip
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.dropout if self.training else 0.0
        attended, _ = attend(self, *heads, None, scaling=self.scaling, dropout=dropout, is_causal=True)
        attended = F.pad(attended.flatten(2), (0, 0, 1, 0))  # (batch, positions, channels)
        return attended.transpose(1, 2).unflatten(2, grid)


class PixelBlock(GradientCheckpointingLayer):
    """Causal residual layers, then attention, or a 1x1 convolution where there is none.

    Both see where they are by a background of coordinates (https://arxiv.org/abs/1712.09763, section 2.3).

    Args:
        config: the `PixelSNAILConfig`.
    """

    output: nn.Module
    attention: CausalAttention | None

    def __init__(self, config: Any):
        super().__init__()
        channels, dropout = config.hidden_channels, config.dropout
        causal_conv = partial(CausalConv2d, kernel_size=config.kernel_size, sees_row_ends=config.sees_row_ends)
        condition = config.condition_channels if config.has_condition else 0
        self.residual_layers = nn.ModuleList(
            GatedResidualLayer(channels, config.residual_channels, causal_conv, dropout, condition_channels=condition)
            for _ in range(config.num_residual_layers)
        )
        if not config.attention:
            self.attention, self.output = None, pointwise_conv(channels + NUM_COORDINATES, channels)
            return
        query_channels, key_channels = channels + NUM_COORDINATES, 2 * channels + NUM_COORDINATES
        self.key_layer = GatedResidualLayer(key_channels, channels, pointwise_conv, dropout)
        self.query_layer = GatedResidualLayer(query_channels, channels, pointwise_conv, dropout)
        self.attention = CausalAttention(config, query_channels, key_channels, channels // 2)
        self.output = GatedResidualLayer(channels, channels, pointwise_conv, dropout, extra_channels=channels // 2)

    def forward(
        self, inputs: torch.Tensor, background: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        features = inputs
        for layer in self.residual_layers:
            features = layer(features, condition=condition)
        queries = torch.cat([features, background], dim=1)
        if self.attention is None:
            return self.output(queries)
        keys = self.key_layer(torch.cat([inputs, queries], dim=1))
        return self.output(features, self.attention(self.query_layer(queries), keys))


class ContextNetwork(nn.Module):
    """Features of a grid of coarser codes, all of which are known.

    Args:
        config: the `PixelSNAILConfig`.
        codebook_size: number of the coarser codes.
    """

    def __init__(self, config: Any, codebook_size: int):
        super().__init__()
        channels, conv = config.condition_channels, partial(centered_conv, kernel_size=config.context_kernel_size)
        self.first = conv(codebook_size, channels)
        self.layers = nn.ModuleList(
            GatedResidualLayer(channels, channels, conv, config.dropout) for _ in range(config.num_context_layers)
        )

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        features = self.first(codes)
        for layer in self.layers:
            features = layer(features)
        return features  # (batch, condition_channels, *the codes' grid)

"""Cached sampling of the PixelCNN: each code costs the same work, whatever the grid.

What comes from the rows above is computed once per row, for all its columns, from a window of the last few rows of
each layer. What comes from the left is one matrix product per layer and position, over the last few columns. All
buffers and their views are made once and written in place.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.priors.pixelcnn_layers import (
    CausalConv2d,
    GatedLayer,
    GatedStack,
    ResidualBlock,
    ResidualStack,
    ShiftedConv2d,
    gate,
)


class Above:
    """The last rows of a layer's input, and the convolution over them: a whole row of outputs at once."""

    def __init__(self, conv: ShiftedConv2d, num_grids: int, width: int):
        self.conv = conv
        self.margin = conv.margins[0]
        self.rows = conv.weight.new_zeros(
            num_grids, conv.in_channels, conv.kernel_size[0], width + conv.kernel_size[1] - 1
        )
        self.newest = self.rows[:, :, -1, self.margin : self.margin + width]

    def push(self, row: torch.Tensor) -> None:
        """Take the next row (grids, in_channels, width); the oldest goes."""
        self.rows[:, :, :-1] = self.rows[:, :, 1:].clone()
        self.newest.copy_(row)

    def row(self) -> torch.Tensor:
        """Outputs (grids, out_channels, 1, width) of the row that the window now belongs to."""
        return F.conv2d(self.rows, self.conv.weight, self.conv.bias)


class Left:
    """A layer's input in the current row, and the convolution over what lies left of a column."""

    def __init__(self, conv: ShiftedConv2d, num_grids: int, width: int):
        num_taps, reach = conv.kernel_size[1], conv.margins[0]
        columns = conv.weight.new_zeros(num_grids, reach + width, conv.in_channels)  # zeros left of the grid
        self.content = columns[:, reach:].transpose(1, 2)  # (grids, in_channels, width)
        self.slots = columns[:, reach:].unbind(1)  # per column (grids, in_channels)
        windows = columns.flatten(1).unfold(1, num_taps * conv.in_channels, conv.in_channels)
        self.windows = windows[:, :width].unbind(1)  # per column (grids, taps * in_channels)
        self.weight = conv.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1).contiguous()  # (taps * in_channels, out)
        self.bias = conv.bias  # (out,)


def _dense(conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (in_channels, out_channels) and bias of a 1x1 convolution."""
    return conv.weight[:, :, 0, 0].t().contiguous(), conv.bias


class GatedLayerState:
    """Cached `GatedLayer`."""

    def __init__(self, layer: GatedLayer, num_grids: int, width: int, class_labels: torch.Tensor | None):
        channels = layer.output.in_channels
        self.first = layer.first
        self.vertical_to_horizontal = layer.vertical_to_horizontal
        self.above = Above(layer.vertical, num_grids, width)
        self.left = Left(layer.horizontal, num_grids, width)
        self.weight, self.bias = _dense(layer.output)
        self.condition = 0.0
        if layer.class_embedding is not None:
            self.condition = layer.class_embedding(class_labels)[:, :, None, None]  # (grids, 2 * channels, 1, 1)
        self.condition_and_bias = self.condition + self.left.bias[:, None, None]
        self.context = self.weight.new_empty(width, num_grids, 2 * channels)
        self.contexts = self.context.unbind(0)
        self.gates = self.weight.new_empty(num_grids, 2 * channels)
        self.values = self.gates[:, :channels]

    def start_row(self, row: torch.Tensor) -> torch.Tensor:
        """Take the newest row of the vertical input, (grids, channels, width), and give that of the output."""
        self.above.push(row)
        above = self.above.row()
        context = self.vertical_to_horizontal(above) + self.condition_and_bias  # (grids, 2 * channels, 1, width)
        self.context.copy_(context[:, :, 0].permute(2, 0, 1))
        return gate(above + self.condition)[:, :, 0]

    def step(self, column: int, output: torch.Tensor) -> None:
        """Write the horizontal output (grids, channels) at a column, whose input is in `left.slots`."""
        torch.addmm(self.contexts[column], self.left.windows[column], self.left.weight, out=self.gates)
        self.values.tanh_()
        torch.addmm(self.bias, F.glu(self.gates), self.weight, out=output)
        if not self.first:
            output.add_(self.left.slots[column])


class GatedStackState:
    """Cached `GatedStack`."""

    def __init__(self, stack: GatedStack, num_grids: int, width: int, class_labels: torch.Tensor | None):
        self.layers = [GatedLayerState(layer, num_grids, width, class_labels) for layer in stack.layers]
        self.inputs = self.layers[0].left
        self.features = self.layers[0].weight.new_empty(num_grids, stack.layers[-1].output.out_channels)

    def start_row(self) -> None:
        row = self.inputs.content  # the first layer's newest row is the one above, the others' the current one
        for layer in self.layers:
            row = layer.start_row(row)

    def step(self, column: int) -> torch.Tensor:
        for layer, following in zip(self.layers, self.layers[1:], strict=False):
            layer.step(column, following.left.slots[column])
        self.layers[-1].step(column, self.features)
        return self.features


class CausalConvState:
    """Cached `CausalConv2d` whose output gets a class embedding (grids, out_channels, 1) or 0."""

    def __init__(self, conv: CausalConv2d, num_grids: int, width: int, condition: torch.Tensor | float):
        self.above = None if conv.above is None else Above(conv.above, num_grids, width)
        self.left = Left(conv.left, num_grids, width)
        self.condition_and_bias = condition + self.left.bias[:, None]
        self.context = self.left.weight.new_empty(width, num_grids, conv.left.out_channels)
        self.context.copy_(self.condition_and_bias.expand(num_grids, -1, width).permute(2, 0, 1))
        self.contexts = self.context.unbind(0)

    def start_row(self) -> None:
        if self.above is not None:
            self.above.push(self.left.content)
            row = self.above.row()[:, :, 0] + self.condition_and_bias  # (grids, out_channels, width)
            self.context.copy_(row.permute(2, 0, 1))

    def step(self, column: int) -> torch.Tensor:
        return torch.addmm(self.contexts[column], self.left.windows[column], self.left.weight)


class ResidualBlockState:
    """Cached `ResidualBlock`."""

    def __init__(self, block: ResidualBlock, num_grids: int, width: int, class_labels: torch.Tensor | None):
        self.input_weight, self.input_bias = _dense(block.input)
        self.output_weight, self.output_bias = _dense(block.output)
        condition = 0.0 if block.class_embedding is None else block.class_embedding(class_labels)[:, :, None]
        self.causal = CausalConvState(block.causal, num_grids, width, condition)

    def step(self, column: int, features: torch.Tensor) -> torch.Tensor:
        hidden = torch.addmm(self.input_bias, features, self.input_weight, out=self.causal.left.slots[column]).relu_()
        hidden = self.causal.step(column).relu_()
        return torch.addmm(self.output_bias, hidden, self.output_weight).relu_().add_(features)


class ResidualStackState:
    """Cached `ResidualStack`."""

    def __init__(self, stack: ResidualStack, num_grids: int, width: int, class_labels: torch.Tensor | None):
        self.first = CausalConvState(stack.first, num_grids, width, 0.0)
        self.inputs = self.first.left
        self.blocks = [ResidualBlockState(block, num_grids, width, class_labels) for block in stack.layers]

    def start_row(self) -> None:
        self.first.start_row()
        for block in self.blocks:
            block.causal.start_row()

    def step(self, column: int) -> torch.Tensor:
        features = self.first.step(column).relu_()
        for block in self.blocks:
            features = block.step(column, features)
        return features


class PixelCNNSamplingState:
    """The `SamplingState` of a `PixelCNN`.

    Args:
        prior: the PixelCNN, in eval mode and without gradients.
        num_grids: grids sampled together.
        width: columns of the grid.
        class_labels: (grids,) of a prior with classes.
    """

    def __init__(self, prior: Any, num_grids: int, width: int, class_labels: torch.Tensor | None):
        state = GatedStackState if isinstance(prior.stack, GatedStack) else ResidualStackState
        self.stack = state(prior.stack, num_grids, width, class_labels)
        self.embed, self.width, self.column = prior.embed, width, 0
        self.head = [_dense(layer) for layer in prior.head if isinstance(layer, nn.Conv2d)]

    def next_logits(self) -> torch.Tensor:
        if self.column == 0:
            self.stack.start_row()
        features = self.stack.step(self.column)
        for weight, bias in self.head[:-1]:
            features = torch.addmm(bias, features, weight).relu_()
        weight, bias = self.head[-1]
        return torch.addmm(bias, features, weight)  # (grids, codebook_size)

    def append(self, codes: torch.Tensor) -> None:
        self.stack.inputs.slots[self.column].copy_(self.embed(codes))
        self.column = (self.column + 1) % self.width

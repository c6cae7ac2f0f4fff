"""Cached sampling of PixelSNAIL: nothing is computed twice.

The causal convolutions read only positions before their own. So what comes from the rows above is computed once per
row, for all its columns, as in the PixelCNN; and what comes from the left needs no other layer's output at the
position itself, so one batched product serves all layers of all blocks. What is left to do layer by layer is to add.
Keys and values of the attention are kept. All buffers and their views are made once and written in place.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F

from hf_vq.priors.pixelcnn_layers import ShiftedConv2d
from hf_vq.priors.pixelcnn_sampling import Above
from hf_vq.priors.pixelsnail_layers import (
    CausalAttention,
    CausalConv2d,
    FirstConv2d,
    GatedResidualLayer,
    PixelBlock,
    RasterConv2d,
    coordinates,
)


def dense(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias (out_channels,) and weight (in_channels, out_channels) of a 1x1 convolution or a linear layer."""
    return layer.bias, layer.weight.flatten(1).t().contiguous()


class RasterConvState:
    """Cached `RasterConv2d` of one-hot codes: a code, once known, adds its part to those that follow it."""

    def __init__(self, conv: ShiftedConv2d, num_grids: int, width: int):
        rows, reach = conv.kernel_size
        dtype = torch.promote_types(conv.weight.dtype, torch.float32)  # of sums that grow term by term
        kernel = conv.weight.to(dtype).flip(2, 3)  # seen from the code: its own row first, then those below
        self.kernels = kernel.permute(1, 2, 3, 0).flatten(1, 2).contiguous()  # (codebook_size, taps, out_channels)
        self.bias = cast(torch.Tensor, conv.bias).to(dtype)
        self.sums = self.bias.repeat(num_grids, rows * width + reach, 1)  # in raster order, of the current row on
        self.sums[:, 0] = 0  # nothing is left of the first position
        self.slots = self.sums[:, :width].unbind(1)
        steps = [torch.arange(size, device=kernel.device) for size in (rows, reach)]
        readers = (steps[0][:, None] * width + steps[1] + 1).flatten()  # of a code in the first column
        self.readers = [readers + column for column in range(width)]

    def start_row(self) -> None:
        width = len(self.slots)
        self.sums[:, :-width] = self.sums[:, width:].clone()
        self.sums[:, -width:] = self.bias

    def append(self, column: int, codes: torch.Tensor) -> None:
        self.sums.index_add_(1, self.readers[column], self.kernels[codes])


class FirstConvState:
    """Cached `FirstConv2d`: a code, once known, adds its columns of the kernels to the positions that read it."""

    def __init__(self, conv: FirstConv2d, num_grids: int, width: int):
        self.raster = RasterConvState(conv.left, num_grids, width) if conv.sees_row_ends else None
        rows, columns = conv.above.kernel_size
        reach = columns // 2
        dtype = torch.promote_types(conv.above.weight.dtype, torch.float32)  # of sums that grow term by term
        kernel = F.pad(conv.above.weight, (0, 0, 0, 1)).to(dtype)  # with the position's own row
        left = kernel.new_zeros(width - 1, kernel.shape[0])
        if self.raster is None:
            kernel[..., :reach] += conv.left.weight
            left += cast(torch.Tensor, conv.left.bias).to(dtype)
        kernel = kernel.flip(2, 3)  # seen from the code: its own row first, then those below
        self.kernels = kernel.permute(1, 2, 3, 0).contiguous()  # (codebook_size, rows + 1, columns, out_channels)
        left = F.pad(left, (0, 0, reach + 1, reach))
        self.empty_row = left + cast(torch.Tensor, conv.above.bias)  # (reach + width + reach, out_channels)
        self.sums = self.empty_row.repeat(num_grids, rows + 1, 1, 1)
        self.sums[:, 0] = left  # nothing is above the first row
        self.slots = self.sums[:, 0, reach : reach + width].unbind(1)  # of the current row
        windows = self.sums.unfold(2, columns, 1)[:, :, :width].permute(2, 0, 1, 4, 3)
        self.windows = windows.unbind(0)  # per column (grids, rows + 1, columns, out_channels)

    def features(self, column: int) -> torch.Tensor:
        """Outputs (grids, out_channels) at a column of the current row."""
        return self.slots[column] if self.raster is None else self.slots[column] + self.raster.slots[column]

    def start_row(self) -> None:
        if self.raster is not None:
            self.raster.start_row()
        self.sums[:, :-1] = self.sums[:, 1:].clone()
        self.sums[:, -1] = self.empty_row

    def append(self, column: int, codes: torch.Tensor) -> None:
        self.windows[column].add_(self.kernels[codes])
        if self.raster is not None:
            self.raster.append(column, codes)


class CausalConvStates:
    """Cached `CausalConv2d`s of equal shape, computed together."""

    def __init__(self, convs: list[CausalConv2d], num_grids: int, width: int):
        lefts = [conv.left for conv in convs]
        reach, channels = lefts[0].kernel_size[1], lefts[0].in_channels
        columns = lefts[0].weight.new_zeros(len(convs), num_grids, reach + width, channels)  # zeros left of the grid
        self.row_ends = None  # where they go on the left of the next row, and where they are
        if isinstance(lefts[0], RasterConv2d):
            self.row_ends = columns[:, :, :reach], columns[:, :, width:]
        self.aboves = [Above(conv.above, num_grids, width) for conv in convs]
        self.content = columns[:, :, reach:].transpose(2, 3)  # (layers, grids, in_channels, width)
        self.slots = columns[:, :, reach:].unbind(2)  # per column (layers, grids, in_channels)
        windows = columns.flatten(2).unfold(2, reach * channels, channels)
        self.windows = windows[:, :, :width].unbind(2)  # per column (layers, grids, reach * in_channels)
        self.weight = torch.stack([left.weight[:, :, 0].permute(2, 1, 0).flatten(0, 1) for left in lefts])
        self.biases = [cast(torch.Tensor, left.bias)[:, None] for left in lefts]  # (out_channels, 1)
        self.context = columns.new_empty(width, len(convs), num_grids, lefts[0].out_channels)
        self.contexts = self.context.unbind(0)

    def start_row(self, conditions: list[torch.Tensor | float]) -> None:
        """Take the finished row and compute what the next one has from above, and from its conditions."""
        for layer, (above, bias, condition) in enumerate(zip(self.aboves, self.biases, conditions, strict=True)):
            above.push(self.content[layer])
            row = above.row()[:, :, 0] + (bias + condition)  # (grids, out_channels, width)
            self.context[:, layer].copy_(row.permute(2, 0, 1))
        if self.row_ends is not None:
            left, end = self.row_ends
            left.copy_(end.clone())

    def step(self, column: int) -> torch.Tensor:
        """Outputs (layers, grids, out_channels) at a column."""
        return torch.baddbmm(self.contexts[column], self.windows[column], self.weight)


class PointwiseState:
    """A `GatedResidualLayer` of 1x1 convolutions, on the features (grids, channels) of one position."""

    def __init__(self, layer: GatedResidualLayer):
        self.bias1, self.weight1 = dense(layer.conv1)
        self.bias2, self.weight2 = dense(layer.conv2)
        if layer.extra is not None:
            extra_bias, self.extra_weight = dense(layer.extra)
            self.bias1 = self.bias1 + extra_bias

    def __call__(self, inputs: torch.Tensor, extra: torch.Tensor | None = None) -> torch.Tensor:
        hidden = torch.addmm(self.bias1, F.elu(inputs), self.weight1)
        if extra is not None:
            hidden.addmm_(F.elu(extra), self.extra_weight)
        gates = torch.addmm(self.bias2, F.elu(hidden, inplace=True), self.weight2)
        return F.glu(gates).add_(inputs)


class AttentionState:
    """Cached `CausalAttention`: the keys and values so far."""

    def __init__(self, attention: CausalAttention, num_grids: int, num_codes: int):
        self.heads, self.scaling = (attention.num_heads, attention.head_dim), attention.scaling
        self.query_bias, self.query_weight = dense(attention.query)
        parts = [dense(attention.key), dense(attention.value)]
        self.bias, self.weight = (torch.cat(part, dim=-1) for part in zip(*parts, strict=True))
        self.cache = self.weight.new_empty(2, num_grids, attention.num_heads, num_codes, attention.head_dim)
        self.slots = self.cache.unbind(3)  # per position (2, grids, heads, head_dim)
        self.nothing = self.weight.new_zeros(num_grids, attention.query.out_features)

    def attend(self, position: int, queries: torch.Tensor) -> torch.Tensor:
        if position == 0:
            return self.nothing
        queries = torch.addmm(self.query_bias, queries, self.query_weight).unflatten(1, self.heads)[:, :, None]
        keys, values = self.cache[:, :, :, :position].unbind(0)
        return F.scaled_dot_product_attention(queries, keys, values, scale=self.scaling).flatten(1)

    def append(self, position: int, features: torch.Tensor) -> None:
        keys_and_values = torch.addmm(self.bias, features, self.weight).unflatten(1, (2, *self.heads))
        self.slots[position].copy_(keys_and_values.transpose(0, 1))


class BlockState:
    """Cached `PixelBlock`, but for its causal convolutions.

    Args:
        block: the block.
        inputs: (layers, grids, channels), where the inputs of its residual layers are kept.
        background: (positions, 2) coordinates.
    """

    def __init__(self, block: PixelBlock, inputs: torch.Tensor, background: torch.Tensor):
        num_grids, channels = inputs.shape[1:]
        self.inputs = inputs.unbind(0)
        self.attention = None
        if block.attention is None:
            bias, weight = dense(block.output)
            self.weight, background_weight = weight.tensor_split([channels])
            self.biases = torch.addmm(bias, background, background_weight).unbind(0)  # per position
            self.features = torch.empty_like(self.inputs[0])
            return
        self.background = background.unbind(0)
        self.key_features = inputs.new_empty(num_grids, 2 * channels + background.shape[1])
        self.query_features = self.key_features[:, channels:]
        self.first, self.features, self.here = self.key_features.tensor_split([channels, 2 * channels], dim=1)
        self.key_layer, self.query_layer = PointwiseState(block.key_layer), PointwiseState(block.query_layer)
        self.output, self.attention = (
            PointwiseState(cast(GatedResidualLayer, block.output)),
            AttentionState(block.attention, num_grids, len(background)),
        )

    def step(self, position: int, features: torch.Tensor, gated: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Features (grids, channels) after the block, from those before and what its residual layers add."""
        outputs = (*self.inputs[1:], self.features)
        self.inputs[0].copy_(features)
        for inputs, output, addition in zip(self.inputs, outputs, gated, strict=True):
            torch.add(inputs, addition, out=output)
        if self.attention is None:
            return torch.addmm(self.biases[position], self.features, self.weight)
        self.first.copy_(self.inputs[0])
        self.here.copy_(self.background[position])
        attended = self.attention.attend(position, self.query_layer(self.query_features))
        self.attention.append(position, self.key_layer(self.key_features))
        return self.output(self.features, attended)


class PixelSNAILSamplingState:
    """The `SamplingState` of a `PixelSNAIL`.

    Args:
        prior: the PixelSNAIL, in eval mode and without gradients.
        num_grids: grids sampled together.
        code_shape: rows and columns of the grid.
        condition: (grids, condition_channels, rows, columns), or the two last of them 1; or None.
    """

    def __init__(self, prior: Any, num_grids: int, code_shape: tuple[int, ...], condition: torch.Tensor | None):
        self.width, self.position = code_shape[1], 0
        self.layers = [layer for block in prior.blocks for layer in block.residual_layers]
        self.condition = None if condition is None else condition.expand(-1, -1, code_shape[0], -1)
        self.first = FirstConvState(prior.first, num_grids, self.width)
        self.conv1 = CausalConvStates([layer.conv1 for layer in self.layers], num_grids, self.width)
        self.conv2 = CausalConvStates([layer.conv2 for layer in self.layers], num_grids, self.width)
        self.inputs = torch.empty_like(self.conv1.slots[0])  # (layers, grids, channels)
        background = coordinates(code_shape, self.inputs)[0].flatten(1).t()
        parts = self.inputs.chunk(len(prior.blocks))
        self.blocks = [BlockState(*each, background) for each in zip(prior.blocks, parts, strict=True)]
        self.output_layers = [PointwiseState(layer) for layer in prior.output_layers]
        self.bias, self.weight = dense(prior.head)

    def start_row(self, row: int) -> None:
        conditions: list[torch.Tensor | float] = [0.0] * len(self.layers)
        if self.condition is not None:
            here = self.condition[:, :, row : row + 1]
            conditions = [layer.condition(here)[:, :, 0] for layer in self.layers]  # (grids, 2 * channels, columns)
        self.conv1.start_row([0.0] * len(self.layers))
        self.conv2.start_row(conditions)
        if row > 0:
            self.first.start_row()

    def next_logits(self) -> torch.Tensor:
        row, column = divmod(self.position, self.width)
        if column == 0:
            self.start_row(row)
        gated = F.glu(self.conv2.step(column)).unbind(0)  # what each residual layer adds
        self.conv2.slots[column].copy_(F.elu(self.conv1.step(column), inplace=True))
        features, done = self.first.features(column), 0
        for block in self.blocks:
            features = block.step(self.position, features, gated[done : done + len(block.inputs)])
            done += len(block.inputs)
        self.conv1.slots[column].copy_(F.elu(self.inputs))
        for layer in self.output_layers:
            features = layer(features)
        return torch.addmm(self.bias, F.elu(features), self.weight)  # (grids, codebook_size)

    def append(self, codes: torch.Tensor) -> None:
        self.first.append(self.position % self.width, codes)
        self.position += 1

"""Layers of the PixelCNN, causal by the shape of their kernels: there are no masks to apply, save or lose."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

# first and last offset of a kernel along an axis, relative to the position it computes
Offsets = tuple[int, int]


class ShiftedConv2d(nn.Conv2d):
    """Convolution that reads the rows and columns at given offsets from each position, zeros outside the grid.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        rows: first and last row offset; (-3, -1) are the three rows above.
        columns: first and last column offset.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, rows: Offsets, columns: Offsets, bias: bool = True):
        super().__init__(in_channels, out_channels, (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1), bias=bias)
        self.margins = (-columns[0], columns[1], -rows[0], rows[1])  # left, right, top, bottom; negative ones crop

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs (batch, in_channels, height, width), or codes (batch, height, width) for their one-hot vectors."""
        if not inputs.is_floating_point():
            return self._convolve_one_hot(inputs)
        return super().forward(F.pad(inputs, self.margins))  # (batch, out_channels, height, width)

    def _convolve_one_hot(self, codes: torch.Tensor) -> torch.Tensor:
        """The convolution of one-hot vectors as a sum of columns of the kernel: no product with zeros."""
        rows, columns = self.kernel_size
        kernels = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (taps * in_channels, out_channels)
        outside = kernels.shape[0]  # a row of zeros for taps that lie outside the grid
        windows = F.pad(codes, self.margins, value=-1).unfold(1, rows, 1).unfold(2, columns, 1).flatten(3)
        first_rows = torch.arange(0, outside, self.in_channels, device=codes.device)
        indices = torch.where(windows < 0, outside, windows + first_rows)  # (batch, height, width, taps)
        wide = kernels.to(torch.promote_types(kernels.dtype, torch.float32))  # the gradients of a column are summed
        sums = F.embedding_bag(indices.flatten(0, 2), F.pad(wide, (0, 0, 0, 1)), mode="sum").to(kernels.dtype)
        outputs = sums.unflatten(0, indices.shape[:3]).movedim(-1, 1)
        return outputs if self.bias is None else outputs + self.bias[:, None, None]


def gate(activations: torch.Tensor) -> torch.Tensor:
    """tanh of the first half of the channels times sigmoid of the second (https://arxiv.org/abs/1606.05328, eq. 2)."""
    values, gates = activations.chunk(2, dim=1)
    return values.tanh() * gates.sigmoid()


class GatedLayer(GradientCheckpointingLayer):
    """One layer of the gated PixelCNN (https://arxiv.org/abs/1606.05328, figure 2).

    The vertical stack carries what is above, the horizontal stack what is above or left. In the first layer both
    exclude the position itself (mask A), in the others the input already does.

    Args:
        channels: channels of both stacks.
        kernel_size: odd size of the full kernel.
        num_class_embeddings: rows of the class embedding, added to both gates; 0 is unconditional.
        dropout: on the gated activations of both stacks.
        first: whether this is the first layer, which has no residual connection.
        in_channels: channels of the input; `channels` by default.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        num_class_embeddings: int,
        dropout: float,
        first: bool = False,
        in_channels: int | None = None,
    ):
        super().__init__()
        in_channels = channels if in_channels is None else in_channels
        reach, last = kernel_size // 2, -1 if first else 0
        self.first = first
        self.vertical = ShiftedConv2d(in_channels, 2 * channels, (-reach, last), (-reach, reach))
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.horizontal = ShiftedConv2d(in_channels, 2 * channels, (0, 0), (-reach, last))
        self.output = nn.Conv2d(channels, channels, 1)
        self.class_embedding = nn.Embedding(num_class_embeddings, 2 * channels) if num_class_embeddings else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, vertical: torch.Tensor, horizontal: torch.Tensor, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        above = self.vertical(vertical)  # (batch, 2 * channels, height, width)
        gates = self.vertical_to_horizontal(above) + self.horizontal(horizontal)
        if self.class_embedding is not None:
            condition = self.class_embedding(class_labels)[:, :, None, None]
            above, gates = above + condition, gates + condition
        output = self.output(self.dropout(gate(gates)))
        return self.dropout(gate(above)), output if self.first else output + horizontal


class CausalConv2d(nn.Module):
    """Masked convolution of the first PixelCNN (https://arxiv.org/abs/1601.06759, figure 2), as two dense ones.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd size of the full kernel.
        first: exclude the position itself (mask A) instead of including it (mask B).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, first: bool = False):
        super().__init__()
        reach = kernel_size // 2
        self.above = None
        if reach > 0:
            self.above = ShiftedConv2d(in_channels, out_channels, (-reach, -1), (-reach, reach), bias=False)
        self.left = ShiftedConv2d(in_channels, out_channels, (0, 0), (-reach, -1 if first else 0))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        left = self.left(inputs)
        return left if self.above is None else left + self.above(inputs)


class ResidualBlock(GradientCheckpointingLayer):
    """Residual block of the plain PixelCNN: 1x1, causal at half the width, 1x1, each with ReLU.

    Args:
        channels: channels of the residual stream.
        kernel_size: odd size of the causal kernel.
        num_class_embeddings: rows of the class embedding, added to the causal convolution; 0 is unconditional.
        dropout: on the activations of the causal convolution.
    """

    def __init__(self, channels: int, kernel_size: int, num_class_embeddings: int, dropout: float):
        super().__init__()
        width = channels // 2
        self.input = nn.Conv2d(channels, channels, 1)
        self.causal = CausalConv2d(channels, width, kernel_size)
        self.output = nn.Conv2d(width, channels, 1)
        self.class_embedding = nn.Embedding(num_class_embeddings, width) if num_class_embeddings else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        hidden = self.causal(self.input(inputs).relu())  # (batch, channels // 2, height, width)
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(class_labels)[:, :, None, None]
        return inputs + self.output(self.dropout(hidden.relu())).relu()


class GatedStack(nn.Module):
    """Gated layers, to features (batch, channels, height, width).

    Their inputs are vectors (batch, in_channels, height, width), or codes (batch, height, width) for one-hot vectors.

    Args:
        config: the `PixelCNNConfig`.
        in_channels: length of the code vectors.
    """

    def __init__(self, config: Any, in_channels: int):
        super().__init__()
        channels, rest = config.hidden_channels, (config.num_class_embeddings, config.dropout)
        first = GatedLayer(channels, config.first_kernel_size, *rest, first=True, in_channels=in_channels)
        others = [GatedLayer(channels, config.kernel_size, *rest) for _ in range(config.num_layers - 1)]
        self.layers = nn.ModuleList([first, *others])

    def forward(self, inputs: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        vertical = horizontal = inputs
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, class_labels)
        return horizontal


class ResidualStack(nn.Module):
    """A first causal convolution and residual blocks, with the arguments and shapes of `GatedStack`."""

    def __init__(self, config: Any, in_channels: int):
        super().__init__()
        channels, rest = config.hidden_channels, (config.num_class_embeddings, config.dropout)
        self.first = CausalConv2d(in_channels, channels, config.first_kernel_size, first=True)
        self.layers = nn.ModuleList(
            ResidualBlock(channels, config.kernel_size, *rest) for _ in range(config.num_layers)
        )

    def forward(self, inputs: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        features = self.first(inputs).relu()
        for layer in self.layers:
            features = layer(features, class_labels)
        return features

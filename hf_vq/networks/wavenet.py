"""The WaveNet: gated residual layers of causal dilated convolutions, with local and global conditions."""

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hf_vq.arguments import checked
from hf_vq.networks.causal import CausalConv1d
from hf_vq.ranges import Chance, FreeWidth, KernelSize, NotEmpty, Parity, Size, Width

HALF_VARIANCE = 0.5**0.5  # keeps the variance of a sum of two


def dilation_cycles(num_layers: int, num_cycles: int) -> list[int]:
    """Dilations 1, 2, 4, ... of `num_layers` layers, beginning anew in each of `num_cycles` equal cycles.

    Raises:
        ValueError: the cycles are not equal.
    """
    if num_layers < 1 or num_cycles < 1 or num_layers % num_cycles:
        raise ValueError(f"num_cycles must divide num_layers={num_layers}, got {num_cycles}")
    return [2 ** (layer % (num_layers // num_cycles)) for layer in range(num_layers)]


class WaveNetLayer(GradientCheckpointingLayer):
    """One residual layer with a gated activation (https://arxiv.org/abs/1609.03499, eq. 2, 3 and figure 4).

    Args:
        residual_channels: channels of the input.
        gate_channels: channels before the gate, which halves them.
        skip_channels: channels of the sum over layers.
        kernel_size: taps of the dilated convolution.
        dilation: steps between taps.
        local_channels: channels of the local condition; 0 is none.
        global_channels: channels of the global condition; 0 is none.
        dropout: of the input of the convolution.
        last: the last layer feeds the sum only.
    """

    def __init__(
        self,
        residual_channels: int,
        gate_channels: int,
        skip_channels: int,
        kernel_size: int,
        dilation: int,
        local_channels: int = 0,
        global_channels: int = 0,
        dropout: float = 0.0,
        last: bool = False,
    ):
        super().__init__()
        self.dropout = dropout
        self.conv = CausalConv1d(residual_channels, gate_channels, kernel_size, dilation)
        self.local_condition = nn.Conv1d(local_channels, gate_channels, 1, bias=False) if local_channels else None
        self.global_condition = nn.Linear(global_channels, gate_channels, bias=False) if global_channels else None
        self.residual = None if last else nn.Conv1d(gate_channels // 2, residual_channels, 1)
        self.skip = nn.Conv1d(gate_channels // 2, skip_channels, 1)

    def forward(
        self,
        inputs: torch.Tensor,
        local_features: torch.Tensor | None = None,
        global_features: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The next layer's inputs (None after the last layer) and the skip (batch, skip_channels, length).

        Args:
            inputs: (batch, residual_channels, length).
            local_features: (batch, local_channels, length).
            global_features: (batch, global_channels).
        """
        gates = self.conv(F.dropout(inputs, self.dropout, self.training))
        if self.local_condition is not None:
            gates = gates + self.local_condition(local_features)
        if self.global_condition is not None:
            gates = gates + self.global_condition(global_features)[..., None]
        values, openings = gates.chunk(2, dim=1)
        activations = values.tanh() * openings.sigmoid()  # (batch, gate_channels / 2, length)
        following = None if self.residual is None else (self.residual(activations) + inputs) * HALF_VARIANCE
        return following, self.skip(activations)


class WaveNetStack(nn.Module):
    """Layers of a WaveNet and the two 1x1 convolutions over the sum of their skips (figure 4 of the paper).

    As in r9y9/wavenet_vocoder, sums are scaled to keep their variance: the residual one by the root of 1/2, that of
    the skips by the root of 1/layers. `WaveNetSteps` computes the same step by step.

    Args:
        residual_channels: channels of inputs and of the residual sums.
        gate_channels: channels before the gates, even.
        skip_channels: channels of the sum of skips.
        out_channels: channels of the output.
        dilations: one per layer, see `dilation_cycles`.
        kernel_size: taps of the dilated convolutions.
        local_channels: channels of the local condition; 0 is none.
        global_channels: channels of the global condition; 0 is none.
        dropout: in every layer.

    Raises:
        ValueError: a value is out of its range.
    """

    layers: Any  # nn.ModuleList of WaveNetLayer

    @checked
    def __init__(
        self,
        residual_channels: Width,
        gate_channels: Annotated[Width, Parity(0)],
        skip_channels: Width,
        out_channels: Size,
        dilations: Annotated[Sequence[Size], NotEmpty()],
        kernel_size: KernelSize = 2,
        local_channels: FreeWidth = 0,
        global_channels: FreeWidth = 0,
        dropout: Chance = 0.0,
    ):
        super().__init__()
        self.residual_channels, self.local_channels, self.global_channels = (
            residual_channels, local_channels, global_channels,
        )  # fmt: skip
        self.layers = nn.ModuleList(
            WaveNetLayer(
                residual_channels,
                gate_channels,
                skip_channels,
                kernel_size,
                dilation,
                local_channels,
                global_channels,
                dropout,
                last=number == len(dilations),
            )
            for number, dilation in enumerate(dilations, start=1)
        )
        self.skip_scale = len(dilations) ** -0.5
        self.hidden = nn.Conv1d(skip_channels, skip_channels, 1)
        self.output = nn.Conv1d(skip_channels, out_channels, 1)

    @property
    def receptive_field(self) -> int:
        """Inputs that one output depends on, the present one included."""
        return 1 + sum(layer.conv.reach for layer in self.layers)

    def forward(
        self,
        inputs: torch.Tensor,
        local_features: torch.Tensor | None = None,
        global_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Outputs that depend on the present input, the past ones and the conditions.

        Args:
            inputs: (batch, residual_channels, length).
            local_features: (batch, local_channels, length) where the stack has a local condition.
            global_features: (batch, global_channels) where it has a global one.

        Returns:
            (batch, out_channels, length).
        """
        skips = 0.0  # summed here, so that gradient checkpointing keeps no sum per layer
        for layer in self.layers:
            inputs, skip = layer(inputs, local_features, global_features)
            skips = skips + skip
        return self.output(self.hidden((skips * self.skip_scale).relu()).relu())

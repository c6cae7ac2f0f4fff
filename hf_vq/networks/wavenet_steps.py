"""A WaveNet step by step: each step costs the same work, however many came before.

A layer keeps the inputs that its kernel still reads in ring buffers made once: one ring per phase of its dilation,
with a slot per tap. A step overwrites the oldest slot of one ring and multiplies the ring as it lies by a copy of the
weight whose taps are turned the same way, so nothing is ever shifted or gathered.
"""

from typing import Any, cast

import torch

from hf_vq.networks.wavenet import HALF_VARIANCE, WaveNetLayer, WaveNetStack

STEPS_AT_ONCE = 16  # whose local conditions are computed together


class LayerSteps:
    """Cached `WaveNetLayer`: one product over its taps, and one into the next layer.

    Args:
        layer: in eval mode.
        batch_size: items computed together.
        activations: (batch, gate_channels / 2 + 1), where the gates are written; its last column holds ones.
    """

    residual: Any  # (channels + 1, channels); None: the last layer has none

    def __init__(self, layer: WaveNetLayer, batch_size: int, activations: torch.Tensor):
        weight, num_taps = layer.conv.weight, layer.conv.kernel_size[0]
        self.dilation, self.num_taps = layer.conv.dilation[0], num_taps
        rings = weight.new_zeros(self.dilation, batch_size, num_taps, layer.conv.in_channels)
        self.rings = rings.flatten(2).unbind(0)  # by phase: (batch, taps * channels)
        self.slots = [ring.unbind(1) for ring in rings.unbind(0)]  # by phase and slot: (batch, channels)
        taps = weight.permute(2, 1, 0)  # (taps, channels, gate_channels), oldest first
        self.weights = [taps.roll(newest + 1, 0).flatten(0, 1).contiguous() for newest in range(num_taps)]
        self.gates = weight.new_empty(batch_size, layer.conv.out_channels)
        self.values, self.openings = self.gates.chunk(2, dim=1)
        self.activations, self.activations_and_one = activations[:, :-1], activations
        self.residual = None if layer.residual is None else _with_bias(layer.residual) * HALF_VARIANCE

    def slot(self, time: int) -> torch.Tensor:
        """Where the input (batch, channels) of a time lies."""
        return self.slots[time % self.dilation][time // self.dilation % self.num_taps]

    def step(self, time: int, context: torch.Tensor, following: "LayerSteps | None") -> None:
        """Read the slot of this time, write the activations and the slot of the following layer."""
        phase, newest = time % self.dilation, time // self.dilation % self.num_taps
        torch.addmm(context, self.rings[phase], self.weights[newest], out=self.gates)
        torch.mul(self.values.tanh_(), self.openings.sigmoid_(), out=self.activations)
        if following is not None:
            torch.addmm(
                self.slots[phase][newest],
                self.activations_and_one,
                self.residual,
                beta=HALF_VARIANCE,
                out=following.slot(time),
            )


class WaveNetSteps:
    """Cached `WaveNetStack`: outputs equal those of its `forward`, one time at a time.

    Args:
        stack: in eval mode; its weights are copied, so later changes are not seen. Without gradients.
        batch_size: items computed together.
        local_features: (batch, local_channels, length) where the stack has a local condition.
        global_features: (batch, global_channels) where it has a global one.
    """

    local_features: torch.Tensor | None  # (length, batch, local_channels)

    @torch.no_grad()
    def __init__(
        self,
        stack: WaveNetStack,
        batch_size: int,
        local_features: torch.Tensor | None = None,
        global_features: torch.Tensor | None = None,
    ):
        num_layers, hidden = len(stack.layers), stack.layers[0].skip.in_channels
        self.activations = stack.output.weight.new_ones(batch_size, num_layers * (hidden + 1))
        parts = self.activations.chunk(num_layers, dim=1)
        self.layers = [LayerSteps(layer, batch_size, part) for layer, part in zip(stack.layers, parts, strict=True)]
        self.followers = [*self.layers[1:], None]
        self.skip = torch.cat([_with_bias(layer.skip) for layer in stack.layers]) * stack.skip_scale
        self.head = [_dense(stack.hidden), _dense(stack.output)]
        self.time = 0

        always = torch.cat([layer.conv.bias for layer in stack.layers]).expand(batch_size, -1)
        if stack.global_channels:
            always = always + cast(torch.Tensor, global_features) @ _joined(
                [layer.global_condition for layer in stack.layers]
            )
        self.always = always  # (batch, layers * gate_channels)
        self.contexts = [always.chunk(num_layers, dim=1)]
        self.local_features = None
        if stack.local_channels:
            self.local_features = cast(torch.Tensor, local_features).permute(2, 0, 1).contiguous()
            self.local_weight = _joined([layer.local_condition for layer in stack.layers])

    @torch.no_grad()
    def step(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs (batch, out_channels) of the next time, whose inputs are (batch, residual_channels)."""
        self.layers[0].slot(self.time).copy_(inputs)
        for layer, context, following in zip(self.layers, self._context(), self.followers, strict=True):
            layer.step(self.time, context, following)
        features = (self.activations @ self.skip).relu_()  # (batch, skip_channels)
        (hidden_bias, hidden), (output_bias, output) = self.head
        self.time += 1
        return torch.addmm(output_bias, torch.addmm(hidden_bias, features, hidden).relu_(), output)

    def _context(self) -> tuple[torch.Tensor, ...]:
        """Per layer (batch, gate_channels): biases and conditions of the present time."""
        if self.local_features is None:
            return self.contexts[0]
        place = self.time % STEPS_AT_ONCE
        if place == 0:
            block = self.local_features[self.time : self.time + STEPS_AT_ONCE]
            contexts = block @ self.local_weight + self.always  # (steps, batch, layers * gate_channels)
            self.contexts = [context.chunk(len(self.layers), dim=1) for context in contexts.unbind(0)]
        return self.contexts[place]


def _dense(conv: torch.nn.Conv1d) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias and weight (in_channels, out_channels) of a 1x1 convolution."""
    return cast(torch.Tensor, conv.bias), conv.weight[:, :, 0].t().contiguous()


def _with_bias(conv: torch.nn.Conv1d) -> torch.Tensor:
    """Weight (in_channels + 1, out_channels) of a 1x1 convolution, for inputs that end with a one."""
    return torch.cat([conv.weight[:, :, 0].t(), cast(torch.Tensor, conv.bias)[None]])


def _joined(layers: list[torch.nn.Conv1d]) -> torch.Tensor:
    """Weight (in_channels, layers * out_channels) of 1x1 layers that read the same input."""
    return torch.cat([layer.weight.flatten(1) for layer in layers]).t().contiguous()

"""What the WaveNets over codes and over waveforms share: the config, the conditions and the stack."""

from typing import Annotated, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from hf_vq.networks.upsampling import ACTIVATIONS, MODES, FeatureUpsampler
from hf_vq.networks.wavenet import WaveNetStack, dilation_cycles
from hf_vq.networks.wavenet_steps import WaveNetSteps
from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.conditions import Condition, FeatureCondition, speaker_condition
from hf_vq.priors.config import SpeakerConfig
from hf_vq.priors.inputs import at_own_lengths
from hf_vq.ranges import Chance, Depth, FreeWidth, KernelSize, Number, OneOf, Parity, Range, Width


class ConditionedWaveNetConfig(SpeakerConfig):
    """Config fields of every WaveNet.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`; `code_shape` is (length,).
        num_speakers, speaker_dropout_prob: see `SpeakerConfig`.
        residual_channels: channels between layers.
        gate_channels: channels before the gates, even.
        skip_channels: channels of the sum over layers, and of the hidden layer after it.
        num_layers: layers.
        num_cycles: cycles of dilations 1, 2, 4, ...; it divides `num_layers`.
        kernel_size: taps of the dilated convolutions.
        dropout: of the input of every layer.
        use_global_features: take vectors of `global_channels` for each item, the condition `global_features`.
        global_channels: width of the global condition, the sum of embedded classes, embedded speakers and given
            vectors.
        local_channels: channels of the condition `local_features`; 0 is none.
        upsample_scales: local features come once per frame, and are stretched by the product of these factors;
            None: they come once per sample.
        upsample_context: frames of local features before the first and after the last.
        upsample_input_conv, upsample_kernel_size, upsample_mode, upsample_activation, upsample_negative_slope: the
            other options of `hf_vq.networks.upsampling.FeatureUpsampler`.

    Raises:
        ValueError: a value is out of its range.
    """

    residual_channels: Width = 64
    gate_channels: Annotated[Width, Parity(0)] = 128
    skip_channels: Width = 128
    num_layers: Depth = 20
    num_cycles: Depth = 2
    kernel_size: KernelSize = 2
    dropout: Chance = 0.0
    use_global_features: bool = False
    global_channels: Width = 64
    local_channels: FreeWidth = 0
    upsample_scales: list[Annotated[int, Range(1, 2**10)]] | tuple[Annotated[int, Range(1, 2**10)], ...] | None = None
    upsample_context: Annotated[int, Range(0, 2**10)] = 0
    upsample_input_conv: bool = True
    upsample_kernel_size: Annotated[KernelSize, Parity(1)] = 1
    upsample_mode: Annotated[str, OneOf(MODES)] = "nearest"
    upsample_activation: Annotated[str, OneOf(ACTIVATIONS)] | None = None
    upsample_negative_slope: Number = 0.01

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.code_shape is not None and len(self.code_shape) != 1:
            raise ValueError(f"code_shape must be (length,), got {self.code_shape}")
        if self.upsample_scales is not None:
            self.upsample_scales = list(self.upsample_scales)
            if not self.local_channels:
                raise ValueError(f"upsample_scales={self.upsample_scales} need local_channels above 0")
        elif self.upsample_context:
            raise ValueError(f"upsample_context={self.upsample_context} needs upsample_scales")
        dilation_cycles(self.num_layers, self.num_cycles)
        with torch.device("meta"):  # what the network refuses is refused here
            self.make_stack(out_channels=1, dilations=[1])
            self.make_upsampler()

    @property
    def has_global_condition(self) -> bool:
        """Whether anything tells one item from another as a whole."""
        return self.use_global_features or self.num_classes > 0 or self.num_speakers > 0

    def make_stack(self, out_channels: int, dilations: list[int]) -> WaveNetStack:
        """A stack of this config, with a layer per dilation."""
        return WaveNetStack(
            self.residual_channels,
            self.gate_channels,
            self.skip_channels,
            out_channels,
            dilations,
            self.kernel_size,
            self.local_channels,
            self.global_channels if self.has_global_condition else 0,
            self.dropout,
        )

    def make_upsampler(self) -> FeatureUpsampler | None:
        """The upsampling network of this config, None where local features come once per sample."""
        if self.upsample_scales is None:
            return None
        return FeatureUpsampler(
            self.local_channels,
            self.upsample_scales,
            self.upsample_context,
            self.upsample_input_conv,
            self.upsample_kernel_size,
            self.upsample_mode,
            self.upsample_activation,
            self.upsample_negative_slope,
        )


class ConditionedWaveNet(AutoregressivePrior, PreTrainedModel):
    """A WaveNet with its conditions; subclasses add what goes into the first layer and what comes out of the last.

    Args:
        config: the config.
        out_channels: channels of the output.
    """

    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    _no_split_modules = ["WaveNetLayer"]
    grid_dims = 1
    reads_lengths = True  # upsampled features end differently in a longer item

    def __init__(self, config: ConditionedWaveNetConfig, out_channels: int):
        super().__init__(config)
        width = config.global_channels
        self.class_embedding = nn.Embedding(config.num_class_embeddings, width) if config.num_classes else None
        self.speaker_embedding = nn.Embedding(config.num_speaker_embeddings, width) if config.num_speakers else None
        self.upsampler = config.make_upsampler()
        self.stack = config.make_stack(out_channels, dilation_cycles(config.num_layers, config.num_cycles))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Variances are kept by every layer; smoothing kernels begin as averages."""
        if isinstance(module, nn.Conv1d | nn.Linear):
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.constant_(module.weight, 1 / module.weight.numel())
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)

    def run_stack(self, inputs: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """Outputs (batch, length, out_channels) of inputs (batch, residual_channels, length), checked conditions."""
        length = inputs.shape[2]
        outputs = self.stack(inputs, self._local_condition(length, **conditions), self._global_condition(**conditions))
        return outputs.transpose(1, 2)

    def start_stack(self, batch_size: int, length: int, **conditions: Any) -> WaveNetSteps:
        """The stack step by step, for checked conditions."""
        local_features = self._local_condition(length, **conditions)
        return WaveNetSteps(self.stack, batch_size, local_features, self._global_condition(**conditions))

    def make_conditions(self) -> tuple[Condition, ...]:
        config = self.config
        return (
            *super().make_conditions(),
            speaker_condition(config),
            FeatureCondition("global_features", (config.global_channels,), taken=config.use_global_features),
            FeatureCondition(
                "local_features", (config.local_channels,), self.num_frames, taken=config.local_channels > 0
            ),
        )

    def num_frames(self, length: int) -> int:
        """Frames of local features that `length` samples need."""
        return length if self.upsampler is None else self.upsampler.num_frames(length)

    def _local_condition(
        self,
        length: int,
        local_features: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        **_,
    ) -> torch.Tensor | None:
        """Local features (batch, local_channels, length); of items of given lengths, those of each item alone."""
        if local_features is None:
            return None
        if lengths is None:
            return self._stretch(local_features, length)
        return at_own_lengths(
            lengths, length, lambda rows, own: self._stretch(local_features[rows, :, : self.num_frames(own)], own)
        )

    def _stretch(self, local_features: torch.Tensor, length: int) -> torch.Tensor:
        return local_features if self.upsampler is None else self.upsampler(local_features)[..., :length]

    def _global_condition(
        self,
        class_labels: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
        global_features: torch.Tensor | None = None,
        **_,
    ) -> torch.Tensor | None:
        parts = [] if global_features is None else [global_features]
        if class_labels is not None:
            parts.append(self.class_embedding(class_labels))
        if speaker_labels is not None:
            parts.append(self.speaker_embedding(speaker_labels))
        return sum(parts[1:], parts[0]) if parts else None

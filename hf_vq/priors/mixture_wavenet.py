"""WaveNet over waveforms, whose output is a mixture of logistics."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, cast

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers.utils import can_return_tuple

from hf_vq.networks.logistic_mixture import draw_amplitudes, mixture_log_prob
from hf_vq.priors.base import PriorOutput
from hf_vq.priors.conditions import Condition, FeatureCondition, check_magnitude
from hf_vq.priors.inputs import IGNORED
from hf_vq.priors.sampling import check_sampling_options
from hf_vq.priors.tokens import IMPOSSIBLE
from hf_vq.priors.wavenet_conditions import ConditionedWaveNet, ConditionedWaveNetConfig
from hf_vq.ranges import MOST_CODES, Range, Samples, Side, Weight, Width
from hf_vq.registry import register


class MixtureWaveNetConfig(ConditionedWaveNetConfig):
    """Config of `MixtureWaveNet`.

    Args:
        codebook_size: equally spaced levels from -1 to 1 that a sample can take, at least 2.
        num_mixtures: logistics in the mixture.
        min_log_scale: smallest logarithm of a logistic's scale.
        others: see `ConditionedWaveNetConfig`; `class_dropout_prob` and `speaker_dropout_prob` must be 0, since
            guidance needs logits of codes.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_mixture_wavenet"

    codebook_size: Annotated[int, Range(2, MOST_CODES)] = 65536
    num_mixtures: Width = 10
    min_log_scale: Annotated[float, Range(-80, 0)] = -7.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("class_dropout_prob", "speaker_dropout_prob"):
            if getattr(self, name):
                raise ValueError(f"{name} must be 0 without guidance, got {getattr(self, name)}")


class AmplitudeTokens:
    """Samples of a waveform in [-1, 1], of which logits are a mixture of logistics; see `hf_vq.priors.tokens.Tokens`.

    Args:
        num_levels: equally spaced levels that a sample can take.
        min_log_scale: smallest logarithm of a logistic's scale.
    """

    known_name, dtype, draws = "known_values", torch.float32, 2

    def __init__(self, num_levels: int, min_log_scale: float):
        self.num_levels, self.min_log_scale = num_levels, min_log_scale

    def check(self, grids: torch.Tensor, labels: torch.Tensor | None, grid_dims: int) -> None:
        if not grids.is_floating_point():
            raise ValueError(f"waveforms must be floats, got {grids.dtype}")
        if grids.ndim != 1 + grid_dims or grids.numel() == 0:
            raise ValueError(f"waveforms must be (batch, length), got {tuple(grids.shape)}")
        check_magnitude("waveforms", grids)
        if labels is None:
            return
        if not labels.is_floating_point() or labels.shape != grids.shape:
            raise ValueError(
                f"labels must be floats of the shape of waveforms {tuple(grids.shape)}, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        check_magnitude("labels", labels.masked_fill(labels == IGNORED, 0))

    def check_known(self, known: torch.Tensor, mask: torch.Tensor, shape: tuple[int, ...]) -> None:
        if not known.is_floating_point() or known.shape != shape:
            raise ValueError(f"known_values must be floats {shape}, got {known.dtype} {tuple(known.shape)}")
        check_magnitude("known_values", known.masked_fill(~mask, 0))

    def nats(self, logits: torch.Tensor, targets: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        kept = targets != IGNORED
        targets = targets.masked_fill(~kept, 0)
        nats = -mixture_log_prob(logits, targets, self.num_levels, self.min_log_scale) * kept
        return nats.sum() / kept.sum() if reduction == "mean" else nats

    def draw(self, logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        return draw_amplitudes(logits.float(), uniforms, self.num_levels, self.min_log_scale, temperature)

    def others(self, elements: torch.Tensor) -> torch.Tensor:
        return torch.where(elements > 0, elements - 1, elements + 1)

    def comparable(self, logits: torch.Tensor) -> torch.Tensor:
        logits, means, log_scales = logits.to(torch.promote_types(logits.dtype, torch.float32)).chunk(3, dim=-1)
        log_probs = logits.log_softmax(dim=-1).clamp(min=IMPOSSIBLE)
        return torch.cat([log_probs, means, log_scales.clamp(min=self.min_log_scale)], dim=-1)


class MixtureSamplingState:
    """The `SamplingState` of a `MixtureWaveNet`."""

    def __init__(
        self, prior: "MixtureWaveNet", num_grids: int, length: int, start_values: torch.Tensor, conditions: dict
    ):
        self.steps = prior.start_stack(num_grids, length, **conditions)
        self.weight, self.bias = prior.input.weight[:, 0, 0], cast(torch.Tensor, prior.input.bias)
        self.newest = start_values

    def next_logits(self) -> torch.Tensor:
        return self.steps.step(torch.addcmul(self.bias, self.newest[:, None], self.weight))

    def append(self, codes: torch.Tensor) -> None:
        self.newest = codes.to(self.weight.dtype)


@register
class MixtureWaveNet(ConditionedWaveNet):
    """WaveNet over waveforms with a discretised mixture of logistics (https://arxiv.org/abs/1701.05517, eq. 1, 2).

    The network of r9y9/wavenet_vocoder with scalar input: `WaveNet` with waveforms in [-1, 1] for codes. A waveform
    is silent (0) before its first sample, unless `start_values` says otherwise.
    """

    config_class = MixtureWaveNetConfig
    main_input_name = "waveforms"
    models_codes = False
    sampling_options = ("temperature", "known_values", "known_mask")

    def __init__(self, config: MixtureWaveNetConfig):
        super().__init__(config, 3 * config.num_mixtures)
        self.input = nn.Conv1d(1, config.residual_channels, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        waveforms: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
        global_features: torch.Tensor | None = None,
        local_features: torch.Tensor | None = None,
        start_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        lengths: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Mixtures of every sample from the samples before it, and their loss.

        Args:
            waveforms: (batch, length) float in [-1, 1].
            class_labels, speaker_labels, global_features, local_features: see `WaveNet.forward`.
            start_values: (batch,) float in [-1, 1], the samples before the first ones; by default 0.
            labels: (batch, length) float targets instead of `waveforms`; -100 is ignored.
            return_loss: compute the loss.
            lengths: (batch,) int64, real samples of each waveform; the rest takes no part in the loss.

        Returns:
            `PriorOutput` with the loss in mean nats per sample and logits (batch, length, 3 * num_mixtures): logits,
            means and logarithms of scales of the mixtures.

        Raises:
            ValueError: waveforms, conditions or targets out of range or of the wrong shape or type.
        """
        return self.run_forward(
            waveforms,
            labels,
            return_loss,
            lengths,
            class_labels=class_labels,
            speaker_labels=speaker_labels,
            global_features=global_features,
            local_features=local_features,
            start_values=start_values,
        )

    @property
    def tokens(self) -> AmplitudeTokens:
        return AmplitudeTokens(self.config.codebook_size, self.config.min_log_scale)

    def make_conditions(self) -> tuple[Condition, ...]:
        return (*super().make_conditions(), FeatureCondition("start_values", (), largest=1.0, optional=True))

    def log_prob(
        self, waveforms: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any
    ) -> torch.Tensor:
        """Log-probability of whole waveforms, in eval mode and without gradients.

        Args:
            waveforms: (batch, length) float in [-1, 1]; on the levels, this is the probability of a sequence of them.
            lengths: (batch,) int64, real samples of each waveform; None: all.
            conditions: those of `forward`.

        Returns:
            (batch,) nats, at most 0.
        """
        return super().log_prob(waveforms, lengths, **conditions)

    @apply_forward_hook
    @torch.no_grad()
    def sample(
        self,
        batch_size: Samples | None = None,
        code_shape: Sequence[Side] | None = None,
        *,
        temperature: Weight = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_values: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **conditions: Any,
    ) -> torch.Tensor:
        """Draw waveforms sample by sample, in eval mode, with cached activations.

        Args:
            batch_size: number of waveforms of a prior without conditions; with conditions it is theirs.
            code_shape: (length,); `config.code_shape` by default.
            temperature: divides the logits of the components and multiplies their scales; 0 takes the mean of the
                most probable component.
            generator: a generator on the CPU or the model's device, or one per waveform.
            known_values: (batch, length) float in [-1, 1], read where `known_mask` is True: these samples are kept.
            known_mask: (batch, length) bool.
            progress_bar: wraps the loop over samples.
            conditions: those of `forward`.

        Returns:
            (batch, length) float32, on the levels of the config except where known.

        Raises:
            TypeError: a condition that this prior does not take.
            ValueError: an argument is missing, out of range or of the wrong shape.
            RuntimeError: the network gave logits that are not finite.
        """
        check_sampling_options(temperature, None, None)
        return self.draw_grids(
            batch_size, code_shape, conditions, generator, known_values, known_mask, progress_bar,
            temperature=temperature,
        )  # fmt: skip

    def predict(
        self, waveforms: torch.Tensor, start_values: torch.Tensor | None = None, **conditions: Any
    ) -> torch.Tensor:
        waveforms = waveforms.to(self.device, self.dtype)
        if start_values is None:
            start_values = waveforms.new_zeros(len(waveforms))
        before = torch.cat([start_values[:, None], waveforms[:, :-1]], dim=1)
        return self.run_stack(self.input(before[:, None]), **conditions)

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], start_values: torch.Tensor | None = None, **conditions: Any
    ) -> MixtureSamplingState:
        if start_values is None:
            start_values = self.input.weight.new_zeros(num_grids)
        return MixtureSamplingState(self, num_grids, code_shape[0], start_values, conditions)

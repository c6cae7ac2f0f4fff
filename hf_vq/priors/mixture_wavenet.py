"""WaveNet over waveforms, whose output is a mixture of logistics."""

from collections.abc import Callable, Iterable, Sequence

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers.utils import can_return_tuple

from hf_vq.networks.logistic_mixture import draw_amplitudes, mixture_log_prob
from hf_vq.priors.base import PriorOutput, evaluating
from hf_vq.priors.inputs import IGNORED
from hf_vq.priors.sampling import check_sampling_options, draw_uniforms
from hf_vq.priors.wavenet_conditions import ConditionedWaveNet, ConditionedWaveNetConfig


class MixtureWaveNetConfig(ConditionedWaveNetConfig):
    """Config of `MixtureWaveNet`.

    Args:
        codebook_size: equally spaced levels from -1 to 1 that a sample can take, at least 2.
        num_mixtures: logistics in the mixture.
        min_log_scale: smallest logarithm of a logistic's scale.
        others: see `ConditionedWaveNetConfig`; `class_dropout_prob` must be 0, since guidance needs logits of codes.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_mixture_wavenet"

    codebook_size: int = 65536
    num_mixtures: int = 10
    min_log_scale: float = -7.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be at least 2, got {self.codebook_size}")
        if self.num_mixtures < 1:
            raise ValueError(f"num_mixtures must be at least 1, got {self.num_mixtures}")
        if self.class_dropout_prob:
            raise ValueError(f"class_dropout_prob must be 0 without guidance, got {self.class_dropout_prob}")


class MixtureWaveNet(ConditionedWaveNet):
    """WaveNet over waveforms with a discretised mixture of logistics (https://arxiv.org/abs/1701.05517, eq. 1, 2).

    The network of r9y9/wavenet_vocoder with scalar input: `WaveNet` with waveforms in [-1, 1] for codes. A waveform
    is silent (0) before its first sample, unless `start_values` says otherwise.
    """

    config_class = MixtureWaveNetConfig
    main_input_name = "waveforms"
    condition_names = (*ConditionedWaveNet.condition_names, "start_values")

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
    ) -> PriorOutput:
        """Mixtures of every sample from the samples before it, and their loss.

        Args:
            waveforms: (batch, length) float in [-1, 1].
            class_labels, speaker_labels, global_features, local_features: see `WaveNet.forward`.
            start_values: (batch,) float in [-1, 1], the samples before the first ones; by default 0.
            labels: (batch, length) float targets instead of `waveforms`; -100 is ignored.
            return_loss: compute the loss.

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
            class_labels=class_labels,
            speaker_labels=speaker_labels,
            global_features=global_features,
            local_features=local_features,
            start_values=start_values,
        )

    @apply_forward_hook  # offloaded weights come to the device, as for forward
    @torch.no_grad()
    def log_prob(self, waveforms: torch.Tensor, **conditions) -> torch.Tensor:
        """Log-probability of whole waveforms, in eval mode and without gradients.

        Args:
            waveforms: (batch, length) float in [-1, 1]; on the levels, this is the probability of a sequence of them.
            conditions: those of `forward`.

        Returns:
            (batch,) nats, at most 0.
        """
        self.check_codes(waveforms)
        conditions = self.check_conditions(conditions, waveforms.shape[0], tuple(waveforms.shape[1:]))
        with evaluating(self):
            return self._log_probs(self.predict(waveforms, **conditions), waveforms).sum(1)

    @apply_forward_hook
    @torch.no_grad()
    def sample(
        self,
        batch_size: int | None = None,
        code_shape: Sequence[int] | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_values: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        progress_bar: Callable[[Iterable], Iterable] | None = None,
        **conditions,
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
            RuntimeError: the network gave mixtures that are not finite.
        """
        check_sampling_options(temperature, None, None)
        length = self._check_code_shape(code_shape)[0]
        batch_size, conditions = self._check_batch(batch_size, conditions, (length,))
        self._check_known(known_values, known_mask, (batch_size, length))
        if known_values is not None:
            known_values, known_mask = known_values.to(self.device, torch.float32), known_mask.to(self.device)
        uniforms = draw_uniforms(2 * length, batch_size, generator, self.device).unflatten(0, (length, 2))
        waveforms = torch.empty(batch_size, length, device=self.device)
        finite = torch.ones((), dtype=torch.bool, device=self.device)  # looked at once: a look waits for the device
        with evaluating(self), torch.autocast(self.device.type, enabled=False):
            newest = conditions.pop("start_values", self.input.weight.new_zeros(batch_size))
            state, steps = self.start_stack(batch_size, length, **conditions), range(length)
            weight, bias = self.input.weight[:, 0, 0], self.input.bias
            for step in steps if progress_bar is None else progress_bar(steps):
                mixtures = state.step(torch.addcmul(bias, newest[:, None], weight)).float()
                finite &= mixtures.sum().isfinite()
                drawn = draw_amplitudes(
                    mixtures, uniforms[step], self.config.codebook_size, self.config.min_log_scale, temperature
                )
                if known_values is not None:
                    drawn = torch.where(known_mask[:, step], known_values[:, step], drawn)
                waveforms[:, step] = drawn
                newest = drawn.to(self.dtype)
        if not finite:
            raise RuntimeError("the prior gave mixtures that are not finite: its weights or its dtype are at fault")
        return waveforms

    def predict(self, waveforms: torch.Tensor, start_values: torch.Tensor | None = None, **conditions) -> torch.Tensor:
        waveforms = waveforms.to(self.device, self.dtype)
        if start_values is None:
            start_values = waveforms.new_zeros(len(waveforms))
        before = torch.cat([start_values[:, None], waveforms[:, :-1]], dim=1)
        return self.run_stack(self.input(before[:, None]), **conditions)

    def check_condition(self, name: str, value, batch_size: int | None, code_shape: tuple[int, ...] | None):
        if name != "start_values":
            return super().check_condition(name, value, batch_size, code_shape)
        if value is None:
            return None
        value = self.check_floats(name, value, batch_size, ())
        _check_amplitudes(name, value)
        return value

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        """Raise a `ValueError` unless waveforms (and targets) are float (batch, length) in [-1, 1]."""
        if not codes.is_floating_point():
            raise ValueError(f"waveforms must be floats, got {codes.dtype}")
        if codes.ndim != 2 or codes.numel() == 0:
            raise ValueError(f"waveforms must be (batch, length), got {tuple(codes.shape)}")
        _check_amplitudes("waveforms", codes)
        if labels is None:
            return
        if not labels.is_floating_point() or labels.shape != codes.shape:
            raise ValueError(
                f"labels must be floats of the shape of waveforms {tuple(codes.shape)}, "
                f"got {labels.dtype} {tuple(labels.shape)}"
            )
        _check_amplitudes("labels", labels.masked_fill(labels == IGNORED, 0))

    def compute_loss(self, logits: torch.Tensor, codes: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Mean nats per sample: `labels` instead of waveforms as targets where given, -100 ignored."""
        if labels is None:
            return -self._log_probs(logits, codes).mean()
        kept = labels != IGNORED
        return -(self._log_probs(logits, labels.masked_fill(~kept, 0)) * kept).sum() / kept.sum()

    def _log_probs(self, logits: torch.Tensor, waveforms: torch.Tensor) -> torch.Tensor:
        return mixture_log_prob(logits, waveforms, self.config.codebook_size, self.config.min_log_scale)

    def _check_known(
        self, known_values: torch.Tensor | None, known_mask: torch.Tensor | None, shape: tuple[int, ...]
    ) -> None:
        if known_values is None and known_mask is None:
            return
        if known_values is None or known_mask is None:
            raise ValueError("known_values and known_mask go together: one of them is missing")
        if known_mask.dtype != torch.bool or known_mask.shape != shape:
            raise ValueError(f"known_mask must be bool {shape}, got {known_mask.dtype} {tuple(known_mask.shape)}")
        if not known_values.is_floating_point() or known_values.shape != shape:
            raise ValueError(
                f"known_values must be floats {shape}, got {known_values.dtype} {tuple(known_values.shape)}"
            )
        _check_amplitudes("known_values", known_values.masked_fill(~known_mask, 0))


def _check_amplitudes(name: str, values: torch.Tensor) -> None:
    if torch.compiler.is_compiling():  # a look at the values would break the graph
        return
    if not (values.abs() <= 1).all():
        raise ValueError(f"{name} must be in [-1, 1], got a largest magnitude of {values.abs().max().item()}")

"""WaveNet: an autoregressive prior over sequences of codes, such as those of speech or mu-law samples of sound."""

from typing import Any

import torch
from torch import nn
from transformers.utils import can_return_tuple

from hf_vq.priors.base import PriorOutput
from hf_vq.priors.conditions import Condition, LabelCondition
from hf_vq.priors.wavenet_conditions import ConditionedWaveNet, ConditionedWaveNetConfig
from hf_vq.ranges import Count
from hf_vq.registry import register


class WaveNetConfig(ConditionedWaveNetConfig):
    """Config of `WaveNet`.

    Args:
        start_code: the code that is taken to come before the first one; None: a learned vector of its own.
        others: see `ConditionedWaveNetConfig`.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_wavenet"

    start_code: Count | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.start_code is not None and not 0 <= self.start_code < self.codebook_size:
            raise ValueError(f"start_code must be in [0, {self.codebook_size}), got {self.start_code}")


class WaveNetSamplingState:
    """The `SamplingState` of a `WaveNet`."""

    def __init__(self, prior: "WaveNet", num_grids: int, length: int, start_codes: torch.Tensor, conditions: dict):
        self.steps = prior.start_stack(num_grids, length, **conditions)
        self.embedding, self.newest = prior.embedding, start_codes

    def next_logits(self) -> torch.Tensor:
        return self.steps.step(self.embedding(self.newest))

    def append(self, codes: torch.Tensor) -> None:
        self.newest = codes


@register
class WaveNet(ConditionedWaveNet):
    """WaveNet over codes (https://arxiv.org/abs/1609.03499), the network of r9y9/wavenet_vocoder.

    Codes are those of a one-dimensional grid, or samples of a waveform by `hf_vq.networks.mu_law`. Conditions, where
    the config has them: `class_labels`, `speaker_labels` and `global_features` of an item, `local_features` of every
    place or frame. Guidance leaves out the class and the speaker that training dropped, and keeps the others.
    """

    config_class = WaveNetConfig

    def __init__(self, config: WaveNetConfig):
        super().__init__(config, config.codebook_size)
        self.embedding = nn.Embedding(config.codebook_size + (config.start_code is None), config.residual_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
        global_features: torch.Tensor | None = None,
        local_features: torch.Tensor | None = None,
        start_codes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        lengths: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Logits of every code from the codes before it, and their loss.

        Args:
            codes: (batch, length) int64.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            speaker_labels: (batch,) int64 of a prior with speakers.
            global_features: (batch, global_channels) of a prior that takes them.
            local_features: (batch, local_channels, length), or (batch, local_channels, frames) of a prior that
                upsamples them: as many frames as the length needs, and the context on both sides.
            start_codes: (batch,) int64, the codes before the first ones, where `codes` is a piece of something longer;
                by default the config's `start_code`.
            labels: (batch, length) int64 targets instead of `codes`; -100 is ignored.
            return_loss: compute the loss.
            lengths: (batch,) int64, real codes of each item; the rest takes no part in the loss.

        Returns:
            `PriorOutput` with the loss in mean nats per code and logits (batch, length, codebook_size).

        Raises:
            ValueError: codes, conditions or targets out of range or of the wrong shape or type.
        """
        return self.run_forward(
            codes,
            labels,
            return_loss,
            lengths,
            class_labels=class_labels,
            speaker_labels=speaker_labels,
            global_features=global_features,
            local_features=local_features,
            start_codes=start_codes,
        )

    def make_conditions(self) -> tuple[Condition, ...]:
        return (*super().make_conditions(), LabelCondition("start_codes", self.config.codebook_size, optional=True))

    def predict(self, codes: torch.Tensor, start_codes: torch.Tensor | None = None, **conditions: Any) -> torch.Tensor:
        before = torch.cat([self._start_codes(codes.shape[0], start_codes)[:, None], codes[:, :-1]], dim=1)
        return self.run_stack(self.embedding(before).transpose(1, 2), **conditions)

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], start_codes: torch.Tensor | None = None, **conditions: Any
    ) -> WaveNetSamplingState:
        start_codes = self._start_codes(num_grids, start_codes)
        return WaveNetSamplingState(self, num_grids, code_shape[0], start_codes, conditions)

    def _start_codes(self, batch_size: int, start_codes: torch.Tensor | None) -> torch.Tensor:
        if start_codes is not None:
            return start_codes
        start = self.config.codebook_size if self.config.start_code is None else self.config.start_code
        return torch.full((batch_size,), start, device=self.device)

"""Several discriminators as one, and the table of all."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from hf_vq.arguments import build, checked
from hf_vq.losses.discriminator import Discriminator, Judgement
from hf_vq.losses.patch_discriminator import PatchDiscriminator
from hf_vq.losses.period_discriminator import MultiPeriodDiscriminator
from hf_vq.losses.signal_discriminator import SignalDiscriminator
from hf_vq.losses.spectral_discriminators import MultiBandDiscriminator, MultiScaleSTFTDiscriminator
from hf_vq.ranges import Width

PEAK = 0.8  # of levelled signals

PARTS: dict[str, type[SignalDiscriminator]] = {
    "multi_scale_stft": MultiScaleSTFTDiscriminator,
    "multi_period": MultiPeriodDiscriminator,
    "multi_band": MultiBandDiscriminator,
}


class CombinedDiscriminator(SignalDiscriminator):
    """Several discriminators of signals, all of whose sub-discriminators count alike; by default DAC's.

    DAC (https://arxiv.org/abs/2306.06546) has a multi-period and a multi-band one, of levelled signals.

    Args:
        in_channels: channels of a sample.
        parts: options of each by its name: "multi_scale_stft", "multi_period" or "multi_band".
        level_volume: subtract the mean of each channel and scale its largest value to 0.8 first.

    Raises:
        ValueError: no part, an unknown one, or options that it does not have.
    """

    @register_to_config
    @checked
    def __init__(self, in_channels: Width = 1, parts: Mapping[str, Any] | None = None, level_volume: bool = True):
        super().__init__()
        parts = {"multi_period": {}, "multi_band": {}} if parts is None else parts
        if not parts:
            raise ValueError(f"parts={parts!r} must name at least one of {', '.join(PARTS)}")
        self.judges = nn.ModuleDict()
        for name, options in parts.items():
            if name not in PARTS:
                raise ValueError(f"parts: {name!r} must be one of {', '.join(PARTS)}")
            self.judges[name] = build(PARTS[name], f"parts.{name}", {"in_channels": in_channels} | (options or {}))

    def judge(self, sample: torch.Tensor) -> Judgement:
        if self.config.level_volume:
            sample = sample - sample.mean(dim=2, keepdim=True)
            sample = PEAK * sample / (sample.abs().amax(dim=2, keepdim=True) + 1e-9)
        parts: Any = self.judges.values()
        judged = [part.judge(sample) for part in parts]
        return Judgement(*(sum(each, ()) for each in zip(*judged, strict=True)))


DISCRIMINATORS: dict[str, type[Discriminator]] = {
    "patch": PatchDiscriminator, **PARTS, "combined": CombinedDiscriminator,
}  # fmt: skip

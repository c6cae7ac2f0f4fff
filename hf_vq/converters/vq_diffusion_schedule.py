"""The noise of microsoft/VQ-Diffusion, which its checkpoints hold as logarithms: it must be that of the prior."""

import torch

from hf_vq.converters.base import Source
from hf_vq.priors import DiscreteDiffusionPriorConfig

STEPS = ("log_at", "log_bt", "log_ct", "log_1_min_ct")
CUMULATED = ("log_cumprod_at", "log_cumprod_bt", "log_cumprod_ct", "log_1_min_cumprod_ct")
SCHEDULE = (*STEPS, *CUMULATED)


def check_schedule(source: Source, config: DiscreteDiffusionPriorConfig) -> None:
    """Raise a ValueError that names the first tensor of the schedule that is not as a prior has it.

    Args:
        source: with tensors of `SCHEDULE`.
        config: of the prior.
    """
    transitions, steps = config.make_scheduler().transitions, config.num_timesteps
    times = torch.arange(steps + 1)
    times[-1] = -1  # the original's last entry is that before all noise
    for names, (alpha, beta, gamma) in (
        (STEPS, transitions.rates(times[:-1], times[:-1] - 1)),
        (CUMULATED, transitions.rates(times)),
    ):
        for name, rate in zip(names, (alpha, beta, gamma, 1 - gamma), strict=True):
            found = source.tensors.get(name)
            if found is None:
                continue
            if found.shape != rate.shape:
                raise ValueError(f"{name} must have shape {tuple(rate.shape)}, got {tuple(found.shape)}")
            wrong = ~torch.isclose(found.double(), rate.log(), rtol=1e-3, atol=1e-7)
            if wrong.any():
                step = wrong.int().argmax().item()
                raise ValueError(
                    f"{name}[{step}] is {found[step].item():g}, but in the schedule 'alpha1' of {steps} steps and "
                    f"{config.codebook_size} codes it is {rate[step].log().item():g}"
                )

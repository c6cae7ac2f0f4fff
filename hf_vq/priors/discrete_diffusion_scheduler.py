"""The reverse of discrete diffusion, step by step, as a scheduler of diffusers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from hf_vq.arguments import checked
from hf_vq.grids import as_int64
from hf_vq.priors.inputs import check_values
from hf_vq.priors.sampling import Generators, draw_gumbel
from hf_vq.priors.transitions import SCHEDULES, TRANSITIONS, Timesteps, Transitions
from hf_vq.ranges import OneOf, Share, Size


@dataclass
class DiscreteDiffusionSchedulerOutput(BaseOutput):
    """What `DiscreteDiffusionScheduler.step` returns.

    Attributes:
        prev_sample: (batch, positions) int64, the states before the step.
    """

    prev_sample: torch.Tensor


class DiscreteDiffusionScheduler(SchedulerMixin, ConfigMixin):
    """Takes noise from codes (VQ-Diffusion, https://arxiv.org/abs/2111.14822, eq. 10, 11), over any stretch of time.

    It reads the config of diffusers' `VQDiffusionScheduler` and with all steps draws what that draws. With fewer it
    spreads them evenly over the whole time, and each takes away what its stretch has added.

    Args:
        num_vec_classes: states: the codes, and last the mask.
        num_train_timesteps: steps of noise in training.
        alpha_cum_start, alpha_cum_end, gamma_cum_start, gamma_cum_end, transition, schedule: see `Transitions`.

    Attributes:
        timesteps: (steps,) int64, falling, as `step` wants them.

    Raises:
        ValueError: a value out of its range.
    """

    order = 1

    @register_to_config
    @checked
    def __init__(
        self,
        num_vec_classes: Size,
        num_train_timesteps: Timesteps = 100,
        alpha_cum_start: Share = 0.99999,
        alpha_cum_end: Share = 0.000009,
        gamma_cum_start: Share = 0.000009,
        gamma_cum_end: Share = 0.99999,
        transition: Annotated[str, OneOf(TRANSITIONS)] = "mask_and_replace",
        schedule: Annotated[str, OneOf(SCHEDULES)] = "linear",
    ):
        if num_vec_classes < 2:
            raise ValueError(f"num_vec_classes must count the mask and at least one code, got {num_vec_classes}")
        self.transitions = Transitions(
            num_vec_classes - 1, num_train_timesteps, transition, schedule,
            alpha_cum_start, alpha_cum_end, gamma_cum_start, gamma_cum_end,
        )  # fmt: skip
        self.set_timesteps(num_train_timesteps)

    @property
    def mask_class(self) -> int:
        """The state that is no code."""
        return self.transitions.mask

    @checked
    def set_timesteps(self, num_inference_steps: Size, device: Any = None) -> None:
        """Spread steps evenly over the time of training.

        Args:
            num_inference_steps: at most `num_train_timesteps`.
            device: of `timesteps`.

        Raises:
            ValueError: a number out of its range.
        """
        most = self.transitions.num_timesteps
        if num_inference_steps > most:
            raise ValueError(
                f"num_inference_steps must be at most num_train_timesteps={most}, the steps that there are, "
                f"got {num_inference_steps}"
            )
        self.num_inference_steps = num_inference_steps
        times = torch.linspace(most - 1, -1, num_inference_steps + 1, dtype=torch.float64, device="cpu").round().long()
        self.timesteps = times[:-1].to(device)
        self._before = dict(zip(times[:-1].tolist(), times[1:].tolist(), strict=True))

    def previous(self, timestep: int | torch.Tensor) -> int:
        """The time to which the step from a timestep leads; -1 is before all noise.

        Raises:
            ValueError: a timestep that is none of `timesteps`.
        """
        if int(timestep) not in self._before:
            raise ValueError(f"timestep must be one of {self.timesteps.tolist()}, got {int(timestep)}")
        return self._before[int(timestep)]

    def start(self, shape: Sequence[int], generator: Generators = None, device: Any = None) -> torch.Tensor:
        """States (batch, ...) of pure noise: masks, or where there are none any codes."""
        if self.transitions.transition != "uniform":
            return torch.full(tuple(shape), self.mask_class, device=device)
        noise = draw_gumbel((*shape[:1], self.transitions.codebook_size, *shape[1:]), generator, device)
        return noise.argmax(dim=1)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """The states themselves, for loops that scale."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DiscreteDiffusionSchedulerOutput | tuple[torch.Tensor]:
        """Draw the states before a step.

        Args:
            model_output: (batch, codes, positions), log-probabilities of the codes without noise.
            timestep: one of `timesteps`.
            sample: (batch, positions) of any integer type, the states at that time.
            generator: one, or one per item, on any device.
            return_dict: False gives a tuple of one.

        Raises:
            ValueError: an argument that does not fit, or log-probabilities that are NaN, or of no possible code.
        """
        before, sample, transitions = self.previous(timestep), as_int64("sample", sample), self.transitions
        wanted = (len(sample), transitions.codebook_size, *sample.shape[1:])
        if tuple(model_output.shape) != wanted:
            raise ValueError(
                f"model_output must be {wanted}, (batch, codes, positions), got {tuple(model_output.shape)}"
            )
        check_values("sample", sample, transitions.codebook_size + (transitions.transition != "uniform"))
        if not model_output.amax(dim=1).isfinite().all():  # NaN is a largest one too
            raise ValueError("model_output must be log-probabilities, got NaN, infinity or no possible code")
        log_codes = model_output.movedim(1, -1)
        if before < 0:
            logs = transitions.carry_over(log_codes, sample, timestep)
        else:
            logs = transitions.log_posterior(log_codes, sample, int(timestep), before)
        noise = draw_gumbel(logs.movedim(-1, 1).shape, generator, logs.device)
        previous = (logs + noise.movedim(1, -1)).argmax(dim=-1)
        return DiscreteDiffusionSchedulerOutput(previous) if return_dict else (previous,)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """States after the step of a time, for training loops.

        Args:
            original_samples: codes (batch, positions) int64.
            noise: uniform numbers (2, batch, positions).
            timesteps: (batch,) int64, or one.

        Raises:
            ValueError: codes or timesteps that there are not.
        """
        check_values("original_samples", as_int64("original_samples", original_samples), self.mask_class)
        check_values("timesteps", torch.as_tensor(timesteps), len(self))
        return self.transitions.noise(original_samples, timesteps, noise)

    def __len__(self) -> int:
        return self.transitions.num_timesteps

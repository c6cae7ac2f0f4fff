"""MaskedScheduler: the steps of MaskGIT's decoding, as a scheduler of diffusers, and the loop over them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import pi
from typing import Annotated, Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput

from hf_vq.arguments import checked
from hf_vq.priors.sampling import Generators, draw_by_race, draw_noise, lowest
from hf_vq.ranges import Count, OneOf, Samples, Weight

SCHEDULES = ("cosine", "linear")


def mask_ratio(progress: torch.Tensor, schedule: str) -> torch.Tensor:
    """Share of codes that is masked when a share in [0, 1] of the way is done (MaskGIT, section 3.3): 1 to 0."""
    return (progress * (pi / 2)).cos() if schedule == "cosine" else 1 - progress


@dataclass
class MaskedSchedulerOutput(BaseOutput):
    """What a step gives.

    Attributes:
        prev_sample: codes, and the mask where none is chosen yet: what the network reads next.
        pred_original_sample: a code everywhere, chosen or not.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class MaskedScheduler(SchedulerMixin, ConfigMixin):
    """Confidence decoding of MaskGIT (https://arxiv.org/abs/2202.04200, section 3.2), with the config of diffusers.

    A step draws a code for every place that is masked and keeps those that the network is surest of. It is a drop-in
    for diffusers' `AmusedScheduler`, and draws the same codes, but: of equally sure codes no more are kept than the
    schedule says; a row without masked places stays as it is; a code of probability 0 is never drawn; probabilities
    are computed in float32.

    Args:
        mask_token_id: the number that stands for a masked place; no code.
        masking_schedule: "cosine" or "linear", how the share of masked places falls.

    Raises:
        ValueError: an argument out of its range, named with its value.
    """

    order = 1
    config: Any
    timesteps: Any = None  # `set_timesteps` makes tensors of them
    temperatures: Any = None

    @register_to_config
    @checked
    def __init__(self, mask_token_id: Count, masking_schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"):
        pass

    @checked
    def set_timesteps(
        self,
        num_inference_steps: Samples,
        temperature: Weight | tuple[Weight, Weight] | list[Weight] = (2, 0),
        device: Any = None,
    ) -> None:
        """Choose the number of steps; `timesteps` then has them in the order in which `step` takes them, down to 0.

        Args:
            num_inference_steps: steps.
            temperature: of the noise on the confidence, from the first to the last step; one number falls to 0.01.
            device: of the lists.
        """
        first, last = temperature if isinstance(temperature, tuple | list) else (temperature, 0.01)
        self.timesteps = torch.arange(num_inference_steps, device=device).flip(0)
        self.temperatures = torch.linspace(first, last, num_inference_steps, device=device)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        starting_mask_ratio: float | torch.Tensor = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        *,
        drawn: torch.Tensor | None = None,
    ) -> Any:
        """Draw codes where places are masked, and mask those again that the network is least sure of.

        Args:
            model_output: logits (batch, codes, *grid), or (batch, positions, codes) of a sample of one axis.
            timestep: one of `timesteps`; after 0 nothing is masked.
            sample: (batch, *grid) int64, codes or the mask.
            starting_mask_ratio: share of places that was masked before the first step; (batch,), or one for all.
            generator: None, one generator, or one for each item, which makes it independent of the batch.
            return_dict: False gives a tuple.
            drawn: (batch, *grid) int64, codes that were drawn otherwise; `model_output` then says alone how sure the
                network is of them.

        Returns:
            `MaskedSchedulerOutput` of (batch, *grid) int64.

        Raises:
            ValueError: `set_timesteps` was not called, another timestep, shapes that do not fit, a mask that is a
                code, a sample of other numbers, or logits that are NaN or give no distribution.
        """
        index = self._index(timestep)
        logits = self._positions_first(model_output, sample)
        codes = sample.flatten(1)
        masked = codes == self.config.mask_token_id
        probabilities = logits.float().softmax(dim=-1)
        if probabilities.isnan().any():
            raise ValueError("model_output must give a distribution of codes everywhere, got logits that do not")
        wrong = codes[((codes < 0) | (codes >= logits.shape[-1])) & ~masked]
        if len(wrong):
            raise ValueError(
                f"sample must hold codes in [0, {logits.shape[-1]}) or the mask, {self.config.mask_token_id}, "
                f"got {wrong[0].item()}"
            )
        if drawn is None:
            drawn = draw_by_race(probabilities, generator)
        original = torch.where(masked, drawn.flatten(1), codes)
        previous = original
        if index + 1 < len(self.timesteps):
            ratio = mask_ratio(torch.tensor(index + 1) / len(self.timesteps), self.config.masking_schedule)
            ratio = (torch.as_tensor(starting_mask_ratio, dtype=torch.float32).cpu() * ratio).view(-1, 1)
            unknown = masked.sum(1, keepdim=True)
            count = (codes.shape[1] * ratio).floor().to(codes.device)
            count = torch.minimum(unknown, torch.minimum(unknown - 1, count).clamp(min=1))
            sure = probabilities.gather(2, original[..., None])[..., 0]
            noise = draw_noise(sure.shape, generator, sure.device, torch.Tensor.uniform_).clamp(1e-20)
            gumbel = -(-noise.log()).clamp(1e-20).log()
            confidence = sure.clamp(1e-20).log() + self.temperatures[index].to(sure.device) * gumbel
            again = lowest(confidence.masked_fill(~masked, torch.inf), count)
            previous = original.masked_fill(again, self.config.mask_token_id)
        previous, original = previous.view_as(sample), original.view_as(sample)
        return MaskedSchedulerOutput(previous, original) if return_dict else (previous, original)

    def add_noise(
        self, sample: torch.Tensor, timesteps: int | torch.Tensor, generator: Generators = None
    ) -> torch.Tensor:
        """Mask every code (batch, *grid) by the chance that it is masked after the step of a timestep."""
        index = self._index(timesteps)
        ratio = mask_ratio(torch.tensor(index + 1) / len(self.timesteps), self.config.masking_schedule)
        chances = draw_noise(sample.shape, generator, sample.device, torch.Tensor.uniform_)
        return sample.masked_fill(chances < ratio.item(), self.config.mask_token_id)

    def _index(self, timestep):
        if self.timesteps is None:
            raise ValueError("timesteps are not chosen: call set_timesteps(num_inference_steps) first")
        last = len(self.timesteps) - 1
        if not 0 <= int(timestep) <= last:
            raise ValueError(f"timestep must be one of the {last + 1} of timesteps, {last} to 0, got {int(timestep)}")
        return last - int(timestep)

    def _positions_first(self, logits, sample):
        """Logits as (batch, positions, codes)."""
        if sample.ndim < 2 or sample.is_floating_point():
            raise ValueError(f"sample must be integers (batch, *grid), got {sample.dtype} {tuple(sample.shape)}")
        axis = 2 if sample.ndim == 2 else 1
        fits = logits.ndim == sample.ndim + 1 and logits.movedim(axis, -1).shape[:-1] == sample.shape
        if not fits:
            wanted = "(batch, positions, codes)" if axis == 2 else "(batch, codes, *grid)"
            raise ValueError(
                f"model_output must be {wanted} for a sample of shape {tuple(sample.shape)}, got {tuple(logits.shape)}"
            )
        if self.config.mask_token_id < logits.shape[axis]:
            raise ValueError(
                f"mask_token_id={self.config.mask_token_id} is one of the {logits.shape[axis]} codes of model_output: "
                "the mask must be none of them"
            )
        return logits.movedim(axis, -1).flatten(1, -2)


def decode_masked(
    predict: Callable[[torch.Tensor], torch.Tensor],
    codes: torch.Tensor,
    scheduler: MaskedScheduler,
    generator: Generators = None,
    progress_bar: Callable[[Iterable], Iterable] | None = None,
    draw: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Fill the masked places of grids, in all steps of a scheduler.

    Args:
        predict: from codes and masks (batch, *grid) to logits as `MaskedScheduler.step` takes them.
        codes: (batch, *grid) int64; what is no mask stays.
        scheduler: after its `set_timesteps`.
        generator: see `MaskedScheduler.step`.
        progress_bar: wraps the loop over steps.
        draw: from these logits to codes (batch, *grid), instead of the scheduler's way.

    Returns:
        (batch, *grid) int64 without masks.
    """
    unknown = (codes == scheduler.config.mask_token_id).flatten(1).float().mean(dim=1)  # each row goes its own way
    if scheduler.timesteps is None:
        raise ValueError("the scheduler has no timesteps: call set_timesteps(num_inference_steps) first")
    timesteps = scheduler.timesteps.tolist() if unknown.any() else []
    for timestep in timesteps if progress_bar is None else progress_bar(timesteps):
        logits = predict(codes)
        drawn = None if draw is None else draw(logits)
        codes, _ = scheduler.step(logits, timestep, codes, unknown, generator, False, drawn=drawn)
    return codes

"""How much an adversarial term weighs: as much as the reconstruction does at the decoder's last layer, and by when."""

import torch
import torch.distributed as dist

from hf_vq.arguments import checked
from hf_vq.processes import count_processes, is_distributed
from hf_vq.ranges import Count, Positive

VANISHED = 1e-8  # a gradient's norm below it says nothing of a direction


class AdaptiveWeight:
    """VQGAN's weight of the adversarial term (https://arxiv.org/abs/2012.09841, eq. 7).

        min(|d reconstruction / d last_layer| / (|d adversarial / d last_layer| + epsilon), maximum)

    with Euclidean norms, and 0 where the adversarial gradient vanishes: a quotient by nothing would let noise rule.
    Gradients are averaged over processes first, so that all of them have the weight that one with the whole batch has.

    Args:
        epsilon: the delta of the paper, above 0.
        maximum: the weight is at most that.

    Raises:
        ValueError: an argument out of its range.
    """

    @checked
    def __init__(self, epsilon: Positive = 1e-4, maximum: Positive = 1e4):
        self.epsilon, self.maximum = epsilon, maximum

    def __call__(
        self, reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor
    ) -> torch.Tensor:
        """A scalar without gradient, float32 or wider.

        Args:
            reconstruction: scalar, the reconstruction's loss with the perceptual one.
            adversarial: scalar, the generator's.
            last_layer: the parameter that both hang on.
        """
        norms = [self._gradient(loss, last_layer).norm() for loss in (reconstruction, adversarial)]
        weight = (norms[0] / (norms[1] + self.epsilon)).clamp(max=self.maximum)
        return torch.where(norms[1] > VANISHED, weight, torch.zeros_like(weight))

    @staticmethod
    def _gradient(loss, last_layer):
        """The gradient of the mean loss of all processes."""
        (gradient,) = torch.autograd.grad(loss, last_layer, retain_graph=True)
        if is_distributed():
            gradient = gradient.contiguous()
            dist.all_reduce(gradient)
            gradient /= count_processes()
        return gradient


class LinearRamp:
    """From 0 at a start step to 1, linearly: an adversarial term that sets in at once can ruin what is learned.

    Args:
        start_step: finished optimizer steps, from which on there is something.
        ramp_steps: after so many more it is 1; 0: at once.

    Raises:
        ValueError: an argument out of its range.
    """

    @checked
    def __init__(self, start_step: Count = 0, ramp_steps: Count = 0):
        self.start_step, self.ramp_steps = start_step, ramp_steps

    def __call__(self, step: int) -> float:
        """min(1, (step - start_step) / ramp_steps), 0 before.

        Args:
            step: finished optimizer steps.
        """
        since = step - self.start_step
        return 0.0 if since < 0 else 1.0 if since >= self.ramp_steps else since / self.ramp_steps

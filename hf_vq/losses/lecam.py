"""LeCam regularisation of a discriminator."""

import torch
import torch.nn.functional as F
from torch import nn

from hf_vq.arguments import checked
from hf_vq.processes import count_processes, sum_over_processes
from hf_vq.ranges import Chance


class LeCamRegularizer(nn.Module):
    """Holds logits near moving averages of the other side's (https://arxiv.org/abs/2104.03310, eq. 5).

        mean(max(0, real - average of fake)^2) + mean(max(0, average of real - fake)^2)

    The paper's squares are cut at 0 as in its published code, so that what lies within the averages is left alone.
    The averages are buffers, of all processes; the first batch starts them.

    Args:
        decay: weight of the past in the averages, in [0, 1).

    Raises:
        ValueError: decay out of its range.
    """

    averages: torch.Tensor
    started: torch.Tensor

    @checked
    def __init__(self, decay: Chance = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2))  # of real and fake logits
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """A scalar; in training the averages move first.

        Args:
            real, fake: logits of samples and of reconstructions, of any shape.
        """
        if self.training:
            self._follow(real, fake)
        average_real, average_fake = self.averages.to(real.dtype).unbind()
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()

    @torch.no_grad()
    def _follow(self, real, fake):
        means = torch.stack([real.mean(), fake.mean()]).to(self.averages)
        means = sum_over_processes(means) / count_processes()
        decayed = self.averages.lerp(means, 1 - self.decay)
        self.averages.copy_(torch.where(self.started, decayed, means))
        self.started.fill_(True)

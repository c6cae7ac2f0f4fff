"""Terms of a loss that count as their weights say, whatever their scales."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hf_vq.arguments import checked
from hf_vq.processes import sum_over_processes
from hf_vq.ranges import Chance, Positive

EPSILON = 1e-12  # added to norms that are divided by


class Balancer(nn.Module):
    """EnCodec's loss balancer (https://arxiv.org/abs/2210.13438, section 3.4).

    Each term's gradient at the reconstruction is scaled to a norm that its weight alone decides:

        scale_i = total_norm x (weight_i / sum of weights) / average |gradient_i|

    The norm is that of an item, and so is its exponential average over batches: the mean over the items of all
    processes of the norm of the gradient of the item's own loss. Neither the size of batches nor the number of
    processes changes what a scale does to a loss that is a mean over items. (In EnCodec's code each item has the
    whole `total_norm` in the sum over a batch: its 1 is the batch's size here.) A term that is not given counts for
    nothing in that call.

    Averages move with `update`, once the step is taken that the scales were for: a step that fails leaves no trace.

    Args:
        names: of all terms that there will be.
        total_norm: of all scaled gradients together, where they have one direction.
        decay: weight of the past in the averages, in [0, 1); 0: each batch by its own norms.

    Raises:
        ValueError: an argument out of its range.
    """

    sums: torch.Tensor
    counts: torch.Tensor

    @checked
    def __init__(self, names: Sequence[str], total_norm: Positive = 1.0, decay: Chance = 0.999):
        super().__init__()
        self.names, self.total_norm, self.decay = tuple(names), total_norm, decay
        self.register_buffer("sums", torch.zeros(len(self.names)))  # of norms, the older the lighter
        self.register_buffer("counts", torch.zeros(len(self.names)))
        self.coming: tuple[torch.Tensor, torch.Tensor] | None = None  # sums and counts after `update`

    def forward(self, gradients: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> dict[str, torch.Tensor]:
        """What to multiply each term by.

        Args:
            gradients: of terms, each of which is a mean over a batch, at the reconstructions (batch, ...).
            weights: of the same terms, above 0.

        Returns:
            Scalars by name.

        Raises:
            ValueError: names that are not known, or weights and gradients of different ones.
        """
        if gradients.keys() != weights.keys() or not gradients.keys() <= set(self.names):
            raise ValueError(
                f"gradients and weights must be of the same terms out of {', '.join(self.names)}, got "
                f"{', '.join(gradients)} and {', '.join(weights)}"
            )
        places = [self.names.index(name) for name in gradients]
        norms = torch.stack([_item_norm(gradient) for gradient in gradients.values()])
        sums, counts = (buffer.clone() for buffer in self.coming or (self.sums, self.counts))
        sums[places] = self.decay * sums[places] + norms
        counts[places] = self.decay * counts[places] + 1
        self.coming = sums, counts
        shares = self.total_norm / sum(weights.values())
        averages = (sums / counts)[places].unbind()
        return {
            name: weight * shares / (average + EPSILON)
            for (name, weight), average in zip(weights.items(), averages, strict=True)
        }

    def forget(self) -> None:
        """Averages stay as they were before the calls since the last `update`."""
        self.coming = None

    @torch.no_grad()
    def update(self) -> None:
        """The averages move on to those of the last call."""
        if self.coming is not None:
            for buffer, moved in zip((self.sums, self.counts), self.coming, strict=True):
                buffer.copy_(moved)
        self.coming = None


def _item_norm(gradient: torch.Tensor) -> torch.Tensor:
    """The mean over the items of all processes of the norms that gradients of their own losses have, float32."""
    flat = gradient.detach().float().flatten(1)
    items = flat.new_tensor([len(flat)])
    norms = torch.linalg.vector_norm(flat, dim=1).sum() * len(flat)  # a mean's gradient is that over the items
    total = sum_over_processes(torch.cat([norms[None], items]))
    return total[0] / total[1]

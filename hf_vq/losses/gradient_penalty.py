"""R1: a discriminator's gradient at real samples, held down."""

import torch


def r1_penalty(logits: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """mean over the batch of |d sum(logits) / d sample|^2 / 2 (https://arxiv.org/abs/1801.04406, eq. 9, gamma = 1).

    The logits of an item are summed, as of one judgement in many places. The result can be differentiated again.

    Args:
        logits: (batch, ...) of real samples, in a graph with them.
        samples: (batch, ...), with `requires_grad`.

    Returns:
        A scalar.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradient.square().sum() / (2 * len(samples))

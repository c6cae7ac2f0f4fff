"""Terms of a loss that see a reconstruction through another network, each passed backward through it once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class SampleTerm:
    """A scalar of a sample, and its gradient there; neither is in a graph.

    Attributes:
        value: scalar.
        gradient: of the sample's shape, float32 or wider.
    """

    value: torch.Tensor
    gradient: torch.Tensor

    @classmethod
    def of(
        cls, term: Callable[[torch.Tensor], torch.Tensor], sample: torch.Tensor, scale: float = 1.0
    ) -> "SampleTerm":
        """Compute a term and its gradient.

        Args:
            term: of a sample to a scalar.
            sample: any shape; the graph that it comes from is left alone.
            scale: multiplies the term on the way back alone: in float16 small gradients would be zero.
        """
        return cls.several(lambda leaf: {"term": term(leaf)}, sample, scale)["term"]

    @classmethod
    def several(
        cls, terms: Callable[[torch.Tensor], dict[str, torch.Tensor]], sample: torch.Tensor, scale: float = 1.0
    ) -> dict[str, "SampleTerm"]:
        """`of` for terms that come out of one pass, by name: each has its own way back."""
        leaf = sample.detach().requires_grad_()
        values = terms(leaf)
        last = [*values][-1]
        found = {}
        for name, value in values.items():
            (gradient,) = torch.autograd.grad(value * scale, leaf, retain_graph=name != last)
            found[name] = cls(value.detach(), gradient if scale == 1 else gradient / scale)
        return found

    def linear(self, sample: torch.Tensor) -> torch.Tensor:
        """A scalar in the sample's graph that has the term's gradient there: their inner product."""
        return (sample * self.gradient).sum()

    def added_to(self, loss: torch.Tensor, sample: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
        """loss + weight * term, in value and in gradient, as a scalar in the graph of both loss and sample."""
        linear = self.linear(sample)
        return loss + weight * (linear + (self.value - linear).detach())

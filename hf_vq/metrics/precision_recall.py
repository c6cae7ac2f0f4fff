"""How good samples are, and how much of the data they cover, as two figures."""

from dataclasses import dataclass

import torch

from hf_vq.arguments import checked
from hf_vq.processes import gather_rows
from hf_vq.ranges import Samples


@dataclass
class PrecisionRecallOutput:
    """Shares of samples in [0, 1]; density may be above 1.

    Attributes:
        precision: of generated samples, those among the real ones: quality.
        recall: of real samples, those among the generated ones: diversity.
        density: in how many neighbourhoods of real samples a generated one is, over the number of neighbours.
        coverage: of real samples, those with a generated one in their neighbourhood.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class PrecisionRecall:
    """Improved precision and recall (https://arxiv.org/abs/1904.06991), density and coverage (2002.09797).

    A sample is among others where it is within the neighbourhood of any of them: no farther from it than the k-th
    nearest of the others. Figures depend on the number of samples of either kind, and on what the features see.

    Args:
        num_neighbors: k; 3 and 5 are those of the two papers.
        chunk_size: rows of the matrices of distances that are in memory at once; it changes no figure.
    """

    @checked
    def __init__(self, num_neighbors: Samples = 3, chunk_size: Samples = 256):
        self.num_neighbors, self.chunk_size = num_neighbors, chunk_size
        self.reset()

    def reset(self) -> None:
        self._features: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    def update(self, features: torch.Tensor, real: bool) -> None:
        """Adds features of samples.

        Args:
            features: (batch, dim) floats, of any network that tells samples apart.
            real: whether they are of data; else of generated samples.

        Raises:
            ValueError: not (batch, dim), another dim than before, or not finite.
        """
        dim = next((parts[0].shape[1] for parts in self._features.values() if parts), None)
        if features.ndim != 2 or features.shape[1] != (dim or features.shape[1]):
            raise ValueError(f"features must be (batch, {dim or 'dim'}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features must be finite, got NaN or infinity")
        self._features[real].append(features.detach())

    @torch.no_grad()
    def compute(self) -> PrecisionRecallOutput:
        """The figures of everything added since `reset`, on all processes.

        Raises:
            ValueError: there are not more samples of a kind than neighbours.
        """
        real, generated = (self._gather(kind) for kind in (True, False))
        real_radii, generated_radii = self._radii(real), self._radii(generated)
        counts = torch.zeros(len(generated), dtype=torch.int64)  # neighbourhoods of real samples that each is in
        recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
        start = 0
        for rows in real.split(self.chunk_size):
            distances, chunk = _distances(rows, generated), slice(start, start + len(rows))
            inside = distances <= real_radii[chunk, None]
            counts += inside.sum(dim=0).cpu()
            covered[chunk] = inside.any(dim=1).cpu()
            recalled[chunk] = (distances <= generated_radii).any(dim=1).cpu()
            start += len(rows)
        return PrecisionRecallOutput(
            precision=(counts > 0).double().mean().item(),
            recall=recalled.double().mean().item(),
            density=counts.double().mean().item() / self.num_neighbors,
            coverage=covered.double().mean().item(),
        )

    def _gather(self, real):
        """All features of one kind."""
        parts, kind = self._features[real], "real" if real else "generated"
        features = gather_rows(torch.cat(parts)) if parts else torch.zeros(0, 1)
        if len(features) <= self.num_neighbors:
            raise ValueError(f"more than {self.num_neighbors} {kind} samples are needed, got {len(features)}")
        return features

    def _radii(self, features):
        """Distance of each to its k-th nearest other, (samples,)."""
        each = (_distances(rows, features) for rows in features.split(self.chunk_size))
        # the nearest is the sample itself
        return torch.cat([one.kthvalue(self.num_neighbors + 1, dim=1).values for one in each])


def _distances(rows, others):
    """Euclidean, in float64, each from its own differences: the same whatever stands beside it."""
    return torch.cdist(rows.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist")

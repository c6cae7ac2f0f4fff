"""Facts about precision and recall of samples."""

import math

import pytest
import torch

from hf_vq.metrics.precision_recall import PrecisionRecall


def by_hand(real, generated, k):
    """The definitions of the two papers, one pair of samples at a time."""

    def radius(point, others):
        return sorted(math.dist(point, other) for other in others)[k]  # the first is itself

    def within(point, centres):
        return sum(math.dist(point, centre) <= radius(centre, centres) for centre in centres)

    hits = [within(one, real) for one in generated]
    covered = [any(math.dist(centre, one) <= radius(centre, real) for one in generated) for centre in real]
    return (
        sum(hit > 0 for hit in hits) / len(generated),
        sum(within(one, generated) > 0 for one in real) / len(real),
        sum(hits) / (k * len(generated)),
        sum(covered) / len(real),
    )


@pytest.mark.parametrize("k", [1, 3])
def test_figures_are_those_of_the_definition_whatever_the_batches(k):
    real, generated = torch.randn(40, 3), torch.randn(31, 3) * 1.5 + 1
    real[5], generated[:6] = real[4], real[4]  # equal ones have no distance
    expected = by_hand(real.tolist(), generated.tolist(), k)
    for batch, chunk in ((1, 256), (7, 1), (40, 9)):
        metric = PrecisionRecall(k, chunk)
        for kind, features in ((True, real), (False, generated)):
            for part in features.split(batch):
                metric.update(part, real=kind)
        found = metric.compute()
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected[0] < 1
    assert 0 < expected[1] < 1


def test_samples_far_from_zero_are_told_apart():
    """In float32, or by products of vectors, these distances are 0."""
    grid = torch.arange(40.0, dtype=torch.float64)[:, None] / 1000 + 1e6
    metric = PrecisionRecall()
    metric.update(grid, real=True)
    metric.update(grid[:10] + 0.0001, real=False)
    found = metric.compute()
    assert found.precision == 1
    assert found.recall == pytest.approx(13 / 40)  # those of the ten, and three that follow


def test_what_cannot_be_measured_is_refused():
    metric = PrecisionRecall()
    metric.update(torch.randn(9, 2), real=True)
    metric.update(torch.randn(3, 2), real=False)
    with pytest.raises(ValueError, match="more than 3 generated samples are needed, got 3"):
        metric.compute()
    with pytest.raises(ValueError, match=r"features must be \(batch, 2\), got \(4, 3\)"):
        metric.update(torch.randn(4, 3), real=False)
    with pytest.raises(ValueError, match="features must be finite"):
        metric.update(torch.full((1, 2), torch.inf), real=False)
    with pytest.raises(ValueError, match="num_neighbors must be an integer between 1 and 1048576, got 0"):
        PrecisionRecall(0)
    metric.reset()
    with pytest.raises(ValueError, match="real samples are needed, got 0"):
        metric.compute()

"""SSIM, FID, KID and distances of features agree with their formulas, whatever the batches and processes."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from hf_vq import VQVAE
from hf_vq.losses import FeatureDistance
from hf_vq.metrics.distribution import DistributionDistance, MeanDistance
from hf_vq.metrics.similarity import MultiScaleSimilarity, StructuralSimilarity
from hf_vq.networks.features import FeatureExtractor
from hf_vq.training.evaluation import evaluate_autoencoder
from hf_vq.training.scores import reconstruction_figures, reconstruction_metrics

from .processes import in_two_processes

EVERY = ("ssim", "feature_distance", "fid", "kid")


class SmallFeatures(FeatureExtractor):
    """Two convolutions with random weights, and a batch norm."""

    def __init__(self, channels=3, width=6):
        super().__init__()
        self.in_channels, self.smallest_size = channels, 8
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, width, 3, 2, 1)
        self.freeze("random")

    def forward(self, sample):
        shallow = self.norm(self.first(self.as_input(sample))).relu()
        return [shallow, 10 * self.second(shallow).relu()]

    def embed(self, sample):
        return self.forward(sample)[-1].mean(dim=(2, 3))


def pairs(count=30, channels=3, size=16):
    torch.manual_seed(1)
    samples = torch.rand(count, channels, size, size) * 2 - 1
    return samples, samples + 0.4 * torch.randn_like(samples)


def feature_distance():
    extractor = SmallFeatures()
    return MeanDistance("feature_distance", FeatureDistance(extractor), extractor)


def measured(metric, samples, others, batch_size=7):
    for one, other in zip(samples.split(batch_size), others.split(batch_size), strict=True):
        metric.update(one, other)
    return metric.compute()


def gauss(picture):
    """(height, width), each pixel the weighted mean of 11 x 11 around it; borders are mirrored."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    padded = np.pad(picture, 5, mode="reflect")
    rows = sum(weight * padded[shift : shift + len(picture)] for shift, weight in enumerate(weights))
    return sum(weight * rows[:, shift : shift + picture.shape[1]] for shift, weight in enumerate(weights))


def ssim_by_hand(one, other):
    """Equation 13 of Wang et al. with numbers in [0, 1], in float64."""
    one, other = ((np.clip(x.numpy().astype(float), -1, 1) + 1) / 2 for x in (one, other))
    values = []
    for x, y in zip(one.reshape(-1, *one.shape[2:]), other.reshape(-1, *one.shape[2:]), strict=True):
        mean_x, mean_y = gauss(x), gauss(y)
        var_x, var_y, both = gauss(x * x) - mean_x**2, gauss(y * y) - mean_y**2, gauss(x * y) - mean_x * mean_y
        ratio = (2 * mean_x * mean_y + 0.01**2) * (2 * both + 0.03**2)
        values.append(ratio / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2)))
    return np.mean(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_the_paper_with_mirrored_borders(channels):
    samples, others = pairs(8, channels)
    found = measured(StructuralSimilarity(), samples, others)["ssim"]
    assert found == pytest.approx(ssim_by_hand(samples, others), abs=2e-6)
    half = measured(StructuralSimilarity(), samples.bfloat16(), others.bfloat16())["ssim"]
    assert half == pytest.approx(found, abs=1e-2)  # the samples are coarser, the figure is not


def test_padding_does_not_count():
    samples, others = pairs(2)
    mask = torch.ones(2, 16, 16, dtype=torch.bool)
    mask[1, 10:] = False
    for metric in (StructuralSimilarity, feature_distance):
        padded, alone = metric(), metric()
        padded.update(samples, others, mask)
        alone.update(samples[:1], others[:1])
        alone.update(samples[1:, :, :10], others[1:, :, :10])
        assert padded.compute() == alone.compute()


def test_what_is_too_small_is_named():
    small = torch.zeros(1, 3, 5, 40)
    with pytest.raises(ValueError, match="ssim needs pictures of at least 6 x 6 pixels, got 5 x 40"):
        StructuralSimilarity().update(small, small)
    lenient = StructuralSimilarity(strict=False)
    lenient.update(small, small)
    assert math.isnan(lenient.compute()["ssim"])
    with pytest.raises(ValueError, match="ms_ssim needs pictures of at least 176 x 176 pixels, got 175 x 176"):
        MultiScaleSimilarity().update(torch.zeros(1, 3, 175, 176), torch.zeros(1, 3, 175, 176))
    enough = torch.rand(1, 3, 176, 176) * 2 - 1
    assert measured(MultiScaleSimilarity(), enough, enough)["ms_ssim"] == pytest.approx(1)
    with pytest.raises(ValueError, match="images of at least 8 pixels a side, got 5 x 40"):
        DistributionDistance(SmallFeatures()).update(small, small)


def kernel_distance(one, other):
    """Equation 4 of Binkowski et al., unbiased, with their cubic kernel."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    count, within = len(one), 0.0
    for x in (one, other):
        matrix = kernel(x, x)
        within += (matrix.sum() - np.trace(matrix)) / (count * (count - 1))
    return within - 2 * kernel(one, other).mean()


def test_fid_and_kid_are_those_of_their_papers():
    samples, others = pairs(60)
    extractor = SmallFeatures()
    found = measured(DistributionDistance(extractor), samples, others)
    with torch.no_grad():
        one, other = (extractor.embed(x.clamp(-1, 1)).double().numpy() for x in (samples, others))
    root = sqrtm(np.cov(one.T) @ np.cov(other.T)).real
    fid = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(np.cov(one.T) + np.cov(other.T) - 2 * root)
    assert found["fid"] == pytest.approx(fid, rel=1e-6)
    assert found["kid"] == pytest.approx(kernel_distance(one, other), rel=1e-6)
    same = measured(DistributionDistance(extractor), samples, samples)
    assert same["fid"] == pytest.approx(0, abs=1e-9)
    assert same["kid"] < 0  # it is unbiased, not a distance


def test_the_mean_of_distances_is_over_samples_that_are_cut_to_their_range():
    samples, others = pairs(10)
    expected = FeatureDistance(SmallFeatures())(samples.clamp(-1, 1), others.clamp(-1, 1)).mean().item()
    assert measured(feature_distance(), samples, others)["feature_distance"] == pytest.approx(expected, rel=1e-6)


def test_the_network_of_features_stays_as_it_is():
    extractor = SmallFeatures()
    before = {name: buffer.clone() for name, buffer in extractor.named_buffers()}
    nn.Module.train(extractor.norm)  # as a careless caller would leave it
    figures = [measured(DistributionDistance(extractor), *pairs(), batch_size=size) for size in (1, 30)]
    assert figures[0] == pytest.approx(figures[1], rel=1e-6, abs=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in extractor.named_buffers())
    assert extractor.norm.training


def test_a_normal_distribution_needs_more_samples_than_dimensions():
    with pytest.warns(UserWarning, match="fid of 5 samples in 6 dimensions is too large"):
        measured(DistributionDistance(SmallFeatures()), *pairs(5))
    with pytest.raises(ValueError, match="fid and kid need two samples of each set, got 1"):
        measured(DistributionDistance(SmallFeatures()), *pairs(1))


def evaluated(batch_size, count=30):
    torch.manual_seed(0)
    model = VQVAE(hidden_channels=8, codebook_size=16, codebook_dim=4).eval()
    data = [{"sample": sample} for sample in pairs(count)[0]]
    metrics = reconstruction_metrics(model, EVERY, SmallFeatures())
    return evaluate_autoencoder(model, data, batch_size, metrics), reconstruction_figures(metrics, "describe")


def check_second_process(rank, expected, short):
    import hf_vq.metrics.distribution

    hf_vq.metrics.distribution.SUBSET_SIZE = 20  # so that subsets differ
    for count, figures in ((29, expected), (2, short)):
        found = evaluated(4, count)[0]
        assert {name: found[name] for name in figures} == pytest.approx(figures, rel=1e-6, abs=1e-6)


def test_figures_depend_neither_on_batches_nor_on_processes(monkeypatch):
    figures, described = evaluated(7)
    for batch_size in (1, 30):
        assert evaluated(batch_size)[0] == pytest.approx(figures, rel=1e-6, abs=1e-6)
    assert described.keys() == {"ssim", "feature_distance", "rfid", "rkid"} < figures.keys()
    assert figures["bits_per_pixel"] == math.log2(16) / 4**2
    assert figures["l1"] ** 2 < figures["mse"]
    monkeypatch.setattr("hf_vq.metrics.distribution.SUBSET_SIZE", 20)
    in_two_processes(check_second_process, evaluated(7, 29)[0], evaluated(7, 2)[0])

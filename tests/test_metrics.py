"""Metrics agree with their definitions, whatever the batches."""

import math

import numpy as np
import pytest
import torch

from hf_vq.metrics.likelihood import CodeLikelihood
from hf_vq.metrics.reconstruction import ReconstructionError


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_reconstruction_errors_are_those_of_the_whole_set(batch_size):
    generator = np.random.default_rng(0)
    samples = generator.uniform(-1, 1, (50, 3, 4, 4)).astype(np.float32) * 0.3 + 0.5
    reconstructions = samples + generator.normal(0, 0.1, samples.shape).astype(np.float32)
    metric = ReconstructionError()
    for start in range(0, 50, batch_size):
        batch = slice(start, start + batch_size)
        metric.update(torch.tensor(samples[batch]), torch.tensor(reconstructions[batch]))
    errors, mse = metric.compute(), np.mean((samples.astype(float) - reconstructions) ** 2)
    assert errors.mse == pytest.approx(mse, rel=1e-12)
    assert errors.error_over_variance == pytest.approx(mse / samples.astype(float).var(), rel=1e-9)
    assert errors.psnr == pytest.approx(20 * math.log10(2) - 10 * math.log10(mse), rel=1e-12)


def test_a_constant_set_has_no_error_over_variance_and_an_exact_copy_infinite_psnr():
    metric = ReconstructionError()
    metric.update(torch.ones(2, 1, 2, 2), torch.ones(2, 1, 2, 2))
    errors = metric.compute()
    assert errors.mse == 0
    assert math.isnan(errors.error_over_variance)
    assert errors.psnr == math.inf


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_uniform_prior_costs_log_k_and_a_byte_of_codes_costs_eight_bits(batch_size):
    codes = torch.arange(8).repeat(8, 1).roll(1, 0)  # (8, 8): each of 8 codes equally often
    metric = CodeLikelihood(codebook_size=256, sample_shape=(1, 4, 4))
    for batch in codes.split(batch_size):
        metric.update(batch, torch.full((len(batch),), -8 * math.log(256)))
    likelihood = metric.compute()
    assert likelihood.nats_per_code == pytest.approx(math.log(256))
    assert likelihood.unigram_entropy == pytest.approx(math.log(8))
    assert likelihood.ratio == pytest.approx(8 / 3)
    assert likelihood.bits_per_dim == pytest.approx(8 * 8 / 16)


def test_metrics_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="differ in shape"):
        ReconstructionError().update(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))
    with pytest.raises(ValueError, match="no samples"):
        ReconstructionError().compute()
    with pytest.raises(ValueError, match=r"codes must be in \[0, 4\)"):
        CodeLikelihood(4).update(torch.full((1, 2), 4), torch.zeros(1))
    with pytest.raises(ValueError, match="one value an item"):
        CodeLikelihood(4).update(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2))

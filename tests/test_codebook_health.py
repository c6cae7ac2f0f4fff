"""Codebooks in training: resized, split, restarted, following the data, in little memory."""

import pytest
import torch

from hf_vq.quantizers import EMAVectorQuantizer, make_quantizer

from .processes import in_a_process, most_memory
from .quantizer_variants import make, trained
from .test_quantizers import LEARNED


@LEARNED
def test_resize_keeps_the_most_used_codes_and_splits_them(name):
    quantizer = trained(name)
    before, use = quantizer.embedding.weight.detach().clone(), quantizer.cluster_size.clone()
    origin = quantizer.resize(5)
    assert torch.equal(quantizer.embedding.weight, before[origin])
    assert set(origin.tolist()) == set(use.argsort(descending=True, stable=True)[:5].tolist())
    assert (origin.diff() > 0).all()
    kept = quantizer.embedding.weight.detach().clone()
    origin = quantizer.resize(17)
    assert quantizer.codebook_size == quantizer.embedding.weight.shape[0] == 17
    distance = (quantizer.embedding.weight - kept[origin]).norm(dim=1) / kept[origin].norm(dim=1)
    assert (distance < 0.05).all()
    assert quantizer.embedding.weight.unique(dim=0).shape[0] == 17
    torch.testing.assert_close(quantizer.cluster_size.sum(), use.sort().values[-5:].sum())
    quantizer(torch.randn(4, 6, 5, 5)).loss.backward() if name == "vector" else quantizer(torch.randn(4, 6, 5, 5))


@LEARNED
def test_split_moves_unused_codes_to_used_ones(name):
    quantizer, latents = trained(name, restart_threshold=0.01), torch.randn(8, 6, 5, 5)
    with torch.no_grad():
        quantizer.embedding.weight[:4] = 1e3
        quantizer.cluster_size[:4] = 1e-6
    assert quantizer.tokenize(latents).min() >= 4
    quantizer.split(4)
    assert quantizer.tokenize(latents).unique().numel() > 8
    with pytest.raises(ValueError, match="count must be at most half of the 12 codes, got 7"):
        quantizer.split(7)
    with pytest.raises(ValueError, match="restart_threshold=0"):
        make("vector", restart_threshold=0.0).resize(4)


@LEARNED
def test_reset_starts_again_by_kmeans(name):
    quantizer = trained(name)
    before = quantizer.embedding.weight.detach().clone()
    quantizer.reset()
    assert not quantizer.initialized
    quantizer(50 + torch.randn(4, 6, 5, 5))
    assert (quantizer.embedding.weight.mean() - 50).abs() < 1
    assert not torch.equal(quantizer.embedding.weight, before)


# Health


def memory_of_a_step():
    quantizer = EMAVectorQuantizer(16384, 64, kmeans_init=False).train()
    small = torch.randn(1, 64, 16, requires_grad=True)
    quantizer(small).loss.backward()
    latents = torch.randn(1, 64, 16384, requires_grad=True)
    before = most_memory()
    output = quantizer(latents)
    (output.loss + output.latents.square().mean()).backward()
    return most_memory() - before


def test_training_step_at_16384_by_16384_adds_little_memory():
    assert in_a_process(memory_of_a_step) < 512, "a table of 16384 x 16384 has 1,024"


@LEARNED
def test_codebook_follows_a_second_cluster(name):
    """The toy where EnCodec's restart stays at 2 of 64 codes: it resets the code but not its average."""
    quantizer = make_quantizer(name, 64, 8).train()

    def draw(count, both):
        centre = torch.full((count, 1), 5.0)
        if both:
            centre[count // 2 :] *= -1
        return (centre + 0.3 * torch.randn(count, 8)).T[None]

    for step in range(300):
        quantizer(draw(512, both=step >= 20))
    assert quantizer.tokenize(draw(8192, both=True)).unique().numel() >= 60


def test_restart_sets_code_sum_and_count_together():
    quantizer = trained("ema")
    quantizer.embedding.weight[3] = 1e3  # far from every latent: never used again
    quantizer.embedding_sum[3] = 1e3 * quantizer.cluster_size[3]
    quantizer.cluster_size[3] = 1e-3
    latents = torch.randn(4, 6, 5, 5)
    quantizer(latents)
    code = quantizer.embedding.weight[3]
    assert (latents.movedim(1, -1).reshape(-1, 6) == code).all(dim=1).any()
    torch.testing.assert_close(quantizer.embedding_sum[3] / quantizer.cluster_size[3], code)
    assert quantizer.cluster_size[3] > 0.5 * quantizer.cluster_size.mean()


def test_beta_sits_on_the_commitment_term_unless_legacy():
    latents = torch.randn(2, 6, 4, 4, requires_grad=True)
    gradients = {}
    for legacy in (False, True):
        quantizer = trained("vector", beta=0.25, legacy=legacy)
        quantizer.embedding.weight.data = torch.linspace(-1, 1, 72).view(12, 6)
        encoder, codebook = torch.autograd.grad(quantizer(latents).loss, [latents, quantizer.embedding.weight])
        gradients[legacy] = encoder, codebook
    torch.testing.assert_close(gradients[True][0], 4 * gradients[False][0])
    torch.testing.assert_close(4 * gradients[True][1], gradients[False][1])


def test_loading_a_bare_codebook_derives_the_averages():
    codebook = torch.randn(12, 6)
    for zero_debias in (False, True):
        quantizer = EMAVectorQuantizer(12, 6, zero_debias=zero_debias, restart_threshold=0.0)
        missing, _ = quantizer.load_state_dict({"embedding.weight": codebook}, strict=False)
        quantizer.finish_loading(missing)
        quantizer.train()(torch.randn(4, 6, 5, 5))
        assert (quantizer.embedding.weight - codebook).abs().max() < 0.5  # moved a little, not replaced

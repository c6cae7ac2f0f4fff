"""SimVQ's codebook, a frozen one times a learned matrix, beside plain torch."""

import pytest
import torch

import hf_vq
from hf_vq.quantizers import make_quantizer


def gradient(loss, tensor):
    return torch.autograd.grad(loss, tensor, retain_graph=True)[0]


@pytest.mark.parametrize("width", [2, 4, 16])
def test_a_frozen_codebook_of_any_width_against_plain_torch(width, tmp_path):
    torch.manual_seed(0)
    config = {"code_transform": True, "frozen_codebook_dim": width, "beta": 0.25, "kmeans_init": False}
    quantizer = make_quantizer("vector", 9, 4, config)
    frozen, matrix = quantizer.embedding.weight, quantizer.code_transform.weight
    assert (frozen.shape, matrix.shape) == ((9, width), (4, width))
    assert [name for name, _ in quantizer.named_parameters()] == ["code_transform.weight"]
    latents = torch.randn(2, 4, 3, 5, requires_grad=True)
    output = quantizer(latents)
    rows, codebook = latents.movedim(1, -1).flatten(0, 2), frozen @ matrix.T
    codes = torch.cdist(rows, codebook).argmin(dim=1)
    chosen = codebook[codes]
    loss = (chosen - rows.detach()).square().mean() + 0.25 * (rows - chosen.detach()).square().mean()
    assert torch.equal(output.codes.flatten(), codes)
    torch.testing.assert_close(output.latents.movedim(1, -1).flatten(0, 2), chosen)
    torch.testing.assert_close(output.loss, loss)
    for tensor in (latents, matrix):
        torch.testing.assert_close(gradient(output.loss, tensor), gradient(loss, tensor))
    before = quantizer.codebook.clone()
    quantizer.reset()
    assert quantizer.embedding.weight.shape == (9, width)
    assert quantizer.initialized
    assert not torch.equal(quantizer.codebook, before)

    model = hf_vq.VQVAE(stage_channels=(8,), hidden_channels=8, codebook_size=9, codebook_dim=4,
                        quantizer_type="vector", quantizer_config=config)  # fmt: skip
    model.save_pretrained(tmp_path)
    loaded = hf_vq.VQVAE.from_pretrained(tmp_path)
    assert loaded.quantizer.frozen_codebook_dim == width
    sample = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded.tokenize(sample), model.eval().tokenize(sample))


@pytest.mark.parametrize("width", [3, 4, 16])
def test_a_frozen_codebook_starts_at_the_clusters_of_the_latents(width):
    """As k-means alone does where the width suffices, else at their nearest points in the best subspace of it."""
    torch.manual_seed(0)
    centres = torch.randn(9, 4) @ torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.05])) + 0.5
    rows = (centres[torch.arange(270) % 9] + 0.01 * torch.randn(270, 4))[..., None]
    errors = []
    for config in ({"code_transform": True, "frozen_codebook_dim": width}, {}):
        torch.manual_seed(1)
        quantizer = make_quantizer("vector", 9, 4, config).train()
        assert not quantizer.initialized
        torch.manual_seed(2)
        assert quantizer.initialize(rows)
        if config:
            factors = quantizer.embedding.weight, quantizer.code_transform.weight
            codes, matrix = (factor.T @ factor / factor.square().sum() for factor in factors)
            torch.testing.assert_close(codes, matrix, atol=1e-4, rtol=0)  # each has half of the spread
        errors.append((quantizer.eval()(rows).latents - rows).square().mean() / rows.var())
        quantizer.reset()
        assert not quantizer.initialized
    assert errors[0] < 0.1 if width < 4 else errors[0] < errors[1] + 1e-6


@pytest.mark.parametrize("width", [2, 4, 16])
def test_a_frozen_codebook_that_levels_share_starts_at_what_they_see(width):
    torch.manual_seed(0)
    rows = 5 + 10 * torch.randn(128, 4, 1) * torch.tensor([1.0, 1.0, 0.01, 0.01])[:, None]
    config = {"code_transform": True, "frozen_codebook_dim": width}
    levels = {"num_levels": 3, "level_type": "vector", "level_config": config, "shared_codebook": True}
    quantizer = make_quantizer("residual", 16, 4, levels).train()
    assert quantizer.initialize(rows)
    left = (quantizer.eval()(rows).latents - rows).square().sum(dim=1).mean()
    assert left < (0.5 if width < 4 else 0.1) * rows.var(dim=0).sum()


def test_a_frozen_codebook_has_the_width_of_the_codes_by_default():
    drawn = []
    for config in ({}, {"frozen_codebook_dim": 4}):
        torch.manual_seed(0)
        drawn.append(make_quantizer("vector", 9, 4, {"code_transform": True, **config}).state_dict())
    assert drawn[0].keys() == drawn[1].keys() == {"embedding.weight", "code_transform.weight", "unstarted"}
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])

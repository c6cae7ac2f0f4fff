"""Codes of every integer type are taken wherever codes are: quantizers, autoencoders, priors, pipelines, metrics."""

import pytest
import torch

from hf_vq import VQPipeline, as_grids
from hf_vq.grids import INTEGERS, as_int64
from hf_vq.metrics.codebook import CodebookUsage
from hf_vq.metrics.likelihood import CodeLikelihood
from hf_vq.modalities.image_pictures import save_code_maps
from hf_vq.networks.mu_law import mu_law_decode
from hf_vq.priors import PRIORS as PRIORS_TABLE
from hf_vq.quantizers import Quantizer
from hf_vq.training.evaluation import evaluate_prior

from .. import test_pixelsnail
from ..prior_families import FAMILIES, USERS, VARIANTS
from ..quantizer_variants import VARIANTS as QUANTIZER_VARIANTS
from ..quantizer_variants import trained
from ..registering import register_for_now
from ..tiny_models import Codes, tiny_prior
from ..tiny_quantizers import SIGNS, SignQuantizer
from . import test_autoencoders, test_priors
from .toy_masked_prior import ToyMaskedPrior

NO_CODES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.complex64]
PRIORS = [name for name in [*FAMILIES, *USERS, "toy masked"] if "waveforms" not in name]


class OwnWayQuantizer(Quantizer):
    """A user's that defines the verbs themselves."""

    quantizer_type = "own_way"

    def tokenize(self, latents, padding_mask=None):
        return (latents.sum(dim=1) > 0).long()

    def detokenize(self, codes):
        return torch.nn.functional.one_hot(codes, self.dim).movedim(-1, 1).float()


@pytest.fixture(autouse=True)
def classes_of_users(monkeypatch):
    register_for_now(monkeypatch, SignQuantizer, OwnWayQuantizer, ToyMaskedPrior)
    test_autoencoders.register_codecs(monkeypatch)


def typed(codes):
    """Codes in every integer type that holds them."""
    return [codes.to(dtype) for dtype in INTEGERS if int(codes.max()) <= torch.iinfo(dtype).max]


def refused(call, codes, name="codes"):
    for dtype in NO_CODES:
        with pytest.raises(ValueError, match=rf"{name} must be integers, got {dtype}$"):
            call(codes.to(dtype))
    with pytest.raises(ValueError, match=rf"{name} must be .* got ndarray$"):
        call(codes.numpy())


@pytest.mark.parametrize("variant", [*QUANTIZER_VARIANTS, *SIGNS])
def test_quantizers_take_codes_of_any_integers(variant):
    quantizer = trained(variant).eval()
    codes = quantizer.tokenize(torch.randn(2, 6, 3))
    expected = quantizer.detokenize(codes)
    for one in typed(codes):
        assert torch.equal(quantizer.detokenize(one), expected), one.dtype
    refused(quantizer.detokenize, codes)
    high = quantizer.codebook_size
    for dtype in (dtype for dtype in INTEGERS if high <= torch.iinfo(dtype).max):
        with pytest.raises(ValueError, match=rf"codes must be in \[-?\d, {high}\), got {high} to {high}"):
            quantizer.detokenize(torch.full_like(codes, high).to(dtype))


def test_a_quantizer_with_a_detokenize_of_its_own_gets_int64():
    quantizer = OwnWayQuantizer(2, 2)
    codes = quantizer.tokenize(torch.randn(2, 2, 3))
    for one in typed(codes):
        assert torch.equal(quantizer.detokenize(one), quantizer.detokenize(codes))
    refused(quantizer.detokenize, codes)


@pytest.mark.parametrize("name", [*sorted(test_autoencoders.SMALL), *test_autoencoders.CODEC_NAMES])
def test_autoencoders_take_codes_of_any_integers(name):
    model, sample = test_autoencoders.make(name)
    codes = model.eval().tokenize(sample)
    expected = model.detokenize(codes)
    for grids in zip(*map(typed, as_grids(codes)), strict=True):
        assert torch.equal(model.detokenize(grids if model.hierarchical else grids[0]), expected)
    one = (lambda last: model.detokenize((*codes[:-1], last))) if model.hierarchical else model.detokenize
    refused(one, as_grids(codes)[-1], r"codes\[1\]" if model.hierarchical else "codes")


def keywords(prior, codes, conditions):
    return conditions if conditions else {"batch_size": len(codes)}


@pytest.mark.parametrize("name", PRIORS)
@torch.no_grad()
def test_priors_take_codes_of_any_integers(name):
    prior, codes, conditions = USERS[name]() if name in USERS else test_priors.make(name)
    shape = tuple(codes.shape[1:])
    expected = prior(codes, **conditions)
    labels = prior(codes, labels=codes.flip(0), **conditions).loss
    log_prob = prior.log_prob(codes, **conditions)
    known = {"known_mask": torch.ones_like(codes).bool().index_fill_(-1, torch.tensor([-1]), False)}
    keeps = "known_codes" in prior.sampling_options

    def draw(codes):
        generator = torch.Generator().manual_seed(0)
        given = keywords(prior, codes, conditions)
        return prior.sample(**given, code_shape=shape, generator=generator, known_codes=codes, **known)

    drawn = draw(codes) if keeps else None
    for one, flipped in zip(typed(codes), typed(codes.flip(0)), strict=True):
        output = prior(one, **conditions)
        assert torch.equal(output.logits, expected.logits), one.dtype
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(prior(one, labels=flipped, **conditions).loss, labels)
        if one.dtype in (torch.uint8, torch.int16, torch.uint64):  # narrow, signed and without arithmetic of torch
            assert torch.equal(prior.log_prob(one, **conditions), log_prob)
            assert not keeps or torch.equal(draw(one), drawn)
    refused(lambda wrong: prior(wrong, **conditions), codes)
    refused(lambda wrong: prior.log_prob(wrong, **conditions), codes)
    if keeps:
        refused(draw, codes, "known_codes")
        with pytest.raises(ValueError, match=r"known_codes must be in \[0, 11\), got 200"):
            draw(torch.full_like(codes, 200).to(torch.uint8))
    with pytest.raises(ValueError, match=r"codes must be in \[0, 11\), got 60000"):
        prior(torch.full_like(codes, 60000).to(torch.uint16), **conditions)


@torch.no_grad()
def test_every_family_of_codes_is_tried():
    tried = {type(USERS[name]()[0] if name in USERS else test_priors.make(name)[0]) for name in PRIORS}
    assert tried >= {prior for prior in PRIORS_TABLE.values() if prior.main_input_name == "codes"}


@torch.no_grad()
def test_conditions_are_read_by_the_same_rule():
    prior, codes, conditions = VARIANTS["pixelsnail bottom with classes"]()
    expected = prior(codes, **conditions).logits
    for dtype in INTEGERS:
        other = {
            name: tuple(one.to(dtype) for one in value) if isinstance(value, tuple) else value.to(dtype)
            for name, value in conditions.items()
        }
        assert torch.equal(prior(codes, **other).logits, expected)
    lengths = torch.tensor([1, 2, 3, 5])
    short = prior.log_prob(codes, lengths=lengths, **conditions)
    assert torch.equal(prior.log_prob(codes, lengths=lengths.to(torch.uint16), **conditions), short)
    context = test_pixelsnail.make_conditions(prior, 4, (5, 7))["context_codes"]
    refused(
        lambda wrong: prior(codes, **{**conditions, "context_codes": (wrong, *context[1:])}),
        context[0],
        r"context_codes\[0\]",
    )


def test_pipelines_figures_and_pictures_take_codes_of_any_integers(tmp_path):
    model = test_autoencoders.make("VQVAE")[0].eval()
    prior, codes = tiny_prior(num_classes=0).eval(), torch.randint(8, (2, 4, 4))
    pipe = VQPipeline(model, prior)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.ones_like(codes).bool().index_fill_(-1, torch.tensor([3]), False)
    call = {"batch_size": 2, "known_mask": mask, "output_type": "codes", "return_dict": False}
    drawn, usage, likelihood, pictures = [], [], [], []
    for one in typed(codes):
        drawn.append(pipe(known_codes=one, generator=torch.Generator().manual_seed(0), **call)[0])
        metric, rated = CodebookUsage(8), CodeLikelihood(8)
        metric.update(one)
        rated.update(one, torch.full((2,), -3.0))
        usage.append(metric.compute().counts.tolist())
        likelihood.append(rated.compute())
        save_code_maps(tmp_path / "maps.png", torch.zeros(2, 1, 8, 8), one, 8)
        pictures.append((tmp_path / "maps.png").read_bytes())
        assert torch.equal(mu_law_decode(one, 8), mu_law_decode(codes, 8))
    assert len(drawn) == len(INTEGERS)
    assert all(torch.equal(one, drawn[0]) for one in drawn)
    for figures in (usage, likelihood, pictures):
        assert figures == figures[:1] * len(INTEGERS)
    refused(CodebookUsage(8).update, codes)
    refused(lambda wrong: CodeLikelihood(8).update(wrong, torch.zeros(2)), codes)
    refused(lambda wrong: pipe(known_codes=wrong, **call), codes, "known_codes")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32])
def test_a_data_set_of_stored_integers_trains_and_is_evaluated_as_one_of_int64(dtype):
    class Stored(Codes):
        def __getitem__(self, index):
            return {name: value.to(dtype) for name, value in super().__getitem__(index).items()}

    torch.manual_seed(0)
    prior = tiny_prior().eval()
    assert evaluate_prior(prior, Stored(6), 4) == evaluate_prior(prior, Codes(6), 4)


def test_what_int64_cannot_hold_is_refused_by_its_value():
    with pytest.raises(ValueError, match=rf"codes must be below 2\*\*63, got {2**64 - 1}"):
        as_int64("codes", torch.tensor([3, -1]).to(torch.uint64))

"""Verbs that infer run in evaluation mode whatever the mode of the model, and leave everything as it was."""

import threading

import pytest
import torch
from torch import nn

import hf_vq
from hf_vq.modes import in_eval_mode
from hf_vq.quantizers import make_quantizer
from hf_vq.registry import QUANTIZERS, register

from .contracts import test_autoencoders, test_pipelines, test_priors
from .quantizer_variants import VARIANTS, make
from .registering import register_for_now
from .tiny_codecs import PictureCodec, register_codecs
from .tiny_priors import RasterConvPrior


class Broken(RuntimeError):
    """What a module raises in the middle of a verb."""


class NoisyCodec(PictureCodec):
    """A user's codec whose own verbs see the mode: batch norm, and dropout before the codes."""

    def __init__(self):
        super().__init__(2, (2, 2), dropout=0.5, quantizer_config={"kmeans_init": False})
        self.norm = nn.BatchNorm2d(2)

    def tokenize(self, sample, padding_mask=None, **options):
        return super().tokenize(self.norm(sample), padding_mask, **options)


@pytest.fixture(autouse=True)
def classes_of_the_users(monkeypatch):
    register_codecs(monkeypatch)
    register_for_now(monkeypatch, test_priors.ToyMaskedPrior, RasterConvPrior, test_pipelines.SignalPipeline)


def frozen_in_part(*models):
    """In training mode but for every second module with tensors of its own, and modes and buffers by name."""
    for model in models:
        model.train()
        for module in list(model.modules())[1::2]:
            module.training = False
    return state_of(models)


def state_of(models):
    modes = [module.training for model in models for module in model.modules()]
    return modes, [buffer.clone() for model in models for buffer in model.buffers()]


def same(state, other):
    return state[0] == other[0] and all(torch.equal(a, b) for a, b in zip(state[1], other[1], strict=True))


def check_verb(models, call):
    """In eval mode throughout; the same result as of an evaluated model; everything as before, also after an error."""
    for model in models:
        model.eval()
    right, state, seen, hooks = call(), frozen_in_part(*models), [], []
    parts = {part for model in models for part in model.modules()}
    for part in parts:
        hooks.append(part.register_forward_pre_hook(lambda part, _: seen.append(part.training)))
    result = call()
    assert not any(seen)
    torch.testing.assert_close(result, right, rtol=0, atol=0)
    assert same(state_of(models), state)
    for part in parts:
        hooks.append(part.register_forward_pre_hook(raise_broken))
    if seen:
        with pytest.raises(Broken):
            call()
    for hook in hooks:
        hook.remove()
    assert same(state_of(models), state)


def raise_broken(module, inputs):
    raise Broken


@test_autoencoders.every
def test_autoencoders_infer_in_eval_mode(name):
    model, sample = test_autoencoders.make(name)
    codes = model.eval().tokenize(sample)
    check_verb([model], lambda: model.tokenize(sample))
    check_verb([model], lambda: model.detokenize(codes))


@test_priors.every
def test_priors_infer_in_eval_mode(name):
    prior, codes, conditions = test_priors.make(name)
    batch = {} if conditions else {"batch_size": len(codes)}

    def draw():
        return prior.sample(**batch, **conditions, generator=torch.Generator().manual_seed(0))

    check_verb([prior], draw)
    if prior.likelihood is not None:
        check_verb([prior], lambda: prior.log_prob(codes, **conditions))


def test_generate_of_a_transformer_prior_runs_in_eval_mode():
    prior, *_ = test_priors.FAMILIES["class and text"]
    tokens = torch.tensor([[prior.config.codebook_size]])
    check_verb([prior], lambda: prior.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False))


@pytest.mark.parametrize("name", ["VQPipeline", "VQVAE2Pipeline", "SignalPipeline"])
def test_pipelines_call_in_eval_mode(name):
    pipe = test_pipelines.BUILD[name]()
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    check_verb(parts, lambda: test_pipelines.draw(pipe, 0, 1))


@pytest.mark.parametrize("variant", [name for name, (kind, *_) in VARIANTS.items() if kind in QUANTIZERS])
def test_quantizers_infer_in_eval_mode(variant):
    quantizer, latents = make(variant), torch.randn(2, 6, 3, 3)
    codes = quantizer.tokenize(latents)
    check_verb([quantizer], lambda: quantizer.tokenize(latents))
    check_verb([quantizer], lambda: quantizer.detokenize(codes))


@pytest.mark.parametrize("model_class", [NoisyCodec, hf_vq.VQVAE])
def test_codes_depend_neither_on_the_mode_nor_on_the_batch(model_class):
    if model_class is NoisyCodec:
        model, sample = NoisyCodec(), torch.randn(6, 2, 8, 8)
    else:
        model = hf_vq.VQVAE(hidden_channels=8, codebook_size=16, codebook_dim=4, norm="batch")
        sample = torch.rand(6, 3, 16, 16) * 2 - 1
        model.train()(sample)
    codes = model.train().tokenize(sample)
    assert torch.equal(codes, torch.cat([model.tokenize(one[None]) for one in sample]))
    assert torch.equal(codes, model.eval().tokenize(sample))


def test_a_verb_of_a_users_quantizer_is_covered_too(monkeypatch):
    class Noisy(hf_vq.quantizers.Quantizer):
        quantizer_type = "test_noisy"

        def __init__(self, codebook_size, dim):
            super().__init__(codebook_size, dim)
            self.noise = nn.Dropout(0.9)

        def _codes(self, rows):
            return (self.noise(rows).sum(1) > 0).long()

        def _vectors(self, codes):
            return codes[:, None].repeat(1, self.dim) * 1.0

    monkeypatch.setitem(QUANTIZERS, "test_noisy", Noisy)
    register(Noisy)
    quantizer, latents = make_quantizer("test_noisy", 2, 6), torch.randn(2, 6, 3, 3)
    check_verb([quantizer], lambda: quantizer.tokenize(latents))


def test_threads_that_infer_together_leave_the_last_to_restore():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    model[0].eval()
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with in_eval_mode(model):
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=stay)
    with in_eval_mode(model):
        thread.start()
        assert inside.wait(5)
    assert not model.training  # the other one is still at it
    leave.set()
    thread.join()
    assert [module.training for module in model.modules()] == [True, False, True]

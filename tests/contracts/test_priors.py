"""What holds for every prior, whatever its factorisation: all families, and a toy that is not autoregressive."""

import inspect

import pytest
import torch
from transformers import AutoModel

import hf_vq
from hf_vq import VQVAE, AutoVQPrior, PixelCNN, VQPipeline, VQVAE2Pipeline, registry
from hf_vq.priors import PRIORS, AutoregressivePrior, Prior

from .. import test_gpt, test_hierarchical_pipelines, test_pixelsnail, test_priors
from ..conftest import no_complaints
from ..prior_families import FAMILIES, GRIDS, LARGE, USERS, VARIANTS, Made
from ..registering import register_for_now
from ..sampling_checks import cached_logits, code_order, logits_after
from .toy_masked_prior import ToyMaskedPrior, ToyMaskedPriorConfig

TOY = "toy masked"
NAMES = [*FAMILIES, TOY]
ON_GRIDS = [name for name in NAMES if "wavenet" not in name and name != "delayed"]  # of image autoencoders
every = pytest.mark.parametrize("name", NAMES)
CLOSE = {"atol": 1e-4, "rtol": 1e-5}
NEAR = {"atol": 1e-5, "rtol": 1e-5}
CACHED = {**GRIDS, **LARGE, **USERS}
PREFILLED = [name for name in VARIANTS if name.startswith(("gpt", "rq", "decoder"))]


def make(name):
    """A prior in eval mode, a batch of four and its conditions."""
    if name != TOY:
        return FAMILIES[name]
    torch.manual_seed(0)
    config = ToyMaskedPriorConfig(codebook_size=11, num_classes=3, class_dropout_prob=0.1, code_shape=(3, 4))
    return ToyMaskedPrior(config).eval(), torch.randint(11, (4, 3, 4)), {"class_labels": torch.arange(4) % 3}


@pytest.fixture(autouse=True)
def _a_prior_of_the_users(monkeypatch):
    register_for_now(monkeypatch, ToyMaskedPrior)


def batch_of(codes, conditions):
    return {} if conditions else {"batch_size": len(codes)}


def draw(prior, codes, conditions, seed=3, **options):
    generator = torch.Generator().manual_seed(seed)
    return prior.sample(**batch_of(codes, conditions), **conditions, generator=generator, **options)


def test_the_families_are_all_registered_priors():
    assert {type(prior) for prior, *_ in map(make, NAMES)} == set(PRIORS.values())
    assert PRIORS is registry.PRIORS


@pytest.mark.parametrize("name", [*VARIANTS, TOY])
@torch.no_grad()
def test_a_saved_prior_loads_by_auto_classes_as_it_was(name, tmp_path):
    prior, codes, conditions = make(name) if name == TOY else VARIANTS[name]()
    prior.save_pretrained(tmp_path)
    with no_complaints():
        loaded = AutoVQPrior.from_pretrained(tmp_path)
        _, report = type(prior).from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)) is type(prior)
    assert loaded.config.to_diff_dict() == prior.config.to_diff_dict()
    assert loaded.config.code_shape == prior.config.code_shape
    assert loaded.state_dict().keys() == prior.state_dict().keys()
    assert all(map(torch.equal, loaded.state_dict().values(), prior.state_dict().values()))
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for verb in ("__call__", "log_prob"):
        found = [getattr(each, verb)(codes, **conditions) for each in (loaded, prior)]
        logits = [getattr(each, "logits", each) for each in found]
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)  # kernels may round by where memory lies


# Sampling


@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_cached_logits_equal_full_logits(name):
    prior, codes, conditions = CACHED[name]()
    full, close = prior(codes, **conditions).logits, 2e-5 if name.startswith("decoder") else 1e-5
    for implementation in ("sdpa", "eager") if prior._supports_sdpa else (None,):
        if implementation:
            prior.set_attn_implementation(implementation)
            torch.testing.assert_close(prior(codes, **conditions).logits, full, rtol=close, atol=close)
        torch.testing.assert_close(cached_logits(prior, codes, **conditions), full, rtol=close, atol=close)


def test_every_autoregressive_prior_has_its_cache_compared():
    families = {prior for prior in PRIORS.values() if issubclass(prior, AutoregressivePrior)}
    assert families == {type(prior) for prior, *_ in Made(VARIANTS).values()}


@pytest.mark.parametrize("name", PREFILLED)
@torch.no_grad()
def test_known_first_codes_are_taken_in_one_pass(name):
    prior, codes, conditions = VARIANTS[name](batch_size=2)
    order = code_order(prior, codes)
    expected = prior(codes, **conditions).logits.flatten(1, -2)[:, order]
    for known in range(1, len(order)):
        logits = logits_after(prior, codes, order, known, **conditions)
        torch.testing.assert_close(logits, expected[:, known:], **NEAR)


def test_every_state_that_takes_many_codes_is_tried():
    for name, make_prior in VARIANTS.items():
        prior, codes, conditions = make_prior()
        conditions = prior.check_conditions(conditions, len(codes), tuple(codes.shape[1:]))
        state = prior.start_sampling(len(codes), tuple(codes.shape[1:]), **conditions)
        assert hasattr(state, "prefill") == (name in PREFILLED), name


@every
def test_a_list_of_generators_makes_items_independent_of_the_batch(name):
    prior, _, conditions = make(name)

    def draw_rows(*rows, first_seed=7):
        rows = list(rows)
        generators = [torch.Generator().manual_seed(first_seed + row) for row in rows]
        chosen = {
            key: tuple(grid[rows] for grid in value) if isinstance(value, tuple) else value[rows]
            for key, value in conditions.items()
        }
        guidance = {"guidance_scale": 1.5} if getattr(prior, "can_guide", False) and name != TOY else {}
        return prior.sample(None if conditions else len(rows), **chosen, **guidance, generator=generators)

    together = draw_rows(0, 1, 2, 3)
    torch.testing.assert_close(together, torch.cat([draw_rows(row) for row in range(4)]))
    assert not torch.equal(together, draw_rows(0, 1, 2, 3, first_seed=8))


@every
@torch.no_grad()
def test_likelihoods_and_losses(name):
    prior, codes, conditions = make(name)
    assert isinstance(prior, Prior)
    assert prior.likelihood == ("exact" if isinstance(prior, AutoregressivePrior) else "bound")
    log_prob = prior.train().log_prob(codes, **conditions)
    assert prior.training
    assert log_prob.shape == (4,)
    assert (log_prob <= 0).all()
    output = prior.eval()(codes, **conditions)
    assert output.loss.isfinite()
    assert prior(codes, return_loss=False, **conditions).loss is None
    if isinstance(prior, AutoregressivePrior) and "prompt_ids" not in conditions:
        torch.testing.assert_close(output.loss, -log_prob.sum() / codes.numel())


@every
def test_sampling_is_the_generators(name):
    prior, codes, conditions = make(name)
    drawn = draw(prior, codes, conditions)
    assert drawn.shape == codes.shape
    assert drawn.dtype == codes.dtype
    assert torch.equal(draw(prior, codes, conditions), drawn)
    assert not torch.equal(draw(prior, codes, conditions, seed=4), drawn)
    assert {*prior.sampling_options, "generator", "progress_bar"} <= {*inspect.signature(prior.sample).parameters}


@every
def test_conditions_are_refused_by_name(name):
    prior, codes, conditions = make(name)
    assert {*conditions} <= {*prior.condition_names}
    assert {*prior.condition_names} <= {*inspect.signature(prior.forward).parameters}
    with pytest.raises(TypeError, match=f"{type(prior).__name__} takes no condition 'mood'; it takes class_labels"):
        prior.log_prob(codes, **conditions, mood=1)
    for condition in prior.conditions:
        if condition.name in conditions:
            rest = {other: value for other, value in conditions.items() if other != condition.name}
            with pytest.raises(ValueError, match=condition.name):
                prior(codes, **rest)
        elif not condition.taken:
            with pytest.raises(ValueError, match=f"{condition.name} given"):
                prior(codes, **conditions, **{condition.name: torch.zeros(4, 1, dtype=torch.int64)})
    item = {**conditions, "sample": 0, "mood": 1}
    assert prior.pick_conditions(item) == conditions


# Lengths


def padded(name):
    """A prior, codes with junk beyond their lengths, conditions, lengths."""
    prior, codes, conditions = make(name)
    size = codes.shape[1 + prior.has_levels]
    lengths = torch.tensor([size, 1, size - 1, (size + 1) // 2])
    junk = codes.clone()
    junk[~prior.real_places(lengths, codes)] = torch.nan if codes.is_floating_point() else 10**6
    if "local_features" in conditions:
        for row, length in enumerate(lengths.tolist()):
            conditions["local_features"][row, :, prior.num_frames(length) :] = torch.nan
    return prior, junk, conditions, lengths


def alone(prior, codes, conditions, row, length):
    """One item without its padding."""
    axis, own = 1 + prior.has_levels, slice(row, row + 1)
    height = codes.shape[axis]
    cut = {
        "context_codes": lambda grids: tuple(grid[own, : -(-length * grid.shape[1] // height)] for grid in grids),
        "local_features": lambda features: features[own, :, : prior.num_frames(length)],
    }
    conditions = {key: cut.get(key, lambda value: value[own])(value) for key, value in conditions.items()}
    return codes[own].narrow(axis, 0, length), conditions


@every
@torch.no_grad()
def test_a_padded_batch_equals_single_items(name):
    prior, codes, conditions, lengths = padded(name)
    log_prob, loss = prior.log_prob(codes, lengths=lengths, **conditions), 0
    for row, length in enumerate(lengths.tolist()):
        item, own = alone(prior, codes, conditions, row, length)
        torch.testing.assert_close(log_prob[row : row + 1], prior.log_prob(item, **own), **CLOSE)
        loss += prior(item, **own).loss * length / lengths.sum()
    output = prior(codes, lengths=lengths, **conditions)
    torch.testing.assert_close(output.loss, loss, **CLOSE)


@every
def test_padding_has_no_gradient_of_its_own(name):
    prior, codes, conditions, lengths = padded(name)
    torch.manual_seed(1)
    loss = prior.train()(codes, lengths=lengths, **conditions).loss
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in prior.parameters())


@every
@torch.no_grad()
def test_full_lengths_are_no_lengths(name):
    prior, codes, conditions = make(name)
    full = torch.full((4,), codes.shape[1 + prior.has_levels])
    full_log_prob = prior.log_prob(codes, lengths=full, **conditions)
    torch.testing.assert_close(full_log_prob, prior.log_prob(codes, **conditions), **CLOSE)
    for wrong in (full + 1, full * 0, full[:2], full.float()):
        with pytest.raises(ValueError, match="lengths must be"):
            prior(codes, lengths=wrong, **conditions)


def test_targets_of_the_callers_end_with_the_lengths_too():
    prior, codes, conditions, lengths = padded("gpt")
    labels = torch.randint(11, codes.shape)
    labels[:, 0, 0] = -100
    masked = labels.masked_fill(~prior.real_places(lengths, codes), -100)
    real = codes.masked_fill(codes > 10, 0)
    expected = prior(real, labels=masked, **conditions).loss
    assert torch.equal(prior(codes, labels=labels, lengths=lengths, **conditions).loss, expected)


@torch.no_grad()
def test_a_permutation_that_draws_padding_first_is_refused():
    prior, lengths = test_gpt.make_prior("permuted"), torch.tensor([3, 2])
    codes, labels = torch.randint(11, (2, 3, 4)), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"lengths=\[3, 2\]: in its code_order, this GPTPrior draws"):
        prior.log_prob(codes, lengths=lengths, class_labels=labels)
    rows = test_gpt.make_prior("permuted", permutation=[3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8])
    codes[1, 2] = 99
    log_prob = rows.log_prob(codes, lengths=lengths, class_labels=labels)
    codes[1, 2] = 1
    assert torch.equal(rows.log_prob(codes, lengths=lengths, class_labels=labels), log_prob)


# Pipelines


def pipeline(prior):
    """A pipeline that gives codes, around a prior."""
    levels = 3 if prior.has_levels else 1
    autoencoder = VQVAE(
        in_channels=1, hidden_channels=8, codebook_size=11, codebook_dim=4, stage_channels=(8,),
        quantizer_type="residual" if levels > 1 else "ema", quantizer_config={"num_levels": 3} if levels > 1 else None,
    )  # fmt: skip
    pipe = VQPipeline(autoencoder.eval(), prior)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def never(*arguments, **keywords):
    raise AssertionError("the prior was asked")


@pytest.mark.parametrize("name", ON_GRIDS)
def test_a_pipeline_takes_what_its_prior_declares_and_nothing_else(name):
    prior, codes, conditions = make(name)
    pipe, options = pipeline(prior), {"num_steps": 2} if name == TOY else {"top_k": 3}
    arguments = {**batch_of(codes, conditions), **conditions, "output_type": "codes"}
    drawn = pipe(**arguments, **options, generator=torch.Generator().manual_seed(3)).images
    assert torch.equal(drawn, draw(prior, codes, conditions, **options))
    prior.sample = never
    undeclared = {"top_k": 3, "temperature": 0.5} if name == TOY else {"num_steps": 2, "mood": None}
    for keyword, value in undeclared.items():
        with pytest.raises(TypeError, match=f"prior, a {type(prior).__name__}, does not take '{keyword}'; it takes "):
            pipe(**arguments, **{keyword: value})


class AnyKeyword(PixelCNN):
    """A prior whose forward takes whatever it is given."""

    def forward(self, codes, class_labels=None, labels=None, return_loss=True, **anything):
        return super().forward(codes, class_labels, labels, return_loss)


def test_a_keyword_is_no_condition_because_it_is_there():
    prior = AnyKeyword(test_priors.make_prior().config).eval()
    pipe = pipeline(prior)
    assert len(pipe(batch_size=3, output_type="codes").images) == 3
    with pytest.raises(TypeError, match="AnyKeyword, does not take 'num_steps'"):
        pipe(batch_size=3, num_steps=4, output_type="codes")


def test_conditions_decide_the_number_of_images():
    prior, _, conditions = make("rq prompts")
    pipe = pipeline(prior)
    assert len(pipe(**conditions, output_type="codes").images) == 4
    with pytest.raises(ValueError, match="batch_size=3 given beside prompt_ids"):
        pipe(**conditions, batch_size=3, output_type="codes")


def test_grids_of_a_hierarchy_may_have_priors_of_different_kinds():
    bottom = test_hierarchical_pipelines.prior(12, (8, 8), (10,), classes=0)
    torch.manual_seed(0)
    top = ToyMaskedPrior(ToyMaskedPriorConfig(codebook_size=10, code_shape=(4, 4))).eval()
    pipe = VQVAE2Pipeline(test_hierarchical_pipelines.autoencoder(), top, bottom)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    coarse, fine = pipe(
        batch_size=2, num_steps=(3, None), temperature=(1.0, 0.0), generator=generator, output_type="codes"
    ).images
    assert torch.equal(coarse, top.sample(2, num_steps=3, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(fine, bottom.sample(context_codes=(coarse,), temperature=0))
    top.sample = never
    with pytest.raises(TypeError, match="bottom_prior, a PixelSNAIL, does not take 'num_steps'"):
        pipe(num_steps=3)
    with pytest.raises(TypeError, match="top_prior, a ToyMaskedPrior, does not take 'temperature'"):
        pipe(temperature=0.5)
    with pytest.raises(ValueError, match="num_steps must be one value or 2, one for each grid"):
        pipe(num_steps=[3])


# What a class must declare


def test_a_class_that_breaks_the_contract_is_told_so_at_its_definition():
    def define(**body):
        return type("Mine", (Prior, hf_vq.PreTrainedModel), body)

    define(sample=lambda self: None)
    define(sample=lambda self: None, log_prob=lambda self: None, likelihood="bound")
    with pytest.raises(TypeError, match=r"Mine must define sample\("):
        define()
    with pytest.raises(TypeError, match="Mine must define log_prob and say in likelihood"):
        define(sample=lambda self: None, likelihood="exact")
    with pytest.raises(TypeError, match="Mine must define log_prob and say in likelihood"):
        define(sample=lambda self: None, log_prob=lambda self: None)
    with pytest.raises(TypeError, match=r"Mine\.likelihood must be .* got 'estimate'"):
        define(sample=lambda self: None, log_prob=lambda self: None, likelihood="estimate")


def test_coarser_codes_in_the_data_are_not_for_a_prior_without_them():
    item = {"context_codes": (torch.zeros(2, 2, dtype=torch.int64),)}
    assert test_pixelsnail.make_prior("top").pick_conditions(item) == {}
    assert test_pixelsnail.make_prior("bottom").pick_conditions(item) == item

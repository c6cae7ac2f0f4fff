"""Discrete diffusion beside dense matrices, Bayes' rule, an enumerable model and what the originals computed."""

import functools
import itertools
import math
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import hf_vq
from hf_vq.priors.diffusion_loss import TimestepSampler, bound_terms
from hf_vq.priors.sampling import truncate
from hf_vq.priors.transitions import SCHEDULES, TRANSITIONS, Transitions
from hf_vq.training.prior import PriorTrainingArguments, train_prior

from .conftest import FIXTURES, fixture
from .processes import in_two_processes
from .tiny_models import Codes

LOG_ZERO = math.log(1e-30)  # what stands for the logarithm of 0 in the originals
SMALL = {"codebook_size": 11, "code_shape": (3, 4), "hidden_size": 16, "num_layers": 2, "num_heads": 2,
         "num_timesteps": 10}  # fmt: skip
VARIANTS = {
    "classes": {"num_classes": 3, "class_dropout_prob": 0.1},
    "text, levels": {"cross_attention_dim": 6, "text_length": 5, "text_dropout_prob": 0.1, "null_text": "learned",
                     "code_shape": (3, 3, 4), "num_levels": 3, "transition": "mask", "schedule": "cosine"},
    "context": {"context_codebook_sizes": [5], "transition": "uniform", "mlp": "linear"},
}  # fmt: skip
KINDS = list(itertools.product(TRANSITIONS, SCHEDULES))


def make_prior(variant, **options):
    torch.manual_seed(0)
    config = hf_vq.DiscreteDiffusionPriorConfig(**{**SMALL, **VARIANTS[variant], **options})
    return hf_vq.DiscreteDiffusionPrior(config).eval()


def make_codes(prior, batch_size):
    """Codes and the conditions of a prior of `make_prior`."""
    config, conditions = prior.config, {}
    if config.num_classes:
        conditions["class_labels"] = torch.arange(batch_size) % (config.num_classes + 1)
    if config.cross_attention_dim:
        conditions["encoder_hidden_states"] = torch.randn(batch_size, config.text_length, config.cross_attention_dim)
    if config.context_codebook_sizes:
        conditions["context_codes"] = (torch.randint(5, (batch_size, 2, 2)),)
    return torch.randint(11, (batch_size, *config.code_shape)), conditions


def matrix(transitions, time, since):
    """q(x_time | x_since) as a matrix (states before, states after), from the three rates."""
    alpha, beta, gamma = transitions.rates(time, since)
    codes = transitions.codebook_size
    dense = torch.zeros(codes + 1, codes + 1, dtype=torch.float64)
    dense[:codes, :codes] = alpha * torch.eye(codes).double() + beta
    dense[:codes, codes], dense[codes, codes] = gamma, 1
    return dense


@pytest.mark.parametrize(("transition", "schedule"), KINDS)
def test_steps_are_distributions_and_a_stride_is_the_product_of_its_steps(transition, schedule):
    transitions = Transitions(5, 8, transition, schedule)
    for since, time in itertools.combinations(range(-1, 8), 2):
        product = torch.eye(6, dtype=torch.float64)
        for step in range(since + 1, time + 1):
            single = matrix(transitions, step, step - 1)
            assert (single >= 0).all()
            torch.testing.assert_close(single.sum(1), torch.ones(6).double(), rtol=0, atol=1e-12)
            product = product @ single
        torch.testing.assert_close(product, matrix(transitions, time, since), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("transition", "schedule"), KINDS)
def test_the_posterior_is_that_of_bayes_over_any_stretch_of_time(transition, schedule):
    transitions = Transitions(5, 8, transition, schedule)
    torch.manual_seed(0)
    states = torch.arange(5 + (transition != "uniform"))[None]
    log_codes = torch.randn(1, states.shape[1], 5, dtype=torch.float64).log_softmax(-1)
    for before, time in itertools.combinations(range(-1, 8), 2):
        to_before, to_now = matrix(transitions, before, -1), matrix(transitions, time, before)
        joint = to_before[:5, :, None] * to_now[None]  # (code, before, now)
        given_now = (joint / joint.sum(1, keepdim=True)).nan_to_num(0)  # q(before | now, code)
        codes = transitions.carry_over(log_codes, states, time).exp()
        wanted = torch.einsum("pc,cbp->pb", codes[0], given_now[:, :, : states.shape[1]])
        found = transitions.log_posterior(log_codes, states, time, before).exp()
        torch.testing.assert_close(found[0], wanted, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(found.sum(-1), torch.ones(1, states.shape[1]).double(), rtol=1e-9, atol=0)


ENDS = {  # noise of which some steps do nothing, or all that can be done
    "no other code": {"alpha_cum_start": 0.99, "alpha_cum_end": 0.01, "gamma_cum_start": 0.01, "gamma_cum_end": 0.99},
    "a clean start": {"alpha_cum_start": 1.0, "gamma_cum_start": 0.0},
    "nothing but masks": {"alpha_cum_end": 0.0, "gamma_cum_end": 1.0},
    "a clean start without masks": {"transition": "uniform", "alpha_cum_start": 1.0},
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_what_cannot_be_changes_nothing_in_posterior_loss_and_samples(ends):
    transitions = Transitions(5, 8, **ends)
    torch.manual_seed(0)
    log_codes = torch.randn(1, 6, 5, dtype=torch.float64).log_softmax(-1)
    for before, time in itertools.combinations(range(-1, 8), 2):
        until = matrix(transitions, time, -1)[:5]
        states = (until.sum(0) > 0).nonzero().T
        given = log_codes[:, : states.shape[1]]
        if until.sum() == until.diag().sum() + until[:, 5].sum():  # a code that is left was that code
            certain = torch.eye(6)[states[0], :5].double().log()[None]
            given = torch.where((states == 5)[..., None], given, certain)
        joint = matrix(transitions, before, -1)[:5, :, None] * matrix(transitions, time, before)[None]
        given_now = (joint / joint.sum(1, keepdim=True)).nan_to_num(0)[:, :, states[0]]
        wanted = torch.einsum("pc,cbp->pb", given.exp()[0], given_now)
        found = transitions.log_posterior(log_codes[:, : states.shape[1]], states, time, before).exp()
        torch.testing.assert_close(found[0], wanted, rtol=1e-6, atol=1e-9)
    prior = make_prior("classes", **ends, likelihood_timesteps=10)
    codes, conditions = make_codes(prior, 8)
    assert prior.log_prob(codes, **conditions).isfinite().all()
    prior.train()(codes, **conditions).loss.backward()
    assert all(one.grad.isfinite().all() for one in prior.parameters() if one.grad is not None)
    mask = torch.rand(codes.shape) < 0.5
    drawn = prior.sample(known_codes=codes, known_mask=mask, **conditions)
    assert torch.equal(drawn[mask], codes[mask])
    assert drawn.max() < 11


@pytest.mark.parametrize(("transition", "schedule"), KINDS)
def test_noise_is_drawn_as_the_matrix_says(transition, schedule):
    transitions = Transitions(5, 8, transition, schedule)
    codes = torch.full((1, 40_000), 3)
    uniforms = torch.rand(2, *codes.shape, generator=torch.Generator().manual_seed(0))
    for time in (0, 3, 7):
        counts = transitions.noise(codes, time, uniforms)[0].bincount(minlength=6)
        wanted = matrix(transitions, time, -1)[3] * codes.shape[1]
        likely = wanted > 1e-3
        assert counts[~likely].sum() == 0
        assert ((counts - wanted).square() / wanted.clamp(min=1))[likely].sum() < 25  # chi-square, 5 degrees, p < 1e-4


class Enumerable(hf_vq.DiscreteDiffusionPrior):
    """A prior of four codes of three, whose predictions are the true ones of a distribution of grids."""

    def know(self, log_grids):
        self.log_grids = log_grids  # (81,), of all grids in order
        self.grids = torch.tensor(list(itertools.product(range(3), repeat=4)))

    def predict(self, states, timesteps, **conditions):
        moves = [matrix(self.transitions, int(time), -1)[:3] for time in timesteps]
        pairs = zip(moves, states.flatten(1), strict=True)
        likely = torch.stack([dense[self.grids, grid].log().sum(1) for dense, grid in pairs])
        weights = (likely + self.log_grids).softmax(1).nan_to_num(1 / 81)  # p(grid | states); some states cannot be
        codes = torch.einsum("bg,gpc->bpc", weights, torch.eye(3).double()[self.grids])
        return codes.clamp(min=1e-300).log().view(*states.shape, 3)


def exact_bound(prior):
    """Mean nats of a grid, summed over all steps and all that noise may make of every grid."""
    transitions = prior.transitions
    outcomes = torch.tensor(list(itertools.product(range(4), repeat=4)))  # (256, 4) states
    nats = 4 * transitions.end_nats()
    for time in range(transitions.num_timesteps):
        chances = matrix(transitions, time, -1)[prior.grids[:, None], outcomes].prod(-1)  # (81, 256)
        chances = chances * prior.log_grids.exp()[:, None]
        grid, outcome = chances.nonzero(as_tuple=True)
        predicted = prior.predict(outcomes, torch.full((256,), time))[outcome]
        times = torch.full((len(grid),), time)
        terms = bound_terms(transitions, predicted, prior.grids[grid], outcomes[outcome], times)
        nats = nats + (chances[grid, outcome] * terms.sum(1)).sum()
    return nats


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_the_bound_is_above_the_exact_nats_of_an_enumerable_model_and_nears_them(transition):
    torch.manual_seed(0)
    log_grids = (2 * torch.randn(81, dtype=torch.float64)).log_softmax(0)
    exact, gaps = -(log_grids.exp() * log_grids).sum(), []
    for steps in (2, 8, 40):
        config = hf_vq.DiscreteDiffusionPriorConfig(
            codebook_size=3, code_shape=(2, 2), hidden_size=4, num_layers=1, num_heads=1, num_timesteps=steps,
            likelihood_timesteps=steps, transition=transition, alpha_cum_start=1 - 0.5 / steps,
            gamma_cum_start=0.4 / steps, alpha_cum_end=5e-7, gamma_cum_end=0.999999,
        )  # fmt: skip
        prior = Enumerable(config)
        prior.know(log_grids)
        bound = exact_bound(prior)
        gaps.append((bound - exact).item())
        rated = -(log_grids.exp() * prior.log_prob(prior.grids.view(81, 2, 2))).sum()
        torch.testing.assert_close(rated, bound, rtol=0.1, atol=0)  # one path of noise for each grid
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < gaps[0] / 4


def test_terms_and_times_of_the_original():
    tensors = fixture("vqdiffusion_original")[0]
    transitions, times = Transitions(12, 20), tensors["in.t"]
    single = transitions.rates(torch.arange(20), torch.arange(20) - 1)
    cumulated = transitions.rates(torch.arange(20))
    for one, whole, name in zip(single, cumulated, "abc", strict=True):
        torch.testing.assert_close(one, tensors[f"out.{name}t"], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(whole, tensors[f"out.{name}tt"][:20], rtol=1e-9, atol=1e-12)
    states, codes = tensors["in.xt"], tensors["in.x0"]
    predicted = tensors["in.log_x0_recon"].movedim(1, -1)[..., :-1]
    certain = torch.full_like(predicted, LOG_ZERO).scatter(-1, codes[..., None], 0.0)
    for log_codes, name in ((predicted, "recon"), (certain, "true")):
        found = transitions.log_posterior(log_codes, states, times, times - 1, log_zero=LOG_ZERO).clamp(-70, 0)
        torch.testing.assert_close(found.movedim(-1, 1), tensors[f"out.q_posterior_{name}"], rtol=1e-6, atol=1e-5)
    terms = bound_terms(transitions, predicted, codes, states, times)
    first = (times == 0)[:, None]
    wanted = torch.where(first, tensors["out.decoder_nll_per_position"], tensors["out.kl_per_position"])
    torch.testing.assert_close(terms, wanted, rtol=1e-6, atol=1e-5)
    sampler = TimestepSampler(20)
    sampler.update(times, terms.sum(1))
    torch.testing.assert_close(sampler.loss_history, tensors["out.Lt_history_after"], rtol=1e-5, atol=1e-5)
    even = torch.full((20,), 1 / 20)
    assert torch.equal(sampler.probabilities(), even)  # not every time was seen yet
    sampler.loss_history.copy_(tensors["in.Lt_history"])
    sampler.loss_count.fill_(11)
    torch.testing.assert_close(sampler.probabilities(), tensors["out.importance_pt"], rtol=1e-6, atol=1e-8)
    guided = tensors["out.log_p_x0_guided"].movedim(1, -1)[..., :-1]
    kept = truncate(guided, 0.86).clamp(min=-70)
    torch.testing.assert_close(kept, tensors["out.log_p_x0_top_r"].movedim(1, -1)[..., :-1], rtol=0, atol=0)


def test_the_scheduler_reads_stocks_config_and_takes_its_steps():
    tensors, meta = fixture("diffusers_vqdiffusion_pipeline")
    scheduler = hf_vq.DiscreteDiffusionScheduler.from_pretrained(
        FIXTURES / "diffusers_vqdiffusion_pipeline" / "scheduler"
    )
    log_codes, states = tensors["in.log_p_x0"], tensors["in.latents"]
    kept = truncate(log_codes.movedim(1, -1), meta["call"]["truncation_rate"]).movedim(-1, 1)
    assert torch.equal(kept, tensors["out.truncated"])
    for time in (9, 4, 1, 0):
        generator = torch.Generator().manual_seed(1000 + time)
        assert torch.equal(scheduler.step(log_codes, time, states, generator)[0], tensors[f"out.step_t{time}"])
        if time:
            found = scheduler.transitions.log_posterior(
                log_codes.movedim(1, -1), states, time, time - 1, log_zero=LOG_ZERO
            )
            torch.testing.assert_close(found.movedim(-1, 1), tensors[f"out.q_posterior_t{time}"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("codes", "steps", "ends"), [
    (3, 2, {}), (7, 25, {"alpha_cum_end": 0.1, "gamma_cum_end": 0.85}), (40, 100, {"gamma_cum_start": 1e-4}),
])  # fmt: skip
def test_all_steps_are_stocks_and_fewer_steps_end_where_all_do(codes, steps, ends):
    config = {"num_vec_classes": codes + 1, "num_train_timesteps": steps, "alpha_cum_start": 0.9998, **ends}
    stock, ours = diffusers.VQDiffusionScheduler(**config), hf_vq.DiscreteDiffusionScheduler(**config)
    assert torch.equal(ours.timesteps, stock.timesteps)
    states = {each: torch.full((2, 6), codes) for each in (stock, ours)}
    generators = {each: torch.Generator().manual_seed(1) for each in states}
    log_codes = torch.randn(2, codes, 6, generator=torch.Generator().manual_seed(2)).log_softmax(1)
    for time in ours.timesteps:
        for each in states:
            states[each] = each.step(log_codes, time, states[each], generators[each]).prev_sample
        assert torch.equal(*states.values())
    for count in {1, 2, steps - 1, steps} - {0}:
        ours.set_timesteps(count)
        assert len(ours.timesteps) == count
        assert (ours.timesteps.diff() < 0).all()
        assert (ours.timesteps[0], ours.previous(ours.timesteps[-1])) == (steps - 1, -1)
    assert (ours.step(log_codes, ours.timesteps[-1], states[ours], generators[ours])[0] < codes).all()
    assert type(ours).from_config(stock.config).config["num_vec_classes"] == codes + 1


@torch.no_grad()
def test_few_steps_draw_what_many_draw_where_codes_do_not_depend_on_each_other():
    transitions = Transitions(4, 50)
    log_codes = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(1, 30_000, 4)
    for count in (1, 3, 50):
        scheduler = hf_vq.DiscreteDiffusionScheduler(5, 50)
        scheduler.set_timesteps(count)
        generator = torch.Generator().manual_seed(count)
        states = scheduler.start(log_codes.shape[:2], generator)
        for time in scheduler.timesteps:
            certain = torch.where((states == 4)[..., None], log_codes, carried(states, 4))
            states = scheduler.step(certain.movedim(-1, 1), time, states, generator)[0]
        shares = states[0].bincount(minlength=4) / states.shape[1]
        torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.015, rtol=0)
    assert transitions.mask == 4


def carried(states, codes):
    """Log-probabilities that are certain of states that are codes."""
    return torch.full((*states.shape, codes), -30.0).scatter(-1, states[..., None].clamp(max=codes - 1), 0.0)


@torch.no_grad()
def test_known_codes_stay_and_all_others_see_them():
    prior, seen = make_prior("classes"), []
    codes, conditions = make_codes(prior, 4)
    known = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    known[2], known[3] = True, False
    predict = prior.predict
    prior.predict = lambda states, *inputs, **options: (seen.append(states), predict(states, *inputs, **options))[1]
    for options in ({}, {"purity_weight": 2.0}, {"guidance_scale": 2.0}):
        seen.clear()
        drawn = prior.sample(**conditions, known_codes=codes, known_mask=known, num_inference_steps=4, **options)
        assert torch.equal(drawn[known], codes[known])
        assert len(seen) == 4
        assert all(torch.equal(states[:4][known], codes[known]) for states in seen)  # from the first step on
        assert (drawn < 11).all()


@torch.no_grad()
def test_guidance_is_one_pass_of_both_and_purity_and_truncation_are_what_they_say():
    prior = make_prior("text, levels")
    codes, conditions = make_codes(prior, 2)
    states, null = codes.masked_fill(codes > 5, prior.mask), prior.null_text.expand(2, -1, -1)
    with_text = prior.predict(states, torch.full((2,), 4), **conditions)
    without = prior.predict(states, torch.full((2,), 4), encoder_hidden_states=null)
    guided = functools.partial(guided_prediction, prior, states, conditions)
    expected = (without + 3 * (with_text - without)).log_softmax(-1)
    torch.testing.assert_close(guided(3.0), expected, atol=1e-5, rtol=1e-5)
    negative = torch.randn(2, 5, 6)
    away = guided(0.0, negative)
    torch.testing.assert_close(away, prior.predict(states, torch.full((2,), 4), encoder_hidden_states=negative))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    masked = {"encoder_hidden_states": negative, "encoder_attention_mask": mask}
    expected = prior.predict(states, torch.full((2,), 4), **masked)
    torch.testing.assert_close(guided(0.0, negative, mask), expected)  # of texts without a mask all counts
    torch.testing.assert_close(guided(0.0, negative, encoder_attention_mask=mask), away)
    for wrong in (negative[:, :4], negative / 0, negative.repeat(2, 1, 1)):
        with pytest.raises(ValueError, match="negative_encoder_hidden_states must be"):
            prior.sample(**conditions, guidance_scale=2.0, negative_encoder_hidden_states=wrong)
    kept = truncate(with_text, 0.5).exp()
    assert ((kept.sum(-1) <= 1) & (kept.amax(-1) > 0)).all()
    first_seen = purity_order(prior, conditions)
    assert first_seen[0] > first_seen[-1]  # the certain ones first


def guided_prediction(prior, states, conditions, guidance_scale, *negative, **others):
    both = prior.guidance_conditions({**conditions, **others}, guidance_scale, *negative)
    return prior.predict_guided(states, 4, both, guidance_scale)


def purity_order(prior, conditions):
    """Mean certainty of the codes that appear in each of five steps; which places are certain is fixed."""
    certainty = torch.linspace(0, 6, 36).view(3, 3, 4)
    logits = torch.zeros(2, 3, 3, 4, 11)
    logits[..., 0] = certainty
    seen, states = [], []
    prior.predict = lambda now, *inputs, **options: (states.append(now), logits.log_softmax(-1))[1]
    drawn = prior.sample(
        **conditions, purity_weight=1.0, num_inference_steps=5, generator=torch.Generator().manual_seed(0)
    )
    for before, after in itertools.pairwise([*states, drawn]):
        shown = (before == prior.mask) & (after != prior.mask)
        seen.append(certainty.expand(2, -1, -1, -1)[shown].mean())
    return seen


BAD = {
    "num_inference_steps must be at most num_train_timesteps=10": {"num_inference_steps": 11},
    "num_inference_steps must be an integer": {"num_inference_steps": 2.5},
    "generator must be one, or one per item: got 1 for 4": {"generator": [torch.Generator()]},
    "guides away from nothing": {"negative_encoder_hidden_states": torch.zeros(4, 5, 6)},
    "negative_encoder_hidden_states given, but this prior has no text": {
        "negative_encoder_hidden_states": torch.zeros(4, 5, 6), "guidance_scale": 2.0
    },
    "negative_encoder_attention_mask given without": {"negative_encoder_attention_mask": torch.ones(4, 5).bool()},
    "truncation_rate must be": {"truncation_rate": 0.0},
    "purity_weight must be": {"purity_weight": -1.0},
    "known_codes and known_mask go together": {"known_codes": torch.zeros(4, 3, 4, dtype=torch.int64)},
    "code_shape must be a grid of at most": {"code_shape": (3, 5)},
    r"known_codes must be in \[0, 11\), got 11": {
        "known_codes": torch.full((4, 3, 4), 11), "known_mask": torch.ones(4, 3, 4, dtype=torch.bool)
    },
    "scheduler must be a DiscreteDiffusionScheduler, got VQDiffusionScheduler": {
        "scheduler": diffusers.VQDiffusionScheduler(12)
    },
    "scheduler must have num_vec_classes=12 and num_train_timesteps=10": {
        "scheduler": hf_vq.DiscreteDiffusionScheduler(12, 9)
    },
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_sampling_cannot_do_is_named_before_any_work(message):
    prior = make_prior("classes")
    prior.predict = None
    with pytest.raises(ValueError, match=message):
        prior.sample(**make_codes(prior, 4)[1], **BAD[message])


def test_numbers_that_are_none_end_in_an_error():
    prior = make_prior("classes")
    prior.head.weight.data[0] = math.nan
    with pytest.raises(RuntimeError, match="logits that are not finite"):
        prior.sample(**make_codes(prior, 2)[1])
    scheduler = hf_vq.DiscreteDiffusionScheduler(5, 4)
    with pytest.raises(ValueError, match="model_output must be log-probabilities, got NaN"):
        scheduler.step(torch.full((1, 4, 2), math.nan), 3, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"timestep must be one of \[3, 2, 1, 0\], got 4"):
        scheduler.step(torch.zeros(1, 4, 2), 4, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sample must be in \[0, 5\), got 5"):
        scheduler.step(torch.zeros(1, 4, 2), 3, torch.full((1, 2), 5))
    for wrong, message in (
        ({"alpha_cum_end": 1.0}, "the cumulated alpha must fall"),
        ({"gamma_cum_end": 0.0}, "the cumulated 1 - gamma must fall"),
        ({"alpha_cum_end": 0.5}, "a share that grows"),
        ({"gamma_cum_start": 0.5}, "must not be above 1 together"),
    ):
        with pytest.raises(ValueError, match=message):
            hf_vq.DiscreteDiffusionScheduler(5, 10, **wrong)


def learn(rank, folder):
    """Writes the loss of a share of a batch, and what is remembered of it; rank None is all of the batch."""
    prior, share = (
        make_prior("classes", class_dropout_prob=0.0).train(),
        slice(rank, None, None if rank is None else 2),
    )
    codes, labels = torch.randint(11, (8, 3, 4)), torch.arange(8) % 3
    times, uniforms = torch.arange(8) % 5, torch.rand(2, *codes.shape)
    states = prior.transitions.noise(codes, times, uniforms)[share]
    log_codes = prior.predict(states, times[share], class_labels=labels[share])
    real = torch.ones_like(states, dtype=torch.bool)
    loss = prior.compute_loss(log_codes, codes[share], real, states, times[share], torch.full((len(states),), 0.1))
    torch.save((loss.detach(), *prior.timesteps.state_dict().values()), folder / f"{rank}.pt")


def test_two_processes_learn_and_remember_what_one_does_of_the_whole_batch(tmp_path):
    in_two_processes(learn, tmp_path)
    learn(None, tmp_path)
    halves, whole = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)], torch.load(tmp_path / "None.pt")
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, whole[0])
    for each in halves:
        torch.testing.assert_close(each[1:], whole[1:])


def train(folder, **options):
    torch.manual_seed(0)
    small = {"codebook_size": 8, "code_shape": (4, 4), "num_classes": 2, "num_timesteps": 4, "dropout": 0.1}
    prior = hf_vq.DiscreteDiffusionPrior(hf_vq.DiscreteDiffusionPriorConfig(**{**SMALL, **small}))
    options = {
        "max_steps": 24,
        "save_steps": 12,
        "per_device_train_batch_size": 10,
        "weight_ema_decay": 0.9,
        **options,
    }
    arguments = PriorTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, logging_steps=6, **options)
    return train_prior(prior, Codes(100), arguments, Codes(20))


def test_a_training_that_was_stopped_ends_as_one_that_was_not_to_the_bit(tmp_path):
    whole = train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole/checkpoint-12", tmp_path / "parts/checkpoint-12")
    resumed = train(tmp_path / "parts", resume_from_checkpoint=True)
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (expected["timesteps.loss_count"] > 10).all()  # times were drawn by their loss
    assert resumed["metrics"] == whole["metrics"]


def test_half_precision_and_the_gradient_of_everything():
    for variant in VARIANTS:
        prior = make_prior(variant, null_text=None, text_dropout_prob=0.0)
        codes, conditions = make_codes(prior, 4)
        exact = prior(codes, **conditions)
        prior.to(torch.bfloat16)
        half = prior(codes, **conditions)
        assert half.logits.dtype == torch.float32
        torch.testing.assert_close(half.loss, exact.loss, rtol=0.02, atol=0)
        prior.float().train()(codes, **conditions).loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


def test_a_scheduler_names_what_is_no_distribution_and_no_time():
    scheduler, masks = hf_vq.DiscreteDiffusionScheduler(num_vec_classes=5), torch.full((1, 3), 4)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="model_output must be log-probabilities"):
            scheduler.step(torch.full((1, 4, 3), value), 2, masks)
    for codes, time, words in (
        (masks, 0, "original_samples"),
        (masks - 1, 100, "timesteps"),
        (masks - 1, -1, "got -1"),
    ):
        with pytest.raises(ValueError, match=words):
            scheduler.add_noise(codes, torch.rand(2, 1, 3), time)

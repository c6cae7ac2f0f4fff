"""Discrete diffusion beside dense matrices, Bayes' rule, an enumerable model and what the originals computed."""

import itertools
import math

import pytest
import torch

import hf_vq
from hf_vq.priors.diffusion_loss import TimestepSampler, bound_terms
from hf_vq.priors.sampling import truncate
from hf_vq.priors.transitions import SCHEDULES, TRANSITIONS, Transitions

from .conftest import FIXTURES, fixture

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
        codes = transitions.carry_over(log_codes, states).exp()
        wanted = torch.einsum("pc,cbp->pb", codes[0], given_now[:, :, : states.shape[1]])
        found = transitions.log_posterior(log_codes, states, time, before).exp()
        torch.testing.assert_close(found[0], wanted, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(found.sum(-1), torch.ones(1, states.shape[1]).double(), rtol=1e-9, atol=0)


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

"""Facts about all quantizers: the contract, padding, precision, compilation, processes, surgery."""

import copy
import math

import pytest
import torch

from hf_vq.quantizers import QUANTIZERS, entropy, make_quantizer
from hf_vq.quantizers.entropy import assignment_entropies, bit_entropies
from hf_vq.quantizers.lookup import lookup

from .conftest import compile_whole
from .processes import in_a_process, most_memory
from .quantizer_variants import EVERY, VARIANTS, make, same_draws, trained

LEARNED = pytest.mark.parametrize("name", ["vector", "ema"])
CODEBOOK_BY_STATISTICS = pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if name.startswith(("ema", "residual", "product", "grouped", "vector"))]
)


# The contract


@EVERY
def test_training_returns_codes_and_latents_of_the_codebook_before_the_update(variant):
    quantizer = trained(variant)
    before, latents = copy.deepcopy(quantizer).eval(), torch.randn(2, 6, 4, 4)
    output = quantizer(latents)
    torch.testing.assert_close(output.latents, before.detokenize(output.codes), rtol=1e-6, atol=1e-6)


@EVERY
def test_gradients_reach_the_encoder(variant):
    quantizer, latents = trained(variant), torch.randn(2, 6, 4, 4, requires_grad=True)
    output = quantizer(latents)
    (through,) = torch.autograd.grad((output.latents * torch.randn(2, 6, 4, 4)).sum(), latents, retain_graph=True)
    assert (through.abs().sum(dim=1) > 0).all()
    if output.loss.requires_grad:
        (penalty,) = torch.autograd.grad(output.loss, latents)
        assert (penalty.abs().sum(dim=1) > 0).all()
    output = quantizer(latents)
    (output.loss + output.latents.square().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())


@pytest.mark.parametrize(
    "variant", ["vector", "ema", "vector cosine, bypass", "residual", "product", "lookup_free unfitted"]
)
def test_the_gradient_passes_straight_through(variant):
    quantizer, latents = trained(variant), torch.randn(2, 6, 4, 4, requires_grad=True)
    upstream = torch.randn(2, 6, 4, 4)
    (quantizer(latents).latents * upstream).sum().backward()
    assert torch.equal(latents.grad, upstream)


def test_the_commitment_of_every_level_reaches_the_encoder():
    quantizer, latents = trained("residual", level_type="vector"), torch.randn(2, 6, 4, 4, requires_grad=True)
    expected, residual = 0, latents
    for level in copy.deepcopy(quantizer).eval().levels:
        output = level(residual)
        expected = expected + torch.autograd.grad(output.loss, latents, retain_graph=True)[0] / 3
        residual = residual - output.latents.detach()
    torch.testing.assert_close(torch.autograd.grad(quantizer.eval()(latents).loss, latents)[0], expected)


@pytest.mark.parametrize(
    ("variant", "train", "backend"),
    [(variant, True, "aot_eager" if variant in QUANTIZERS else "eager") for variant in VARIANTS]
    + [(variant, False, "eager") for variant in VARIANTS if variant in QUANTIZERS],
)
def test_compiles_whole_and_equals_eager(variant, train, backend):
    eager = trained(variant).train(train)
    quantizer, latents = copy.deepcopy(eager), torch.randn(2, 6, 4, 4)
    compiled = compile_whole(quantizer, backend)
    expected, output = same_draws(eager, latents), same_draws(compiled, latents)
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close(output.loss, expected.loss)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(quantizer.state_dict()[key], value, msg=key)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("variant", ["vector", "ema", "residual shared"])
def test_inductor_trains_as_eager_does(variant, two_threads):
    """With two threads inductor's own scatter-add writes beyond its tensor (pytorch/pytorch#191837)."""
    eager = trained(variant)
    quantizer, latents = copy.deepcopy(eager), torch.randn(2, 6, 4, 4)
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    expected, output = eager(ours), compile_whole(quantizer)(theirs)
    for result in (expected, output):
        (result.loss + result.latents.square().sum()).backward()
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close((output.loss, theirs.grad), (expected.loss, ours.grad))
    for key, value in eager.state_dict().items():  # nothing was dead: the drawn rows were not needed
        torch.testing.assert_close(quantizer.state_dict()[key], value, msg=key)
    for parameter, other in zip(eager.parameters(), quantizer.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad)


def test_the_gradient_of_a_lookup_is_the_sum_by_code():
    codes, codebook = torch.randint(5, (2, 3)), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: lookup(codes, table), codebook)


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_latents_raise_and_leave_the_state_alone(variant, bad):
    quantizer, latents = trained(variant), torch.randn(2, 6, 4, 4)
    latents[0, 0, 0, 0] = bad
    before = copy.deepcopy(quantizer.state_dict())
    for call in (quantizer, quantizer.tokenize):
        with pytest.raises(RuntimeError, match="NaN or infinity"):
            call(latents)
    assert all(torch.equal(v, quantizer.state_dict()[k]) for k, v in before.items())


@CODEBOOK_BY_STATISTICS
def test_deferred_updates_equal_one_update_on_the_whole_batch(variant):
    whole = trained(variant)
    parts, latents = copy.deepcopy(whole), torch.randn(8, 6, 4, 4)
    parts.codebook_updates = "deferred"
    before = copy.deepcopy(parts.state_dict())
    whole(latents)
    for part in latents.split(2):
        parts(part)
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in before.items())
    parts.update_codebook()
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, msg=key)


@EVERY
def test_bits_per_token(variant):
    quantizer = make(variant)
    assert quantizer.bits_per_token == pytest.approx(quantizer.num_levels * math.log2(quantizer.codebook_size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer_type": "emma"}, "quantizer_type.*emma"),
        ({"quantizer_config": {"decai": 0.9}}, "decai.*decay"),
        ({"codebook_size": 0}, "codebook_size.*0"),
        ({"quantizer_config": {"decay": 1.5}}, "decay.*1.5"),
        ({"quantizer_config": {"beta": -1.0}}, "beta.*-1"),
        ({"quantizer_config": {"gradient": "bypass"}}, "bypass.*normalize"),
        ({"quantizer_config": {"entropy_temperature": 0}}, "entropy_temperature.*0"),
        (
            {"quantizer_type": "vector", "quantizer_config": {"code_transform": True, "restart_threshold": 0.1}},
            "restart_threshold must be 0, got 0.1",
        ),
        (
            {"quantizer_type": "vector", "quantizer_config": {"frozen_codebook_dim": 8}},
            "frozen_codebook_dim=8 needs code_transform=True",
        ),
        (
            {"quantizer_type": "vector", "quantizer_config": {"code_transform": True, "frozen_codebook_dim": 0}},
            "frozen_codebook_dim must be an integer between 1 and 65536, got 0",
        ),
        ({"quantizer_type": "finite_scalar"}, "levels_per_dim"),
        ({"quantizer_type": "finite_scalar", "quantizer_config": {"levels_per_dim": [3, 3]}}, "9 codes.*4"),
        ({"quantizer_type": "lookup_free", "codebook_size": 12}, "power of two.*12"),
        ({"quantizer_type": "lookup_free", "codebook_size": 2**40}, "entropy_groups.*2.*1"),
        ({"quantizer_type": "gumbel", "quantizer_config": {"temperature": 0.0}}, "temperature.*0"),
        ({"quantizer_type": "product", "quantizer_config": {"groups": 3}}, "groups.*2.*3"),
        ({"quantizer_type": "residual", "quantizer_config": {"level_type": "gumbel"}}, "level_type.*gumbel"),
        ({"quantizer_type": "residual", "quantizer_config": {"update_each_level": True}}, "shared_codebook"),
        ({"quantizer_type": "residual", "quantizer_config": {"level_config": {"decai": 1}}}, "decai.*decay"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    defaults = {"quantizer_type": "ema", "codebook_size": 4, "dim": 2}
    with pytest.raises(ValueError, match=message):
        make_quantizer(**{**defaults, **arguments})


@EVERY
def test_bad_latents_and_codes_are_named(variant):
    quantizer = trained(variant)
    codes = quantizer.tokenize(torch.randn(2, 6, 4))
    with pytest.raises(ValueError, match=r"\(batch, 6, \*grid\)"):
        quantizer(torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match=r"padding_mask must be bool of shape \(2, 4\)"):
        quantizer(torch.randn(2, 6, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"padding_mask must be bool of shape \(2, 4\).*list"):
        quantizer(torch.randn(2, 6, 4), [[True] * 4] * 2)
    if not make(variant).initialized:
        with pytest.raises(ValueError, match="padding_mask is False everywhere"):
            make(variant).initialize(torch.randn(2, 6, 4), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=rf"{quantizer.codebook_size}\), got"):
        quantizer.detokenize(codes + quantizer.codebook_size)
    with pytest.raises(ValueError, match="integers"):
        quantizer.detokenize(codes.float())
    if quantizer.num_levels > 1:
        with pytest.raises(ValueError, match="levels"):
            quantizer.detokenize(torch.cat([codes, codes], dim=1))


# Levels


def test_fewer_levels_decode_to_a_coarser_latent():
    quantizer, latents = trained("residual").eval(), torch.randn(4, 6, 5, 5)
    codes = quantizer.tokenize(latents)
    errors = [(quantizer.detokenize(codes[:, :count]) - latents).square().mean() for count in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(quantizer.tokenize(latents, num_levels=2), codes[:, :2])
    torch.testing.assert_close(quantizer(latents, num_levels=2).latents, quantizer.detokenize(codes[:, :2]))
    absent = codes.clone()
    absent[:, 2] = -1
    torch.testing.assert_close(quantizer.detokenize(absent), quantizer.detokenize(codes[:, :2]))


def test_level_dropout_leaves_out_the_last_levels_of_whole_items():
    quantizer, latents = trained("residual", level_dropout=1.0), torch.randn(300, 6, 3)
    before = copy.deepcopy(quantizer).eval()
    output = quantizer(latents)
    present = output.codes >= 0
    assert torch.equal(present, present[..., :1].expand_as(present))  # whole items
    assert (present[:, :-1] >= present[:, 1:]).all()  # the first levels
    depths = present[..., 0].sum(dim=1).bincount(minlength=4)
    assert depths[0] == 0
    assert (depths[1:] > 60).all()
    torch.testing.assert_close(output.latents, before.detokenize(output.codes), rtol=1e-6, atol=1e-6)
    assert (quantizer.eval()(latents).codes >= 0).all()


# Entropies


def test_bit_entropies_equal_the_enumeration_of_all_codes():
    rows = torch.randn(40, 6, dtype=torch.float64, requires_grad=True)
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    temperature = 2.0
    listed = assignment_entropies(rows, codes, temperature / 2, metric="dot")
    factorized = bit_entropies(4 / temperature * rows)
    for ours, theirs in zip(factorized, listed, strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(x, rows, retain_graph=True)[0] for x in (ours, theirs)))


@pytest.mark.parametrize(
    "variant", ["vector entropy", "ema entropy", "index_backpropagation", "gumbel", "gumbel projection"]
)
@pytest.mark.parametrize("train", [True, False])
def test_chunks_change_neither_values_nor_gradients(variant, train, monkeypatch):
    quantizer, latents = trained(variant).train(train), torch.randn(2, 6, 4, 4)
    results = []
    for size in (1 << 24, 60):
        monkeypatch.setattr(entropy, "_SCORES_PER_CHUNK", size)
        ours, given = copy.deepcopy(quantizer), latents.clone().requires_grad_()
        output = same_draws(ours, given)
        (output.loss + output.latents.square().sum()).backward()
        gradients = [parameter.grad for parameter in ours.parameters()]
        results.append((output.latents, output.codes, output.loss, given.grad, *gradients))
    torch.testing.assert_close(*results)


def memory_of_entropy():
    quantizer = make_quantizer("lookup_free", 2**18, 18).train()
    quantizer(torch.randn(1, 18, 8, requires_grad=True)).loss.backward()
    latents = torch.randn(1, 18, 1024, requires_grad=True)
    before = most_memory()
    quantizer(latents).loss.backward()
    assert latents.grad.abs().sum() > 0
    return most_memory() - before


def test_entropy_of_2_to_the_18_codes_fits_in_memory():
    assert in_a_process(memory_of_entropy) < 512, "a table of 1024 x 2^18 has 1,024"


def test_diversity_keeps_a_codebook_from_collapsing():
    torch.manual_seed(3)
    used, alone = {}, {"entropy_temperature": 1.0, "fit_latents": False, "beta": 0.25}
    for weight in (0.0, 1.0):
        latents = (0.05 * torch.randn(1, 6, 500) + 1).requires_grad_()  # all of one sign
        quantizer = make_quantizer("lookup_free", 64, 6, {**alone, "entropy_weight": weight})
        optimizer = torch.optim.Adam([latents], lr=0.05)
        for _ in range(100):
            optimizer.zero_grad()
            quantizer(latents).loss.backward()
            optimizer.step()
        used[weight] = quantizer.tokenize(latents).unique().numel()
    assert used[0.0] == 1
    assert used[1.0] > 30


# Gumbel


def test_the_temperature_falls_on_a_half_cosine_and_is_saved():
    options = {"temperature": 1.0, "final_temperature": 1 / 16, "temperature_steps": 4}
    quantizer = make_quantizer("gumbel", 12, 6, options).train()
    temperatures = []
    for _ in range(6):
        temperatures.append(quantizer.temperature.item())
        quantizer(torch.randn(1, 6, 3))
    expected = [1 / 16 + 15 / 16 * (1 + math.cos(math.pi * min(step, 4) / 4)) / 2 for step in range(6)]
    assert temperatures == pytest.approx(expected)
    other = make_quantizer("gumbel", 12, 6, options)
    other.load_state_dict(quantizer.state_dict())
    assert other.temperature == quantizer.temperature

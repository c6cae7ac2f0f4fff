"""Facts about all quantizers: the contract, padding, precision, compilation, processes, surgery."""

import copy
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from hf_vq import VQVAE
from hf_vq.quantizers import EMAVectorQuantizer, entropy, make_quantizer
from hf_vq.quantizers.entropy import assignment_entropies, bit_entropies
from hf_vq.quantizers.lookup import lookup

# every type, and the options that change what it computes
VARIANTS = {
    "vector": ("vector", 12, {}),
    "vector cosine, rotation": ("vector", 12, {"normalize": True, "gradient": "rotation"}),
    "vector cosine, bypass": ("vector", 12, {"normalize": True, "gradient": "bypass"}),
    "vector projected": ("vector", 12, {"code_dim": 3}),
    "vector entropy": ("vector", 12, {"entropy_weight": 0.1, "entropy_temperature": 1.0}),
    "vector transform": ("vector", 12, {"code_transform": True}),
    "ema": ("ema", 12, {}),
    "ema cosine": ("ema", 12, {"normalize": True}),
    "ema entropy": ("ema", 12, {"entropy_weight": 0.1, "entropy_temperature": 1.0}),
    "index_backpropagation": ("index_backpropagation", 12, {}),
    "remapped": ("remapped", 12, {"num_used": 12}),
    "finite_scalar": ("finite_scalar", 192, {"levels_per_dim": [4, 3, 2, 2, 2, 2]}),
    "finite_scalar projected": ("finite_scalar", 40, {"levels_per_dim": [8, 5]}),
    "finite_scalar symmetric": ("finite_scalar", 40, {"levels_per_dim": [8, 5], "preserve_symmetry": True}),
    "lookup_free": ("lookup_free", 64, {"entropy_temperature": 1.0}),
    "lookup_free spherical": ("lookup_free", 16, {"spherical": True, "first_bit": "least"}),
    "gumbel": ("gumbel", 12, {"final_temperature": 0.2, "temperature_steps": 9}),
    "residual": ("residual", 12, {"num_levels": 3}),
    "residual shared": ("residual", 12, {"num_levels": 3, "shared_codebook": True}),
    "residual rotation": ("residual", 12, {"num_levels": 2, "level_type": "vector", "gradient": "rotation"}),
    "residual finite_scalar": (
        "residual", 192, {"num_levels": 2, "level_type": "finite_scalar",
                          "level_config": {"levels_per_dim": [4, 3, 2, 2, 2, 2]}},
    ),
    "product": ("product", 12, {"groups": 2}),
    "grouped residual": ("product", 12, {"groups": 2, "group_type": "residual", "group_config": {"num_levels": 2}}),
}  # fmt: skip
EVERY = pytest.mark.parametrize("variant", VARIANTS)
LEARNED = pytest.mark.parametrize("name", ["vector", "ema"])
CODEBOOK_BY_STATISTICS = pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if name.startswith(("ema", "residual", "product", "grouped", "vector"))]
)


def make(variant, **options):
    quantizer_type, codebook_size, config = VARIANTS[variant]
    return make_quantizer(quantizer_type, codebook_size, 6, {**config, **options})


def trained(variant, **options):
    quantizer = make(variant, **options)
    quantizer.train()(torch.randn(4, 6, 5, 5))
    return quantizer


def same_draws(function, *arguments, **options):
    torch.manual_seed(1)
    return function(*arguments, **options)


# The contract


@EVERY
@settings(max_examples=8, deadline=None)
@given(batch=st.integers(0, 3), grid=st.lists(st.integers(1, 4), max_size=3), seed=st.integers(0, 99))
def test_codes_decode_to_the_quantized_latents(variant, batch, grid, seed):
    torch.manual_seed(seed)
    quantizer, latents = trained(variant).eval(), torch.randn(batch, 6, *grid)
    output, again = quantizer(latents), quantizer(latents)
    levels = () if quantizer.num_levels == 1 else (quantizer.num_levels,)
    assert output.codes.shape == (batch, *levels, *grid)
    assert output.codes.dtype == torch.int64
    assert output.latents.shape == latents.shape
    assert torch.equal(quantizer.tokenize(latents), output.codes)
    assert torch.equal(again.codes, output.codes)
    torch.testing.assert_close(quantizer.detokenize(output.codes), output.latents, rtol=1e-6, atol=1e-6)
    assert output.loss.isfinite()
    assert output.loss.ndim == 0


@EVERY
def test_a_code_does_not_depend_on_the_batch(variant):
    quantizer, latents = trained(variant).eval(), torch.randn(7, 6, 9, 9)
    codes = quantizer.tokenize(latents)
    for item, expected in zip(latents, codes, strict=True):
        assert torch.equal(quantizer.tokenize(item[None])[0], expected)
    columns = torch.cat([quantizer.tokenize(latents[..., i : i + 1]) for i in range(9)], dim=-1)
    assert torch.equal(columns, codes)


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


@pytest.mark.parametrize("variant", ["vector", "ema", "vector cosine, bypass", "residual", "product", "lookup_free"])
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


@EVERY
def test_padding_changes_neither_codes_nor_losses_nor_statistics(variant):
    short = torch.randn(3, 6, 8)
    padded = torch.cat([short, torch.full((3, 6, 5), 1e6)], dim=2)
    mask = torch.arange(13).expand(3, 13) < 8
    a = trained(variant, **({"hard": True, "kl_weight": 1.0} if variant == "gumbel" else {}))
    if variant == "gumbel":
        a.eval()  # training draws noise for padding too
    b = copy.deepcopy(a)
    plain, masked = same_draws(a, short), same_draws(b, padded, mask)
    assert torch.equal(masked.codes[..., :8], plain.codes)
    torch.testing.assert_close(masked.loss, plain.loss)
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, msg=key)


@EVERY
def test_nothing_but_padding_leaves_the_codebook_alone(variant):
    quantizer, latents = trained(variant), torch.randn(2, 6, 5)
    before = quantizer.tokenize(latents)
    output = quantizer(latents, torch.zeros(2, 5, dtype=torch.bool))
    assert output.loss.abs() < 1e-3 or "entropy" in variant or "lookup" in variant
    assert output.loss.isfinite()
    assert torch.equal(quantizer.tokenize(latents), before)


@EVERY
def test_save_and_load_keeps_every_code_and_never_runs_kmeans_again(variant):
    source, target, latents = trained(variant), make(variant), torch.randn(8, 6, 4, 4)
    target.load_state_dict(source.state_dict())
    assert not target.initialize(latents)
    expected = same_draws(source, latents)
    assert torch.equal(same_draws(target.train(), latents).codes, expected.codes)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@EVERY
@pytest.mark.parametrize("train", [True, False])
def test_compiles_whole_and_equals_eager(variant, train):
    eager = trained(variant).train(train)
    quantizer, latents = copy.deepcopy(eager), torch.randn(2, 6, 4, 4)
    torch.compiler.reset()
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
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


@pytest.mark.parametrize("variant", ["vector", "ema", "residual shared", "lookup_free"])
def test_inductor_trains_as_eager_does(variant, two_threads):
    """With two threads inductor's own scatter-add writes beyond its tensor (pytorch/pytorch#191837)."""
    eager = trained(variant)
    quantizer, latents = copy.deepcopy(eager), torch.randn(2, 6, 4, 4)
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    torch.compiler.reset()
    expected, output = eager(ours), torch.compile(quantizer, fullgraph=True)(theirs)
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


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_stays_float32_and_autocast_does_not_change_codes(variant, dtype):
    quantizer, latents = trained(variant), torch.randn(8, 6, 16, 16)
    codes = quantizer.tokenize(latents)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(quantizer.tokenize(latents), codes)
        assert torch.equal(quantizer.eval()(latents).codes, codes)
    assert all(v.dtype not in (torch.float16, torch.bfloat16) for v in quantizer.to(dtype).state_dict().values())
    output = quantizer.eval()(latents.to(dtype))
    assert output.latents.dtype == dtype
    assert torch.equal(output.codes, quantizer.tokenize(latents.to(dtype).float()))


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
            {"quantizer_type": "vector", "quantizer_config": {"code_transform": True, "kmeans_init": True}},
            "kmeans_init",
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


@pytest.mark.parametrize("variant", ["vector entropy", "ema entropy", "index_backpropagation", "gumbel"])
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


def test_entropy_of_2_to_the_18_codes_fits_in_memory():
    script = """
import resource, torch
from hf_vq.quantizers import make_quantizer
quantizer = make_quantizer("lookup_free", 2**18, 18).train()
quantizer(torch.randn(1, 18, 8, requires_grad=True)).loss.backward()
latents = torch.randn(1, 18, 4096, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantizer(latents).loss.backward()
assert latents.grad.abs().sum() > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    added = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert added < 512, f"{added} MiB: a table of 4096 x 2^18 has 4,096"


def test_diversity_keeps_a_codebook_from_collapsing():
    torch.manual_seed(3)
    used = {}
    for weight in (0.0, 1.0):
        latents = (0.05 * torch.randn(1, 6, 500) + 1).requires_grad_()  # all of one sign
        quantizer = make_quantizer("lookup_free", 64, 6, {"entropy_weight": weight, "entropy_temperature": 1.0})
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


# Surgery


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


def test_training_step_at_16384_by_16384_adds_little_memory():
    script = """
import resource, torch
from hf_vq.quantizers import EMAVectorQuantizer
quantizer = EMAVectorQuantizer(16384, 64, kmeans_init=False).train()
small = torch.randn(1, 64, 16, requires_grad=True)
quantizer(small).loss.backward()
latents = torch.randn(1, 64, 16384, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = quantizer(latents)
(output.loss + output.latents.square().mean()).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    added = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert added < 512, f"{added} MiB"


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


# Processes


def _train_on_a_share(rank, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["HF_VQ_TEST_PORT"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for variant, dtype in itertools.product(STATISTICS, DTYPES):
        torch.save(_train_twenty_steps(rank, 2, variant, dtype), f"{folder}/{variant}-{dtype}-{rank}.pt")
    torch.save(_start_principal_patches(rank, 2), f"{folder}/principal-{rank}.pt")
    dist.destroy_process_group()


def _train_twenty_steps(rank, world_size, variant, dtype):
    torch.manual_seed(5)
    quantizer_type, codebook_size, config = STATISTICS[variant]
    quantizer = make_quantizer(quantizer_type, codebook_size, 6, config).to(dtype).train()
    latents = torch.randn(20, 8, 6, 10, dtype=dtype)
    masks = torch.rand(20, 8, 10) < 0.8
    masks[7, 4:] = False  # the second process has nothing real in this step
    masks[9] = False
    torch.manual_seed(7 + 1000 * rank)  # the draws of rank 0 decide
    for step, mask in zip(latents, masks, strict=True):
        quantizer(step.chunk(world_size)[rank], mask.chunk(world_size)[rank])
    return quantizer.state_dict()


def _start_principal_patches(rank, world_size):
    torch.manual_seed(5)
    product = {"codebook_size": 8, "codebook_dim": 16, "quantizer_type": "product", "quantizer_config": {"groups": 2}}
    model = VQVAE(1, 8, 0, **product, shortcut="principal", reconstruction_loss="logistic")
    sample = torch.randn(8, 1, 32, 32) * torch.arange(1, 17).view(4, 4).repeat(8, 8) / 16  # no two variances alike
    torch.manual_seed(7 + 1000 * rank)
    model.initialize_codebook(sample.chunk(world_size)[rank])
    return model.state_dict()


RESTARTING = {"restart_threshold": 0.5}
STATISTICS = {
    "vector": ("vector", 24, RESTARTING),
    "ema": ("ema", 24, RESTARTING),
    "residual cosine": ("residual", 24, {"num_levels": 2, "level_config": {**RESTARTING, "normalize": True}}),
    "product of shared residuals": (
        "product", 16, {"group_type": "residual",
                        "group_config": {"num_levels": 2, "shared_codebook": True, "level_config": RESTARTING}},
    ),
}  # fmt: skip


DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5}  # and how near


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What two processes trained, each on its half: a process takes longer to start than to train."""
    folder = tmp_path_factory.mktemp("shares")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_VQ_TEST_PORT", str(20000 + os.getpid() % 20000))
        mp.spawn(_train_on_a_share, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("variant", STATISTICS)
def test_two_processes_equal_one(variant, shares):
    for dtype, near in DTYPES.items():
        alone = _train_twenty_steps(0, 1, variant, dtype)
        for rank in (0, 1):
            together = torch.load(shares / f"{variant}-{dtype}-{rank}.pt", weights_only=True)
            for key, value in alone.items():
                torch.testing.assert_close(together[key], value, rtol=near, atol=near, msg=key)


def test_two_processes_start_patches_and_scale_like_one(shares):
    alone = _start_principal_patches(0, 1)
    first, second = (torch.load(shares / f"principal-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("patches.encoder.weight", "upsample.1.conv.bias"):
        torch.testing.assert_close(first[name].abs(), alone[name].abs(), rtol=1e-4, atol=1e-4)  # signs are free


def _train_sharded(rank, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["HF_VQ_TEST_PORT"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = VQVAE(1, hidden_channels=8, stage_channels=(4,), num_residual_layers=0, codebook_size=8, codebook_dim=6)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model.to(torch.bfloat16), mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    samples = torch.rand(6, 2, 4, 1, 8, 8)[:, rank].bfloat16() * 2 - 1
    codebooks = []
    for sample in samples:
        model.train()(sample).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        codebooks.append(model.quantizer.embedding.weight.clone())
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    torch.save({"codebooks": codebooks, "state": state if rank == 0 else {}}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_fsdp2_moves_the_same_float32_codebook_on_every_rank_and_saves_it(tmp_path, monkeypatch):
    """(A frozen Parameter instead of a buffer would lose every update.)"""
    monkeypatch.setenv("HF_VQ_TEST_PORT", str(20000 + os.getpid() % 20000))
    mp.spawn(_train_sharded, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    first, *_, last = ranks[0]["codebooks"]
    assert not torch.equal(first, last)
    assert last.dtype == torch.float32
    assert torch.equal(last, ranks[1]["codebooks"][-1])
    state = ranks[0]["state"]
    assert torch.equal(state["quantizer.embedding.weight"], last)
    assert state["quantizer.embedding_sum"].dtype == torch.float32
    assert state["to_latents.weight"].shape == (6, 8, 1, 1)

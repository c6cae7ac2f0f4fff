"""Whatever is trained starts: gradients reach every encoder and parameter, and grids of codes fit the latents."""

import json

import pytest
import torch
import torch.nn.functional as F

import hf_vq
from hf_vq.data.codes import tokenizer_identity
from hf_vq.quantizers import make_quantizer
from hf_vq.quantizers.fitted import FittedLatents
from hf_vq.quantizers.registry import with_changed_options, without_earlier_options
from hf_vq.registry import AUTOENCODERS, QUANTIZERS

from .contracts.test_autoencoders import SMALL
from .quantizer_variants import VARIANTS

GRIDS = ([4] * 4, [5] * 4, [2] * 8, [2] * 4, [8, 6, 5], [7] * 3)
grids = pytest.mark.parametrize("levels", GRIDS, ids=str)
STARTS = {
    "vector": (8, {}),
    "ema": (8, {}),
    "residual": (8, {"num_levels": 2}),
    "product": (8, {"groups": 2}),
    "finite_scalar": (16, {"levels_per_dim": [2] * 4}),
    "lookup_free": (16, {}),
    "gumbel": (8, {}),
    "index_backpropagation": (8, {}),
    "remapped": (8, {"num_used": 8}),
}


def fsq(levels, dim=None, **options):
    size = torch.tensor(levels).prod().item()
    return make_quantizer("finite_scalar", size, dim or len(levels), {"levels_per_dim": levels, **options})


def pictures(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator) * 2 - 1


# Encoders


def test_every_family_and_quantizer_is_started():
    ours = {name for name, each in {**QUANTIZERS, **AUTOENCODERS}.items() if each.__module__.startswith("hf_vq.")}
    assert ours == {*STARTS, *SMALL}


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("quantizer_type", STARTS)
def test_the_encoder_gets_a_gradient_from_the_first_step(family, quantizer_type):
    torch.manual_seed(0)
    size, config = STARTS[quantizer_type]
    name = "num_vq_embeddings" if family == "VQModel" else "codebook_size"
    width = {"latent_channels" if family == "VQModel" else "codebook_dim": 4}
    choice = {"quantizer_type": quantizer_type, "quantizer_config": config, name: size}
    model = AUTOENCODERS[family](**{**SMALL[family], **choice, **width}).train()
    sample = pictures(4, model.in_channels, 16, 16)
    sample = sample if model.space_dims == 2 else sample.flatten(2)
    model(sample).reconstruction_loss.backward()
    coding = [
        item for item in model.named_parameters() if not (model.only_decodes(item[0]) or item[0].startswith("quant"))
    ]
    reached = [float(parameter.grad.abs().sum()) for _, parameter in coding if parameter.grad is not None]
    assert sum(reached) > 1e-7


@grids
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_channel_uses_its_levels_from_the_first_step(levels, symmetric):
    """(Not fitted, not symmetric, these latents take one code of [2] * 8 and two of [4, 4, 4, 4].)"""
    torch.manual_seed(0)
    size = torch.tensor(levels).prod().item()
    config = {"levels_per_dim": levels, "preserve_symmetry": symmetric}
    choice = {"codebook_size": size, "codebook_dim": len(levels), "quantizer_type": "finite_scalar"}
    model = hf_vq.VQVAE(1, 16, **choice, quantizer_config=config).train()
    codes = model(pictures(16, 1, 16, 16)).codes.flatten()
    digits = codes[:, None] // model.quantizer._digits() % torch.tensor(levels)
    for channel, count in zip(digits.T, levels, strict=True):
        assert len(channel.unique()) >= min(count, 3)
        assert channel.bincount(minlength=count).max() < 0.8 * len(channel)


# Every parameter learns


def nested():
    """Quantizers alone and made of each other, with linear maps at every place that takes some."""
    leaves = {
        "ema": (8, "ema", {}),
        "vector": (8, "vector", {}),
        "simvq": (8, "vector", {"code_transform": True}),
        "ema maps": (8, "ema", {"code_dim": 2}),
        "vector maps": (8, "vector", {"code_dim": 2}),
        "cosine maps": (8, "vector", {"code_dim": 2, "normalize": True, "gradient": "bypass"}),
        "rotation maps": (8, "ema", {"code_dim": 2, "gradient": "rotation"}),
        "simvq maps": (8, "vector", {"code_dim": 2, "code_transform": True}),
        "lookup_free": (16, "lookup_free", {"entropy_temperature": 1.0}),
        "lookup_free maps": (8, "lookup_free", {"entropy_temperature": 1.0}),
        "finite_scalar": (16, "finite_scalar", {"levels_per_dim": [2] * 4}),
        "finite_scalar maps": (40, "finite_scalar", {"levels_per_dim": [8, 5]}),
        "gumbel": (8, "gumbel", {}),
        "index_backpropagation": (8, "index_backpropagation", {"code_dim": 2}),
        "remapped": (8, "remapped", {"num_used": 8}),
    }
    found = {name: (size, 4, kind, config) for name, (size, kind, config) in leaves.items()}
    for name, (size, kind, config) in leaves.items():
        if QUANTIZERS[kind].can_be_level and name != "finite_scalar maps":
            levels = {"num_levels": 3, "level_type": kind, "level_config": config}
            found[f"residual {name}"] = (size, 4, "residual", levels)
            found[f"residual {name}, rotation"] = (size, 4, "residual", {**levels, "gradient": "rotation"})
            found[f"residual {name}, shared"] = (size, 4, "residual", {**levels, "shared_codebook": True})
            found[f"residual {name}, maps"] = (size, 6, "residual", {**levels, "code_dim": 4})
            found[f"product residual {name}"] = (
                size, 8, "product", {"group_type": "residual", "group_config": levels},
            )  # fmt: skip
        found[f"product {name}"] = (size, 8, "product", {"group_type": kind, "group_config": config})
        found[f"product product {name}"] = (
            size, 16, "product",
            {"group_type": "product", "group_config": {"group_type": kind, "group_config": config}},
        )  # fmt: skip
    return found


NESTED = nested()


def test_every_quantizer_is_nested():
    assert {kind for _, _, kind, _ in NESTED.values()} == {*STARTS}


@pytest.mark.parametrize("name", NESTED)
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    size, dim, kind, config = NESTED[name]
    quantizer, latents = make_quantizer(kind, size, dim, config).train(), torch.randn(8, dim, 4, 4)
    output = quantizer(latents.requires_grad_())
    assert torch.equal(output.latents.isfinite(), torch.ones_like(output.latents, dtype=torch.bool))
    ((output.latents - latents.detach()).square().mean() + output.loss).backward()
    dead = [key for key, each in quantizer.named_parameters() if each.grad is None or not each.grad.any()]
    assert not dead
    assert latents.grad.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("level_type", ["ema", "vector"])
def test_maps_of_the_levels_learn_the_reconstruction(level_type):
    """DAC's recipe: eight levels, each of few channels, trained by what the sum of the levels misses."""
    torch.manual_seed(0)
    levels = {"num_levels": 3, "level_type": level_type, "level_config": {"code_dim": 2}}
    quantizer, data = make_quantizer("residual", 8, 6, levels).train(), torch.randn(32, 6, 4)
    optimizer, errors = torch.optim.Adam(quantizer.parameters(), 1e-2), []
    for _ in range(80):
        output = quantizer(data)
        errors.append((output.latents - data).square().mean())
        (errors[-1] + output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert errors[-1] < 0.6 * data.var()
    codes = quantizer.eval().tokenize(data)
    assert all(len(codes[:, level].unique()) > 4 for level in range(3))


# Starts from clusters


@pytest.mark.parametrize(("count", "logits"), [(512, "projection"), (20, "projection"), (20, "distance")])
def test_gumbel_logits_start_at_the_clusters_of_the_latents(count, logits, tmp_path):
    torch.manual_seed(0)
    centres = 3 + torch.randn(16, 4)
    rows = (centres[torch.arange(count) % 16] + 0.1 * torch.randn(count, 4))[..., None]
    quantizer = make_quantizer("gumbel", 16, 4, {"logits": logits}).train()
    assert not quantizer.initialized
    quantizer.codebook_updates = "deferred"
    quantizer(rows)
    assert quantizer.initialized
    quantizer.update_codebook()
    output = quantizer.eval()(rows)
    assert (output.latents - rows).square().mean() < 0.2 * rows.var()
    assert 1 < output.losses["kl"] < torch.tensor(16.0).log()  # decided, not certain
    loaded = make_quantizer("gumbel", 16, 4, {"logits": logits})
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.initialized
    fresh = make_quantizer("gumbel", 16, 4, {"logits": logits})
    loaded.load_state_dict(fresh.state_dict())  # never trained: it starts when it is
    assert not loaded.initialized
    assert loaded.steps == 0
    assert not fresh.initialized
    earlier = {**fresh.state_dict(), "steps": torch.tensor(-1)}
    del earlier["unstarted"]
    loaded.load_state_dict(earlier)  # as files said it before there was a key for it
    assert not loaded.initialized
    assert loaded.steps == 0
    without = {name: tensor for name, tensor in fresh.state_dict().items() if name not in ("steps", "unstarted")}
    loaded.load_state_dict(without, strict=False)  # logits of a file that does not count
    assert loaded.initialized
    model = hf_vq.DVAE(**{**SMALL["DVAE"], "codebook_dim": 8}, quantizer_config={"logits": logits})
    model.save_pretrained(tmp_path)
    for loader in (hf_vq.DVAE, hf_vq.DVAEForAutoModel):
        again = loader.from_pretrained(tmp_path)
        again = getattr(again, "autoencoder", again)
        assert not again.quantizer.initialized
        assert again.quantizer.steps == 0
    assert make_quantizer("gumbel", 16, 4, {"logits": logits, "kmeans_init": False}).initialized
    assert not fresh.train().initialize(torch.ones(8, 4, 2))  # no clusters


EARLIER = {
    "gumbel": {"logits": "projection", "kmeans_init": False},
    "index_backpropagation": {"metric": "dot", "kmeans_init": False, "restart_threshold": 0.0},
}


@pytest.mark.parametrize("quantizer_type", EARLIER)
def test_logits_by_distance_are_the_same_for_latents_of_any_size(quantizer_type):
    """(By dot products with a random codebook, small latents share their codes and large ones get no gradient.)"""
    results = []
    for size in (1e-3, 1.0, 1e3):
        torch.manual_seed(0)
        quantizer = make_quantizer(quantizer_type, 16, 4, {}).train()
        latents = (size * torch.randn(64, 4, 8)).requires_grad_()
        output = quantizer(latents)
        (output.latents * torch.randn(64, 4, 8)).sum().backward()
        results.append((output.codes, latents.grad, quantizer.embedding.weight.grad))
    for codes, *gradients in results:
        assert len(codes.unique()) == 16
        for gradient, expected in zip(gradients, results[1][1:], strict=True):
            assert gradient.norm() > 1
            torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-2)
    assert with_changed_options(quantizer_type, None, earlier=True) == EARLIER[quantizer_type]


def test_gumbel_tells_which_options_fit_its_logits():
    with pytest.raises(ValueError, match=r"logits='distance' needs code vectors of 4 channels, got output_dim=3"):
        make_quantizer("gumbel", 8, 4, {"logits": "distance", "output_dim": 3})
    with pytest.raises(ValueError, match=r"beta=0.5 needs logits='distance'"):
        make_quantizer("gumbel", 8, 4, {"logits": "projection", "beta": 0.5})
    assert make_quantizer("gumbel", 8, 4, {"output_dim": 3}).proj is not None


def test_use_is_counted_by_latents_not_by_steps():
    """The same latents in one step and in forty give the same use; a code that ceases to be used is found dead."""
    torch.manual_seed(0)
    quantizers = [make_quantizer("vector", 4, 2, {"restart_threshold": each}).train() for each in (0.05, 1e-9)]
    rows = torch.randn(40, 2, 4)
    for quantizer, steps in zip(quantizers, (1, 20), strict=True):
        torch.manual_seed(1)
        quantizer.initialize(rows)
        for part in rows.chunk(steps):
            quantizer(part)
    at_once, by_steps = (each.cluster_size / each.cluster_size.sum() for each in quantizers)
    torch.testing.assert_close(at_once, by_steps, rtol=0.1, atol=0)
    quantizer = quantizers[0]
    unused = rows[(quantizer.tokenize(rows) != 0).all(dim=1)]
    code = quantizer.codebook[0].clone()
    for _ in range(60):
        quantizer(unused)
    assert not torch.equal(quantizer.codebook[0], code)


# Fitted latents


def test_fitted_latents_follow_the_mean_and_the_spread():
    torch.manual_seed(0)
    quantizer = fsq([4, 4]).train()
    assert not quantizer.initialized
    first, mask = 7 + 3 * torch.randn(64, 2, 8), torch.ones(64, 8, dtype=torch.bool)
    mask[:, 4:] = False
    first[:, :, 4:] = 1e4  # padding
    quantizer(first, mask)
    assert quantizer.initialized
    real = first[:, :, :4].movedim(1, 2).reshape(-1, 2)
    torch.testing.assert_close(quantizer.fitted.mean, real.mean(0))
    torch.testing.assert_close(quantizer.fitted.variance, real.var(0, unbiased=False))
    quantizer.fitted.decay = 0.9
    for _ in range(200):
        quantizer(torch.randn(64, 2, 8) * 0.1 - 2)
    torch.testing.assert_close(quantizer.fitted.mean, torch.full((2,), -2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(quantizer.fitted.variance.sqrt(), torch.full((2,), 0.1), atol=0.02, rtol=0)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    quantizer.eval()(first)
    quantizer.train()(first, torch.zeros_like(mask))
    quantizer.codebook_updates = "off"
    quantizer(first)
    assert all(
        torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items() if "steps" not in name
    )
    assert quantizer.half().fitted.mean.dtype == torch.float32


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_leaves_out_what_the_moments_undo(masked):
    """As batch normalization's does; with it a push on all latents would drive them away for ever."""
    torch.manual_seed(0)
    rows = torch.cat([7 + 3 * torch.randn(4096, 2), torch.full((5, 2), 1e4)]).requires_grad_()  # the last: padding
    counted = torch.arange(4101) < 4096
    real, upstream = rows[counted], 1 + torch.randn(4101, 2) + 0.1 * rows.detach()
    fitted = FittedLatents((1.0, 1.0))
    fitted.start(real.detach())
    given, mask = (rows, counted) if masked else (real, None)
    out = fitted(fitted.follow(given, mask))
    (ours,) = torch.autograd.grad(out, given, upstream[: len(given)], retain_graph=True)
    normalized = F.batch_norm(real, None, None, training=True, eps=1e-12)
    (theirs,) = torch.autograd.grad(normalized, real, upstream[:4096], retain_graph=True)
    torch.testing.assert_close(ours[:4096], theirs, atol=2e-3, rtol=0)
    assert theirs.abs().mean() > 0.2
    assert torch.equal(out[:4096], fitted(real))
    (two,) = torch.autograd.grad(fitted(fitted.follow(real[:2], None)).sum(), real)
    assert (two[:2] > 0).all()  # two rows say nothing of the moments to come


@pytest.mark.parametrize("quantizer_type", ["finite_scalar", "residual"])
def test_moments_gather_until_the_codebook_moves(quantizer_type):
    torch.manual_seed(0)
    grid = {"levels_per_dim": [4, 4]}
    config = grid if quantizer_type == "finite_scalar" else {"level_type": "finite_scalar", "level_config": grid}
    at_once, gathered = (make_quantizer(quantizer_type, 16, 2, config).train() for _ in range(2))
    first, *parts = torch.randn(3, 8, 2, 5)
    for quantizer in (at_once, gathered):
        quantizer.initialize(first)
    gathered.codebook_updates = "deferred"
    for part in parts:
        gathered(part)
    torch.testing.assert_close(gathered.fitted.mean, first.mean((0, 2)))
    gathered.update_codebook()
    at_once(torch.cat(parts))
    for name, tensor in at_once.state_dict().items():
        torch.testing.assert_close(gathered.state_dict()[name], tensor)


# Configs of before


OLD = {
    "finite_scalar": {"levels_per_dim": [4, 4]},
    "residual": {"num_levels": 2, "level_type": "finite_scalar", "level_config": {"levels_per_dim": [4, 4]}},
    "product": {"group_type": "finite_scalar", "group_config": {"levels_per_dim": [4, 4]}},
    "lookup_free": {"entropy_temperature": 1.0},
}


@pytest.mark.parametrize("quantizer_type", OLD)
def test_a_config_saved_without_the_option_keeps_its_codes(quantizer_type, tmp_path):
    config = OLD[quantizer_type]
    old = with_changed_options(quantizer_type, config, earlier=True)
    assert without_earlier_options(quantizer_type, old) == config
    width = {"codebook_size": 16, "codebook_dim": 4 if quantizer_type == "product" else 2}
    choice = {**width, "hidden_channels": 8, "quantizer_type": quantizer_type}
    sample = pictures(4, 3, 16, 16)
    before, new = (hf_vq.VQVAE(**choice, quantizer_config=each).train() for each in (old, config))
    for model, kept in ((before, False), (new, True)):
        model(sample)
        model.eval().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())["quantizer_config"]
        assert (saved != config) == kept
        loaded = hf_vq.VQVAE.from_pretrained(tmp_path)
        again = hf_vq.VQVAE.from_config(loaded.config)
        face = hf_vq.VQVAEForAutoModel.from_pretrained(tmp_path)
        other = hf_vq.VQVAEForAutoModel.from_autoencoder(model)
        for each in (loaded, again, face.autoencoder, other.autoencoder):
            assert any("fitted" in name for name in each.state_dict()) == kept
        for each in (loaded, face):
            assert torch.equal(each.tokenize(sample), model.tokenize(sample))
            assert torch.equal(each.detokenize(model.tokenize(sample)), model.detokenize(model.tokenize(sample)))
        assert loaded.codebook_initialized
        assert face.config.quantizer_config == other.config.quantizer_config == model.config.quantizer_config
        assert tokenizer_identity(loaded)["codes_sha256"] == tokenizer_identity(model)["codes_sha256"]
    assert before.as_saved_config(dict(before.config))["quantizer_config"] == config


def test_latents_that_are_all_alike_at_first_are_not_magnified():
    """(Divided by the deviation of the first batch alone, the second would have a loss of 10^11.)"""
    torch.manual_seed(0)
    quantizer = make_quantizer("lookup_free", 4, 2, {}).train()
    quantizer(torch.full((4, 2, 8), 0.3))
    latents = (0.3 + torch.randn(4, 2, 8)).requires_grad_()
    output = quantizer(latents)
    output.loss.backward()
    assert quantizer.fitted.started
    assert output.loss < 1
    assert latents.grad.abs().max() < 1
    assert len(output.codes.unique()) > 2


def test_options_that_have_no_place_are_refused():
    with pytest.raises(ValueError, match="quantizer_config: 'ema' has no option 1; it takes"):
        make_quantizer("ema", 16, 2, {1: 1})
    level = {"level_type": "finite_scalar", "level_config": {"levels_per_dim": [4, 4], "fit_latents": True}}
    with pytest.raises(ValueError, match="level_config: fit_latents"):
        make_quantizer("residual", 16, 2, level)
    with pytest.raises(ValueError, match=r"fit_latents=True needs levels .*got 'ema'"):
        make_quantizer("residual", 16, 2, {"fit_latents": True})
    with pytest.raises(ValueError, match=r"code_dim must be 2, .*got code_dim=None and latents of 6 channels"):
        make_quantizer("residual", 16, 6, {"level_type": "finite_scalar", "level_config": {"levels_per_dim": [4, 4]}})


# Quantized again


@grids
@pytest.mark.parametrize("fit_latents", [False, True])
def test_cut_off_latents_keep_their_codes_when_quantized_again(levels, fit_latents):
    torch.manual_seed(0)
    quantizer = fsq(levels, preserve_symmetry=True, bound="clamp", fit_latents=fit_latents).train()
    for _ in range(3):
        quantizer(0.3 * torch.randn(64, len(levels), 8) - 2)
    codes = torch.arange(quantizer.codebook_size)
    again = quantizer.eval().detokenize(codes)
    assert torch.equal(quantizer.tokenize(again), codes)
    if fit_latents:
        latents = 0.3 * torch.randn(64, len(levels), 8) - 2
        assert (quantizer(latents).latents - latents).square().mean() < 0.7 * latents.var()  # they keep their place
        torch.testing.assert_close(quantizer.mean_vector(), torch.full((len(levels),), -2.0), atol=0.1, rtol=0)


# A codebook for all levels


def clustered(seed):
    """Clusters of clusters of clusters, and a source of 512 latents (512, 8, 1)."""
    torch.manual_seed(seed)
    sizes = [size * torch.randn(8, 8) for size in (1.0, 0.3, 0.1)]

    def draw():
        vectors = sum(centres[torch.randint(0, 8, (512,))] for centres in sizes)
        return (vectors + 0.02 * torch.randn(512, 8))[..., None]

    return draw


@pytest.mark.parametrize("level_type", ["ema", "vector"])
def test_a_shared_codebook_starts_from_what_all_levels_see(level_type):
    def error(seed, kmeans_init):
        draw = clustered(seed)
        levels = {"num_levels": 3, "shared_codebook": True, "level_type": level_type}
        config = {**levels, "level_config": {"kmeans_init": kmeans_init}}
        quantizer = make_quantizer("residual", 16, 8, config).train()
        for _ in range(20 if level_type == "ema" else 1):
            quantizer(draw())
        latents = draw()
        return ((quantizer.eval()(latents).latents - latents).square().mean() / latents.var()).item()

    started, random = (sum(error(seed, each) for seed in range(2)) / 2 for each in (True, False))
    assert started < 0.03
    assert started < 0.7 * random


# Sums and means of losses


@pytest.mark.parametrize("composite", ["residual", "product"])
def test_the_loss_of_several_levels(composite):
    torch.manual_seed(0)
    config = {"num_levels": 3} if composite == "residual" else {"groups": 2}
    mean = make_quantizer(composite, 8, 4, config).train()
    latents = torch.randn(8, 4, 5)
    mean.initialize(latents)
    total = make_quantizer(composite, 8, 4, {**config, "loss_reduction": "sum"}).train()
    total.load_state_dict(mean.state_dict())
    mean, total = mean.eval()(latents), total.eval()(latents)
    parts = 3 if composite == "residual" else 2
    torch.testing.assert_close(total.loss, parts * mean.loss)
    torch.testing.assert_close(total.losses["commitment"], parts * mean.losses["commitment"])
    with pytest.raises(ValueError, match=r"loss_reduction must be one of .*got 'max'"):
        make_quantizer(composite, 8, 4, {"loss_reduction": "max"})


def test_all_variants_have_only_known_changed_options():
    for quantizer_type, _, config in VARIANTS.values():
        written = with_changed_options(quantizer_type, config, earlier=True)
        shortest = without_earlier_options(quantizer_type, written)
        assert with_changed_options(quantizer_type, shortest, earlier=True) == written

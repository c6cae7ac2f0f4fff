"""Quantizers beside the originals: codes equal, values, losses, gradients and averages within rounding."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_vq.quantizers import EMAVectorQuantizer, VectorQuantizer, gumbel, make_quantizer
from hf_vq.quantizers.gradients import rotate

from .conftest import FIXTURES, channels_first, fixture, sonnet_variables

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
ENTROPY = {"rtol": 1e-4, "atol": 1e-4}
LUCIDRAINS = {"embedding.weight": "embed", "embedding_sum": "embed_avg", "cluster_size": "cluster_size"}


def lucidrains(case):
    """Tensors, latents with channels first, options and weights of a case."""
    tensors, meta = fixture(f"lucidrains_vector_quantize/{case}")
    weights = torch.load(FIXTURES / f"lucidrains_vector_quantize/{case}/model.pt", weights_only=True)
    return tensors, meta, meta["hyperparameters"], weights


def original(system):
    return *fixture(system), load_file(FIXTURES / system / "quantizer.safetensors")


def gradient(value, latents):
    return torch.autograd.grad(value, latents, retain_graph=True)[0]


def test_sonnet_ema_three_steps():
    tensors, meta = fixture("sonnet_vqvae/ema_quantizer")
    options = meta["hyperparameters"]
    quantizer = EMAVectorQuantizer(
        options["K"], options["D"], beta=options["beta"], decay=options["decay"], epsilon=options["eps"],
        zero_debias=True, kmeans_init=False, restart_threshold=0.0,
    )  # fmt: skip
    quantizer.embedding.weight.copy_(sonnet_variables("ema_quantizer")["embeddings"].T)

    latents = channels_first(tensors["in.inputs_step1"]).requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.loss, tensors["out.eval_loss"], **CLOSE)
    torch.testing.assert_close(output.latents, channels_first(tensors["out.eval_quantize"]), **CLOSE)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    torch.testing.assert_close(gradient, channels_first(tensors["out.grad_inputs_loss"]), **CLOSE)

    quantizer.train()
    for step in (1, 2, 3):
        output = quantizer(channels_first(tensors[f"in.inputs_step{step}"]))
        assert torch.equal(output.codes, tensors[f"out.indices_step{step}"])
        expected = {
            "loss": (output.loss, tensors[f"out.loss_step{step}"]),
            "latents": (output.latents, channels_first(tensors[f"out.quantize_step{step}"])),
            "codebook": (quantizer.embedding.weight, tensors[f"out.embeddings_after_step{step}"].T),
            "counts": (quantizer.cluster_size, tensors[f"out.ema_cluster_size.hidden_after_step{step}"]),
            "sums": (quantizer.embedding_sum, tensors[f"out.ema_dw.hidden_after_step{step}"].T),
        }
        for name, (ours, theirs) in expected.items():
            torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda text, at=(name, step): f"{at}: {text}")


def test_sonnet_gradient_codebook():
    tensors, meta = fixture("sonnet_vqvae/vq_quantizer")
    options = meta["hyperparameters"]
    quantizer = VectorQuantizer(options["K"], options["D"], beta=options["beta"])
    quantizer.load_state_dict(
        {"embedding.weight": sonnet_variables("vq_quantizer")["embeddings"].T.contiguous()}, strict=False
    )
    latents = channels_first(tensors["in.inputs_step1"]).requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.loss, tensors["out.eval_loss"], **CLOSE)
    encoder, codebook = torch.autograd.grad(output.loss, [latents, quantizer.embedding.weight])
    torch.testing.assert_close(encoder, channels_first(tensors["out.grad_inputs_loss"]), **CLOSE)
    torch.testing.assert_close(codebook.T, tensors["out.grad_embeddings_loss"], **CLOSE)


def test_lucidrains_euclidean_three_steps():
    tensors, meta = fixture("lucidrains_vector_quantize/vq_euclidean")
    options = meta["hyperparameters"]
    weights = torch.load(FIXTURES / "lucidrains_vector_quantize/vq_euclidean/model.pt", weights_only=True)
    quantizer = EMAVectorQuantizer(
        options["codebook_size"], options["dim"], beta=options["commitment_weight"], decay=options["decay"],
        restart_threshold=0.0,
    )  # fmt: skip
    names = {"embedding.weight": "embed", "embedding_sum": "embed_avg", "cluster_size": "cluster_size"}
    quantizer.load_state_dict({ours: weights[f"_codebook.{theirs}"][0] for ours, theirs in names.items()})

    latents = tensors["in.x"].requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.latents, tensors["out.eval_quantized"], **CLOSE)
    torch.testing.assert_close(quantizer.detokenize(output.codes), tensors["out.codes_from_indices"], **CLOSE)
    quantizer.train()
    for step in (1, 2, 3):
        output = quantizer(latents)
        if step == 1:
            assert torch.equal(output.codes, tensors["out.train_indices"])
            torch.testing.assert_close(output.loss, tensors["out.train_loss"], **CLOSE)
            (gradient,) = torch.autograd.grad(output.loss, latents, retain_graph=True)
            torch.testing.assert_close(gradient, tensors["out.grad_x_loss"], **CLOSE)
            (gradient,) = torch.autograd.grad((output.latents * tensors["in.upstream_grad"]).sum(), latents)
            torch.testing.assert_close(gradient, tensors["out.grad_x_straight_through"], **CLOSE)
        for ours, theirs in names.items():
            expected = tensors[f"out.after_step{step}.{theirs}"][0]
            torch.testing.assert_close(quantizer.state_dict()[ours], expected, **CLOSE)


def test_lucidrains_cosine_three_steps():
    tensors, _, options, weights = lucidrains("vq_cosine")
    config = {"beta": options["commitment_weight"], "decay": options["decay"], "normalize": True}
    quantizer, rotation = (
        make_quantizer("ema", options["codebook_size"], options["dim"], {**config, "gradient": name,
                       "restart_threshold": 0.0})
        for name in ("straight_through", "rotation")
    )  # fmt: skip
    for each in (quantizer, rotation):
        each.load_state_dict({ours: weights[f"_codebook.{theirs}"][0] for ours, theirs in LUCIDRAINS.items()})
    latents = channels_first(tensors["in.x"]).requires_grad_()
    upstream = channels_first(tensors["in.upstream_grad"])
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.latents, channels_first(tensors["out.eval_quantized"]), **CLOSE)
    for each, name in ((quantizer, "grad_x_straight_through"), (rotation, "grad_x")):
        ours = gradient((each.eval()(latents).latents * upstream).sum(), latents)
        torch.testing.assert_close(ours, channels_first(tensors[f"out.{name}"]), **CLOSE)
    quantizer.train()
    for step in (1, 2, 3):
        output = quantizer(latents)
        if step == 1:
            torch.testing.assert_close(output.loss, tensors["out.train_loss"], **CLOSE)
            torch.testing.assert_close(
                gradient(output.loss, latents), channels_first(tensors["out.grad_x_loss"]), **CLOSE
            )
        for ours, theirs in LUCIDRAINS.items():
            expected = tensors[f"out.after_step{step}.{theirs}"][0]
            torch.testing.assert_close(quantizer.state_dict()[ours], expected, **CLOSE)


def test_lucidrains_rotation_trick():
    tensors, _, options, weights = lucidrains("vq_euclidean")
    quantizer = EMAVectorQuantizer(options["codebook_size"], options["dim"], gradient="rotation").eval()
    quantizer.load_state_dict({ours: weights[f"_codebook.{theirs}"][0] for ours, theirs in LUCIDRAINS.items()})
    latents = tensors["in.x"].requires_grad_()
    output = quantizer(latents)
    ours = gradient((output.latents * tensors["in.upstream_grad"]).sum(), latents)
    torch.testing.assert_close(ours, tensors["out.grad_x"], **CLOSE)
    assert torch.equal(output.latents, quantizer.detokenize(output.codes))


@pytest.mark.parametrize(("case", "groups"), [("residual_vq", 1), ("grouped_residual_vq", 2)])
def test_lucidrains_residual_three_steps(case, groups):
    tensors, _, options, weights = lucidrains(case)
    level = {"beta": 1.0, "decay": options["decay"], "restart_threshold": 0.0}
    residual = {"num_levels": options["num_quantizers"], "level_type": "ema", "level_config": level}
    if groups == 1:
        quantizer = make_quantizer("residual", options["codebook_size"], options["dim"], residual)
        books = list(quantizer.levels)
    else:
        config = {"groups": groups, "group_type": "residual", "group_config": residual}
        quantizer = make_quantizer("product", options["codebook_size"], options["dim"], config)
        books = [book for group in quantizer.levels for book in group.levels]
    prefixes = [name.removesuffix("embed") for name in weights if name.endswith(".embed")]
    for book, prefix in zip(books, prefixes, strict=True):
        book.load_state_dict({ours: weights[prefix + theirs][0] for ours, theirs in LUCIDRAINS.items()})

    def levels_first(codes):  # (batch, n, levels), or (groups, batch, n, levels)
        return codes.movedim(-1, 1) if groups == 1 else torch.cat([group.movedim(-1, 1) for group in codes], dim=1)

    latents = channels_first(tensors["in.x"]).requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, levels_first(tensors["out.eval_indices"]))
    torch.testing.assert_close(output.latents, channels_first(tensors["out.eval_quantized"]), **CLOSE)
    torch.testing.assert_close(
        quantizer.detokenize(output.codes), channels_first(tensors["out.output_from_indices"]), **CLOSE
    )
    torch.testing.assert_close(output.loss, tensors["out.train_loss"].mean(), **CLOSE)  # they list the levels
    upstream = channels_first(tensors["in.upstream_grad"])
    through = gradient((output.latents * upstream).sum(), latents)  # they count the gradient once a level
    theirs = channels_first(tensors["out.grad_x_straight_through"])
    torch.testing.assert_close(through * options["num_quantizers"], theirs, **CLOSE)
    if "out.grad_x_loss" in tensors:
        theirs = channels_first(tensors["out.grad_x_loss"])
        scale = tensors["out.train_loss"].numel()  # they sum over levels, and over groups
        torch.testing.assert_close(gradient(output.loss, latents) * scale, theirs, **CLOSE)
    quantizer.train()
    for step in (1, 2, 3):
        quantizer(latents)
        for index, book in enumerate(books):
            for ours, theirs in LUCIDRAINS.items():
                expected = tensors[f"out.after_step{step}.book{index}.{theirs}"][0]
                torch.testing.assert_close(book.state_dict()[ours], expected, **CLOSE)


def test_lucidrains_residual_rotates_level_by_level():
    """Theirs adds the rotations of the levels; ours rotates to the sum. The parts agree."""
    tensors, _, options, weights = lucidrains("residual_vq")
    latents = tensors["in.x"].flatten(0, 1).requires_grad_()
    residual, total = latents, 0
    for index in range(options["num_quantizers"]):
        book = EMAVectorQuantizer(options["codebook_size"], options["dim"]).eval()
        prefix = f"layers.{index}._codebook."
        book.load_state_dict({ours: weights[prefix + theirs][0] for ours, theirs in LUCIDRAINS.items()})
        quantized = book(residual).latents.detach()
        total, residual = total + rotate(residual, quantized), residual - quantized
    ours = gradient((total * tensors["in.upstream_grad"].flatten(0, 1)).sum(), latents)
    torch.testing.assert_close(ours.view_as(tensors["out.grad_x"]), tensors["out.grad_x"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["fsq_a", "fsq_b"])
def test_lucidrains_finite_scalar(case):
    tensors, _, options, weights = lucidrains(case)
    levels, images = options["levels"], case == "fsq_a"
    first = (lambda tensor: tensor) if images else channels_first
    latents = first(tensors["in.x"]).requires_grad_()
    size = torch.tensor(levels).prod().item()
    quantizer, symmetric = (
        make_quantizer(
            "finite_scalar",
            size,
            latents.shape[1],
            {"levels_per_dim": levels, "preserve_symmetry": symmetric, "fit_latents": False},
        )
        for symmetric in (False, True)
    )
    for each in (quantizer, symmetric):
        each.load_state_dict({name: tensor for name, tensor in weights.items() if name.startswith("project")})
    output = quantizer(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"].long())
    torch.testing.assert_close(output.latents, first(tensors["out.eval_quantized"]), **CLOSE)
    torch.testing.assert_close(quantizer.detokenize(output.codes), first(tensors["out.codes_from_indices"]), **CLOSE)
    through = gradient((output.latents * first(tensors["in.upstream_grad"])).sum(), latents)
    torch.testing.assert_close(through, first(tensors["out.grad_x"]), **CLOSE)
    codebook = quantizer._vectors(torch.arange(size))
    torch.testing.assert_close(codebook, tensors["out.implicit_codebook"], **CLOSE)
    output = symmetric(latents)
    assert torch.equal(output.codes, tensors["out.preserve_symmetry_indices"].long())
    torch.testing.assert_close(output.latents, first(tensors["out.preserve_symmetry_quantized"]), **CLOSE)


def test_lucidrains_residual_finite_scalar():
    tensors, _, options, weights = lucidrains("residual_fsq")
    levels = options["levels"]
    config = {
        "num_levels": options["num_quantizers"], "level_type": "finite_scalar", "code_dim": len(levels),
        "level_config": {"levels_per_dim": levels}, "fit_latents": False,
    }  # fmt: skip
    quantizer = make_quantizer("residual", torch.tensor(levels).prod().item(), options["dim"], config)
    quantizer.load_state_dict(weights)
    output = quantizer(channels_first(tensors["in.x"]))
    assert torch.equal(output.codes, channels_first(tensors["out.eval_indices"].long()))
    torch.testing.assert_close(output.latents, channels_first(tensors["out.eval_quantized"]), **CLOSE)
    torch.testing.assert_close(
        quantizer.detokenize(output.codes), channels_first(tensors["out.output_from_indices"]), **CLOSE
    )


@pytest.mark.parametrize("case", ["lfq", "bsq_spherical_lfq"])
def test_lucidrains_lookup_free(case):
    tensors, meta, options, _ = lucidrains(case)
    config = {
        "spherical": options.get("spherical", False), "beta": options["commitment_loss_weight"],
        "entropy_weight": options["entropy_loss_weight"], "diversity": options["diversity_gamma"],
        "entropy_floor": 1e-5, "fit_latents": False,
    }  # fmt: skip
    quantizer, default = (
        make_quantizer("lookup_free", options["codebook_size"], options["dim"], {**config, "entropy_temperature": t})
        for t in (1 / meta["inv_temperature"], 0.01)
    )
    latents = tensors["in.x"].requires_grad_()
    output = quantizer(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.latents, tensors["out.eval_quantized"], **CLOSE)
    torch.testing.assert_close(quantizer.detokenize(output.codes), tensors["out.codes_from_indices"], **CLOSE)
    through = gradient((output.latents * tensors["in.upstream_grad"]).sum(), latents)
    torch.testing.assert_close(through, tensors["out.grad_x"], **CLOSE)
    bits = quantizer._vectors(torch.arange(options["codebook_size"])) / quantizer.length
    assert torch.equal(bits.sign(), tensors["out.bits_codebook"].sign())
    torch.testing.assert_close(output.losses["commitment"], tensors["out.commitment"], **CLOSE)
    torch.testing.assert_close(output.losses["sample_entropy"], tensors["out.per_sample_entropy"], **ENTROPY)
    torch.testing.assert_close(output.losses["codebook_entropy"], tensors["out.batch_entropy"], **ENTROPY)
    torch.testing.assert_close(output.loss, tensors["out.train_loss"], **ENTROPY)
    torch.testing.assert_close(gradient(output.loss, latents), tensors["out.grad_x_loss"], **ENTROPY)
    torch.testing.assert_close(default(latents).loss, tensors["out.train_loss_default_temperature"], **ENTROPY)


def test_lucidrains_transformed_codebook():
    tensors, _, options, weights = lucidrains("sim_vq")
    config = {"code_transform": True, "beta": 0.25}
    quantizer, rotation = (
        make_quantizer("vector", options["codebook_size"], options["dim"], {**config, "gradient": name})
        for name in ("straight_through", "rotation")
    )
    names = {"embedding.weight": "frozen_codebook", "code_transform.weight": "code_transform.weight"}
    for each in (quantizer, rotation):
        each.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    latents = tensors["in.x"].requires_grad_()
    output = quantizer(latents)
    torch.testing.assert_close(quantizer.codebook, tensors["out.codebook"], **CLOSE)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.latents, tensors["out.eval_quantized"], **CLOSE)
    torch.testing.assert_close(output.loss, tensors["out.train_loss"], **CLOSE)
    torch.testing.assert_close(gradient(output.loss, latents), tensors["out.grad_x_loss"], **CLOSE)
    transform = quantizer.code_transform.weight
    torch.testing.assert_close(gradient(output.loss, transform), tensors["out.grad_code_transform_loss"], **CLOSE)
    for each, name in ((quantizer, "grad_x_straight_through"), (rotation, "grad_x")):
        through = gradient((each(latents).latents * tensors["in.upstream_grad"]).sum(), latents)
        torch.testing.assert_close(through, tensors[f"out.{name}"], **CLOSE)


def test_lucidrains_random_projection_is_a_product_of_cosine_codebooks():
    tensors, _, options, weights = lucidrains("random_projection")
    rows = F.layer_norm(tensors["in.x"], tensors["in.x"].shape[-1:])
    torch.testing.assert_close(rows, tensors["out.normed_input"], **CLOSE)
    projected = torch.einsum("bnd,hde->bnhe", rows, weights["rand_projs"]).flatten(2)
    if "vq.project_in.weight" in weights:
        projected = F.linear(projected, weights["vq.project_in.weight"], weights["vq.project_in.bias"])
    heads = options["num_codebooks"]
    config = {"groups": heads, "group_type": "ema", "group_config": {"normalize": True}}
    quantizer = make_quantizer("product", options["codebook_size"], projected.shape[-1], config)
    for head, codebook in zip(quantizer.levels, weights["vq._codebook.embed"], strict=True):
        head.embedding.weight.copy_(codebook)
    codes = quantizer.tokenize(channels_first(projected))
    assert torch.equal(codes.movedim(1, -1), tensors["out.eval_indices"])


def test_taming_gumbel(monkeypatch):
    tensors, meta, weights = original("taming_gumbel")
    options = meta["hyperparameters"]
    config = {"kl_weight": options["kl_weight"], "logits": "projection", "kmeans_init": False}
    names = {"proj.weight": "proj.weight", "proj.bias": "proj.bias", "embedding.weight": "embed.weight"}
    weights = {ours: weights[f"quantize.{theirs}"] for ours, theirs in names.items()}
    weights["proj.weight"] = weights["proj.weight"][:, :, 0, 0]
    latents = tensors["prequant"].requires_grad_()
    for temperature, name in ((1.0, "eval_tau1"), (0.6, "train_tau0p6")):
        config["temperature"] = temperature
        quantizer = make_quantizer("gumbel", options["n_embed"], options["embed_dim"], config)
        quantizer.load_state_dict(weights, strict=False)
        assert torch.equal(quantizer.tokenize(latents), tensors["codes"])
        torch.testing.assert_close(quantizer.detokenize(tensors["codes"]), tensors["quantized"], **CLOSE)
        torch.testing.assert_close(quantizer.eval()(latents).loss, tensors["kl_loss"], rtol=1e-4, atol=1e-12)
        noise = tensors[f"stochastic.{name}.gumbel_noise"].movedim(1, -1).flatten(0, 2)
        monkeypatch.setattr(gumbel, "gumbel_noise", lambda rows, size, noise=noise: noise)
        output = quantizer.train()(latents)
        assert torch.equal(output.codes, tensors[f"stochastic.{name}.codes"])
        torch.testing.assert_close(output.latents, tensors[f"stochastic.{name}.quantized"], **CLOSE)


def test_gumbel_gradient_is_that_of_the_relaxed_sample():
    """Straight through: torch's own gumbel_softmax(hard=True), times the codebook."""
    config = {"logits": "projection", "temperature": 0.7, "kl_weight": 0.0, "kmeans_init": False}
    quantizer = make_quantizer("gumbel", 12, 6, config).train()
    rows, upstream = torch.randn(50, 6, requires_grad=True), torch.randn(50, 6)
    torch.manual_seed(3)
    ours = torch.autograd.grad((quantizer(rows).latents * upstream).sum(), [rows, *quantizer.parameters()])
    torch.manual_seed(3)
    sample = F.gumbel_softmax(quantizer.proj(rows), tau=0.7, hard=True)
    theirs = torch.autograd.grad(
        (sample @ quantizer.embedding.weight * upstream).sum(), [rows, *quantizer.parameters()]
    )
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_open_magvit2_lookup_free():
    tensors, meta = fixture("open_magvit2")
    options = meta["hyperparameters"]["init"]
    entropies = {"entropy_offset": 1e-5, "entropy_weight": 1.0, "entropy_temperature": 0.01}
    config = {"first_bit": "least", "beta": 0.0, "fit_latents": False, **entropies}
    quantizer = make_quantizer("lookup_free", options["n_embed"], options["embed_dim"], config)
    for kind in ("raw", "ema"):
        codes = quantizer.tokenize(tensors[f"{kind}.prequant"])
        assert torch.equal(codes, tensors[f"{kind}.codes"])
        torch.testing.assert_close(quantizer.detokenize(codes), tensors[f"{kind}.codebook_entry"], **CLOSE)
    assert torch.equal(quantizer._vectors(torch.arange(options["n_embed"])), tensors["codebook"])
    latents = tensors["raw.prequant"].requires_grad_()
    output = quantizer.train()(latents)
    torch.testing.assert_close(output.latents, tensors["raw.quantized"], **CLOSE)
    torch.testing.assert_close(output.losses["sample_entropy"], tensors["train.per_sample_entropy"], **ENTROPY)
    torch.testing.assert_close(output.losses["codebook_entropy"], tensors["train.codebook_entropy"], **ENTROPY)
    torch.testing.assert_close(output.loss, tensors["train.entropy_loss"], **ENTROPY)
    torch.testing.assert_close(gradient(output.loss, latents), tensors["train.entropy_grad_z"], **ENTROPY)
    torch.testing.assert_close(output.losses["commitment"], tensors["train.commitment"], **CLOSE)
    through = gradient(output.losses["commitment"], latents)
    torch.testing.assert_close(through, tensors["train.commitment_grad_z"], **CLOSE)
    through = gradient((output.latents * tensors["train.ste_cotangent"]).sum(), latents)
    torch.testing.assert_close(through, tensors["train.ste_grad_z"], **CLOSE)


def test_ibq():
    tensors, meta, weights = original("ibq")
    options = meta["hyperparameters"]["init"]
    config = {
        "beta": options["beta"], "entropy_temperature": options["entropy_temperature"], "entropy_offset": 1e-5,
        "entropy_weight": 1.0, "metric": "dot", "kmeans_init": False, "restart_threshold": 0.0,
    }  # fmt: skip
    quantizer = make_quantizer("index_backpropagation", options["n_embed"], options["embed_dim"], config)
    quantizer.load_state_dict({"embedding.weight": weights["quantize.embedding.weight"]})
    latents, codebook = tensors["raw.prequant"].requires_grad_(), quantizer.embedding.weight
    output = quantizer.train()(latents)
    assert torch.equal(output.codes, tensors["raw.codes"])
    assert torch.equal(quantizer.tokenize(latents), tensors["raw.codes"])
    torch.testing.assert_close(output.latents, tensors["raw.quantized"], **CLOSE)
    torch.testing.assert_close(quantizer.detokenize(output.codes), tensors["raw.codebook_entry"], **CLOSE)
    torch.testing.assert_close(output.losses["sample_entropy"], tensors["train.sample_entropy"], **ENTROPY)
    torch.testing.assert_close(output.losses["codebook_entropy"], tensors["train.avg_entropy"], **ENTROPY)
    entropy = output.losses["sample_entropy"] - output.losses["codebook_entropy"]
    torch.testing.assert_close(entropy, tensors["train.entropy_loss"], **ENTROPY)
    quant_loss = output.loss - entropy
    torch.testing.assert_close(quant_loss, tensors["train.quant_loss"], **CLOSE)
    through = (output.latents * tensors["train.ste_cotangent"]).sum()
    for value, name in ((quant_loss, "quant_loss_grad"), (through, "ste_grad")):
        torch.testing.assert_close(gradient(value, latents), tensors[f"train.{name}_z"], **CLOSE)
        torch.testing.assert_close(gradient(value, codebook), tensors[f"train.{name}_codebook"], **CLOSE)


def test_rqvae():
    tensors, meta, weights = original("rqvae")
    options = meta["hyperparameters"]["hparams"]
    depth = options["code_shape"][-1]
    config = {
        "num_levels": depth, "shared_codebook": True, "update_each_level": True,
        "level_config": {"beta": 1.0, "decay": options["decay"], "restart_threshold": 0.0},
    }  # fmt: skip
    quantizer = make_quantizer("residual", options["n_embed"], options["embed_dim"], config)
    names = {"embedding.weight": "weight", "cluster_size": "cluster_size_ema", "embedding_sum": "embed_ema"}
    prefix = "quantizer.codebooks.0."
    state = {f"levels.0.{ours}": weights[prefix + theirs] for ours, theirs in names.items()}
    state["levels.0.embedding.weight"] = state["levels.0.embedding.weight"][:-1]  # the padding row
    quantizer.load_state_dict(state)
    latents = channels_first(tensors["prequant"]).requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, channels_first(tensors["codes"]))
    torch.testing.assert_close(output.latents, channels_first(tensors["quantized"]), **CLOSE)
    torch.testing.assert_close(output.loss, tensors["commitment_loss"], **CLOSE)
    torch.testing.assert_close(
        gradient(output.loss, latents), channels_first(tensors["train.commitment_grad_z"]), **CLOSE
    )
    torch.testing.assert_close(
        quantizer.detokenize(output.codes), channels_first(tensors["embedding_from_codes"]), **CLOSE
    )
    for count in range(1, depth + 1):
        expected = channels_first(tensors["quantized_cumulative"][..., count - 1, :])
        torch.testing.assert_close(quantizer.detokenize(output.codes[:, :count]), expected, **CLOSE)
    output = quantizer.train()(latents)
    assert torch.equal(output.codes, channels_first(tensors["ema_step.codes"]))
    torch.testing.assert_close(output.latents, channels_first(tensors["ema_step.quantized"]), **CLOSE)
    torch.testing.assert_close(output.loss, tensors["ema_step.commitment_loss"], **CLOSE)
    for ours, theirs in names.items():
        expected = tensors[f"ema_step.{theirs}"]
        expected = expected[:-1] if theirs == "weight" else expected
        torch.testing.assert_close(quantizer.state_dict()[f"levels.0.{ours}"], expected, **CLOSE)


def test_vitvqgan():
    tensors, meta, weights = original("vitvqgan")
    options = meta["hyperparameters"]["params"]["quantizer"]
    state = {"embedding.weight": weights["quantizer.embedding.weight"]}
    base = {"restart_threshold": 0.0, "legacy": False}
    latents = channels_first(tensors["prequant"]).requires_grad_()

    quantizer = make_quantizer("vector", *(options[n] for n in ("n_embed", "embed_dim")),
                               {**base, "normalize": True, "gradient": "bypass"})  # fmt: skip
    quantizer.load_state_dict(state)
    output = quantizer.train()(latents)
    assert torch.equal(output.codes, tensors["codes"])
    torch.testing.assert_close(output.latents, channels_first(tensors["quantized"]), **CLOSE)
    torch.testing.assert_close(output.loss, tensors["codebook_loss"], **CLOSE)
    torch.testing.assert_close(gradient(output.loss, latents), channels_first(tensors["train.loss_grad_z"]), **CLOSE)
    ours = gradient(output.loss, quantizer.embedding.weight)
    torch.testing.assert_close(ours, tensors["train.loss_grad_codebook"], **CLOSE)
    cotangent = channels_first(tensors["train.ste_cotangent"])
    through = gradient((output.latents * cotangent).sum(), latents)
    torch.testing.assert_close(through, channels_first(tensors["train.ste_grad_z"]), **CLOSE)

    plain = make_quantizer("vector", options["n_embed"], options["embed_dim"], base)
    plain.load_state_dict(state)
    output = plain.eval()(latents)
    assert torch.equal(output.codes, tensors["nonorm.codes"])
    torch.testing.assert_close(output.loss, tensors["nonorm.loss"], **CLOSE)
    torch.testing.assert_close(output.latents, channels_first(tensors["nonorm.quantized"]), **CLOSE)

    config = {
        "num_levels": 3, "level_type": "vector", "shared_codebook": True,
        "level_config": {**base, "normalize": True},
    }  # fmt: skip
    residual = make_quantizer("residual", options["n_embed"], options["embed_dim"], config)
    residual.load_state_dict({f"levels.0.{name}": tensor for name, tensor in state.items()})
    output = residual.eval()(latents)
    assert torch.equal(output.codes, channels_first(tensors["residual3.codes"]))
    torch.testing.assert_close(output.loss, tensors["residual3.loss"], **CLOSE)
    torch.testing.assert_close(output.latents, channels_first(tensors["residual3.quantized"]), **CLOSE)

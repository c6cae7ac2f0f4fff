"""GPTPrior: causality, cached steps, orders and starts, precision, and taming-transformers' checkpoints."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import yaml

import hf_vq
import hf_vq_cli
from hf_vq.converters import convert
from hf_vq.networks.transformer import KeyValueCache, Transformer
from hf_vq.priors import GPTPrior, GPTPriorConfig

from .conftest import FIXTURES, compile_whole, fixture
from .sampling_checks import cached_logits, code_order

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SPIRAL = [5, 6, 10, 9, 8, 4, 0, 1, 2, 3, 7, 11]
VARIANTS = {
    "unconditional": {},
    "classes": {"num_classes": 3, "class_dropout_prob": 0.2},
    "shared start": {"shared_start": True, "start_token": 12},
    "shared classes": {"shared_start": True, "num_classes": 14, "class_dropout_prob": 0.2},
    "permuted": {"num_classes": 3, "permutation": SPIRAL},
}
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_prior(variant="classes", **changes) -> GPTPrior:
    options = {
        "codebook_size": 11, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "block_size": 15, "code_shape": (3, 4)
    }  # fmt: skip
    torch.manual_seed(0)
    prior = GPTPrior(GPTPriorConfig(**{**options, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases too
    return prior.eval()


def condition(prior, batch_size):
    classes = prior.config.num_class_embeddings
    return {"class_labels": torch.arange(batch_size) % classes} if classes else {}


def check_no_leak(prior, codes, **conditions):
    """Changing one code moves the logits of every code drawn after it, and of no other."""
    size, logits, order = codes[0].numel(), prior(codes, **conditions).logits, code_order(prior, codes)
    moved = torch.empty(size, size, dtype=torch.bool)  # (changed, seen), both in drawing order
    for step, place in enumerate(order):
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 5) % prior.config.codebook_size
        moved[step] = (prior(changed, **conditions).logits != logits).any(-1).flatten()[order]
    assert torch.equal(moved, torch.ones(size, size, dtype=torch.bool).triu(1))


# The network


@variants
@torch.no_grad()
def test_logits_depend_on_all_codes_drawn_before_and_on_no_other(variant):
    prior = make_prior(variant)
    check_no_leak(prior, torch.randint(11, (1, 3, 4)), **condition(prior, 1))


@torch.no_grad()
def test_a_permutation_is_the_plain_prior_on_the_reordered_sequence():
    plain, permuted, codes = make_prior(num_classes=3), make_prior("permuted"), torch.randint(11, (2, 3, 4))
    permuted.load_state_dict({n: t[:3] if n == "start_embedding.weight" else t for n, t in plain.state_dict().items()})
    sequence = codes.flatten(1)[:, SPIRAL]
    expected = plain(sequence.view(2, 3, 4), class_labels=torch.tensor([0, 2])).logits.flatten(1, 2)
    logits = permuted(codes, class_labels=torch.tensor([0, 2])).logits.flatten(1, 2)
    torch.testing.assert_close(logits[:, SPIRAL], expected)


def test_a_shared_start_is_the_row_of_a_code():
    prior, unconditional = make_prior("shared classes"), make_prior("shared start")
    assert prior.embedding.weight.shape == (15, 12)  # 11 codes, 14 classes and the null class
    assert torch.equal(prior.embed_start(1, torch.tensor([4])), prior.embedding(torch.tensor([4])))
    assert torch.equal(unconditional.embed_start(1, None), unconditional.embedding.weight[12:])


@variants
def test_every_parameter_learns(variant):
    prior, codes = make_prior(variant), torch.randint(11, (15, 5, 3) if variant != "permuted" else (15, 3, 4))
    prior.train()(codes, **condition(prior, 15)).loss.backward()
    unused = {"position_embedding.weight"}  # whose last rows no grid of 12 reaches
    assert {n for n, p in prior.named_parameters() if not p.grad.abs().sum() > 0} <= unused


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 has only this name
def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior(dropout=0.3, attention_dropout=0.3, embedding_dropout=0.3, class_dropout_prob=0.5).train()
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(torch.arange(24).view(2, 3, 4) % 11, class_labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in prior.parameters()])
    torch.testing.assert_close(*gradients)


def test_forward_compiles_whole_and_agrees():
    prior, codes = make_prior("permuted"), torch.randint(11, (2, 3, 4))
    expected = prior(codes, **condition(prior, 2))
    output = compile_whole(prior, "eager")(codes, **condition(prior, 2))
    torch.testing.assert_close((output.loss, output.logits), (expected.loss, expected.logits))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_stays_near(dtype, tolerance):
    prior, codes = make_prior(), torch.randint(11, (2, 3, 4))
    expected = prior(codes, class_labels=[0, 1]).logits
    prior = prior.to(dtype)
    for logits in (prior(codes, class_labels=[0, 1]).logits, cached_logits(prior, codes, **condition(prior, 2))):
        assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()
    assert prior(codes, class_labels=[0, 1]).loss.dtype == torch.float32
    assert prior.sample(class_labels=[0, 1]).shape == (2, 3, 4)


def test_a_cache_takes_a_prompt_and_then_single_positions_in_memory_of_its_own():
    transformer, hidden = Transformer(2, 8, 2), torch.randn(3, 6, 8)
    cache = KeyValueCache(transformer, 3, 6)
    addresses = [part.data_ptr() for layer in cache.layers for part in layer]
    with torch.no_grad():
        parts = [transformer(part, cache=cache) for part in hidden[:, :5].split([3, 1, 1], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), transformer(hidden)[:, :5], **CLOSE)
    assert [part.data_ptr() for layer in cache.layers for part in layer] == addresses
    with pytest.raises(ValueError, match="2 positions for a cache with 5 of 6"):
        transformer(hidden[:, :2], cache=cache)


# Sampling


@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@torch.no_grad()
def test_greedy_guided_sample_is_the_argmax_of_full_guided_logits(guidance_scale):
    prior, class_labels, null = make_prior(), torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    codes = prior.sample(class_labels=class_labels, guidance_scale=guidance_scale, temperature=0)
    conditional, unconditional = (prior(codes, class_labels=each).logits for each in (class_labels, null))
    assert torch.equal((unconditional + guidance_scale * (conditional - unconditional)).argmax(-1), codes)


@variants
@torch.no_grad()
def test_known_codes_are_kept_and_codes_drawn_later_follow_them(variant):
    prior, mask = make_prior(variant), torch.rand(2, 3, 4) < 0.4
    known, conditions = torch.randint(11, (2, 3, 4)), condition(prior, 2)
    batch = {} if conditions else {"batch_size": 2}
    codes = prior.sample(**batch, **conditions, temperature=0, known_codes=known, known_mask=mask)
    assert torch.equal(codes[mask], known[mask])
    assert torch.equal(prior(codes, **conditions).logits.argmax(-1)[~mask], codes[~mask])


@torch.no_grad()
def test_probabilities_of_all_grids_sum_to_one():
    prior = make_prior("unconditional", codebook_size=3)
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    torch.testing.assert_close(prior.log_prob(grids).exp().sum(), torch.tensor(1.0))


# taming-transformers


@pytest.mark.parametrize("system", ["taming_net2net", "taming_net2net_uncond"])
@torch.no_grad()
def test_a_net2net_checkpoint_becomes_a_pipeline_with_the_originals_numbers(system, tmp_path):
    expected = fixture(system)[0]
    converted = convert(FIXTURES / system / "last.ckpt", tmp_path / "out", license="mit")
    codes, known_mask = expected["codes"], torch.zeros_like(expected["codes"], dtype=torch.bool)
    known_mask.view(len(codes), -1)[:, : codes[0].numel() // 2] = True
    conditions = {"class_labels": expected["class_labels"]} if "class_labels" in expected else {}
    batch = {} if conditions else {"batch_size": len(codes)}
    for pipe in (converted, hf_vq.VQPipeline.from_pretrained(tmp_path / "out")):
        pipe.set_progress_bar_config(disable=True)
        assert torch.equal(pipe.autoencoder.tokenize(expected["image"]), codes)
        output = pipe.prior(codes, **conditions)
        torch.testing.assert_close(output.logits.flatten(1, 2), expected["logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.loss, expected["ce_loss"], **CLOSE)
        greedy = pipe.prior.sample(**batch, **conditions, temperature=0)
        assert torch.equal(greedy.flatten(1), expected["greedy_sequence"])
        completed = pipe.prior.sample(**batch, **conditions, temperature=0, known_codes=codes, known_mask=known_mask)
        assert torch.equal(completed.flatten(1), expected["greedy_completion"])
        images = pipe(**batch, **conditions, temperature=0, output_type="pt").images
        torch.testing.assert_close(images, (expected["greedy_image"] / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    facts = json.loads((tmp_path / "out/conversion.json").read_text())
    assert facts.items() >= {"format": "taming-gpt", "license": "mit", "source": "last.ckpt"}.items()


def test_parts_of_a_net2net_checkpoint_and_overwriting_a_pipeline(tmp_path, capsys):
    source = FIXTURES / "taming_net2net_uncond/last.ckpt"
    assert isinstance(GPTPrior.from_single_file(source), GPTPrior)
    assert isinstance(hf_vq.VQModel.from_single_file(source), hf_vq.VQModel)
    assert isinstance(hf_vq.VQModel.from_single_file(source, format="taming-vqgan"), hf_vq.VQModel)
    with pytest.raises(ValueError, match="holds VQModel and GPTPrior, no VQVAE"):
        hf_vq.VQVAE.from_single_file(source)
    assert hf_vq_cli.main(["convert", str(source), str(tmp_path / "out"), "--license", "mit"]) == 0
    assert "VQModel" in (said := capsys.readouterr().out)
    assert "GPTPrior" in said
    convert(source, tmp_path / "out", overwrite=True)
    (tmp_path / "out/prior/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"prior/mine\.txt"):
        convert(source, tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match=r"first_stage=.*taming-gpt takes none"):
        convert(source, tmp_path / "other", first_stage=source)


@pytest.fixture
def changed(tmp_path):
    """Writes a changed Net2Net checkpoint with its config, and gives its path."""

    def write(change=lambda weights: None, config=lambda params: None):
        folder = FIXTURES / "taming_net2net"
        content = torch.load(folder / "last.ckpt", weights_only=True)
        told = yaml.safe_load((folder / "config.yaml").read_text())
        change(content["state_dict"])
        config(told["model"]["params"])
        torch.save(content, tmp_path / "last.ckpt")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
        return tmp_path / "last.ckpt"

    return write


@torch.no_grad()
def test_a_permuter_is_read_from_its_buffers(changed):
    order, expected = torch.randperm(36), fixture("taming_net2net")[0]

    def permute(weights):
        weights["permuter.forward_shuffle_idx"], weights["permuter.backward_shuffle_idx"] = order, order.argsort()

    prior = GPTPrior.from_single_file(changed(permute))
    grid = torch.empty_like(expected["codes"])
    grid.view(3, -1)[:, order] = expected["codes_sequence"]
    logits = prior(grid, class_labels=expected["class_labels"]).logits.flatten(1, 2)
    torch.testing.assert_close(logits[:, order], expected["logits"], atol=1e-4, rtol=0)
    greedy = prior.sample(class_labels=expected["class_labels"], temperature=0).flatten(1)
    assert torch.equal(greedy[:, order], expected["greedy_sequence"])


@torch.no_grad()
def test_more_tokens_than_codes(changed):
    """Tokens above the codes are classes or nothing: they are cut off the logits."""
    extra = torch.randn(6, 32)

    def widen(weights):
        for name in ("tok_emb", "head"):
            weights[f"transformer.{name}.weight"] = torch.cat([weights[f"transformer.{name}.weight"], extra])

    def config(params):
        params["transformer_config"]["params"]["vocab_size"] = 70
        params["cond_stage_config"]["params"]["n_classes"] = 68

    prior, expected = GPTPrior.from_single_file(changed(widen, config)), fixture("taming_net2net")[0]
    assert torch.equal(prior.embed_start(1, torch.tensor([67]))[0], extra[3])
    logits = prior(expected["codes"], class_labels=expected["class_labels"]).logits
    torch.testing.assert_close(logits.flatten(1, 2), expected["logits"], atol=1e-4, rtol=0)


NAME = "transformer.blocks.1.attn.mask"
ORDER = "permuter.forward_shuffle_idx"


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda w: w.pop("transformer.blocks.1.mlp.0.bias"), None, r"transformer\.blocks\.1\.mlp\.0\.bias"),
        (
            lambda w: w.update({"transformer.extra": torch.ones(1)}),
            None,
            r"VQPipeline has no place.*transformer\.extra",
        ),
        (lambda w: w.update({"cond_stage_model.x": torch.ones(1)}), None, "cond_stage_model"),
        (lambda w: w.update({NAME: torch.ones_like(w[NAME])}), None, f"{NAME} is not causal"),
        (lambda w: w.update({ORDER: torch.zeros(36, dtype=torch.int64)}), None, ORDER),
        (None, lambda p: p["transformer_config"]["params"].pop("n_head"), "n_head is missing"),
        (None, lambda p: p["transformer_config"]["params"].update(n_head=5), "num_heads=5"),
        (None, lambda p: p["transformer_config"]["params"].update(n_layer=3), "n_layer.*3.*2"),
        (None, lambda p: p["cond_stage_config"].update(target="x.CoordStage"), "x.CoordStage"),
        (None, lambda p: p["cond_stage_config"]["params"].update(n_classes=99), "n_classes.*99"),
        (None, lambda p: p.update(permuter_config={"target": "x.ZCurve"}), f"{ORDER}.*ZCurve"),
    ],
)
def test_a_wrong_net2net_checkpoint_names_file_and_key(changed, change, config, words):
    path = changed(change or (lambda weights: None), config or (lambda params: None))
    with pytest.raises(ValueError, match=words) as error:
        GPTPrior.from_single_file(path)
    assert "last.ckpt" in str(error.value)


def test_without_its_config_a_net2net_checkpoint_says_what_it_needs(tmp_path):
    shutil.copy(FIXTURES / "taming_net2net/last.ckpt", tmp_path)
    with pytest.raises(ValueError, match=r"n_head is missing.*give config"):
        GPTPrior.from_single_file(tmp_path / "last.ckpt")
    config = FIXTURES / "taming_net2net/config.yaml"
    assert GPTPrior.from_single_file(tmp_path / "last.ckpt", config=config).config.num_classes == 10


# What is refused

CODES = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("match", "variant", "call"),
    [
        ("codes must have at most block_size=15", "unconditional", lambda p: p(F.pad(CODES, (0, 2)))),
        ("code_shape must have at most block_size=15", "unconditional", lambda p: p.sample(1, (4, 4))),
        ("codes must have as many codes as permutation, 12", "permuted", lambda p: p(CODES[:, :2], [0, 1])),
        ("code_shape must have as many codes", "permuted", lambda p: p.sample(class_labels=[0], code_shape=(2, 2))),
        (r"class_labels must be in \[0, 4\)", "classes", lambda p: p(CODES, class_labels=[0, 4])),
        ("needs a null class", "permuted", lambda p: p.sample(class_labels=[0], guidance_scale=2.0)),
    ],
)
def test_bad_input_is_a_clear_error(match, variant, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(variant))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("num_layers .* got 0", {"num_layers": 0}),
        ("num_heads .* got 0", {"num_heads": 0}),
        ("hidden_size must be a multiple of num_heads=8, got 20", {"hidden_size": 20}),
        ("block_size .* got 0", {"block_size": 0}),
        ("start_token .* got -1", {"start_token": -1}),
        ("attention_dropout .* got 1.0", {"attention_dropout": 1.0}),
        ("embedding_dropout .* got 1.0", {"embedding_dropout": 1.0}),
        (r"permutation .* got \[0, 0\]", {"permutation": [0, 0]}),
        (r"code_shape must be \(height, width\)", {"code_shape": (4,)}),
        ("code_shape must have at most", {"code_shape": (17, 16)}),
    ],
)
def test_bad_config_is_a_clear_error(match, options):
    with pytest.raises(ValueError, match=match):
        GPTPriorConfig(**options)

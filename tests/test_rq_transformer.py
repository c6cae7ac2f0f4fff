"""RQTransformer: order, causality, cached steps, prompts, soft targets, code vectors, and kakaobrain's checkpoints."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml

import hf_vq
import hf_vq_cli
from hf_vq.converters import convert
from hf_vq.priors import RQTransformer, RQTransformerConfig
from hf_vq.quantizers import make_quantizer

from .conftest import FIXTURES, compile_whole, fixture
from .sampling_checks import cached_logits
from .test_gpt import CLOSE, check_no_leak

GRID = (3, 2, 3)  # levels, height, width
VARIANTS = {
    "unconditional": {},
    "classes": {"num_classes": 3, "class_dropout_prob": 0.2},
    "prompts": {"prompt_vocab_size": 7, "prompt_length": 4},
    "vectors of each level": {"shared_code_vectors": False, "depth_inputs": "vectors", "shared_head": False},
    "embeddings": {"spatial_inputs": "embeddings", "depth_inputs": "embeddings", "shared_embeddings": False},
    "both": {"num_classes": 3, "num_speakers": 2, "speaker_dropout_prob": 0.2, "spatial_inputs": "embeddings",
             "activation": "quick_gelu", "attention_bias": False},
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_prior(variant="classes", filled=True, **changes) -> RQTransformer:
    options = {
        "codebook_size": 11, "num_levels": 3, "block_size": 8, "hidden_size": 12, "num_spatial_layers": 2,
        "num_spatial_heads": 3, "num_depth_layers": 1, "num_depth_heads": 2, "code_vector_dim": 5, "code_shape": GRID,
    }  # fmt: skip
    torch.manual_seed(0)
    prior = RQTransformer(RQTransformerConfig(**{**options, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases too
    if filled and prior.code_vectors is not None:
        prior.set_code_vectors(torch.randn_like(prior.code_vectors))
    return prior.eval()


def condition(prior, batch_size):
    if prior.config.prompt_vocab_size:
        return {"prompt_ids": torch.arange(3 * batch_size).view(batch_size, 3) % 7}
    config, rows = prior.config, torch.arange(batch_size)
    classes = {"class_labels": rows % config.num_class_embeddings} if config.num_classes else {}
    return classes | ({"speaker_labels": rows % config.num_speaker_embeddings} if config.num_speakers else {})


# What it reads


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("residual", {"num_levels": 3}),
        ("residual", {"num_levels": 3, "shared_codebook": True, "level_type": "vector"}),
        ("residual", {"num_levels": 3, "level_type": "lookup_free"}),
        ("product", {"groups": 3}),
        ("product", {"groups": 2, "group_type": "residual", "group_config": {"num_levels": 2}}),
        (
            "product",
            {"groups": 2, "group_type": "residual", "group_config": {"num_levels": 2, "shared_codebook": True}},
        ),
    ],
)
def test_code_vectors_of_all_levels_add_up_to_the_latents(kind, options):
    quantizer = make_quantizer(kind, 64, 6, options).eval()
    codes = torch.randint(64, (2, quantizer.num_levels, 5))
    vectors = quantizer.code_vectors()
    assert len(vectors) == (1 if options.get("shared_codebook") else quantizer.num_levels)
    total = sum(vectors[level % len(vectors)][codes[:, level]] for level in range(quantizer.num_levels))
    torch.testing.assert_close(total.movedim(-1, 1), quantizer.detokenize(codes))


def test_training_takes_the_code_vectors_of_the_tokenizer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = {"quantizer_type": "product", "quantizer_config": {"groups": 2, "group_config": {"kmeans_init": False}}}
    model = hf_vq.VQVAE(1, 8, 0, codebook_size=11, codebook_dim=6, **options)
    model.save_pretrained("autoencoder")
    data = ["--data", "digits", "--image_size", "8"]
    assert hf_vq_cli.main(["tokenize", "autoencoder", *data, "--output", "codes"]) == 0
    config = {"num_levels": 2, "hidden_size": 8, "num_spatial_layers": 1, "num_depth_layers": 1}
    config |= {"num_spatial_heads": 2, "num_depth_heads": 2}
    command = [
        "train",
        "prior",
        "--codes",
        "codes",
        "--prior",
        "RQTransformer",
        "--output",
        "prior",
        "--max_steps",
        "1",
    ]
    command += [word for name, value in config.items() for word in (f"--prior_config.{name}", str(value))]
    assert hf_vq_cli.main(command) == 2
    assert "give it as autoencoder" in capsys.readouterr().err
    command += ["--autoencoder", "autoencoder", "--use_cpu", "true", "--disable_tqdm", "true"]
    assert hf_vq_cli.main([*command, "--prior_config.code_vector_dim", "5"]) == 2
    assert "code_vector_dim=5" in capsys.readouterr().err
    assert hf_vq_cli.main(command) == 0
    prior = RQTransformer.from_pretrained("prior")
    assert torch.equal(prior.code_vectors, model.quantizer.code_vectors())


# The network


@variants
@torch.no_grad()
def test_logits_depend_on_all_codes_drawn_before_and_on_no_other(variant):
    prior = make_prior(variant)
    assert prior.code_order(GRID)[:4].tolist() == [0, 6, 12, 1]  # the levels of a position, then the next position
    check_no_leak(prior, torch.randint(11, (1, *GRID)), **condition(prior, 1))


@variants
def test_every_parameter_learns(variant):
    prior, codes = make_prior(variant), torch.randint(11, (6, 3, 3, 3))[:, :, :, :2]
    prior.train()(codes, **condition(prior, 6)).loss.backward()
    assert [n for n, p in prior.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 has only this name
def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior(dropout=0.3, attention_dropout=0.3, embedding_dropout=0.3, class_dropout_prob=0.5).train()
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(torch.arange(36).view(2, *GRID) % 11, class_labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in prior.parameters()])
    torch.testing.assert_close(*gradients)


def test_forward_compiles_whole_and_agrees():
    prior, codes = make_prior("prompts"), torch.randint(11, (2, *GRID))
    expected = prior(codes, **condition(prior, 2))
    output = compile_whole(prior, "eager")(codes, **condition(prior, 2))
    torch.testing.assert_close((output.loss, output.logits), (expected.loss, expected.logits))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_stays_near(dtype, tolerance):
    prior, codes = make_prior("prompts"), torch.randint(11, (2, *GRID))
    expected = prior(codes, **condition(prior, 2)).logits
    prior = prior.to(dtype)
    for logits in (prior(codes, **condition(prior, 2)).logits, cached_logits(prior, codes, **condition(prior, 2))):
        assert (logits.float() - expected).abs().max() < tolerance * expected.abs().max()
    assert prior(codes, **condition(prior, 2)).loss.dtype == torch.float32
    assert prior.sample(**condition(prior, 2)).shape == (2, *GRID)


# Loss


def test_the_loss_of_a_prompt_is_the_documented_share():
    prior, codes = make_prior("prompts", prompt_loss_weight=0.3), torch.randint(11, (2, *GRID))
    prompt_ids = condition(prior, 2)["prompt_ids"]
    output = prior(codes, prompt_ids=prompt_ids)
    code_loss = F.cross_entropy(output.logits.flatten(0, 3), codes.flatten())
    prompt_loss = F.cross_entropy(output.prompt_logits.flatten(0, 1), prompt_ids[:, 1:].flatten())
    torch.testing.assert_close((output.code_loss, output.prompt_loss), (code_loss, prompt_loss))
    torch.testing.assert_close(output.loss, 0.7 * code_loss + 0.3 * prompt_loss)
    short = prior(codes, prompt_ids=prompt_ids[:, :1])  # nothing comes before its one token
    torch.testing.assert_close(short.loss, F.cross_entropy(short.logits.flatten(0, 3), codes.flatten()))
    torch.testing.assert_close(prior.log_prob(codes, prompt_ids=prompt_ids).sum(), -36 * code_loss)
    assert prior(codes, prompt_ids=prompt_ids, return_loss=False).loss is None
    assert len(make_prior("unconditional")(codes, return_dict=False)) == 2


def test_one_hot_soft_targets_are_hard_targets_and_labels_override_codes():
    prior, codes = make_prior("unconditional"), torch.randint(11, (2, *GRID))
    output = prior(codes, target_probs=F.one_hot(codes, 11).float())
    torch.testing.assert_close(output.loss, prior(codes).loss)
    labels = torch.where(torch.rand(codes.shape) < 0.5, codes, -100)
    expected = F.cross_entropy(output.logits.flatten(0, 3), labels.flatten())
    torch.testing.assert_close(prior(codes, labels=labels).loss, expected)
    probabilities, lengths = F.one_hot(codes, 11).float(), torch.tensor([2, 1])
    probabilities[1, :, 1:] = torch.nan
    soft = prior(codes, target_probs=probabilities, lengths=lengths).loss
    torch.testing.assert_close(soft, prior(codes, lengths=lengths).loss)


@torch.no_grad()
def test_probabilities_of_all_grids_sum_to_one():
    prior = make_prior("vectors of each level", codebook_size=2)
    grids = torch.cartesian_prod(*[torch.arange(2)] * 6).view(-1, 3, 2, 1)
    torch.testing.assert_close(prior.log_prob(grids).exp().sum(), torch.tensor(1.0))


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
    prior, mask = make_prior(variant), torch.rand(2, *GRID) < 0.4
    known, conditions = torch.randint(11, (2, *GRID)), condition(prior, 2)
    batch = {} if conditions else {"batch_size": 2}
    codes = prior.sample(**batch, **conditions, temperature=0, known_codes=known, known_mask=mask)
    assert torch.equal(codes[mask], known[mask])
    assert torch.equal(prior(codes, **conditions).logits.argmax(-1)[~mask], codes[~mask])


def test_conditions_of_a_data_set_are_those_that_the_prior_takes():
    item = {"codes": 0, "class_labels": 1, "prompt_ids": 2}
    assert make_prior("classes").pick_conditions(item) == {"class_labels": 1}
    assert make_prior("prompts").pick_conditions(item) == {"prompt_ids": 2}
    assert make_prior("unconditional").pick_conditions(item) == {}


# kakaobrain's checkpoints

RQVAE = FIXTURES / "rqvae/stage1"


@pytest.mark.parametrize("stage", ["stage2", "stage2_text"])
@torch.no_grad()
def test_a_checkpoint_has_the_originals_numbers_before_and_after_saving(stage, tmp_path):
    expected, text = fixture("rqvae")[0], stage == "stage2_text"
    prefix = "text." if text else "prior."
    conditions = {"prompt_ids": expected["text.tokens"]} if text else {"class_labels": expected["prior.class_labels"]}
    codes = expected["codes"].movedim(-1, 1)
    first = convert(RQVAE, tmp_path / "first", license="mit")
    converted = convert(FIXTURES / "rqvae" / stage, tmp_path / "out", license="mit", first_stage=RQVAE)
    for prior in (converted, hf_vq.AutoVQPrior.from_pretrained(tmp_path / "out")):
        output = prior(codes, **conditions)
        torch.testing.assert_close(output.logits.movedim(1, 3), expected[prefix + "logits"], atol=1e-4, rtol=0)
        greedy = prior.sample(**conditions, temperature=0)
        assert torch.equal(greedy.movedim(1, -1), expected[prefix + "greedy_codes"])
        torch.testing.assert_close(first.detokenize(greedy), expected[prefix + "greedy_image"], atol=1e-4, rtol=0)
        logits = prior(greedy, **conditions).logits.movedim(1, 3)
        torch.testing.assert_close(logits, expected[prefix + "greedy_logits"], atol=1e-4, rtol=0)
        if text:
            torch.testing.assert_close(output.prompt_logits, expected["text.cond_logits"], atol=1e-4, rtol=0)
            torch.testing.assert_close(output.code_loss, expected["text.ce_loss"], **CLOSE)
            torch.testing.assert_close(output.prompt_loss, expected["text.cond_loss"], **CLOSE)
        else:
            torch.testing.assert_close(output.loss, expected["prior.ce_loss"], **CLOSE)
            soft = prior(codes, **conditions, target_probs=expected["soft_codes_temp0p5"].movedim(3, 1))
            torch.testing.assert_close(soft.loss, expected["prior.soft_ce_loss"], **CLOSE)
    facts = json.loads((tmp_path / "out/conversion.json").read_text())
    assert facts.items() >= {"format": "rq-transformer", "first_stage": "stage1"}.items()


def test_a_converted_first_stage_and_the_command_line(tmp_path, capsys):
    convert(RQVAE, tmp_path / "first", license="mit")
    arguments = ["convert", str(FIXTURES / "rqvae/stage2"), str(tmp_path / "out"), "--license", "mit"]
    assert hf_vq_cli.main(arguments) == 2
    assert "--first-stage" in capsys.readouterr().err
    assert hf_vq_cli.main([*arguments, "--first-stage", str(tmp_path / "first")]) == 0
    assert "RQTransformer" in capsys.readouterr().out
    loaded = RQTransformer.from_pretrained(tmp_path / "out")
    again = RQTransformer.from_single_file(FIXTURES / "rqvae/stage2", first_stage=RQVAE)
    assert torch.equal(loaded.code_vectors, again.code_vectors)
    with pytest.raises(ValueError, match=r"first_stage has codebook_size=64"):
        RQTransformer.from_single_file(
            FIXTURES / "rqvae/stage2", first_stage=_first_stage(tmp_path / "other", codebook_size=64)
        )
    with pytest.raises(ValueError, match="VQModel without residual codes"):
        RQTransformer.from_single_file(FIXTURES / "rqvae/stage2", first_stage=FIXTURES / "taming_vqgan/last.ckpt")


def _first_stage(folder, **options):
    network = {"block_out_channels": (32,), "layers_per_block": 1, "attention_stages": None, "latent_channels": 8}
    hf_vq.RQVAE(**{**network, "codebook_dim": 12, **options}).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_every_option_of_the_original(tmp_path):
    """A forward of the original, written here, at options that no public checkpoint has."""
    width, dim, size, levels, heads = 8, 6, 10, 3, 2
    draw = torch.Generator().manual_seed(0)
    weights = {}

    def new(name, *shape):
        return weights.setdefault(name, 0.5 * torch.randn(*shape, generator=draw))

    def norm(name, x):
        return F.layer_norm(x, (width,), 1 + new(f"{name}.weight", width), new(f"{name}.bias", width))

    def stack(name, x):
        h = norm(f"{name}.ln1", x)
        query, key, value = (
            (h @ new(f"{name}.attn.{part}.weight", width, width).T).unflatten(-1, (heads, -1)).transpose(-3, -2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(-2, -1) * (width // heads) ** -0.5
        later = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ value
        x = x + mixed.transpose(-3, -2).flatten(-2) @ new(f"{name}.attn.proj.weight", width, width).T
        h = norm(f"{name}.ln2", x) @ new(f"{name}.mlp.0.weight", 4 * width, width).T
        return x + (h * torch.sigmoid(1.702 * h)) @ new(f"{name}.mlp.2.weight", width, 4 * width).T

    levels_apart = {"num_levels": levels, "shared_codebook": False}
    folder = _first_stage(tmp_path / "first", codebook_size=size, codebook_dim=dim, quantizer_config=levels_apart)
    first = hf_vq.RQVAE.from_pretrained(folder)
    codes = torch.randint(size, (2, levels, 2, 3), generator=draw)
    flat = codes.flatten(2).transpose(1, 2)  # (batch, positions, levels)
    table = new("tok_emb.weight", levels * size, width)
    x = table[flat + size * torch.arange(levels)].sum(2) + new("pos_emb_hw", 1, 6, width)
    start = (new("cond_emb.weight", 1, width) + new("pos_emb_cond", 1, 1, width)[0]).expand(2, 1, width)
    context = stack("body_transformer.blocks.0", torch.cat([start, x[:, :-1]], dim=1))
    vectors = torch.stack([first.quantizer.levels[i].embedding.weight[flat[..., i]] for i in range(levels)], dim=2)
    depth = vectors @ new("head_mlp.weight", width, dim).T + new("head_mlp.bias", width)
    depth = torch.cat([context[:, :, None], depth[:, :, :-1]], dim=2) + new("pos_emb_d", 1, levels, width)
    hidden = norm("classifier.layer_norm", stack("head_transformer.blocks.0", depth))
    logits = torch.einsum("bpli,lio->bplo", hidden, new("classifier.linear.weight", levels, width, size))
    logits = logits + new("classifier.linear.bias", levels, size)

    for name in [name for name in weights if "ln" in name or "layer_norm" in name]:
        if name.endswith("weight"):
            weights[name] = 1 + weights[name]
    weights["tok_emb.offsets"] = size * torch.arange(levels)
    block = {"n_head": heads, "attn_bias": False, "mlp_bias": False, "gelu": "v2"}
    arch = {
        "type": "rq-transformer", "block_size": [2, 3, levels], "vocab_size": [size] * levels, "vocab_size_cond": 0,
        "block_size_cond": 0, "embed_dim": width, "input_embed_dim": dim, "head_emb_vqvae": True,
        "body": {"n_layer": 1, "block": block}, "head": {"n_layer": 1, "block": block},
    }  # fmt: skip
    torch.save({"state_dict": weights}, tmp_path / "model.pt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"arch": arch}))
    prior = RQTransformer.from_single_file(tmp_path / "model.pt", first_stage=tmp_path / "first")
    ours = prior(codes).logits.flatten(2, 3).transpose(1, 2)
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=1e-4)
    assert prior.config.code_shape == (levels, 2, 3)


@pytest.fixture
def changed(tmp_path):
    """Writes a changed checkpoint with its config, and gives its path."""

    def write(change=lambda weights: None, config=lambda arch: None):
        content = torch.load(FIXTURES / "rqvae/stage2/model.pt", weights_only=True)
        told = yaml.safe_load((FIXTURES / "rqvae/stage2/config.yaml").read_text())
        change(content["state_dict"])
        config(told["arch"])
        torch.save(content, tmp_path / "model.pt")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
        return tmp_path / "model.pt"

    return write


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda w: w.pop("head_transformer.blocks.0.ln1.bias"), None, r"head_transformer\.blocks\.0\.ln1\.bias"),
        (lambda w: w.update({"extra": torch.ones(1)}), None, "RQTransformer has no place.*extra"),
        (None, lambda a: a["body"]["block"].pop("n_head"), r"body\.block\.n_head is missing"),
        (None, lambda a: a["head"].update(n_layer=2), r"head\.n_layer.*2.*1"),
        (None, lambda a: a.update(block_size=[4, 4, 3]), r"block_size.*\[4, 4, 3\].*16 positions x 4"),
        (None, lambda a: a.update(vocab_size=[48, 48, 48, 32]), "vocab_size.*32.*48"),
        (None, lambda a: a.update(vocab_size_cond=1000), "vocab_size_cond is 1000.*10"),
        (None, lambda a: a["head"]["block"].update(gelu="v2"), "agree in activation"),
        (None, lambda a: a.update(input_emb_vqvae=False), "input_emb_vqvae"),
    ],
)
def test_a_wrong_checkpoint_names_file_and_key(changed, change, config, words):
    path = changed(change or (lambda weights: None), config or (lambda arch: None))
    with pytest.raises(ValueError, match=words) as error:
        RQTransformer.from_single_file(path, first_stage=RQVAE)
    assert "model.pt" in str(error.value)


# What is refused

CODES = torch.zeros(2, *GRID, dtype=torch.int64)


@pytest.mark.parametrize(
    ("match", "variant", "call"),
    [
        ("codes must have num_levels=3 levels", "unconditional", lambda p: p(CODES[:, :2])),
        ("codes must have at most block_size=8 positions", "unconditional", lambda p: p(F.pad(CODES, (0, 2)))),
        ("code_shape must have at most block_size=8", "unconditional", lambda p: p.sample(1, (3, 3, 3))),
        ("prompt_ids missing", "prompts", lambda p: p(CODES)),
        ("follows no prompts", "classes", lambda p: p(CODES, [0, 1], prompt_ids=[[0], [1]])),
        (r"prompt_ids must be in \[0, 7\), got 7", "prompts", lambda p: p(CODES, prompt_ids=[[0, 7]] * 2)),
        (r"prompt_ids must be \(2, length\)", "prompts", lambda p: p(CODES, prompt_ids=[[0, 1]] * 3)),
        ("length of 1 to 4", "prompts", lambda p: p.sample(prompt_ids=[[0] * 5])),
        ("prompt_ids must be integers", "prompts", lambda p: p.sample(prompt_ids=[[0.5]])),
        ("needs a null class", "prompts", lambda p: p.sample(prompt_ids=[[0]], guidance_scale=2.0)),
        ("target_probs must be floats", "unconditional", lambda p: p(CODES, target_probs=CODES)),
        ("give one of them", "unconditional", lambda p: p(CODES, labels=CODES, target_probs=CODES)),
        (r"vectors must be \(1, 11, 5\)", "classes", lambda p: p.set_code_vectors(torch.ones(10, 5))),
        ("all zero", "classes", lambda p: p.set_code_vectors(torch.zeros(11, 5))),
        ("takes none", "embeddings", lambda p: p.set_code_vectors(torch.ones(11, 5))),
    ],
)
def test_bad_input_is_a_clear_error(match, variant, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(variant))


def test_a_prior_without_its_code_vectors_says_so_until_it_has_them():
    prior = make_prior("unconditional", filled=False)
    for call in (lambda: prior(CODES), lambda: prior.sample(1), lambda: prior.log_prob(CODES)):
        with pytest.raises(ValueError, match="code_vectors are empty"):
            call()
    prior.set_code_vectors(torch.ones(11, 5))
    assert prior(CODES).loss > 0
    assert not prior.code_vectors.requires_grad


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("num_spatial_layers .* got 0", {"num_spatial_layers": 0}),
        ("multiple of num_depth_heads=5, got 512", {"num_depth_heads": 5}),
        ("spatial_inputs .* got 'codes'", {"spatial_inputs": "codes"}),
        ("depth_inputs .* got 'codes'", {"depth_inputs": "codes"}),
        ("num_levels .* got 0", {"num_levels": 0}),
        ("prompt_loss_weight .* got 1.0", {"prompt_loss_weight": 1.0}),
        ("go together", {"prompt_length": 3}),
        ("not both", {"prompt_length": 3, "prompt_vocab_size": 5, "num_classes": 2}),
        ("code_shape must be the levels and grid_dims=3 - 1 sizes", {"code_shape": (4, 8), "grid_dims": 3}),
        ("code_shape must have num_levels=4", {"code_shape": (3, 8, 8)}),
        ("activation .* got 'relu'", {"activation": "relu"}),
    ],
)
def test_bad_config_is_a_clear_error(match, options):
    with pytest.raises(ValueError, match=match):
        RQTransformerConfig(**options)

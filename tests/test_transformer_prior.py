"""Transformer priors: a Llama on disk, causality, the cached loop, prompts and guidance, and training."""

import copy
import json
import pickle

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_vq
from hf_vq.cli.inspect import main as inspect
from hf_vq.hub import describe, read_folder, write_card
from hf_vq.priors import (
    DelayedTransformerPrior,
    DelayedTransformerPriorConfig,
    LlamaGenPrior,
    LlamaGenPriorConfig,
    TransformerPrior,
    TransformerPriorConfig,
)
from hf_vq.training.prior import PriorTrainingArguments, train_prior

from .conftest import compile_whole
from .processes import in_a_process
from .sampling_checks import cached_logits, code_order
from .stock_users import generate_tokens, generate_unasked
from .tiny_models import Codes

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
SIZES = {"codebook_size": 11, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
CLASSES = {"num_classes": 3, "class_dropout_prob": 0.1}
TEXT = {"num_text_tokens": 7, "prompt_length": 4}
SPEAKERS = {"num_speakers": 3, "speaker_dropout_prob": 0.2}
LLAMA, DELAYED = (TransformerPrior, TransformerPriorConfig), (DelayedTransformerPrior, DelayedTransformerPriorConfig)
VARIANTS = {
    "sound": (*LLAMA, {"code_shape": (9,)}),
    "image": (*LLAMA, {"code_shape": (3, 4), **CLASSES, "num_key_value_heads": 2}),
    "video": (*LLAMA, {"code_shape": (2, 3, 2), "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "text": (*LLAMA, {"code_shape": (3, 4), **TEXT, "prompt_dropout_prob": 0.2, "rope_parameters": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}),
    "class and text": (*LLAMA, {"code_shape": (3, 4), **CLASSES, **TEXT, "prompt_dropout_prob": 0.2}),
    "residual": (*LLAMA, {"code_shape": (3, 2, 2), "num_levels": 3, **CLASSES, **SPEAKERS}),
    "delayed": (*DELAYED, {"code_shape": (3, 4), "num_levels": 3, **CLASSES}),
    "delayed with text": (*DELAYED, {"code_shape": (2, 2, 3), "num_levels": 2, **TEXT, "prompt_dropout_prob": 0.2,
        **SPEAKERS}),
    "llamagen": (LlamaGenPrior, LlamaGenPriorConfig, {"code_shape": (3, 4), **CLASSES, "num_key_value_heads": 2}),
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)
guided = pytest.mark.parametrize("variant", [name for name, (_, _, o) in VARIANTS.items() if {*CLASSES, *TEXT} & {*o}])


def make_prior(variant="image", **changes):
    model_class, config_class, options = VARIANTS[variant]
    torch.manual_seed(0)
    prior = model_class(config_class(**{**SIZES, **options, **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # norms too
    return prior.eval()


def make_codes(prior, batch_size=3):
    generator, config = torch.Generator().manual_seed(1), prior.config
    codes = torch.randint(config.codebook_size, (batch_size, *config.code_shape), generator=generator)
    conditions = {}
    if config.num_classes:
        null = config.num_class_embeddings - 1
        conditions["class_labels"] = torch.tensor([null, 0, 1, 2])[:batch_size]
    if getattr(config, "num_text_tokens", 0):
        conditions["prompt_ids"] = torch.randint(-1, config.num_text_tokens, (batch_size, 4), generator=generator)
    if getattr(config, "num_speakers", 0):
        conditions["speaker_labels"] = torch.tensor([3, 0, 1, 2])[:batch_size]
    return codes, conditions


# The network and its cache


@variants
@torch.no_grad()
def test_logits_depend_on_no_code_at_or_after_their_place_in_the_order(variant):
    prior = make_prior(variant)
    codes, conditions = make_codes(prior, 1)
    order = code_order(prior, codes)
    logits = prior(codes, **conditions).logits.flatten(1, -2)[:, order]
    assert torch.equal(order.sort().values, torch.arange(codes.numel()))
    moved = torch.empty(len(order), len(order), dtype=torch.bool)  # (changed, looked at)
    for index, place in enumerate(order.tolist()):
        changed = codes.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 5) % 11
        other = prior(changed, **conditions).logits.flatten(1, -2)[:, order]
        moved[index] = ((other - logits).abs() > 1e-6).any(-1)
    assert not moved.tril().any()
    if variant.startswith("delayed"):  # the codes of a step do not see each other
        places, levels = (
            order % (len(order) // prior.config.num_levels),
            order // (len(order) // prior.config.num_levels),
        )
        steps = places + levels
        assert torch.equal(moved, steps[:, None] < steps)
    else:
        assert moved.triu(1).sum() == len(order) * (len(order) - 1) / 2


@variants
def test_greedy_sample_is_the_argmax_of_the_full_logits_and_keeps_known_codes(variant):
    prior = make_prior(variant)
    codes, conditions = make_codes(prior)
    mask = torch.rand(codes.shape) < 0.3
    sizes = {} if conditions else {"batch_size": len(codes)}
    drawn = prior.sample(**sizes, **conditions, temperature=0, known_codes=codes, known_mask=mask)
    assert torch.equal(drawn[mask], codes[mask])
    assert torch.equal(prior(drawn, **conditions).logits.argmax(-1)[~mask], drawn[~mask])


@pytest.mark.parametrize("variant", ["image", "delayed with text", "llamagen"])
@torch.no_grad()
def test_compiled_steps_give_the_full_logits_also_with_new_weights(variant):
    prior = make_prior(variant)
    torch.compiler.reset()
    prior.compile_sampling(backend="eager")  # inductor takes long
    codes, conditions = make_codes(prior, 2)
    places = []
    for _ in range(2):
        logits = cached_logits(prior, codes, **conditions)
        torch.testing.assert_close(logits, prior(codes, **conditions).logits, **CLOSE)
        state = prior.step_compiler.state
        places.append([tensor.data_ptr() for tensor in (state.head, *state.cache)])
        for parameter in prior.parameters():
            parameter.mul_(0.8)
    assert places[0] == places[1]  # the memory that graphs are bound to


@torch.no_grad()
def test_sampling_compiles_once_whatever_is_known():
    prior, graphs = make_prior(), []
    torch.compiler.reset()

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain = make_prior()
    prior.compile_sampling(backend=count)
    codes, conditions = make_codes(prior, 2)
    for known in (0, 2, 3, 7, 12):
        mask = (torch.arange(12) < known).view(1, 3, 4).expand(2, -1, -1)
        options = {"temperature": 0, "guidance_scale": 2.5, "known_codes": codes, "known_mask": mask}
        assert torch.equal(prior.sample(**conditions, **options), plain.sample(**conditions, **options))
    assert len(graphs) == 1


@torch.no_grad()
def test_compiled_steps_read_longer_caches_as_they_grow():
    prior = make_prior(code_shape=(10, 14))
    torch.compiler.reset()
    prior.compile_sampling(backend="eager")
    copied = pickle.loads(pickle.dumps(copy.deepcopy(prior)))
    codes, conditions = make_codes(prior, 1)
    for one in (prior, copied):
        logits = cached_logits(one, codes, **conditions)
        torch.testing.assert_close(logits, prior(codes, **conditions).logits, **CLOSE)
        assert one.step_compiler.state.num_positions == 140


@guided
@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@torch.no_grad()
def test_guidance_is_two_passes(variant, guidance_scale):
    prior = make_prior(variant)
    _, conditions = make_codes(prior)
    codes = prior.sample(**conditions, guidance_scale=guidance_scale, temperature=0)
    with_condition = prior(codes, **conditions).logits
    null = prior(codes, **prior.null_conditions(conditions)).logits
    assert (null - with_condition).abs().max() > 0.01
    assert torch.equal((null + guidance_scale * (with_condition - null)).argmax(-1), codes)


@variants
@torch.no_grad()
def test_attention_implementations_agree(variant):
    prior = make_prior(variant)
    codes, conditions = make_codes(prior)
    outputs = []
    for name in ("sdpa", "eager"):
        prior.set_attn_implementation(name)
        outputs.append(prior(codes, **conditions).logits)
    torch.testing.assert_close(*outputs, **CLOSE)


@variants
@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_is_near_float32_in_full_and_cached(variant, dtype, near):
    prior = make_prior(variant)
    codes, conditions = make_codes(prior)
    expected = prior(codes, **conditions)
    prior.to(dtype)
    spread = expected.logits.std()
    assert (prior(codes, **conditions).logits.float() - expected.logits).abs().max() < near * spread
    assert (cached_logits(prior, codes, **conditions) - expected.logits).abs().max() < near * spread
    assert prior(codes, **conditions).loss.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 has only this name
@variants
def test_every_parameter_learns_and_checkpointing_gives_the_same_gradients(variant):
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior(variant, attention_dropout=0.3).train()
        codes, conditions = make_codes(prior)
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(codes, **conditions).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in prior.named_parameters()})
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("variant", ["text", "llamagen"])
@torch.no_grad()
def test_forward_compiles_whole_and_agrees(variant):
    prior = make_prior(variant)
    codes, conditions = make_codes(prior)
    output = compile_whole(prior, "aot_eager" if variant == "text" else "eager")(codes, **conditions)
    torch.testing.assert_close(output.logits, prior(codes, **conditions).logits)


@variants
def test_layers_are_the_units_of_sharding(variant):
    prior = make_prior(variant)
    assert set(prior._no_split_modules) == {"LlamaDecoderLayer"}
    assert sum(type(module).__name__ == "LlamaDecoderLayer" for module in prior.modules()) == prior.config.num_layers


@pytest.mark.parametrize("variant", ["residual", "delayed"])
@torch.no_grad()
def test_probabilities_of_all_grids_sum_to_one(variant):
    prior = make_prior(variant, codebook_size=3, code_shape=(2, 2), num_levels=2, grid_dims=2)
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    ones = torch.ones(81, dtype=torch.int64)
    log_prob = prior.log_prob(grids, class_labels=ones, **({"speaker_labels": ones} if variant == "residual" else {}))
    torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0))


def test_training_drops_classes_and_text_on_their_own():
    prior = make_prior("class and text", class_dropout_prob=0.25).train()
    prompt_ids = torch.zeros(20_000, 4, dtype=torch.int64)
    text = prior.drop_conditions({"prompt_ids": prompt_ids})
    tokens = prior.prompt_tokens(20_000, torch.zeros(20_000, dtype=torch.int64), **text)
    dropped = tokens[:, :4] == prior.config.null_token
    assert torch.equal(dropped.all(1), dropped.any(1))  # whole prompts
    assert dropped[:, 0].float().mean() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(tokens[:, 4], torch.full((20_000,), 11))  # classes are dropped by `forward`
    assert torch.equal(
        prior.eval().prompt_tokens(2, torch.tensor([0, 3]), prompt_ids[:2])[:, 4], torch.tensor([11, 14])
    )


def test_a_short_prompt_is_one_without_tokens_at_its_end():
    prior = make_prior("text")
    short, whole = torch.tensor([[3, 1]]), torch.tensor([[3, 1, -1, -1]])
    assert torch.equal(prior.make_prompt(prompt_ids=short), torch.tensor([[15, 13, 11, 11, 11]]))
    assert torch.equal(prior.make_prompt(prompt_ids=short), prior.make_prompt(prompt_ids=whole))


# On disk


@variants
def test_a_saved_prior_is_a_llama_where_it_can_be(variant, tmp_path):
    prior = make_prior(variant)
    prior.save_pretrained(tmp_path)
    with_trust = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(with_trust) is type(prior)
    told = json.loads((tmp_path / "config.json").read_text())
    is_llama = isinstance(prior, TransformerPrior)
    assert (told["model_type"] == "llama", "vq_prior" in told) == (is_llama, is_llama)
    assert (tmp_path / "generation_config.json").exists() == is_llama


def test_stock_transformers_without_hf_vq_gives_our_codes(tmp_path):
    priors = {name: make_prior(name) for name in ("sound", "image", "class and text", "residual")}
    prompts = {}
    for name, prior in priors.items():
        _, conditions = make_codes(prior, 2)
        prompts[name] = prior.make_prompt(**conditions) if conditions else prior.make_prompt(2)
        prior.save_pretrained(tmp_path / name)
        torch.save(prompts[name], tmp_path / name / "prompt.pt")
    in_a_process(generate_tokens, [tmp_path / name for name in priors])
    for name, prior in priors.items():
        _, conditions = make_codes(prior, 2)
        ours = prior.sample(**(conditions or {"batch_size": 2}), temperature=0)
        order, length = code_order(prior, ours), prompts[name].shape[1]
        greedy, drawn = (tokens[:, length:] for tokens in torch.load(tmp_path / name / "tokens.pt"))
        assert torch.equal(greedy, ours.flatten(1)[:, order])
        assert drawn.shape == (40, len(order))
        assert drawn.max() < 11
        assert len(drawn.unique(dim=0)) > 20  # it drew


def test_stock_generate_needs_no_prompt_of_a_prior_without_conditions(tmp_path):
    for name in ("sound", "video"):
        prior = make_prior(name)
        prior.save_pretrained(tmp_path / name)
        one, many = in_a_process(generate_unasked, tmp_path / name)
        size, begin = torch.Size(prior.config.code_shape).numel(), prior.make_prompt(1)[0, 0]
        assert one.shape == (1, 1 + size)
        assert torch.equal(many[:, 0], begin.expand(40))
        assert many.shape == (40, 1 + size)
        assert many[:, 1:].unique().tolist() == list(range(11))
        torch.manual_seed(0)
        assert torch.equal(prior.generate(do_sample=True), one)
        folder = read_folder(tmp_path / name)
        assert "ids = model.generate()" in str(write_card(folder, "a/b", describe(folder, "a/b", "mit")))
    with pytest.raises(ValueError, match="bos_token_id"):
        make_prior("image").generate()


def test_inspect_card_and_pipeline_know_a_prior_that_is_a_llama(tmp_path, capsys):
    prior = make_prior(code_shape=(4, 4))
    pipeline = hf_vq.VQPipeline(hf_vq.VQVAE(codebook_size=11), prior)
    pipeline.save_pretrained(tmp_path)
    loaded = hf_vq.VQPipeline.from_pretrained(tmp_path)
    assert type(loaded.prior) is TransformerPrior
    images = loaded([0, 1], output_type="codes", temperature=0).images
    assert torch.equal(images, prior.sample(class_labels=[0, 1], temperature=0))
    inspect(["--folder", str(tmp_path / "prior"), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (facts["class"], facts["codebook_size"], facts["code_shape"]) == ("TransformerPrior", 11, [4, 4])
    folder = read_folder(tmp_path / "prior")
    card = str(write_card(folder, "a/b", describe(folder, "a/b", "mit", folder.files, None), folder.files))
    assert "a prior over 4x4 grids of codes out of 11, with 3 classes" in card
    assert 'AutoModelForCausalLM.from_pretrained("a/b")\n```' in card


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_with_transformers_guidance_gives_our_codes(cache):
    prior = make_prior()
    class_labels = torch.tensor([0, 1, 2])
    prompt, null = prior.make_prompt(class_labels=class_labels), prior.make_prompt(class_labels=[3, 3, 3])
    tokens = prior.generate(
        prompt, do_sample=False, guidance_scale=2.0, negative_prompt_ids=null, cache_implementation=cache
    )
    ours = prior.sample(class_labels=class_labels, guidance_scale=2.0, temperature=0)
    assert torch.equal(tokens[:, 1:], ours.flatten(1))


def test_a_llama_that_stock_saved_again_is_still_the_prior_and_another_is_none(tmp_path):
    prior = make_prior()
    prior.save_pretrained(tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded = hf_vq.AutoVQPrior.from_pretrained(tmp_path / "theirs")
    codes, conditions = make_codes(prior)
    assert torch.equal(loaded(codes, **conditions).logits, prior(codes, **conditions).logits)
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"'llama'.* none of"):
        hf_vq.AutoVQPrior.from_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="no section 'vq_prior'"):
        TransformerPrior.from_pretrained(tmp_path / "other")
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "other")) is LlamaForCausalLM


@pytest.mark.parametrize("model_class", [TransformerPrior, LlamaGenPrior])
def test_training_learns(model_class, tmp_path):
    config = model_class.config_class(
        codebook_size=8, num_classes=2, class_dropout_prob=0.1, code_shape=(4, 4), hidden_size=32, num_layers=1,
        num_heads=2, intermediate_size=64,
    )  # fmt: skip
    arguments = PriorTrainingArguments(
        output_dir=str(tmp_path), max_steps=80, learning_rate=2e-2, per_device_train_batch_size=32, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    report = train_prior(model_class(config), Codes(256), arguments, eval_dataset=Codes(64))
    assert 0 < report["metrics"]["eval_nats_per_code"] < 0.8  # log 4 before it knows that rows repeat
    assert type(hf_vq.AutoVQPrior.from_pretrained(tmp_path)) is model_class


# What is refused

IMAGE = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("match", "variant", "call"),
    [
        ("codes must be .* 2 grid axes", "image", lambda prior: prior(IMAGE[0], class_labels=[0])),
        ("codes missing", "image", lambda prior: prior()),
        ("codes and input_ids exclude", "image", lambda prior: prior(IMAGE, input_ids=IMAGE[0])),
        ("class_labels missing", "image", lambda prior: prior.sample()),
        ("prompt_ids given", "image", lambda prior: prior.sample(class_labels=[0], prompt_ids=[[1]])),
        ("prompt_ids missing", "text", lambda prior: prior(IMAGE)),
        (r"prompt_ids must be in \[-1, 7\), got 7", "text", lambda prior: prior.sample(prompt_ids=[[7]])),
        ("prompt_ids must be integers", "text", lambda prior: prior.sample(prompt_ids=[[0.5]])),
        (r"prompt_ids must be \(2, at most 4\)", "text", lambda prior: prior(IMAGE, prompt_ids=[[1]])),
        (r"at most 4\), got \(1, 5\)", "text", lambda prior: prior.sample(prompt_ids=[[1] * 5])),
        ("guidance_scale=2.0 needs a null class", "sound", lambda prior: prior.sample(1, guidance_scale=2.0)),
        ("batch_size missing", "sound", lambda prior: prior.make_prompt()),
        ("code_shape must be 3 sizes", "residual", lambda p: p.sample(class_labels=[0], code_shape=(2, 2))),
        (r"code_shape must begin with 3", "residual", lambda p: p.sample(class_labels=[0], code_shape=(2, 2, 2))),
        (r"code_shape must begin with 3", "delayed", lambda p: p.sample(class_labels=[0], code_shape=(2, 2))),
        (r"codes must have 3 levels", "delayed", lambda prior: prior(IMAGE[:, :2], class_labels=[0, 0])),
    ],
)
def test_bad_input_is_a_clear_error(match, variant, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(variant))


@pytest.mark.parametrize(
    ("match", "config_class", "options"),
    [
        ("hidden_size must be a multiple of .* got 30", TransformerPriorConfig, {"hidden_size": 30}),
        ("num_layers must be an integer between 1 and 1024, got 0", TransformerPriorConfig, {"num_layers": 0}),
        ("num_key_value_heads must divide num_heads=8, got 3", TransformerPriorConfig, {"num_key_value_heads": 3}),
        ("intermediate_size .* got 0", TransformerPriorConfig, {"intermediate_size": 0}),
        ("attention_dropout .* got 1.0", TransformerPriorConfig, {"attention_dropout": 1.0}),
        ("go together", TransformerPriorConfig, {"num_text_tokens": 5}),
        ("nothing to drop", TransformerPriorConfig, {"prompt_dropout_prob": 0.1}),
        ("code_shape must begin with num_levels=2", TransformerPriorConfig, {"num_levels": 2, "code_shape": (3, 4)}),
        ("code_shape must have grid_dims=1", TransformerPriorConfig, {"grid_dims": 1, "code_shape": (3, 4)}),
        ("grid_dims must count", TransformerPriorConfig, {"num_levels": 2, "grid_dims": 1}),
        ("num_levels must be at least 2", DelayedTransformerPriorConfig, {}),
        ("tie_word_embeddings", DelayedTransformerPriorConfig, {"num_levels": 2, "tie_word_embeddings": True}),
        ("num_classes must be at least 1, got 0", LlamaGenPriorConfig, {}),
        ("hidden_size must be a multiple of 4", LlamaGenPriorConfig, {"num_classes": 1, "hidden_size": 6}),
        (r"code_shape must be \(height, width\)", LlamaGenPriorConfig, {"num_classes": 1, "code_shape": (4,)}),
    ],
)
def test_bad_config_is_a_clear_error(match, config_class, options):
    with pytest.raises(ValueError, match=match):
        config_class(**options)

"""MaskedPrior: what is masked, its loss and its bound, decoding in sight of known codes, training."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

import hf_vq
from hf_vq import VQVAE, MaskedPrior, MaskedPriorConfig, MaskedScheduler, VQPipeline, VQVAE2Pipeline
from hf_vq.priors.sampling import guide
from hf_vq.training.prior import PriorTrainingArguments, train_prior

from . import test_hierarchical_pipelines
from .conftest import FIXTURES, compile_whole
from .tiny_models import Codes

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = {
    "plain": {},
    "classes": {"num_classes": 3, "class_dropout_prob": 0.2},
    "text, levels": {"code_shape": (3, 2, 4), "num_levels": 3, "cross_attention_dim": 6, "text_length": 5,
                     "text_dropout_prob": 0.2, "null_text": "learned", "num_classes": 3, "class_dropout_prob": 0.2},
    "context": {"context_codebook_sizes": [5]},
    "sequence": {"code_shape": (12,), "masking_schedule": "linear", "likelihood_steps": None},
    "levels of clips": {"code_shape": (2, 3, 2, 2), "num_levels": 2, "activation": "geglu"},
}  # fmt: skip
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_prior(variant="classes", **changes) -> MaskedPrior:
    options = {"codebook_size": 11, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "code_shape": (3, 4)}
    torch.manual_seed(0)
    prior = MaskedPrior(MaskedPriorConfig(**{**options, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases too
    return prior.eval()


def make_inputs(prior, batch_size=4):
    """Codes, and conditions."""
    config, conditions = prior.config, {}
    if config.num_classes:
        conditions["class_labels"] = torch.arange(batch_size) % config.num_classes
    if config.cross_attention_dim:
        conditions["encoder_hidden_states"] = torch.randn(batch_size, config.text_length, config.cross_attention_dim)
    if config.context_codebook_sizes:
        conditions["context_codes"] = (torch.randint(5, (batch_size, 2, 2)),)
    return torch.randint(config.codebook_size, (batch_size, *config.code_shape)), conditions


def zero_head(prior):
    nn.init.zeros_(prior.head.weight)
    nn.init.zeros_(prior.head.bias)
    return prior


# What is masked, and the loss of it


def test_masks_are_shares_by_the_schedule_and_at_least_one_code():
    codes = torch.randint(11, (4000, 4, 5))
    candidates = torch.rand(codes.shape) < 0.8
    for training in (True, False):  # in eval mode by the codes themselves
        means = []
        for schedule in ("cosine", "linear"):
            prior = make_prior("plain", code_shape=(4, 5), masking_schedule=schedule).train(training)
            masked = prior.draw_masks(codes, candidates, None)
            assert not (masked & ~candidates).any()
            counts, most = masked.flatten(1).sum(1), candidates.flatten(1).sum(1)
            assert (counts >= 1).all()
            assert (counts == most).any()
            means.append((counts / most).mean().item())
            places = masked.float().mean(0) / candidates.float().mean(0)
            assert (places - places.mean()).abs().max() < 0.05
        assert means == pytest.approx([2 / torch.pi + 0.025, 0.5 + 0.03], abs=0.015)  # rounded up to whole codes


@torch.no_grad()
def test_logits_see_what_is_not_masked_and_nothing_else():
    prior, (codes, conditions) = make_prior(), make_inputs(make_prior())
    hidden = torch.zeros_like(codes, dtype=torch.bool)
    hidden[:, 1, 1:3] = True
    states = codes.masked_fill(hidden, prior.mask)
    logits = prior.run_network(states, **conditions)
    for place in range(12):  # each code that is there moves all logits, before and after it
        changed = states.clone()
        changed.view(4, -1)[:, place] = torch.where(
            hidden.view(4, -1)[:, place], prior.mask, codes.view(4, -1)[:, place] ^ 1
        )
        moved = (prior.run_network(changed, **conditions) != logits).any(-1)
        assert moved.all() if not hidden.view(4, -1)[0, place] else not moved.any()


@variants
def test_the_loss_is_nats_per_masked_code(variant):
    prior = zero_head(make_prior(variant))
    codes, conditions = make_inputs(prior)
    lengths = torch.tensor([codes.shape[1 + prior.has_levels], 1, 1, 2])
    labels = codes.clone()
    labels[0, 0] = -100
    for training in (True, False):
        for options in ({}, {"lengths": lengths}, {"labels": labels}):
            loss = prior.train(training)(codes, **conditions, **options).loss
            torch.testing.assert_close(loss, torch.tensor(11.0).log())


def test_label_smoothing_is_of_training_alone():
    prior, smooth = make_prior(), make_prior(label_smoothing=0.3)
    codes, conditions = make_inputs(prior)
    assert torch.equal(smooth(codes, **conditions).loss, prior(codes, **conditions).loss)
    losses = []
    for model in (prior, smooth):
        torch.manual_seed(0)
        losses.append(model.train()(codes, **conditions).loss)
    assert losses[0] != losses[1]


@variants
def test_every_parameter_learns(variant):
    prior = make_prior(variant)
    codes, conditions = make_inputs(prior, 60)
    prior.train()(codes, **conditions).loss.backward()
    assert [name for name, parameter in prior.named_parameters() if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 has only this name
def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior("text, levels", dropout=0.3, attention_dropout=0.3).train()
        codes, conditions = make_inputs(prior)
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(codes, **conditions).loss.backward()
        gradients.append([parameter.grad for parameter in prior.parameters()])
    torch.testing.assert_close(*gradients)


def test_forward_compiles_whole_in_training_and_agrees():
    prior = make_prior(num_layers=1).train()
    codes, conditions = make_inputs(prior)
    outputs = []
    for model in (prior, compile_whole(prior, "eager")):
        torch.manual_seed(2)
        outputs.append(model(codes, **conditions))
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits)


# The bound


@pytest.mark.parametrize("steps", [1, 2, 3, None])
@torch.no_grad()
def test_the_bound_is_below_the_likelihood_of_orders_that_are_drawn_by_chance(steps):
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    options = {"codebook_size": 3, "code_shape": (2, 2), "likelihood_steps": steps}
    orders = [make_prior("plain", **options, likelihood_seed=seed).log_prob(grids) for seed in range(2)]
    for log_prob in orders:  # one order is a distribution, also where codes of a step do not know of each other
        torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0))
    both = make_prior("plain", **options, likelihood_orders=2)
    scores = both.order_scores((2, 2))
    single = []
    for score in scores:
        both.order_scores = lambda shape, score=score: score[None]
        single.append(both.log_prob(grids) * 2)
    del both.order_scores
    exact = torch.stack(single).exp().mean(0).log()
    bound = both.log_prob(grids)
    torch.testing.assert_close(bound, torch.stack(single).mean(0))
    assert (bound <= exact + 1e-6).all()
    if steps != 1:  # where the orders differ
        assert (bound < exact - 1e-4).any()


@torch.no_grad()
def test_log_prob_is_the_product_along_its_order():
    prior = make_prior("sequence")
    codes, _ = make_inputs(prior)
    expected, states = torch.zeros(4), torch.full_like(codes, prior.mask)
    for place in prior.order_scores((12,))[0].argsort(descending=True):
        expected += prior.run_network(states).log_softmax(-1)[:, place].gather(1, codes[:, place, None])[:, 0]
        states[:, place] = codes[:, place]
    torch.testing.assert_close(prior.log_prob(codes), expected, **CLOSE)
    prior.head.bias[codes[0, 0]] = -torch.inf  # a code that cannot be
    impossible = (codes == codes[0, 0]).any(1)
    assert torch.equal(prior.log_prob(codes).isneginf(), impossible)
    assert prior.log_prob(codes)[~impossible].isfinite().all()


# Decoding


@torch.no_grad()
def test_one_greedy_step_is_the_argmax_of_guided_logits_in_one_pass():
    prior = make_prior("text, levels")
    codes, conditions = make_inputs(prior)
    mask = torch.rand(codes.shape) < 0.5
    states = codes.masked_fill(~mask, prior.mask)
    null = prior.null_conditions(prior.check_conditions(conditions))
    logits = guide(prior.run_network(states, **conditions), prior.run_network(states, **null), 2.5)
    rows, run_network = [], prior.run_network
    prior.run_network = lambda states, **conditions: (rows.append(len(states)), run_network(states, **conditions))[1]
    options = {"guidance_scale": 2.5, "temperature": 0, "known_codes": codes, "known_mask": mask}
    drawn = prior.sample(num_inference_steps=1, **options, **conditions)
    assert torch.equal(drawn[mask], codes[mask])
    assert torch.equal(logits.argmax(-1)[~mask], drawn[~mask])
    assert rows == [8]  # both halves of guidance at once
    everything = {"known_codes": codes, "known_mask": torch.ones_like(mask)}
    assert torch.equal(prior.sample(**everything, **conditions), codes)
    assert rows == [8]


@torch.no_grad()
def test_the_last_code_sees_all_others_wherever_it_is():
    prior = make_prior()
    codes, conditions = make_inputs(prior)
    for place in (0, 5, 11):
        mask = torch.ones_like(codes, dtype=torch.bool)
        mask.view(4, -1)[:, place] = False
        expected = prior.run_network(codes.masked_fill(~mask, prior.mask), **conditions).argmax(-1)
        drawn = prior.sample(**conditions, temperature=0, known_codes=codes, known_mask=mask)
        assert torch.equal(drawn, torch.where(mask, codes, expected))


@variants
@torch.no_grad()
def test_known_codes_never_move_and_filters_hold(variant):
    prior = make_prior(variant)
    codes, conditions = make_inputs(prior)
    batch = {} if conditions else {"batch_size": 4}
    prior.head.bias[7] = -torch.inf  # a code that cannot be
    with pytest.raises(RuntimeError, match="not finite"):
        prior.sample(**batch, **conditions)
    prior.head.bias[7] = -1e4
    mask = torch.rand(codes.shape) < 0.4
    for options in ({}, {"num_inference_steps": 3, "choice_temperature": 0.0}, {"top_k": 2, "temperature": 2.0}):
        drawn = prior.sample(**batch, **conditions, known_codes=codes, known_mask=mask, **options)
        assert torch.equal(drawn[mask], codes[mask])
        assert not (drawn[~mask] == 7).any()
        assert ((drawn >= 0) & (drawn < 11)).all()
    counts = [7.0, 6.0, 5.0] + [0.0] * 8
    nn.init.zeros_(prior.head.weight)
    prior.head.bias.copy_(torch.tensor(counts))
    assert prior.sample(**batch, **conditions, top_k=2).unique().tolist() == [0, 1]
    assert prior.sample(**batch, **conditions, top_p=0.6).unique().tolist() == [0]


def test_steps_are_passes_of_the_network():
    prior, steps = make_prior("plain"), []
    for given, expected in ((None, 12), (3, 3), (12, 12)):
        prior.sample(2, num_inference_steps=given, progress_bar=lambda loop: (steps.append(len(loop)), loop)[1])
        assert steps.pop() == expected
    small = prior.sample(2, (2, 2), progress_bar=lambda loop: (steps.append(len(loop)), loop)[1])
    assert small.shape == (2, 2, 2)
    assert steps == [4]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@torch.no_grad()
def test_half_precision_stays_near(dtype, tolerance):
    prior = make_prior("text, levels")
    codes, conditions = make_inputs(prior)
    expected = prior(codes, **conditions)
    prior = prior.to(dtype)
    output = prior(codes, **conditions)
    assert (output.logits.float() - expected.logits).abs().max() < tolerance * expected.logits.abs().max()
    assert output.loss.dtype == torch.float32
    assert prior.sample(**conditions, guidance_scale=2.0).shape == codes.shape


@torch.no_grad()
def test_attention_implementations_agree():
    prior = make_prior("text, levels")
    codes, conditions = make_inputs(prior)
    lengths = torch.tensor([2, 1, 2, 1])
    expected = prior(codes, lengths=lengths, **conditions).logits
    prior.set_attn_implementation("eager")
    real = prior.real_places(lengths, codes)
    torch.testing.assert_close(prior(codes, lengths=lengths, **conditions).logits[real], expected[real], **CLOSE)


# Training and pipelines

SMALL = {"codebook_size": 8, "code_shape": (4, 4), "hidden_size": 32, "num_layers": 1, "num_heads": 2}


def train(folder, steps, **options):
    torch.manual_seed(0)
    config = MaskedPriorConfig(**SMALL, num_classes=2, class_dropout_prob=0.1, dropout=0.1)
    arguments = PriorTrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=3e-3, per_device_train_batch_size=32, use_cpu=True,
        report_to="none", disable_tqdm=True, lr_scheduler_type="constant", **options,
    )  # fmt: skip
    return train_prior(MaskedPrior(config), Codes(256), arguments, eval_dataset=Codes(64))


def test_training_learns_and_resumes_to_the_bit(tmp_path):
    whole = train(tmp_path / "whole", 140, save_steps=132)
    shutil.copytree(tmp_path / "whole/checkpoint-132", tmp_path / "parts/checkpoint-132")
    report = train(tmp_path / "parts", 140, save_steps=132, resume_from_checkpoint=True)
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("parts", "whole"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert report["metrics"] == whole["metrics"]
    assert 0 < whole["metrics"]["eval_nats_per_code"] < 0.8  # log 4 before it knows that rows repeat

    prior = hf_vq.AutoVQPrior.from_pretrained(tmp_path / "whole")
    assert type(prior) is MaskedPrior
    labels = torch.arange(100) % 2
    drawn = prior.sample(class_labels=labels, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    assert (drawn == drawn[:, :1]).float().mean() > 0.9  # rows repeat the first one
    assert (drawn[:, 0, 0] // 2 == labels).float().mean() > 0.9  # and the class tells its first code

    torch.manual_seed(0)
    codec = VQVAE(in_channels=1, hidden_channels=8, codebook_size=8, codebook_dim=4, stage_channels=(8,)).eval()
    codec.initialize_codebook(torch.rand(8, 1, 8, 8) * 2 - 1)
    pipe = VQPipeline(codec, prior)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "pipeline")
    pipe = VQPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(pipe.prior) is MaskedPrior
    pipe.set_progress_bar_config(disable=True)
    image, white = torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    white[..., :4, :] = 1  # the upper half is new, in sight of the lower one
    known = codec.tokenize(image * 2 - 1)
    calls = {"num_inference_steps": 2, "temperature": 0.0, "choice_temperature": 0.0, "output_type": "codes"}
    codes = pipe(class_labels=[1], image=image, mask_image=white, **calls).images
    assert torch.equal(codes[:, 2:], known[:, 2:])
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = False
    options = {name: value for name, value in calls.items() if name != "output_type"}
    assert torch.equal(codes, prior.sample(class_labels=[1], known_codes=known, known_mask=mask, **options))


@torch.no_grad()
def test_priors_of_a_hierarchy_complete_pictures_in_sight_of_all_that_is_kept():
    top = make_prior("plain", codebook_size=10, code_shape=(4, 4), num_classes=3)
    bottom = make_prior("context", codebook_size=12, code_shape=(8, 8), context_codebook_sizes=[10])
    pipe = VQVAE2Pipeline(test_hierarchical_pipelines.autoencoder(), top, bottom)
    pipe.set_progress_bar_config(disable=True)
    image, white = torch.rand(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    white[..., :4, :] = 1
    known = pipe.autoencoder.tokenize(image * 2 - 1)
    options = {"num_inference_steps": [1, 2], "temperature": 0.0, "choice_temperature": 0.0}
    coarse, fine = pipe(class_labels=[2], image=image, mask_image=white, **options, output_type="codes").images
    states = known[0].clone()
    states[:, :1] = top.mask
    logits = top.run_network(states, class_labels=torch.tensor([2]))
    assert torch.equal(coarse, torch.cat([logits[:, :1].argmax(-1), known[0][:, 1:]], dim=1))
    mask = torch.ones_like(fine, dtype=torch.bool)
    mask[:, :2] = False
    options["num_inference_steps"] = 2
    assert torch.equal(fine, bottom.sample(context_codes=(coarse,), known_codes=known[1], known_mask=mask, **options))


def test_texts_become_pictures_by_a_saved_pipeline_and_its_scheduler(tmp_path):
    folder = FIXTURES / "diffusers_amused_pipeline"
    prior = make_prior("plain", cross_attention_dim=24, text_length=12)
    autoencoder = VQVAE(hidden_channels=8, codebook_size=11, codebook_dim=4, stage_channels=(8,)).eval()
    autoencoder.initialize_codebook(torch.rand(11, 3, 6, 8) * 2 - 1)
    texts = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    scheduler = MaskedScheduler(prior.mask, "linear")
    hf_vq.VQTextToImagePipeline(autoencoder, prior, texts, tokenizer, scheduler).save_pretrained(tmp_path)
    pipe = hf_vq.VQTextToImagePipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.masking_schedule == "linear"
    call = {"prompt": ["the red dog", "a blue cat"], "num_inference_steps": 4, "output_type": "codes"}
    drawn = pipe(**call, guidance_scale=1.5, generator=torch.Generator().manual_seed(0)).images
    states, empty = (pipe.encode_prompt(prompt)[0] for prompt in (call["prompt"], [""] * 2))
    expected = prior.sample(
        encoder_hidden_states=states, negative_encoder_hidden_states=empty, guidance_scale=1.5, num_inference_steps=4,
        scheduler=scheduler, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert torch.equal(drawn, expected)
    with pytest.raises(ValueError, match=r"num_inference_steps must be at most 12, .* got 13"):
        pipe("the red dog", num_inference_steps=13)
    pipe.scheduler = MaskedScheduler(5)
    with pytest.raises(ValueError, match="scheduler must have mask_token_id=11, as this prior, got 5"):
        pipe("the red dog")


def test_halves_of_a_batch_give_its_loss_whatever_is_masked():
    prior = make_prior()
    codes, conditions = make_inputs(prior)
    lengths = torch.tensor([3, 1, 2, 1])
    whole = prior(codes, lengths=lengths, **conditions).loss
    halves = [prior(codes[part], lengths=lengths[part], class_labels=conditions["class_labels"][part]).loss
              for part in (slice(2), slice(2, 4))]  # fmt: skip
    torch.testing.assert_close(whole, (halves[0] * 4 + halves[1] * 3) / 7)


# What is refused

IMAGE, TEXT = torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(2, 5, 6)
LEVELS = torch.zeros(2, 3, 2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("match", "variant", "call"),
    [
        ("num_inference_steps must be at most 12, the codes of a grid of .*, got 13", "plain",
         lambda prior: prior.sample(1, num_inference_steps=13)),
        ("num_inference_steps must be an integer between 1 and", "plain",
         lambda prior: prior.sample(1, num_inference_steps=0)),
        ("choice_temperature must be a number at least 0, got -1", "plain",
         lambda prior: prior.sample(1, choice_temperature=-1)),
        (r"codes must be in \[0, 11\), got 11", "plain", lambda prior: prior(IMAGE + 11)),
        (r"known_codes must be in \[0, 11\), got 11", "plain",
         lambda prior: prior.sample(2, known_codes=IMAGE + 11, known_mask=IMAGE == 0)),
        ("at most config.code_shape", "plain", lambda prior: prior.sample(1, (4, 4))),
        ("guidance_scale=2.0 needs a null", "plain", lambda prior: prior.sample(1, guidance_scale=2.0)),
        ("this prior has no text", "plain",
         lambda prior: prior.sample(2, guidance_scale=2.0, negative_encoder_hidden_states=TEXT)),
        ("scheduler must be a MaskedScheduler, got 'cosine'", "plain",
         lambda prior: prior.sample(1, scheduler="cosine")),
        ("got 3 for 2 items", "plain", lambda prior: prior.sample(2, generator=[torch.Generator()] * 3)),
        ("encoder_hidden_states missing", "text, levels", lambda prior: prior(LEVELS, class_labels=[0, 1])),
        (r"encoder_hidden_states must be \(2, 5, 6\), got \(2, 5, 7\)", "text, levels",
         lambda prior: prior(LEVELS, class_labels=[0, 1], encoder_hidden_states=torch.zeros(2, 5, 7))),
        ("encoder_hidden_states given", "classes",
         lambda prior: prior(IMAGE, class_labels=[0, 1], encoder_hidden_states=TEXT)),
        ("must have 3 levels", "text, levels", lambda prior: prior.sample(class_labels=[0], code_shape=(2, 2, 2))),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error(match, variant, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(variant))


@torch.no_grad()
def test_a_network_that_gives_no_numbers_is_told():
    prior = make_prior("plain")
    prior.head.bias[3] = torch.nan
    with pytest.raises(RuntimeError, match="logits that are not finite"):
        prior.sample(1)

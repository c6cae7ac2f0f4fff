"""Facts about pictures of texts: VQ-Diffusion's numbers, guidance, any text encoder, and what is refused."""

import accelerate
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import hf_vq
import hf_vq_cli
from hf_vq import (
    DiscreteDiffusionPrior,
    DiscreteDiffusionPriorConfig,
    DiscreteDiffusionScheduler,
    MaskedPrior,
    MaskedPriorConfig,
)
from hf_vq import VQTextToImagePipeline as Pipeline
from hf_vq.cli.sample import SampleOptions, read_conditions
from hf_vq.converters import convert

from .conftest import FIXTURES, fixture
from .test_audio_codecs import make as make_codec

FOLDER = FIXTURES / "diffusers_vqdiffusion_pipeline"
PROMPTS = ["the red dog", "a cat and the blue dog"]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def read_tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


def build(text_encoder=None, scheduler=True, normalize=True, mask_padding=False, **config):
    """A small pipeline; its text encoder is CLIP's by default."""
    torch.manual_seed(0)
    autoencoder = hf_vq.VQVAE(hidden_channels=8, codebook_size=12, codebook_dim=4, stage_channels=(8,))
    autoencoder.train()(torch.rand(4, 3, 8, 8) * 2 - 1)
    tokenizer = read_tokenizer()
    if text_encoder is None:
        text_encoder = CLIPTextModel(
            CLIPTextConfig(**TINY, vocab_size=len(tokenizer), max_position_embeddings=12, eos_token_id=2)
        )
    config = {"null_text": "learned", "text_length": 12, "text_dropout_prob": 0.1, **config}
    prior = DiscreteDiffusionPrior(
        DiscreteDiffusionPriorConfig(
            codebook_size=12, code_shape=(4, 4), num_timesteps=6, hidden_size=16, num_layers=1, num_heads=2,
            cross_attention_dim=16, **config,
        )
    )  # fmt: skip
    torch.nn.init.normal_(prior.head.weight)  # of texts, codes differ
    scheduler = DiscreteDiffusionScheduler(num_vec_classes=13, num_train_timesteps=6) if scheduler else None
    pipe = Pipeline(
        autoencoder.eval(), prior.eval(), text_encoder.eval(), tokenizer, scheduler, normalize, mask_padding
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=11):
    return torch.Generator().manual_seed(seed)


def draw(pipe, prompt=PROMPTS, seed=11, **options):
    return pipe(prompt, generator=seeded(seed), output_type="codes", **options).images


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The converted folder of diffusers' pipeline."""
    folder = tmp_path_factory.mktemp("original") / "out"
    convert(FOLDER, folder, license="apache-2.0")
    return folder


def test_steps_codes_and_images_are_diffusers(original):
    tensors, seen = fixture("diffusers_vqdiffusion_pipeline")[0], []
    pipe = Pipeline.from_pretrained(original)
    pipe.set_progress_bar_config(disable=True)
    embeds, mask = pipe.encode_prompt(PROMPTS)
    assert mask is None
    torch.testing.assert_close(embeds, tensors["out.prompt_embeds"][2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(pipe.prior.null_text, tensors["out.prompt_embeds"][0])
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *arguments: seen.append(step(*arguments)) or seen[-1]
    call = {"num_inference_steps": 10, "guidance_scale": 3.0, "truncation_rate": 0.9}
    output = pipe(PROMPTS, **call, generator=seeded(), output_type="np")
    torch.testing.assert_close(torch.from_numpy(output.images), tensors["out.images"], rtol=0, atol=1e-5)
    assert torch.equal(torch.stack([each.prev_sample.flatten(1) for each in seen]), tensors["out.trajectory"])
    assert torch.equal(draw(pipe, **call), tensors["out.final_codes"])
    assert torch.equal(draw(pipe, None, prompt_embeds=embeds, **call), tensors["out.final_codes"])


def test_pictures_of_a_text_are_in_a_row_and_each_step_is_told():
    pipe, steps = build(), []

    def note(told, index, time, values):
        steps.append((told is pipe, index, time, values))

    generators = [seeded(seed) for seed in range(4)]
    codes = pipe(
        PROMPTS, num_images_per_prompt=2, generator=generators, num_inference_steps=3, output_type="codes",
        callback_on_step_end=note,
    ).images  # fmt: skip
    assert steps == [(True, index, time, {}) for index, time in enumerate(pipe.scheduler.timesteps.tolist())]
    for place, prompt in enumerate(word for word in PROMPTS for _ in range(2)):
        assert torch.equal(draw(pipe, prompt, place, num_inference_steps=3)[0], codes[place])
    (pictures,) = pipe("a cat", height=6, width=4, return_dict=False)
    assert pictures[0].size == (4, 6)
    assert not torch.equal(draw(pipe, guidance_scale=1.0), draw(pipe))


def test_guidance_goes_away_from_the_negative_text_or_from_what_no_text_is():
    pipe = build()
    empty, _ = pipe.encode_prompt("")
    texts, _ = pipe.encode_prompt(PROMPTS)
    null = pipe.prior.null_text[None]
    assert torch.equal(draw(pipe), draw(pipe, negative_prompt_embeds=null))
    assert torch.equal(draw(pipe, negative_prompt=""), draw(pipe, negative_prompt_embeds=empty))
    assert torch.equal(draw(pipe, negative_prompt=PROMPTS[::-1]), draw(pipe, negative_prompt_embeds=texts.flip(0)))
    assert not torch.equal(draw(pipe), draw(pipe, negative_prompt="a cat"))
    unlearned = build(null_text=None, text_dropout_prob=0.0)
    assert torch.equal(draw(unlearned), draw(unlearned, negative_prompt=""))
    zero = build(null_text="zero")
    assert torch.equal(draw(zero), draw(zero, negative_prompt_embeds=torch.zeros_like(null)))


def test_another_scheduler_takes_other_steps_and_offloaded_weights_take_the_same():
    pipe = build()
    codes = draw(pipe)
    models = pipe.model_cpu_offload_seq.split("->")
    assert {*models, "tokenizer", "scheduler", "judge_processor"} == set(pipe.components)
    for name in models[:-1]:  # there is no judge
        accelerate.cpu_offload(getattr(pipe, name), torch.device("cpu"), offload_buffers=True)
    assert torch.equal(draw(pipe), codes)
    for scheduler in (pipe.scheduler, pipe.prior.config.make_scheduler()):
        pipe.scheduler = DiscreteDiffusionScheduler.from_config(scheduler.config, schedule="cosine")
        assert not torch.equal(draw(pipe), codes)


def test_completion_sees_all_kept_codes():
    pipe, image = build(), torch.rand(1, 3, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :] = 1  # the upper half is new, and sees the lower one
    kept, other = (pipe.autoencoder.tokenize(each * 2 - 1) for each in (image, image.flip(1)))
    assert not torch.equal(kept[:, 2:], other[:, 2:])
    codes, others = (draw(pipe, image=each, mask_image=mask) for each in (image, image.flip(1)))
    assert torch.equal(codes[:, 2:], kept[:, 2:].expand(2, -1, -1))
    assert not torch.equal(codes[:, :2], others[:, :2])


@pytest.mark.parametrize(("name", "length"), [("t5", 0), ("t5", 10), ("bert", 0)])
def test_any_text_encoder_reads_and_masked_padding_changes_nothing(name, length):
    torch.manual_seed(1)
    words = len(read_tokenizer())
    if name == "t5":
        encoder = T5EncoderModel(T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    else:
        encoder = BertModel(BertConfig(**TINY, vocab_size=words, max_position_embeddings=12))
    pipe = build(encoder, False, False, True, text_length=length, null_text="zero")
    embeds, mask = pipe.encode_prompt(PROMPTS)
    assert mask.sum(1).tolist() == [5, 8]
    assert embeds.shape == (2, length or 12, 16)
    short, _ = pipe.encode_prompt(PROMPTS[0])
    assert torch.equal(short, embeds[:1])
    codes = draw(pipe, PROMPTS[0], guidance_scale=2.0)
    pipe.tokenizer.model_max_length = 10**30  # texts are then as long as the longest of a call
    if name == "t5":
        assert pipe.encode_prompt(PROMPTS[0])[0].shape == (1, length or 5, 16)
    assert torch.equal(draw(pipe, PROMPTS[0], guidance_scale=2.0), codes)
    embeds[mask == 0] = 7.0
    given = draw(pipe, None, prompt_embeds=embeds[:1], prompt_attention_mask=mask[:1], guidance_scale=2.0)
    assert torch.equal(given, codes)


def test_a_masked_prior_of_texts_and_classes_draws_and_completes():
    pipe = build()
    config = MaskedPriorConfig(
        codebook_size=12, code_shape=(4, 4), hidden_size=16, num_layers=1, num_heads=2, num_classes=3,
        cross_attention_dim=16, text_length=12, text_dropout_prob=0.1, null_text="learned",
    )  # fmt: skip
    prior = MaskedPrior(config).eval()
    with pytest.raises(ValueError, match="scheduler must be a MaskedScheduler, got DiscreteDiffusionScheduler"):
        Pipeline(**pipe.components | {"prior": prior})
    other = Pipeline(pipe.autoencoder, prior, pipe.text_encoder, pipe.tokenizer, class_names=["ant", "bee", "cat"])
    other.set_progress_bar_config(disable=True)
    image, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    request = {"class_labels": ["bee", 2], "num_inference_steps": 3, "image": image, "mask_image": mask}
    codes = draw(other, num_images_per_prompt=2, negative_prompt="a cat", **request)
    kept = pipe.autoencoder.tokenize(image * 2 - 1)[:, :, 2:]
    assert torch.equal(codes[:, :, 2:], kept.expand(4, -1, -1))
    with pytest.raises(ValueError, match="num_inference_steps must be at most 16"):
        draw(other, class_labels=[0, 1], num_inference_steps=17)
    with pytest.raises(ValueError, match="conditions must be of one number of samples"):
        draw(other, "a cat", **request)


LONG = "the red dog and a cat and the blue dog"
BAD = {
    "prompt is too long by 1 tokens: it has 13, at most 12": {"prompt": LONG + " a"},
    "prompt must not be empty, got ''": {"prompt": ""},
    r"prompt must not be empty, got \['a cat', ' '\]": {"prompt": ["a cat", " "]},
    r"prompt must be a string or a list of at least one, got \[\]": {"prompt": []},
    r"prompt\[0\] must be a string, got 3": {"prompt": [3]},
    "prompt is missing": {},
    "prompt and prompt_embeds exclude": {"prompt": "a cat", "prompt_embeds": torch.zeros(1, 12, 16)},
    r"prompt_embeds must be \(batch, 12, 16\), got \(1, 12, 15\)": {"prompt_embeds": torch.zeros(1, 12, 15)},
    "prompt_embeds must be floats, got torch.int64": {"prompt_embeds": torch.zeros(1, 12, 16).long()},
    "prompt_embeds must be finite": {"prompt_embeds": torch.full((1, 12, 16), torch.nan)},
    "prompt_attention_mask given without": {"prompt": "a cat", "prompt_attention_mask": torch.ones(1, 12)},
    r"prompt_attention_mask must be \(1, 12\)": {
        "prompt_embeds": torch.zeros(1, 12, 16), "prompt_attention_mask": torch.ones(1, 11).long(),
    },
    "prompt_attention_mask must be integers, got torch.float32": {
        "prompt_embeds": torch.zeros(1, 12, 16), "prompt_attention_mask": torch.ones(1, 12),
    },
    "negative_prompt_attention_mask must leave at least one state": {
        "prompt": "a", "negative_prompt_embeds": torch.zeros(1, 12, 16),
        "negative_prompt_attention_mask": torch.zeros(1, 12).long(),
    },
    "generator must be one, or one per item: got 1 for 2": {"prompt": PROMPTS, "generator": [torch.Generator()]},
    "scheduler=3 is no argument of a call: set": {"prompt": "a", "scheduler": 3},
    "encoder_hidden_states=.* is no argument of a call: give prompt": {
        "prompt": "a", "encoder_hidden_states": torch.zeros(1, 12, 16)
    },
    "negative_prompt must be one, or one for each of 2 prompts, got 3": {
        "prompt": PROMPTS, "negative_prompt": ["a", "b", "c"],
    },
    "negative_prompt given, but guidance_scale=1": {"prompt": "a", "negative_prompt": "b", "guidance_scale": 1.0},
    r"negative_prompt_embeds must be \(2, 12, 16\), got \(3, 12, 16\)": {
        "prompt": PROMPTS, "negative_prompt_embeds": torch.zeros(3, 12, 16),
    },
    "num_inference_steps must be at most num_train_timesteps=6.*got 7": {"prompt": "a", "num_inference_steps": 7},
    "num_images_per_prompt.*0": {"prompt": "a", "num_images_per_prompt": 0},
    "truncation_rate.*1.5": {"prompt": "a", "truncation_rate": 1.5},
    "guidance_scale.*-1": {"prompt": "a", "guidance_scale": -1.0},
    "output_type must be one of": {"prompt": "a", "output_type": "smell"},
}  # fmt: skip


@pytest.fixture(scope="module")
def idle():
    pipe = build()
    pipe.text_encoder.forward = None  # what is called works
    return pipe


@pytest.mark.parametrize("message", BAD)
def test_a_bad_request_is_named_before_any_work(message, idle):
    with pytest.raises((ValueError, TypeError), match=message):
        idle(**BAD[message])


def test_long_texts_are_cut_when_asked_and_none_are_none():
    pipe = build()
    with pytest.raises(ValueError, match=r"prompt must be a string or a list of at least one, got \[\]"):
        pipe.encode_prompt([])
    assert torch.equal(draw(pipe, LONG + " a", truncate_prompt=True), draw(pipe, LONG))


def test_parts_that_do_not_belong_together_are_refused():
    pipe, words = build(), len(read_tokenizer())
    parts = {name: part for name, part in pipe.components.items() if name != "scheduler"}
    wide = CLIPTextModel(CLIPTextConfig(**TINY | {"hidden_size": 20}, vocab_size=words, eos_token_id=2))
    few = BertModel(BertConfig(**TINY, vocab_size=words - 1))
    short = BertModel(BertConfig(**TINY, vocab_size=words, max_position_embeddings=11))
    silent = read_tokenizer()
    silent.pad_token = None
    steps, codes = DiscreteDiffusionScheduler(13, 7), DiscreteDiffusionScheduler(14, 6)
    deaf = DiscreteDiffusionPrior(DiscreteDiffusionPriorConfig(codebook_size=12, hidden_size=8, num_heads=1))
    for message, changed in {
        "text_encoder, a CLIPTextModel, gives states of width hidden_size=20.*cross_attention_dim=16": {
            "text_encoder": wide
        },
        "tokenizer has .* tokens, but text_encoder, a BertModel": {"text_encoder": few},
        "takes max_position_embeddings=11 tokens.*text_length=12": {"text_encoder": short},
        "has no pad_token": {"tokenizer": silent},
        "num_train_timesteps=6.*got 13 and 7": {"scheduler": steps},
        "num_vec_classes=13.*got 14 and 6": {"scheduler": codes},
        "prior.*has no text": {"prior": deaf},
        "tokenizer is missing": {"tokenizer": None},
        "autoencoder is a AudioCodec of the modality 'audio', whose samples VQAudioPipeline draws": {
            "autoencoder": make_codec("encodec")
        },
        "prior, a PixelCNN, does not take encoder_hidden_states": {
            "prior": hf_vq.PixelCNN(hf_vq.PixelCNNConfig(codebook_size=12, hidden_channels=8, num_layers=1))
        },
    }.items():
        with pytest.raises(ValueError, match=message):
            Pipeline(**parts | changed)
    bare = Pipeline(pipe.autoencoder, build(null_text=None, text_dropout_prob=0.0).prior)
    with pytest.raises(ValueError, match="prompt needs a text_encoder"):
        bare("a cat")
    embeds = pipe.encode_prompt("a cat")[0]
    with pytest.raises(ValueError, match=r"guidance_scale=5.0 needs negative_prompt_embeds"):
        bare(prompt_embeds=embeds)
    assert draw(bare, None, prompt_embeds=embeds, negative_prompt_embeds=embeds).shape == (1, 4, 4)


def test_the_command_line_draws_and_tells_the_parts(tmp_path, capsys):
    build().save_pretrained(tmp_path / "pipe")
    common = ["sample", str(tmp_path / "pipe"), str(tmp_path / "out.png"), "--num", "2"]
    steps = ["--num_inference_steps", "2", "--negative_prompt", "a dog", "--truncation_rate", "0.9"]
    assert hf_vq_cli.main([*common, "--prompt", *PROMPTS, *steps]) == 0
    assert "Wrote 4 images" in capsys.readouterr().out
    assert hf_vq_cli.main([*common, "--overwrite"]) != 0
    assert "prompt is missing" in capsys.readouterr().err
    assert hf_vq_cli.main([*common, "--overwrite", "--prompt", "a " * 20]) != 0
    assert "too long by 10 tokens" in capsys.readouterr().err
    with pytest.raises(ValueError, match="truncate_prompt=True given, but a VQPipeline draws nothing that a text"):
        read_conditions(SampleOptions("pipe", "out.png", truncate_prompt=True), {"_class_name": "VQPipeline"}, [])
    assert hf_vq_cli.main(["inspect", str(tmp_path / "pipe")]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("CLIPTextModel", "CLIPTokenizer", "DiscreteDiffusionScheduler"))

"""Facts about hierarchies of priors: levels conditioned on coarser ones, folders, completion, the command line."""

import json

import pytest
import torch
from PIL import Image

import hf_vq
import hf_vq_cli
from hf_vq import VQVAE2, PixelCNN, PixelCNNConfig, PixelSNAIL, PixelSNAILConfig, VQPipeline, VQVAE2Pipeline
from hf_vq.data.codes import load_codes


def autoencoder(strides=(2, 2), **changes):
    torch.manual_seed(0)
    options = {"in_channels": 1, "hidden_channels": 8, "num_residual_layers": 1, "residual_channels": 4,
               "codebook_size": (10, *[12] * (len(strides) - 1)), "codebook_dim": 4, "strides": strides}  # fmt: skip
    model = VQVAE2(**{**options, **changes})
    model.train()(torch.rand(4, 1, 16, 16) * 2 - 1)
    return model.eval()


def prior(size, shape, context=(), classes=3):
    torch.manual_seed(1)
    config = PixelSNAILConfig(
        codebook_size=size, code_shape=shape, context_codebook_sizes=context, num_classes=classes,
        class_dropout_prob=0.1 if classes else 0.0, hidden_channels=8, residual_channels=8, num_blocks=1,
        num_residual_layers=1, num_attention_heads=2, num_context_layers=1, kernel_size=3, dropout=0.0,
    )  # fmt: skip
    model = PixelSNAIL(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def build(classes=3, levels=2):
    names = ["ant", "bee", "cat"] if classes else None
    if levels == 2:
        priors = {"top_prior": prior(10, (4, 4), classes=classes), "bottom_prior": prior(12, (8, 8), (10,), classes)}
        pipe = VQVAE2Pipeline(autoencoder(), **priors, class_names=names)
    else:
        pipe = VQVAE2Pipeline(
            autoencoder((2, 2, 2)),
            prior(10, (2, 2), classes=classes),
            prior(12, (8, 8), (10, 12), classes),
            prior(12, (4, 4), (10,), classes),
            class_names=names,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("levels", [2, 3])
def test_each_level_follows_the_codes_of_the_coarser_ones(levels):
    pipe, labels, source = build(levels=levels), torch.tensor([0, 2]), generator()
    expected = ()
    for model in pipe.priors:
        context = {"context_codes": expected} if expected else {}
        drawn = model.sample(class_labels=labels, temperature=0.9, guidance_scale=1.5, generator=source, **context)
        expected = (*expected, drawn)
    arguments = {"class_labels": [0, "cat"], "temperature": 0.9, "guidance_scale": 1.5}
    codes = pipe(**arguments, generator=generator(), output_type="codes").images
    assert all(torch.equal(*pair) for pair in zip(codes, expected, strict=True))
    images = pipe(**arguments, generator=generator(), output_type="pt").images
    torch.testing.assert_close(images, (pipe.autoencoder.detokenize(expected) / 2 + 0.5).clamp(0, 1))
    assert [image.size for image in pipe(**arguments).images] == [(16, 16)] * 2


def test_options_may_differ_from_level_to_level():
    pipe = build(classes=0)
    codes = pipe(
        batch_size=2, temperature=[0.7, 0], top_k=(3, None), generator=generator(), output_type="codes"
    ).images
    top = pipe.top_prior.sample(2, temperature=0.7, top_k=3, generator=generator())
    assert torch.equal(codes[0], top)
    assert torch.equal(codes[1], pipe.bottom_prior.sample(context_codes=(top,), temperature=0))
    with pytest.raises(ValueError, match=r"temperature must be one value or 2.*0\.5"):
        pipe(temperature=[0.5])


def test_completing_a_picture_keeps_the_codes_of_every_level():
    pipe = build(classes=0)
    image = torch.rand(1, 1, 16, 16, generator=generator())
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 9:, :] = 1.0  # from the middle of the third top row on
    top, bottom = pipe(image=image, mask_image=mask, num_images_per_prompt=2, output_type="codes").images
    known_top, known_bottom = pipe.autoencoder.tokenize(image * 2 - 1)
    assert torch.equal(top[:, :2], known_top[:, :2].expand(2, -1, -1))
    assert torch.equal(bottom[:, :4], known_bottom[:, :4].expand(2, -1, -1))


def test_parts_that_do_not_belong_together_are_refused():
    pipe = build()
    top, bottom = pipe.top_prior, pipe.bottom_prior
    with pytest.raises(ValueError, match="top_prior has codebook_size=12"):
        VQVAE2Pipeline(pipe.autoencoder, bottom, bottom)
    with pytest.raises(ValueError, match="middle_prior must be None"):
        VQVAE2Pipeline(pipe.autoencoder, top, bottom, middle_prior=bottom)
    with pytest.raises(ValueError, match=r"bottom_prior.*PixelCNN.*context_codes"):
        VQVAE2Pipeline(pipe.autoencoder, top, PixelCNN(PixelCNNConfig(codebook_size=12, num_classes=3)))
    with pytest.raises(ValueError, match="same classes"):
        VQVAE2Pipeline(pipe.autoencoder, prior(10, (4, 4), classes=2), bottom)
    with pytest.raises(ValueError, match="VQVAE2Pipeline"):
        VQPipeline(pipe.autoencoder, top)


def test_the_command_line_trains_a_prior_of_each_level_and_evaluates_the_whole(tmp_path):
    images = tmp_path / "images"
    for label in ("dark", "light"):
        (images / label).mkdir(parents=True)
        for number in range(12):
            level = (200 if label == "light" else 20) + number
            Image.new("L", (16, 16), level).save(images / label / f"{number}.png")
    model = autoencoder()
    model.save_pretrained(tmp_path / "autoencoder")

    def run(*words):
        assert hf_vq_cli.main(list(map(str, words))) in (0, None)

    data = ["--data", images, "--validation_fraction", "0.25"]
    run("tokenize", tmp_path / "autoencoder", *data, "--output", tmp_path / "codes")
    codes = load_codes(tmp_path / "codes", level=1, context=True)
    assert [tuple(one.shape) for one in codes[0]["context_codes"]] == [(4, 4)]
    train = ["train", "prior", "--codes", tmp_path / "codes", "--prior", "PixelSNAIL", "--max_steps", "2", "--use_cpu"]
    small = {"hidden_channels": 8, "residual_channels": 8, "num_blocks": 1, "num_residual_layers": 1}
    train += ["--prior_config", json.dumps({**small, "num_attention_heads": 2, "num_context_layers": 1})]
    assert hf_vq_cli.main(list(map(str, [*train, "--output", tmp_path / "none"]))) == 2  # no level
    run(*train, "--level", "top", "--output", tmp_path / "top")
    run(*train, "--level", "bottom", "--output", tmp_path / "bottom", "--top_prior", tmp_path / "top",
        "--autoencoder", tmp_path / "autoencoder")  # fmt: skip
    assert (tmp_path / "bottom" / "samples.png").is_file()
    pipe = hf_vq.VQVAE2Pipeline.from_pretrained(tmp_path / "bottom" / "pipeline")
    assert pipe.bottom_prior.config.context_codebook_sizes == [10]
    run("evaluate", tmp_path / "bottom", "--codes", tmp_path / "codes", "--output", tmp_path / "prior.json")
    run("evaluate", tmp_path / "bottom" / "pipeline", *data, "--output", tmp_path / "whole.json")
    alone, whole = (json.loads((tmp_path / name).read_text()) for name in ("prior.json", "whole.json"))
    assert whole["bottom_prior"]["nats_per_code"] == pytest.approx(alone["prior"]["nats_per_code"], rel=1e-5)
    assert whole["likelihood"]["bits_per_dim"] > 0


def never(*arguments, **keywords):
    raise AssertionError("a prior was asked")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mood": [None, None]}, r"mood=\[None, None\] given, but none of the priors takes it"),
        ({"mood": (None, None)}, r"mood=\(None, None\)"),
        ({"context_codes": [None, (torch.zeros(1, 4, 4, dtype=torch.int64),)]}, r"context_codes=\[None, .*tensor"),
        ({"context_codes": (torch.zeros(1, 4, 4, dtype=torch.int64),)}, "context_codes=.*tensor"),
        ({"batch_size": 3, "prompt_ids": [torch.zeros(2, 3, dtype=torch.int64), None]}, "batch_size=3.*prompt_ids"),
        ({"batch_size": 2, "prompt_ids": [torch.zeros(2, 3, dtype=torch.int64), None]}, "batch_size=2.*prompt_ids"),
    ],
)
def test_a_keyword_is_heeded_or_refused_before_any_work(arguments, message):
    pipe = with_prompts()
    for model in pipe.priors:
        model.sample = never
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def with_prompts():
    torch.manual_seed(0)
    config = hf_vq.TransformerPriorConfig(
        codebook_size=10, code_shape=(4, 4), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16,
        num_text_tokens=9, prompt_length=3, initializer_range=0.5,
    )  # fmt: skip
    pipe = VQVAE2Pipeline(autoencoder(), hf_vq.TransformerPrior(config).eval(), prior(12, (8, 8), (10,), classes=0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_prompts_of_one_grid_are_repeated_and_decide_the_number():
    pipe, prompts = with_prompts(), torch.tensor([[1, 2, 3], [7, 8, 5]])
    top, bottom = pipe(
        prompt_ids=[prompts, None], num_images_per_prompt=2, generator=generator(), output_type="codes"
    ).images
    expected = pipe.top_prior.sample(prompt_ids=prompts.repeat_interleave(2, 0), generator=generator())
    assert torch.equal(top, expected)
    assert bottom.shape == (4, 8, 8)

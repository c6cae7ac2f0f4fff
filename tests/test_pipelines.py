"""Facts about pipelines: prior and autoencoder in a row, folders, what diffusers users expect."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import hf_vq
from hf_vq import VQVAE, PixelCNN, PixelCNNConfig, VQModel, VQPipeline


def build(classes=3, channels=1, autoencoder="vqvae"):
    if autoencoder == "vqvae":
        model = VQVAE(in_channels=channels, hidden_channels=8, codebook_size=12, codebook_dim=4, stage_channels=(8,))
    else:
        model = VQModel(in_channels=3, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, num_vq_embeddings=12)  # fmt: skip
    model.train()(torch.rand(4, model.config.in_channels, 8, 8) * 2 - 1)
    config = PixelCNNConfig(
        codebook_size=12, num_classes=classes, code_shape=(4, 4), hidden_channels=8, num_layers=2,
        class_dropout_prob=0.1 if classes else 0.0,
    )  # fmt: skip
    names = ["ant", "bee", "cat"] if classes else None
    pipe = VQPipeline(autoencoder=model.eval(), prior=PixelCNN(config).eval(), class_names=names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("autoencoder", "channels", "mode"), [("vqvae", 1, "L"), ("vqvae", 3, "RGB"), ("vqmodel", 3, "RGB")]
)
def test_images_are_the_decoded_codes_of_the_prior(autoencoder, channels, mode):
    pipe = build(channels=channels, autoencoder=autoencoder)
    labels = torch.tensor([0, 0, 2, 2])
    codes = pipe.prior.sample(class_labels=labels, generator=generator(), temperature=0.9, top_k=5)
    arguments = {"class_labels": [0, "cat"], "num_images_per_prompt": 2, "temperature": 0.9, "top_k": 5}
    assert torch.equal(pipe(**arguments, generator=generator(), output_type="codes").images, codes)
    expected = (pipe.autoencoder.detokenize(codes) / 2 + 0.5).clamp(0, 1)
    images = pipe(**arguments, generator=generator(), output_type="pt").images
    torch.testing.assert_close(images, expected)
    array = pipe(**arguments, generator=generator(), output_type="np").images
    np.testing.assert_allclose(array, expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    one, other = (pipe(label, generator=generator(), output_type="codes").images for label in (2, np.int64(2)))
    assert torch.equal(one, other)
    (pictures,) = pipe(**arguments, generator=generator(), return_dict=False)
    assert [(type(p), p.mode, p.size) for p in pictures] == [(Image.Image, mode, (8, 8))] * 4


def test_another_size_and_known_codes():
    pipe = build(classes=0)
    assert pipe(height=12, width=6)[0][0].size == (6, 12)
    known = torch.randint(0, 12, (1, 4, 4))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    codes = pipe(known_codes=known, known_mask=mask, output_type="codes").images
    assert torch.equal(codes[mask], known[mask])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": 3, "guidance_scale": 1.0, "output_type": "jpeg"}, "output_type.*jpeg"),
        ({"class_labels": 7}, "class_labels.*7"),
        ({"class_labels": "dog"}, "dog.*ant"),
        ({}, "class_labels"),
        ({"class_labels": 1, "batch_size": 4}, "batch_size"),
        ({"class_labels": 1, "num_images_per_prompt": 0}, "num_images_per_prompt.*0"),
        ({"class_labels": 1, "num_images_per_prompt": 1.5}, "num_images_per_prompt must be an integer.*1.5"),
        ({"class_labels": 1, "num_images_per_prompt": True}, "num_images_per_prompt must be an integer.*True"),
        ({"batch_size": "3"}, "batch_size must be an integer.*'3'"),
        ({"class_labels": 1, "height": 8}, "height and width"),
        ({"class_labels": 1, "height": 7, "width": 8}, "downsampling"),
        ({"class_labels": 1, "temperature": -1.0}, "temperature.*-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build()(**arguments)


def test_parts_that_do_not_belong_together_are_refused():
    pipe = build()
    other = PixelCNN(PixelCNNConfig(codebook_size=13, hidden_channels=8, num_layers=1))
    with pytest.raises(ValueError, match=r"13.*12"):
        VQPipeline(pipe.autoencoder, other)
    with pytest.raises(ValueError, match="class_names"):
        VQPipeline(pipe.autoencoder, pipe.prior, class_names=["one"])


def test_pipeline_is_a_diffusers_pipeline():
    pipe = build().to(torch.float32)
    assert isinstance(pipe, diffusers.DiffusionPipeline)
    assert {name for name, part in pipe.components.items() if part is not None} == {"autoencoder", "prior"}


def picture(seed=0, size=8):
    return torch.rand(1, 1, size, size, generator=generator(seed))


def test_completing_a_picture_keeps_every_code_that_the_mask_does_not_touch():
    pipe, image = build(classes=0), picture()
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 5, 3] = 1.0  # one pixel: in the code of row 2, column 1
    mask[..., 6:, :] = 1.0
    arguments = {"num_images_per_prompt": 3, "generator": generator()}
    codes = pipe(image=image, mask_image=mask, output_type="codes", **arguments).images
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[2, 1] = kept[3] = False
    original = pipe.autoencoder.tokenize(image * 2 - 1)
    assert torch.equal(codes[:, kept], original[:, kept].expand(3, -1))
    by_codes = pipe(
        known_codes=original.expand(3, -1, -1), known_mask=kept.expand(3, 4, 4), output_type="codes",
        num_images_per_prompt=3, generator=generator(),
    )  # fmt: skip
    assert torch.equal(codes, by_codes.images)
    as_pil = Image.fromarray((mask[0, 0].numpy() * 255).astype(np.uint8))
    assert torch.equal(pipe(image=image, mask_image=as_pil, output_type="codes", num_images_per_prompt=3,
                            generator=generator()).images, codes)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": picture()}, "mask_image is missing"),
        ({"mask_image": picture()}, "image is missing"),
        ({"image": torch.rand(2, 1, 8, 8), "mask_image": picture()}, "image must be one.*got 2"),
        ({"image": torch.rand(1, 3, 8, 8), "mask_image": picture()}, "image must have 1 channels"),
        ({"image": picture(size=7), "mask_image": picture(size=7)}, "downsampling"),
        (
            {"image": picture(), "mask_image": picture(), "known_codes": torch.zeros(1, 4, 4, dtype=torch.int64)},
            "image and known_codes exclude",
        ),
    ],
)
def test_pictures_that_cannot_be_completed_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(classes=0)(**arguments)


@pytest.mark.parametrize("name", ["TransformerPrior", "GPTPrior", "LlamaGenPrior", "PixelSNAIL", "RQTransformer"])
def test_any_prior_saves_and_loads_in_a_pipeline(name, tmp_path):
    residual = name == "RQTransformer"
    torch.manual_seed(0)
    autoencoder = VQVAE(
        in_channels=1, hidden_channels=8, codebook_size=12, codebook_dim=4, stage_channels=(8,),
        quantizer_type="residual" if residual else "ema", quantizer_config={"num_levels": 3} if residual else None,
    )  # fmt: skip
    autoencoder.train()(torch.rand(4, 1, 8, 8) * 2 - 1)
    small = {
        "TransformerPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16},
        "GPTPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "block_size": 17},
        "LlamaGenPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16},
        "PixelSNAIL": {"hidden_channels": 8, "residual_channels": 8, "num_blocks": 1, "num_attention_heads": 2},
        "RQTransformer": {
            "num_levels": 3, "hidden_size": 16, "num_spatial_layers": 1, "num_spatial_heads": 2,
            "num_depth_layers": 1, "num_depth_heads": 2, "block_size": 16, "spatial_inputs": "embeddings",
            "depth_inputs": "embeddings",
        },
    }[name]  # fmt: skip
    prior_class = getattr(hf_vq, name)
    shape = (3, 4, 4) if residual else (4, 4)
    config = prior_class.config_class(
        codebook_size=12, num_classes=2, code_shape=shape, class_dropout_prob=0.1, **small
    )
    pipe = VQPipeline(autoencoder.eval(), prior_class(config).eval())
    pipe.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [0, 1], "guidance_scale": 1.5, "output_type": "pt"}
    expected = pipe(**arguments, generator=generator()).images
    pipe.save_pretrained(tmp_path)
    loaded = VQPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.prior) is prior_class
    torch.testing.assert_close(loaded(**arguments, generator=generator()).images, expected)
    stock = diffusers.DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(stock).__name__ == "VQPipeline"
    hf_vq.hub.read_folder(tmp_path)  # what push checks


def build_with_prompts():
    pipe = build(classes=0)
    torch.manual_seed(0)
    config = hf_vq.TransformerPriorConfig(
        codebook_size=12, code_shape=(4, 4), hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16,
        num_text_tokens=9, prompt_length=3, initializer_range=0.5,
    )  # fmt: skip
    pipe = VQPipeline(pipe.autoencoder, hf_vq.TransformerPrior(config).eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("form", [torch.tensor, lambda prompts: prompts, np.array])
def test_each_prompt_has_its_images_in_a_row(form):
    pipe, prompts = build_with_prompts(), [[1, 2, 3], [7, 8, 5]]
    expected = pipe.prior.sample(prompt_ids=torch.tensor(prompts).repeat_interleave(3, 0), generator=generator())
    arguments = {"prompt_ids": form(prompts), "generator": generator(), "output_type": "codes"}
    codes = pipe(num_images_per_prompt=3, **arguments).images
    assert torch.equal(codes, expected)
    sources = [generator(seed) for seed in range(4)]
    each = pipe(**{**arguments, "generator": sources}, num_images_per_prompt=2).images
    alone = pipe(prompt_ids=prompts[1:], generator=generator(2), output_type="codes").images
    assert torch.equal(each[2:3], alone)


def test_one_picture_is_completed_for_each_prompt_and_a_picture_a_prompt_for_its_images():
    pipe, prompts = build_with_prompts(), torch.tensor([[1, 2, 3], [7, 8, 5]])
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:, :] = 1.0
    images = torch.cat([picture(0), picture(1)])
    first_rows = pipe.autoencoder.tokenize(images * 2 - 1)[:, :2]
    arguments = {"prompt_ids": prompts, "mask_image": mask, "output_type": "codes"}
    assert torch.equal(pipe(image=images[:1], **arguments).images[:, :2], first_rows[:1].expand(2, -1, -1))
    codes = pipe(image=images, num_images_per_prompt=3, **arguments).images
    assert torch.equal(codes[:, :2], first_rows.repeat_interleave(3, 0))
    one_each = torch.cat([images, images, images])
    codes = pipe(image=one_each, num_images_per_prompt=3, **arguments).images
    assert torch.equal(codes[:, :2], torch.cat([first_rows] * 3))
    with pytest.raises(ValueError, match=r"image must be one.*got 4"):
        pipe(image=one_each[:4], num_images_per_prompt=3, **arguments)

"""Every quantizer in every autoencoder by one word of the config, through the command line and through folders."""

import copy
import json

import diffusers
import pytest
import torch
import transformers
import yaml

import hf_vq
import hf_vq_cli
from hf_vq import VQVAE, VQModel, VQPipeline
from hf_vq.priors import PixelCNN, PixelCNNConfig
from hf_vq.quantizers import QUANTIZERS

from .conftest import no_complaints

# quantizer_type -> codebook_size and the options without which it is not complete
CHOICES = {
    "vector": (8, {"normalize": True, "gradient": "rotation", "code_dim": 4, "entropy_weight": 0.01}),
    "ema": (8, {"normalize": True}),
    "index_backpropagation": (8, {}),
    "remapped": (8, {"num_used": 8}),
    "finite_scalar": (40, {"levels_per_dim": [8, 5]}),
    "lookup_free": (16, {"spherical": True}),
    "gumbel": (8, {"final_temperature": 0.1, "temperature_steps": 4}),
    "residual": (8, {"num_levels": 3, "shared_codebook": True, "level_dropout": 0.5}),
    "product": (8, {"groups": 2, "group_type": "residual", "group_config": {"num_levels": 2}}),
}
EVERY = pytest.mark.parametrize("quantizer_type", CHOICES)


def test_every_quantizer_is_tried():
    assert set(CHOICES) == set(QUANTIZERS)


def vqvae(quantizer_type, **options):
    codebook_size, config = CHOICES[quantizer_type]
    return VQVAE(
        in_channels=1, hidden_channels=8, stage_channels=(4,), num_residual_layers=0, codebook_dim=6,
        codebook_size=codebook_size, quantizer_type=quantizer_type, quantizer_config=config, **options,
    )  # fmt: skip


def vq_model(quantizer_type):
    codebook_size, config = CHOICES[quantizer_type]
    return VQModel(
        in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4, latent_channels=6,
        num_vq_embeddings=codebook_size, quantizer_type=quantizer_type, quantizer_config=config,
    )  # fmt: skip


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("quantizer_type", ["finite_scalar", "residual", "remapped"])  # the others are trained below
def test_the_road_by_the_command_line(quantizer_type, tmp_path):
    codebook_size, config = CHOICES[quantizer_type]
    sizes = {"hidden_channels": 8, "stage_channels": [4], "num_residual_layers": 0, "codebook_dim": 6}
    recipe = {
        "data": "digits", "max_steps": 3, "eval_steps": 2, "save_steps": 2, "use_cpu": True, "disable_tqdm": True,
        "gradient_accumulation_steps": 2, "per_device_train_batch_size": 32,
        "model_config": {
            **sizes, "codebook_size": codebook_size, "quantizer_type": quantizer_type, "quantizer_config": config
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = tmp_path / "autoencoder"
    assert run("train", "autoencoder", tmp_path / "recipe.yaml", "--output", folder) == 0
    metrics = json.loads((folder / "report.json").read_text())["metrics"]
    assert 0 < metrics["eval_usage"] <= 1
    assert {path.name for path in folder.glob("*.png")} >= {"code_maps.png", "codebook_usage.png"}
    assert run("tokenize", folder, "--data", "digits", "--output", tmp_path / "codes") == 0
    assert run("inspect", tmp_path / "codes") == 0
    assert run("inspect", folder, "--image_size", 8) == 0
    model = hf_vq.AutoVQModel.from_pretrained(folder)
    codes = hf_vq.data.codes.load_codes(tmp_path / "codes", "train")
    assert codes.code_shape == model.code_shape((1, 8, 8))
    sample = hf_vq.data.images.load_images("digits", split="train")[0]["sample"]
    assert torch.equal(model.tokenize(sample[None])[0], codes[0]["codes"])


@EVERY
def test_a_resumed_run_equals_one_without_a_break(quantizer_type, tmp_path):
    from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder

    images = hf_vq.data.images.load_images("digits", split="train")

    def train(folder, resume=None):
        torch.manual_seed(0)
        model = vqvae(quantizer_type)
        args = AutoencoderTrainingArguments(
            output_dir=str(tmp_path / folder), max_steps=4, save_steps=2, per_device_train_batch_size=16, use_cpu=True,
            disable_tqdm=True, resume_from_checkpoint=resume,
        )  # fmt: skip
        train_autoencoder(model, images, args)
        return model.state_dict()

    whole = train("whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "broken" / "checkpoint-2")
    for name, tensor in train("broken", resume=str(tmp_path / "broken" / "checkpoint-2")).items():
        assert torch.equal(tensor, whole[name]), name


@EVERY
@pytest.mark.parametrize("make", [vqvae, vq_model])
def test_folders_keep_the_tokenizer(quantizer_type, make, tmp_path):
    model, sample = make(quantizer_type).train(), torch.rand(3, 1, 8, 8) * 2 - 1
    output = model(sample)
    output.loss.backward()
    model.eval().save_pretrained(tmp_path)
    codes = model.tokenize(sample)
    assert tuple(codes.shape[1:]) == model.code_shape((1, 8, 8))
    torch.testing.assert_close(model.detokenize(codes), model(sample).sample)
    with no_complaints():
        for loaded in (
            hf_vq.AutoVQModel.from_pretrained(tmp_path),
            transformers.AutoModel.from_pretrained(tmp_path).autoencoder,
        ):
            assert torch.equal(loaded.eval().tokenize(sample), codes)
            assert torch.equal(loaded.detokenize(codes), model.detokenize(codes))
            assert torch.equal(loaded.quantizer.nonfinite_rows, torch.tensor(0))
    same = copy.deepcopy(model)
    assert torch.equal(same.tokenize(sample), codes)


@EVERY
def test_stock_never_decodes_what_it_does_not_know(quantizer_type, tmp_path):
    """Names that stock does not have: it fails at first use instead of decoding with a codebook it made up."""
    model = vq_model(quantizer_type).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="stock diffusers has no"):
        model.to_diffusers()
    stock = diffusers.VQModel.from_pretrained(tmp_path)
    with pytest.raises((RuntimeError, NotImplementedError)):
        stock.decode(torch.randn(1, 6, 8, 8))


def test_stock_pipelines_get_their_three_tuple():
    for quantizer_type in ("finite_scalar", "gumbel", "lookup_free"):
        model, latents = vq_model(quantizer_type).eval(), torch.randn(2, 6, 4, 4)
        quantized, loss, (_, _, indices) = model.quantize(latents)
        entries = model.quantize.get_codebook_entry(indices, (2, 4, 4, 6))
        torch.testing.assert_close(entries, quantized)
        assert loss.ndim == 0
    with pytest.raises(ValueError, match="one code per position"):
        vq_model("residual").quantize.get_codebook_entry(torch.tensor([0]), None)


@pytest.mark.parametrize("make", [vqvae, vq_model])
def test_resize_is_saved(make, tmp_path):
    model, sample = make("ema").train(), torch.rand(3, 1, 8, 8) * 2 - 1
    model(sample)
    origin = model.resize_codebook(13)
    assert origin.shape == (13,)
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.codebook_size == 13
    assert torch.equal(loaded.tokenize(sample), model.tokenize(sample))
    with pytest.raises(ValueError, match="FiniteScalarQuantizer has no learned codebook"):
        make("finite_scalar").resize_codebook(13)


def test_a_pipeline_refuses_a_prior_of_another_shape():
    autoencoder = vqvae("residual")
    with pytest.raises(ValueError, match=r"2 axes.*have 3"):
        VQPipeline(autoencoder, PixelCNN(PixelCNNConfig(codebook_size=8, num_classes=0)))

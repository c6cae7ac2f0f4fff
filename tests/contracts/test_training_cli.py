"""By the command line, every autoencoder and every prior trains in every precision, and samples and is evaluated."""

import json
import shutil
from dataclasses import dataclass

import pytest
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import hf_vq
import hf_vq_cli
from hf_vq import registry
from hf_vq.autoencoders.outputs import check_rebuilds
from hf_vq.cli.train_prior import trainable_priors
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.training.autoencoder import AutoencoderTrainingArguments
from hf_vq.training.checkpoints import seal
from hf_vq.training.prior import PriorTrainingArguments

from ..registering import register_for_now
from ..tiny_codecs import PictureCodec, SignalCodec, Waves, make_codec
from .test_autoencoders import SMALL

PRECISIONS = ["fp32", "bf16", "fp16"]
FEW = ("--max_steps", "2", "--per_device_train_batch_size", "4", "--logging_steps", "1", "--disable_tqdm", "true")
LLAMA = {"hidden_size": 16, "num_layers": 1, "num_heads": 8, "intermediate_size": 16}
PRIORS = {
    "PixelCNN": {"hidden_channels": 8, "num_layers": 1, "head_channels": 8, "first_kernel_size": 3},
    "PixelSNAIL": {"hidden_channels": 8, "residual_channels": 4, "num_blocks": 1, "num_residual_layers": 1,
                   "num_attention_heads": 2},
    "TransformerPrior": LLAMA,
    "LlamaGenPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16},
    "GPTPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
    "RQTransformer": {"hidden_size": 16, "num_spatial_layers": 1, "num_depth_layers": 1, "num_spatial_heads": 2,
                      "num_depth_heads": 2},
    "DelayedTransformerPrior": LLAMA,
    "DiscreteDiffusionPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_timesteps": 8},
    "MaskedPrior": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
    "WaveNet": {"num_layers": 2, "num_cycles": 1, "residual_channels": 4, "gate_channels": 4, "skip_channels": 4},
}  # fmt: skip
ROADS = {"RQTransformer": "RQVAE", "DelayedTransformerPrior": "RQVAE", "WaveNet": "SignalCodec"}


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


def precision_flags(precision):
    if precision == "fp16" and not torch.cuda.is_available():
        pytest.skip("float16 trains on a GPU alone, and there is none")
    return ["--use_cpu", "true", *(["--bf16", "true"] if precision == "bf16" else [])] if precision != "fp16" else [
        "--fp16", "true"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of six images of 16x16 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for index in range(12):
        pixels = torch.randint(256, (16, 16), dtype=torch.uint8, generator=generator).numpy()
        path = folder / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Six sounds of different lengths."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = torch.Generator().manual_seed(0)
    for index in range(6):
        hf_vq.AudioProcessor(SMALL["AudioCodec"]["sampling_rate"]).save_wav(
            folder / f"{index}.wav", torch.rand(1, 64 + 5 * index, generator=generator) - 0.5
        )
    return folder


@pytest.fixture(scope="module")
def tokenized(pictures, tmp_path_factory):
    """Autoencoders of 4x4 codes in one level and in two, and the codes of each."""
    made = {}
    for name in ("VQVAE", "RQVAE"):
        folder = tmp_path_factory.mktemp(name)
        config = {**SMALL[name], "in_channels": 1}
        autoencoder = hf_vq.registry.AUTOENCODERS[name](**config)
        autoencoder.initialize_codebook(torch.rand(8, 1, 16, 16) * 2 - 1)
        autoencoder.save_pretrained(folder / "autoencoder")
        assert run("tokenize", folder / "autoencoder", "--data", pictures, "--output", folder / "codes") == 0
        made[name] = folder
    made["SignalCodec"] = tmp_path_factory.mktemp("SignalCodec")
    codec = make_codec(SignalCodec)
    codec.initialize_codebook(torch.rand(8, 2, 24) * 2 - 1)
    waves = {split: Waves(SignalCodec, 8) for split in ("train", "validation")}
    tokenize_dataset(codec.eval(), waves, made["SignalCodec"] / "codes")
    return made


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_autoencoder_trains_by_the_command_line(name, precision, pictures, sounds, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vq.cli.train_autoencoder.save_pictures", lambda *arguments: None)  # of all the same
    flags = precision_flags(precision)
    config = json.dumps(SMALL[name])
    data = sounds if registry.AUTOENCODERS[name].modality == "audio" else pictures
    given = ("--model", name, "--model_config", config, "--data", data, "--output", tmp_path / "run")
    assert run("train", "autoencoder", *given, *FEW, *flags) == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert [entry["step"] for entry in report["history"] if "loss" in entry] == [1, 2]
    with safe_open(tmp_path / "run/diffusion_pytorch_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} <= {torch.float32, torch.int64, torch.bool}  # noqa: SIM118


def test_every_image_autoencoder_and_every_prior_over_codes_is_tried():
    images = {name for name, found in registry.AUTOENCODERS.items() if found.__module__.startswith("hf_vq")}
    assert images == set(SMALL)
    assert {name for name in trainable_priors() if registry.PRIORS[name].__module__.startswith("hf_vq")} == set(PRIORS)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_prior_trains_samples_is_evaluated_by_the_command_line(
    name, precision, tokenized, tmp_path, monkeypatch
):
    flags, config = precision_flags(precision), PRIORS[name]
    road = tokenized[ROADS.get(name, "VQVAE")]
    given = ("--prior", name, "--prior_config", json.dumps(config), "--codes", road / "codes")
    output = tmp_path / "run"
    monkeypatch.setattr("hf_vq.cli.train_prior.save_loss_curve", lambda *arguments: None)  # of all the same
    if precision != "fp32":
        monkeypatch.setattr("hf_vq.cli.train_prior.draw", lambda *arguments: None)
    autoencoder = () if name == "WaveNet" else ("--autoencoder", road / "autoencoder")
    assert run("train", "prior", *given, *autoencoder, "--output", output, *FEW, *flags) == 0
    assert [entry["step"] for entry in json.loads((output / "report.json").read_text())["history"] if "loss" in entry]
    if precision == "fp32":
        if autoencoder:
            sampled = ("--num", "1", "--output", tmp_path / "samples.png")
            if "num_inference_steps" in registry.PRIORS[name].sampling_options:
                sampled += ("--num_inference_steps", "3")
            assert run("sample", output / "pipeline", *sampled) == 0
        evaluated = ("--codes", road / "codes", "--output", tmp_path / "evaluation.json")
        assert run("evaluate", output, *evaluated) == 0
        assert json.loads((tmp_path / "evaluation.json").read_text())["prior"]["nats_per_code"] > 0


@pytest.mark.parametrize("verb", ["autoencoder", "prior"])
def test_runs_that_an_earlier_version_began_resume_with_the_options_of_then(
    verb, pictures, tokenized, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("hf_vq.cli.train_autoencoder.save_pictures", lambda *arguments: None)
    monkeypatch.setattr("hf_vq.cli.train_prior.save_loss_curve", lambda *arguments: None)

    def train(output, config, *more):
        if verb == "autoencoder":
            config = {**SMALL["VQVAE"], "quantizer_type": "finite_scalar", "quantizer_config": config}
            given = ("--model_config", json.dumps(config), "--data", pictures)
        else:
            config = {**PRIORS["PixelSNAIL"], **config}
            given = ("--prior", "PixelSNAIL", "--prior_config", json.dumps(config))
            given += ("--codes", tokenized["VQVAE"] / "codes")
        return run("train", verb, *given, *FEW, "--save_steps", 1, "--output", output, *more)

    options = {"levels_per_dim": [4, 2]} if verb == "autoencoder" else {}
    then, now = ({"fit_latents": each} if options else {"sees_row_ends": each} for each in (False, True))
    assert train(tmp_path / "whole", options | then) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half/checkpoint-2")
    checkpoint = tmp_path / "half/checkpoint-1"
    if verb == "prior":  # which did not write that option
        config = json.loads((checkpoint / "config.json").read_text())
        config.pop("sees_row_ends", None)
        (checkpoint / "config.json").write_text(json.dumps(config))
        seal(checkpoint, 1)
    capsys.readouterr()
    assert train(tmp_path / "half", options | now, "--resume") == 2
    told = "written with quantizer_config={" if verb == "autoencoder" else "written with sees_row_ends=False"
    assert told in capsys.readouterr().err
    assert train(tmp_path / "half", options, "--resume") == 0
    file = {"autoencoder": "diffusion_pytorch_model.safetensors", "prior": "model.safetensors"}[verb]
    weights, expected = (load_file(tmp_path / run / "checkpoint-2" / file) for run in ("half", "whole"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def refused(capsys, message, output, *arguments):
    capsys.readouterr()
    assert run(*arguments, "--output", output) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0], lines
    assert not output.exists()


@pytest.mark.parametrize("verb", ["autoencoder", "prior"])
def test_a_precision_that_cannot_take_effect_is_refused_before_any_work(verb, pictures, tokenized, tmp_path, capsys):
    source = ("--data", pictures) if verb == "autoencoder" else ("--codes", tokenized["VQVAE"] / "codes")
    for flags, message in (
        (["--fp16", "true"], "fp16=True needs a GPU"),
        (["--fp16", "true", "--bf16", "true"], "bf16=True and fp16=True exclude each other"),
    ):
        refused(capsys, message, tmp_path / "run", "train", verb, *source, *FEW, "--use_cpu", "true", *flags)


@pytest.mark.parametrize("verb", ["autoencoder", "prior"])
def test_what_accelerate_launch_says_of_precision_is_done_or_refused(
    verb, pictures, tokenized, tmp_path, capsys, monkeypatch
):
    """`accelerate launch` says it by the environment."""
    monkeypatch.setattr("hf_vq.cli.train_autoencoder.save_pictures", lambda *arguments: None)
    monkeypatch.setattr("hf_vq.cli.train_prior.save_loss_curve", lambda *arguments: None)
    model = {"autoencoder": ("--model", "VQVAE", "--model_config", json.dumps(SMALL["VQVAE"]), "--data", pictures),
             "prior": ("--prior", "PixelCNN", "--prior_config", json.dumps(PRIORS["PixelCNN"]), "--codes",
                       tokenized["VQVAE"] / "codes")}[verb]  # fmt: skip
    given = ("train", verb, *model, *FEW, "--use_cpu", "true")
    losses = {}
    for name, launched, flags in (("fp32", "no", ()), ("bf16", "no", ("--bf16", "true")), ("launched", "bf16", ())):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        assert run(*given, *flags, "--output", tmp_path / name) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        losses[name] = [entry["loss"] for entry in report["history"] if "loss" in entry]
        assert report["settings"]["arguments"]["bf16"] == (name != "fp32")
    assert losses["launched"] == losses["bf16"] != losses["fp32"]
    for launched, flags, message in (
        ("fp16", (), "fp16=True needs a GPU"),
        ("fp8", (), "accelerate launch --mixed_precision=fp8: training knows no, bf16 and fp16"),
        ("fp16", ("--bf16", "true"), "bf16=True, but accelerate launch --mixed_precision=fp16"),
    ):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
        refused(capsys, message, tmp_path / "run", *given, *flags)


def test_what_else_accelerate_launch_says_is_done_or_refused(tmp_path, monkeypatch):
    def arguments(**options):
        return AutoencoderTrainingArguments(str(tmp_path), use_cpu=True, **options)

    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert arguments().torch_compile
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    with pytest.raises(ValueError, match="--dynamo_backend=eager: training compiles with inductor alone"):
        arguments()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    assert not arguments().torch_compile
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    arguments(gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=1, but accelerate launch"):
        arguments()


def test_a_precision_of_evaluation_that_would_be_published_is_refused(tmp_path):
    for option in ("fp16_full_eval", "bf16_full_eval"):
        with pytest.raises(ValueError, match=f"{option}=True cannot be changed for priors"):
            PriorTrainingArguments(str(tmp_path), use_cpu=True, **{option: True})


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match="bf16=True: Tesla T4 has no bfloat16"):
        hf_vq.training.autoencoder.AutoencoderTrainingArguments(str(tmp_path), bf16=True)


def test_conditions_that_the_codes_do_not_have_are_told_before_any_work(tokenized, tmp_path, capsys):
    config = json.dumps({**LLAMA, "num_text_tokens": 9, "prompt_length": 3})
    given = ("--prior", "TransformerPrior", "--prior_config", config, "--codes", tokenized["VQVAE"] / "codes")
    refused(capsys, "this TransformerPrior takes prompt_ids by its config", tmp_path / "run", "train", "prior", *given)
    given = ("--prior", "MixtureWaveNet", "--codes", tokenized["VQVAE"] / "codes")
    refused(capsys, "prior='MixtureWaveNet' is no prior over codes", tmp_path / "run", "train", "prior", *given)


@dataclass
class Stubborn(BaseOutput):
    sample: torch.Tensor
    loss: torch.Tensor


def test_outputs_that_cannot_be_built_anew_are_refused(monkeypatch):
    with pytest.raises(TypeError, match=r"Stubborn\.loss needs a default"):
        check_rebuilds(Stubborn)

    class Mine(PictureCodec):
        def forward(self, sample, padding_mask=None) -> Stubborn:
            return Stubborn(sample, sample.mean())

    with pytest.raises(TypeError, match=r"Stubborn\.loss needs a default"):
        register_for_now(monkeypatch, Mine)

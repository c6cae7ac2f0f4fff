"""Numbers that are none: training stops by step and term and keeps its last checkpoint; figures say so in words."""

import json
import re

import pytest
import torch
import yaml
from PIL import Image
from torch._inductor.exc import CppCompileError
from torch.utils.data import IterableDataset

import hf_vq
import hf_vq_cli
from hf_vq.cli.quickstart import summary
from hf_vq.figures import figure_text, plain_figures
from hf_vq.hub import describe, read_folder, write_card
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.checkpoints import latest_checkpoint
from hf_vq.training.divergence import DivergenceError, telling_divergence
from hf_vq.training.evaluation import evaluate_autoencoder
from hf_vq.training.prior import PriorTrainingArguments, train_prior
from hf_vq.training.report import best_entry

from . import test_wavenet
from .adversarial_task import tiny_discriminator, train_adversarial
from .tiny_models import Codes, Images, tiny_autoencoder, tiny_prior

SMALL = {"max_steps": 4, "save_steps": 1, "use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 16}
PRECISIONS = [{}, {"bf16": True}]


def train(kind, folder, model=None, data=None, evaluated=None, **options):
    if kind == "prior":
        args = PriorTrainingArguments(str(folder), **{**SMALL, "logging_steps": 1, "report_to": "none", **options})
        return train_prior(tiny_prior() if model is None else model, data or Codes(64), args, evaluated)
    args = AutoencoderTrainingArguments(str(folder), **{**SMALL, **options})
    model, data = tiny_autoencoder() if model is None else model, data or Images(64)
    if kind == "task":
        return train_adversarial(model, tiny_discriminator(), data, args, evaluated, start_step=0)
    return train_autoencoder(model, data, args, evaluated)


def saved(folder):
    latest = latest_checkpoint(folder)
    return None if latest is None else latest.name


every_kind = pytest.mark.parametrize("kind", ["autoencoder", "task", "prior"])
every_precision = pytest.mark.parametrize("precision", PRECISIONS, ids=["fp32", "bf16"])


class Spoiled(Images):
    def __init__(self, row=37, value=torch.nan):
        super().__init__(64)
        self.samples[row, 0, 2, 1] = value


class Stream(IterableDataset):
    def __init__(self, data):
        self.data = data

    def __iter__(self):
        return (self.data[row] for row in range(len(self.data)))


@pytest.mark.parametrize(("value", "precision"), [(torch.nan, {}), (torch.inf, {"bf16": True})])
def test_data_that_are_no_numbers_are_told_by_row_and_column(value, precision, tmp_path):
    model = tiny_autoencoder()
    model.quantizer.initialized = True
    with pytest.raises(
        DivergenceError, match=r"step [1-4]: the data hold NaN or infinity: sample of row 37 of"
    ) as told:
        train("autoencoder", tmp_path, model, Spoiled(value=value), **precision)
    step = int(re.search(r"step (\d)", str(told.value))[1])
    assert saved(tmp_path) == (f"checkpoint-{step - 1}" if step > 1 else None)


def test_data_that_a_codebook_starts_from_and_those_of_streams_are_told_by_row_too(tmp_path):
    with pytest.raises(DivergenceError, match="step 1: the data hold NaN or infinity: sample of row 37 of"):
        train("autoencoder", tmp_path / "start", tiny_autoencoder(codebook_size=32), Spoiled())
    model = tiny_autoencoder()
    model.quantizer.initialized = True
    with pytest.raises(DivergenceError, match="step 3: the data hold NaN or infinity: sample of row 37 of"):
        train("autoencoder", tmp_path / "stream", model, data=Stream(Spoiled()))
    with pytest.raises(ValueError, match="NaN or infinity: sample of row 37"):
        evaluate_autoencoder(model, Spoiled(), 8)
    with pytest.raises(DivergenceError, match=r"step 1: evaluation: .* NaN or infinity: sample of row 37"):
        train("autoencoder", tmp_path / "evaluated", evaluated=Spoiled(), max_steps=1)


class Waves(torch.utils.data.Dataset):
    """Of a prior over waveforms with local features, which one item lacks."""

    def __init__(self, prior):
        self.waves = test_wavenet.make_input("waveforms", 8)
        self.features = test_wavenet.make_conditions(prior, 8)["local_features"]
        self.features[5] = torch.nan

    def __len__(self):
        return 8

    def __getitem__(self, row):
        return {"codes": self.waves[row], "local_features": self.features[row]}


def test_conditions_of_a_prior_that_are_no_numbers_are_told_by_name(tmp_path):
    prior = test_wavenet.make_prior("local", "waveforms")
    with pytest.raises(DivergenceError, match="step 1: the data hold NaN or infinity: local_features of item"):
        train("prior", tmp_path, prior, Waves(prior), per_device_train_batch_size=8)


def spoil_weights(model, value, at_forward):
    """A model one of whose parameters gets a value at a forward of training, counted from 1 on; and its name."""
    name, parameter = next(iter(model.named_parameters()))
    forwards = []

    def spoil(module, inputs):
        forwards.extend([1] * module.training)
        if len(forwards) == at_forward:
            parameter.data.view(-1)[0] = value

    model.register_forward_pre_hook(spoil)
    return model, name


@every_kind
@pytest.mark.parametrize(("value", "precision"), [(torch.nan, {}), (torch.inf, {"bf16": True})])
def test_weights_that_are_no_numbers_are_told_by_name(kind, value, precision, tmp_path):
    model = tiny_prior() if kind == "prior" else tiny_autoencoder()
    model, name = spoil_weights(model, value, at_forward=5 if kind == "task" else 3)  # whose discriminator asks again
    with pytest.raises(DivergenceError, match=rf"step 3: (loss is nan|the weights hold NaN or infinity: {name})"):
        train(kind, tmp_path, model, **precision)
    assert saved(tmp_path) == "checkpoint-2"


@every_kind
@every_precision
def test_gradients_that_are_no_numbers_move_nothing(kind, precision, tmp_path):
    model, calls = tiny_prior() if kind == "prior" else tiny_autoencoder(), []
    parameter = next(iter(model.parameters()))

    def spoil(gradient):
        calls.append(1)
        return gradient * (torch.nan if len(calls) == 3 else 1)

    parameter.register_hook(spoil)
    with pytest.raises(DivergenceError, match=r"step [23]: the gradient norm of loss is nan, the loss itself \d"):
        train(kind, tmp_path, model, **precision)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert saved(tmp_path) in ("checkpoint-1", "checkpoint-2")


@every_kind
@pytest.mark.parametrize(("learning_rate", "max_steps", "precision"), [(1e38, 1, {}), (1e30, 4, {"bf16": True})])
def test_absurd_learning_rates_publish_nothing(kind, learning_rate, max_steps, precision, tmp_path):
    evaluated = Codes(16) if kind == "prior" else Images(16)
    with pytest.raises(DivergenceError, match=r"step \d: \w"):
        train(kind, tmp_path, None, None, evaluated, learning_rate=learning_rate, max_steps=max_steps, **precision)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / "report.json").exists()


def test_the_term_that_is_no_number_is_named(tmp_path):
    model = tiny_autoencoder()
    forward, steps = model.forward, []

    def broken(*inputs, **options):
        output = forward(*inputs, **options)
        if model.training and len(steps) == 2:
            output.quantizer_loss = output.quantizer_loss * torch.inf
            output.loss = output.loss + output.quantizer_loss
        steps.append(1)
        return output

    model.forward = broken
    with pytest.raises(DivergenceError, match=r"step 3: loss is inf \(quantizer_loss inf\)"):
        train("autoencoder", tmp_path, model)


# Figures that do not exist


def test_figures_that_do_not_exist_are_told_in_words_and_json():
    assert figure_text("error_over_variance", 0.25) == "0.2500"
    for value in (None, float("nan"), float("inf")):
        assert figure_text("eval_error_over_variance", value) == "not defined: the data have no variance"
    told = plain_figures({"mse": 0.0, "psnr": float("inf"), "prior": {"ratio": float("nan"), "nats_per_code": 0.0}})
    assert told == {
        "mse": 0.0, "psnr": None, "not_defined": {"psnr": "there is no error"},
        "prior": {"ratio": None, "nats_per_code": 0.0, "not_defined": {"ratio": "all codes are equal"}},
    }  # fmt: skip
    history = [{"step": 1, "x": float("nan")}, {"step": 2, "x": 3.0}, {"step": 3, "x": None}, {"step": 4, "x": 2.0}]
    assert best_entry(history, "x")["step"] == 4
    assert best_entry(history[:1], "x") is None


TINY = {"hidden_channels": 8, "stage_channels": [4], "num_residual_layers": 0, "codebook_size": 8}
FEW = ["--max_steps", "2", "--use_cpu", "--disable_tqdm", "true"]


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """Twenty equal images."""
    folder = tmp_path_factory.mktemp("grey")
    for index in range(20):
        Image.new("L", (8, 8), 90).save(folder / f"{index}.png")
    return folder


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_data_set_without_variance_goes_the_whole_road(grey, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing, reason = "not defined: the data have no variance", "the data have no variance"
    config = ["--model_config", json.dumps(TINY)]
    assert run("train", "autoencoder", "--data", grey, "--output", "a", "--eval_steps", "1", *config, *FEW) == 0
    assert f"Wrote a: error over variance {missing}." in capsys.readouterr().out
    metrics = strict((tmp_path / "a/report.json").read_text())["metrics"]
    assert metrics["eval_error_over_variance"] is None
    assert metrics["not_defined"] == {"eval_error_over_variance": reason}
    assert run("tokenize", "a", "--data", grey, "--output", "codes") == 0
    prior = ["--prior_config", json.dumps({"hidden_channels": 8, "num_layers": 1, "head_channels": 8})]
    assert run("train", "prior", "--codes", "codes", "--autoencoder", "a", "--output", "p", *prior, *FEW) == 0
    capsys.readouterr()
    assert run("evaluate", "p/pipeline", "--data", grey, "--output", "evaluation.json") == 0
    for text in (capsys.readouterr().out, (tmp_path / "evaluation.json").read_text()):
        told = strict(text)
        assert told["autoencoder"]["not_defined"]["error_over_variance"] == reason
    assert run("reconstruct", "a", "--data", grey, "--output", "r.png") == 0
    folder = read_folder(tmp_path / "a")
    card = str(write_card(folder, "me/a", describe(folder, "me/a")))
    assert f"| Reconstruction error over data variance | {missing} |" in card
    assert "nan" not in card.lower().replace("nance", "")


def test_the_quickstart_tells_what_is_not_defined(monkeypatch):
    figures = {
        "autoencoder": {"num_samples": 3, "error_over_variance": None, "usage": 0.5},
        "prior": {"nats_per_code": None, "unigram_entropy": 0.0, "likelihood_is_exact": True},
    }
    monkeypatch.setattr("hf_vq.cli.quickstart.folder_modality", lambda folder: hf_vq.registry.MODALITIES["image"])
    text = summary(figures, "q", "q/pipeline", 1.0)
    assert "error over variance not defined: the data have no variance, 50% of the codes" in text


def test_the_command_line_tells_divergence_in_one_line_and_keeps_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"data": "digits", "model_config": TINY, "learning_rate": 1e38, "max_steps": 5, "save_steps": 1}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**recipe, "use_cpu": True, "disable_tqdm": True}))
    assert run("train", "autoencoder", "a.yaml", "--output", "a") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-vq")]
    assert len(lines) == 1
    assert re.match(r"hf-vq: error: step [12]: ", lines[0])
    assert not (tmp_path / "a/report.json").exists()


def test_a_compiler_that_fails_is_not_told_as_numbers_that_overflow():
    failed = CppCompileError(["g++"], "warning: overflow in conversion [-Woverflow]")
    with pytest.raises(CppCompileError), telling_divergence(1, "loss", {}):
        raise failed
    with pytest.raises(DivergenceError, match="step 1: loss: overflow"), telling_divergence(1, "loss", {}):
        raise RuntimeError("overflow")

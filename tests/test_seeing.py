"""What a training shows and tells: lines, trackers, pictures and samples, none of which changes what is trained."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hf_vq_cli
from hf_vq.training import tracking
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.prior import PriorTrainingArguments

FEW = [
    "--use_cpu",
    "--max_steps",
    4,
    "--logging_steps",
    1,
    "--eval_steps",
    2,
    "--save_steps",
    2,
    "--learning_rate",
    1e-2,
]
CONFIG = "{hidden_channels: 8, stage_channels: [4], num_residual_layers: 0, codebook_size: 8}"
AUTOENCODER = ["autoencoder", "--data", "digits", "--model_config", CONFIG, *FEW]
PRIOR = ["prior", "--prior_config", "{hidden_channels: 8, num_layers: 1, head_channels: 8}", *FEW]


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


def events(folder):
    """All that TensorBoard shows of a run."""
    return EventAccumulator(str(folder / "logs/hf_vq"), {"images": 0, "scalars": 0}).Reload()


def steps(entries):
    return [entry.step for entry in entries]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An autoencoder and a prior, trained in silence."""
    folder = tmp_path_factory.mktemp("silent")
    assert run("--quiet", "train", *AUTOENCODER, "--output", folder / "autoencoder") == 0
    assert run("--quiet", "tokenize", folder / "autoencoder", "--data", "digits", "--output", folder / "codes") == 0
    prior = [*PRIOR, "--codes", folder / "codes", "--autoencoder", folder / "autoencoder", "--num_samples", 0]
    assert run("--quiet", "train", *prior, "--output", folder / "prior") == 0
    return folder


@pytest.fixture
def prior(runs):
    return [*PRIOR, "--codes", runs / "codes", "--autoencoder", runs / "autoencoder"]


def test_quiet_leaves_the_last_line(runs, tmp_path, capfd):
    assert run("train", *AUTOENCODER, "--quiet", "--output", tmp_path / "a") == 0
    (line,), errors = (text.splitlines() for text in capfd.readouterr())
    assert line.startswith(f"Wrote {tmp_path / 'a'}: error over variance")
    assert [error for error in errors if "collapsing" not in error] == []


def test_an_autoencoder_prints_and_tells_and_trains_no_other_weights(runs, tmp_path, capsys):
    told = tmp_path / "told"
    assert run("train", *AUTOENCODER, "--report_to", "tensorboard,tensorboard", "--output", told) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line[:9] for line in lines] == [f"step {step}/4:" for step in (1, 2, 2, 3, 4, 4)]
    for word in ("loss ", "quantizer_loss ", "loss_commitment ", "learning_rate ", "batch_perplexity "):
        assert word in lines[0]
    for word in ("evaluation: ", "error_over_variance ", " dB", "usage ", "perplexity "):
        assert word in lines[2]
    weights = "diffusion_pytorch_model.safetensors"
    assert (told / weights).read_bytes() == (runs / "autoencoder" / weights).read_bytes()

    (told / "checkpoint-4/checkpoint_manifest.json").unlink()  # the run was cut there
    assert run("train", "autoencoder", "--resume", told) == 0
    seen = events(told)
    assert steps(seen.Scalars("train/loss")) == [1, 2, 3, 4]
    assert steps(seen.Scalars("eval/psnr")) == [2, 4]
    for name in ("reconstructions", "code_maps"):
        assert steps(seen.Images(name)) == [2, 4]
        assert seen.Images(name)[0].width > 100
    assert (told / weights).read_bytes() == (runs / "autoencoder" / weights).read_bytes()


def test_a_prior_draws_samples_on_its_way_and_trains_no_other_weights(runs, prior, tmp_path, capsys):
    assert not list((runs / "prior").rglob("samples*"))
    drawn = ["--sample_steps", 2, "--num_samples", 3, "--report_to", "tensorboard"]
    assert run("train", *prior, *drawn, "--output", tmp_path / "p") == 0
    out = capsys.readouterr().out
    assert "step 4/4: evaluation: loss " in out
    assert "nats per code" in out
    files = [f"samples/step-{step}/samples.png" for step in (2, 4)] + ["samples.png", "pipeline/samples.png"]
    sizes = {Image.open(tmp_path / "p" / file).size for file in files}
    assert len(sizes) == 1
    seen = events(tmp_path / "p")
    assert steps(seen.Images("samples")) == [2, 4]
    assert steps(seen.Scalars("train/loss")) == [1, 2, 3, 4]
    assert steps(seen.Scalars("eval/nats_per_code")) == [4]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "p", runs / "prior")]
    assert weights[0] == weights[1]


def test_a_signal_ends_the_drawing_and_loses_nothing(prior, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_vq.cli.train_prior.draw", lambda *arguments: os.kill(os.getpid(), signal.SIGINT))
    assert run("train", *prior, "--output", tmp_path / "end") == 0
    assert "no file of samples: interrupted" in capsys.readouterr().err
    assert json.loads((tmp_path / "end/pipeline/report.json").read_text())["history"][-1]["step"] == 4
    assert run("train", *prior, "--sample_steps", 1, "--save_steps", 0, "--output", tmp_path / "cut") == 130
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "cut/samples/step-1").exists()


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_training_stops_when_evaluations_get_no_better_also_across_a_resume(kind, prior, tmp_path):
    given = AUTOENCODER if kind == "autoencoder" else [*prior, "--num_samples", 0]
    still = ["--learning_rate", 1e-30, "--eval_steps", 1, "--save_steps", 1, "--max_steps", 9]
    given = [*given, *still, "--disable_tqdm", "--early_stopping_patience", 3]
    assert run("train", *given, "--output", tmp_path / "run") == 0
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["history"][-1]["step"] == 4  # the first, and three that are no better
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"run/checkpoint-{step}")
    assert run("train", kind, "--resume", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run/report.json").read_text())["history"][-1]["step"] == 4


@pytest.mark.parametrize("made", [AutoencoderTrainingArguments, PriorTrainingArguments])
def test_trackers_and_pushes_that_cannot_be_are_refused_before_the_training(made, tmp_path, monkeypatch):
    found = tracking.find_spec
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == "wandb" else found(name))
    monkeypatch.setattr("hf_vq.training.pushing.get_token", lambda: None)
    refused = {
        r"needs the package wandb: pip install 'hf_vq\[wandb\]'": {"report_to": ["tensorboard", "wandb"]},
        "none and others": {"report_to": "none,tensorboard"},
        "got 'tensorbord'": {"report_to": "tensorbord"},
        "early_stopping_patience=2 counts evaluations": {"early_stopping_patience": 2},
        "license is missing": {"push_to_hub": True},
        "license must be the id": {"push_to_hub": True, "license": "mine"},
        "Repo id": {"push_to_hub": True, "license": "mit", "hub_model_id": "a/b/c"},
        "needs a token": {"push_to_hub": True, "license": "mit", "hub_model_id": "me/run"},
    }
    for message, options in refused.items():
        with pytest.raises(ValueError, match=message):
            made(str(tmp_path / "run"), use_cpu=True, **options)
    for given in ("tensorboard", ["tensorboard"], "tensorboard, tensorboard"):
        assert made("run", use_cpu=True, report_to=given).report_to == ["tensorboard"]
    assert "tensorboard" in made("run", use_cpu=True, report_to="all").report_to
    assert made("run", use_cpu=True, report_to="none").report_to == made("run", use_cpu=True).report_to == []
    assert not Path("run").exists()


def test_options_that_lead_nowhere_are_refused_by_the_command_line(prior, tmp_path, capsys):
    given = [part for part in prior if part != "--autoencoder" and part != prior[-1]]
    assert run("train", *given, "--sample_steps", 2, "--output", tmp_path / "run") == 2
    assert "sample_steps=2 draws" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

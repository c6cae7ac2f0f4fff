"""A training that is killed, twice, ends with the weights of one that was not, bit for bit."""

import json
import multiprocessing
import signal

import pytest
import resume_runs
import torch
from safetensors.torch import load_file

WEIGHTS = {"autoencoder": "diffusion_pytorch_model.safetensors", "prior": "model.safetensors"}


def run_and_die(target, *arguments):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["resume_runs"])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL


def losses(report):
    keys = ["step", "loss", "eval_loss", "grad_norm", "learning_rate"]
    return [{key: entry[key] for key in keys if key in entry} for entry in report["history"]]


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_kill_9_in_a_step_and_in_a_checkpoint(kind, tmp_path, caplog):
    output_dir = tmp_path / "killed"
    run_and_die(resume_runs.run_killed_in_a_step, kind, str(output_dir))
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    run_and_die(resume_runs.run_killed_in_a_checkpoint, kind, str(output_dir))
    (incomplete,) = output_dir.glob("checkpoint-20*")

    resumed = resume_runs.run(kind, str(output_dir), resume=True)
    assert f"Skipping the incomplete checkpoint {incomplete}" in caplog.text

    whole = resume_runs.run(kind, str(tmp_path / "whole"))
    expected, actual = load_file(tmp_path / "whole" / WEIGHTS[kind]), load_file(output_dir / WEIGHTS[kind])
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert losses(resumed) == losses(whole)
    assert {key: value for key, value in resumed["metrics"].items() if "second" not in key} == whole["metrics"]
    assert json.loads((output_dir / "report.json").read_text()) == resumed


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_truncated_checkpoint_is_skipped_and_a_lonely_one_refused(kind, tmp_path, caplog):
    whole = resume_runs.run(kind, str(tmp_path))
    (optimizer,) = (tmp_path / "checkpoint-25").glob("optimizer.*")
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    assert resume_runs.run(kind, str(tmp_path), resume=True)["metrics"] == whole["metrics"]
    assert f"its file {optimizer.name} has 100 bytes" in caplog.text

    optimizer.unlink()
    with pytest.raises(ValueError, match=rf"{optimizer.name} is missing"):
        resume_runs.run(kind, str(tmp_path), resume=str(tmp_path / "checkpoint-25"))
    for manifest in tmp_path.glob("checkpoint-*/checkpoint_manifest.json"):
        manifest.unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        resume_runs.run(kind, str(tmp_path), resume=True)
    with pytest.raises(ValueError, match="already holds checkpoints"):
        resume_runs.run(kind, str(tmp_path))

"""A training that is killed, twice, ends with the weights of one that was not, bit for bit; two processes as one."""

import json
import multiprocessing
import signal
import socket

import pytest
import torch
from safetensors.torch import load_file

from . import resume_runs

WEIGHTS = {"autoencoder": "diffusion_pytorch_model.safetensors", "prior": "model.safetensors"}


def start(target, *arguments):
    """Run a function in a process of its own; the imports are done once, in the server it is forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([resume_runs.__name__])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def run_and_die(target, *arguments):
    process = start(target, *arguments)
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL


def figures(report, kind):
    """What the history tells of each step; Trainer's running loss starts anew at a resume, and is left out."""
    keys = ["step", "eval_loss", "grad_norm", "learning_rate", *(["loss"] if kind == "autoencoder" else [])]
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
    assert figures(resumed, kind) == figures(whole, kind)
    assert resumed["metrics"] == whole["metrics"]
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


def test_two_processes_train_as_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(resume_runs.run_as_rank, rank, port, str(tmp_path / "two")) for rank in range(2)]
    one = resume_runs.train_on_whole_batches(str(tmp_path / "one"))
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    expected, actual = (load_file(tmp_path / name / WEIGHTS["autoencoder"]) for name in ("one", "two"))
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)

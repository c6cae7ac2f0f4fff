"""A training that is killed, twice, ends with the weights of one that was not, bit for bit; two processes as one."""

import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.checkpoints import list_checkpoints, rotate_checkpoints, seal, unseal

from . import resume_runs
from .processes import context, free_port
from .tiny_models import Images, tiny_autoencoder

WEIGHTS = {
    "autoencoder": "diffusion_pytorch_model.safetensors",
    "adversarial": "diffusion_pytorch_model.safetensors",
    "codec": "diffusion_pytorch_model.safetensors",
    "prior": "model.safetensors",
}


def start(target, *arguments):
    process = context().Process(target=target, args=arguments)
    process.start()
    return process


def run_and_die(target, *arguments):
    process = start(target, *arguments)
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL


def figures(report):
    """All that the history tells but times."""
    times = ("runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in times)}
        for entry in report["history"]
    ]


def assert_same_end(one, other):
    """The last checkpoints of two runs of two networks hold the same state of each, optimizers and schedules too."""
    one, other = one / "checkpoint-25", other / "checkpoint-25"
    for name in ("model.safetensors", "model_1.safetensors", "model_2.safetensors"):  # LeCam's averages have no turn
        weights, expected = load_file(one / name), load_file(other / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    for name in ("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "scheduler_1.bin"):
        assert_equal(torch.load(one / name), torch.load(other / name))
    assert torch.load(one / "optimizer_1.bin")["state"][0]["step"] == 25 - 4  # it starts in step 4


def assert_equal(one, other):
    if torch.is_tensor(one):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_equal(value, other[name])
    elif isinstance(one, list | tuple):
        for value, its in zip(one, other, strict=True):
            assert_equal(value, its)
    else:
        assert one == other


@pytest.mark.parametrize("kind", ["autoencoder", "adversarial", "prior"])
def test_kill_9_in_a_step_and_in_a_checkpoint(kind, tmp_path, caplog):
    output_dir = tmp_path / "killed"
    run_and_die(resume_runs.run_killed_in_a_step, kind, str(output_dir))
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    run_and_die(resume_runs.run_killed_in_a_checkpoint, kind, str(output_dir))
    (incomplete,) = output_dir.glob("checkpoint-20*")
    unseal(output_dir / "checkpoint-5")  # as by a deletion of old ones that was killed

    resumed = resume_runs.run(kind, str(output_dir), resume=True)
    assert {step for step, _ in list_checkpoints(output_dir)} == {15, 20, 25}
    assert f"Skipping the incomplete checkpoint {incomplete}" in caplog.text

    whole = resume_runs.run(kind, str(tmp_path / "whole"))
    expected, actual = load_file(tmp_path / "whole" / WEIGHTS[kind]), load_file(output_dir / WEIGHTS[kind])
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert figures(resumed) == figures(whole)
    if kind == "adversarial":
        assert_same_end(output_dir, tmp_path / "whole")
    assert resumed["metrics"] == whole["metrics"]
    assert json.loads((output_dir / "report.json").read_text()) == resumed


def test_a_deletion_that_was_interrupted_is_ended_and_nothing_else_counts(tmp_path, monkeypatch):
    for step in (1, 2, 3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text("1")
        seal(tmp_path / f"checkpoint-{step}", step)
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rotate_checkpoints(tmp_path, 3)
    assert next(path.name for _, path in list_checkpoints(tmp_path)) == "checkpoint-1.incomplete"
    (tmp_path / "checkpoint-2" / "checkpoint_manifest.json").unlink()  # as versions before left it
    rotate_checkpoints(tmp_path, None)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [2, 3, 4]
    rotate_checkpoints(tmp_path, 2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3, 4]


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


@pytest.mark.parametrize("kind", ["adversarial", "codec"])
def test_two_processes_train_as_one_does(kind, tmp_path):
    port = free_port()
    processes = [start(resume_runs.run_as_rank, rank, port, kind, str(tmp_path / "two")) for rank in range(2)]
    one = resume_runs.train_on_whole_batches(kind, str(tmp_path / "one"))
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    for network in (WEIGHTS[kind], f"discriminator/{WEIGHTS[kind]}"):
        expected, actual = (load_file(tmp_path / name / network) for name in ("one", "two"))
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], rtol=1e-4, atol=1e-5)
    for entry, other in zip(figures(one), figures(two), strict=True):
        for name in (name for name in entry if "loss" in name or "weight" in name):
            assert other[name] == pytest.approx(entry[name], rel=1e-4, abs=1e-5), name


class StopAfter:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_two_networks_that_a_callback_stopped_go_on_as_if_it_had_not(tmp_path):
    def train(folder, callbacks=(), resume=None):
        torch.manual_seed(0)
        options = {**resume_runs.OPTIONS, **resume_runs.ADVERSARIAL, "resume_from_checkpoint": resume}
        args = AutoencoderTrainingArguments(str(tmp_path / folder), **options)
        return train_autoencoder(tiny_autoencoder(), Images(100, 16), args, Images(20, 16), callbacks)

    stopped = train("stopped", callbacks=[StopAfter(11)])
    assert stopped["history"][-1]["step"] == 11
    assert load_file(tmp_path / "stopped" / WEIGHTS["adversarial"])  # what there is, is published
    resumed, whole = train("stopped", resume=True), train("whole")
    assert resumed["metrics"] == whole["metrics"]
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")


def test_a_checkpoint_of_other_networks_is_refused(tmp_path):
    resume_runs.run("adversarial", str(tmp_path / "two"))
    resume_runs.run("autoencoder", str(tmp_path / "one"))
    with pytest.raises(ValueError, match="written with perceptual=random, this run has none"):
        resume_runs.run("autoencoder", str(tmp_path / "two"), resume=True)
    with pytest.raises(ValueError, match="written with perceptual=none, this run has random"):
        resume_runs.run("adversarial", str(tmp_path / "one"), resume=True)

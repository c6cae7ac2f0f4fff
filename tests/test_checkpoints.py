"""A checkpoint is a saved model, of the weights that would be published after its step, and those of before resume."""

import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vq.hub import read_folder
from hf_vq.training.checkpoints import MANIFEST, seal, unseal, why_incomplete
from hf_vq.writing import PARTIAL_SUFFIX

from . import resume_runs
from .test_resume import WEIGHTS, figures
from .tiny_models import tiny_autoencoder, tiny_prior

TRAINING = {"prior": "training_weights.safetensors"}  # where the published weights are the average
MODELS = {"prior": tiny_prior}
OPTIONS = {"max_steps": 4, "save_steps": 1, "save_total_limit": None, "logging_steps": 1}


class InterruptedAfter(resume_runs.KilledAfter):
    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return self.dataset[index]


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def as_written_before(checkpoint, kind, model):
    """Make of a checkpoint what earlier versions wrote: the weights that train, and the average of the parameters."""
    published, training = checkpoint / WEIGHTS[kind], checkpoint / TRAINING.get(kind, "model.safetensors")
    if (checkpoint / "weight_ema.json").is_file():
        names = {name for name, _ in model.named_parameters()}
        average = {name: tensor for name, tensor in load_file(published).items() if name in names}
        save_file(average, checkpoint / "weight_ema.safetensors")
    if training.is_file():
        published.unlink()
    else:
        training = published
    training.rename(checkpoint / "model.safetensors")
    if kind != "prior":
        (checkpoint / "config.json").unlink()
    seal(checkpoint, 2)


@pytest.mark.parametrize(
    ("kind", "decay"), [("autoencoder", None), ("adversarial", 0.9), ("prior", None), ("prior", 0.9)]
)
def test_a_checkpoint_holds_what_would_be_published_once_and_resumes_as_before(kind, decay, tmp_path):
    model, options = MODELS.get(kind, tiny_autoencoder)(), {**OPTIONS, "weight_ema_decay": decay}
    whole, stopped, before = (tmp_path / name for name in ("whole", "stopped", "before"))
    expected = resume_runs.run(kind, str(whole), **options)
    assert_same(load_file(whole / WEIGHTS[kind]), load_file(whole / "checkpoint-4" / WEIGHTS[kind]))

    with pytest.raises(KeyboardInterrupt):
        resume_runs.run(
            kind,
            str(stopped),
            dataset_wrapper=lambda dataset: InterruptedAfter(dataset, 50),
            **{**options, "save_steps": 1000},
        )
    (checkpoint,) = stopped.glob("checkpoint-*")
    assert_same(load_file(checkpoint / WEIGHTS[kind]), load_file(whole / checkpoint.name / WEIGHTS[kind]))
    loaded = type(model).from_pretrained(checkpoint)
    assert_same(loaded.state_dict(), load_file(checkpoint / WEIGHTS[kind]))
    assert {name for name in read_folder(checkpoint).files if name.endswith(".safetensors")} == {WEIGHTS[kind]}
    training = checkpoint / TRAINING.get(kind, "model.safetensors")
    assert training.is_file() == (decay is not None)
    if decay is not None:
        assert any(not torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in load_file(training).items())

    shutil.copytree(whole / "checkpoint-2", before / "checkpoint-2")
    as_written_before(before / "checkpoint-2", kind, model)
    resumed = resume_runs.run(kind, str(before), resume=True, **options)
    assert_same(load_file(before / WEIGHTS[kind]), load_file(whole / WEIGHTS[kind]))
    assert figures(resumed) == figures(expected)


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_what_a_kill_left_in_a_checkpoint_is_not_sealed_with_the_next(kind, tmp_path):
    resume_runs.run(kind, str(tmp_path), **OPTIONS)
    checkpoint = tmp_path / "checkpoint-4"
    unseal(checkpoint)
    (checkpoint / f".{MANIFEST}{PARTIAL_SUFFIX}").write_text("{")  # killed while the manifest was written
    resume_runs.run(kind, str(tmp_path), resume=True, **OPTIONS)
    assert why_incomplete(checkpoint) is None
    assert not list(tmp_path.rglob(f"*{PARTIAL_SUFFIX}"))

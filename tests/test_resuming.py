"""What a resume may change, what it records, who may write into a folder, and what a full disk leaves behind."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR
from transformers import AutoModel

import hf_vq_cli
from hf_vq import VQVAE
from hf_vq.auto import AutoVQModel
from hf_vq.cli.resuming import resumed_folder
from hf_vq.training.checkpoints import latest_checkpoint, seal
from hf_vq.training.resuming import base_rates, renew_learning_rate
from hf_vq.writing import WriteError, one_run, whole

from . import resume_runs
from .test_resume import WEIGHTS

TINY = ["--use_cpu", "true", "--disable_tqdm", "true", "--max_steps", "4", "--save_steps", "2"]
AUTOENCODER = ["--data", "digits", "--model_config", "{hidden_channels: 8, stage_channels: [4], codebook_size: 8}"]
PRIOR = ["--prior_config", "{hidden_channels: 8, num_layers: 1, head_channels: 8}"]


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the runs `autoencoder` and `prior`, of four steps."""
    folder = tmp_path_factory.mktemp("runs")
    assert run("train", "autoencoder", *AUTOENCODER, *TINY, "--output", folder / "autoencoder") == 0
    assert run("tokenize", folder / "autoencoder", "--data", "digits", "--output", folder / "codes") == 0
    prior = ["--codes", folder / "codes", *PRIOR, *TINY, "--hub_token", "a secret"]
    assert run("train", "prior", *prior, "--output", folder / "prior") == 0
    return folder


def tree(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    "seed": ("42", "3"),
    "per_device_train_batch_size": ("64", "32"),
    "lr_scheduler_type": (None, "linear"),
    "weight_decay": ("0.0", "0.1"),
    "max_steps": ("checkpoint-4 is of step 4", "3"),
    "learning_rate": ("checkpoint-4 is of the last step, 4", "5e-05"),
    "resume_from_checkpoint": ("no checkpoint of the run", "elsewhere/checkpoint-2"),
}


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_resume_refuses_in_one_line_and_writes_nothing(kind, runs, capsys):
    config = {"autoencoder": "model_config", "prior": "prior_config"}[kind]
    data, source = {"autoencoder": ("data", "digits"), "prior": ("codes", str(runs / "codes"))}[kind]
    cases = {
        **REFUSED,
        config: ("mapping", "wide"),
        f"{config}.hidden_channels": ("8", "16"),
        data: (source, "elsewhere"),
    }
    before = tree(runs)
    for name, (old, new) in cases.items():
        capsys.readouterr()
        assert run("train", kind, "--resume", runs / kind, f"--{name}", new) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        for word in (name.split(".")[-1], old or "", new):
            assert word in error, error
    assert tree(runs) == before


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_refused_option_leaves_the_run_that_was_to_be_replaced(kind, runs, capsys):
    options = AUTOENCODER if kind == "autoencoder" else ["--codes", runs / "codes", *PRIOR]
    before = tree(runs)
    refused = ["--output", runs / kind, "--overwrite", "--metric_for_best_model", "accuracy"]
    assert run("train", kind, *options, *TINY, *refused) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "metric_for_best_model" in shown.err
    assert shown.err.count("\n") == 1
    assert tree(runs) == before


@pytest.mark.parametrize("begun", ["now", "by an earlier version"])
def test_a_resume_keeps_defaults_as_they_were_when_the_run_began(begun, tmp_path, capsys):
    config = "{hidden_channels: 8, stage_channels: [4], codebook_size: 8, quantizer_type: product, quantizer_config: "
    config += "{group_type: residual, group_config: {level_type: vector, num_levels: 2}}}"
    folder, options = tmp_path / "run", ["--data", "digits", "--model_config", config, *TINY, "--max_steps", "1"]
    assert run("train", "autoencoder", *options, "--output", folder) == 0
    state = folder / "checkpoint-1" / "trainer_state.json"
    if begun != "now":  # it knew no option `decay` of which None is the default
        text = state.read_text()
        assert text.count(', "level_config": {"decay": null}') == 1
        (folder / "checkpoint-1" / "checkpoint_manifest.json").unlink()
        state.write_text(text.replace(', "level_config": {"decay": null}', ""))
        seal(folder / "checkpoint-1", 1)
    assert run("train", "autoencoder", "--resume", folder, "--max_steps", "2") == 0
    quantizer = AutoVQModel.from_pretrained(folder).quantizer.levels[0].levels[0]
    assert quantizer.decay == (None if begun == "now" else 0.99)
    if begun != "now":
        assert run("train", "autoencoder", *options, "--init_from", folder, "--output", tmp_path / "next") == 0
    changed = config.replace("num_levels: 2", "num_levels: 3")
    other = ["--model_config", changed, "--output", tmp_path / "other"]
    assert run("train", "autoencoder", *options, *other, "--init_from", folder) == 2
    assert "'num_levels': 3" in capsys.readouterr().err
    assert run("train", "autoencoder", "--resume", folder, "--model_config", changed) == 2


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_what_a_resume_changes_is_in_force_told_and_kept_by_the_next(kind, runs, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(runs / kind, folder)
    recipe = (folder / "recipe.yaml").read_text()
    changes = {"max_steps": 6, "learning_rate": 1e-5, "logging_steps": 1, "save_steps": 1}
    flags = [word for name, value in changes.items() for word in (f"--{name}", value)]
    assert run("train", kind, "--resume", folder, *flags) == 0
    assert run("train", kind, "--output", folder, "--resume") == 0  # changes nothing
    history = json.loads((folder / "report.json").read_text())["history"]
    (told,) = [entry for entry in history if "changed" in entry]
    assert told["step"] == 4
    assert {name: each["to"] for name, each in told["changed"].items()} == changes
    rates = {entry["step"]: entry["learning_rate"] for entry in history if "loss" in entry}
    assert {5, 6} <= rates.keys()
    assert all(0 < rates[step] <= 1e-5 for step in (5, 6))
    assert (folder / "checkpoint-5").is_dir()  # every step is saved
    written = (folder / "recipe.yaml").read_text()
    assert yaml.safe_load(written) == yaml.safe_load(recipe)
    first, last = written[: len(recipe)], written[len(recipe) :]
    assert first == recipe
    assert last.startswith("# from step 4 on: {")
    assert yaml.safe_load(last.removeprefix("# from step 4 on: ")) == pytest.approx(changes)


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_run_goes_on_from_an_older_checkpoint_that_is_named(kind, runs, tmp_path, capsys):
    folder = tmp_path / kind
    shutil.copytree(runs / kind, folder)
    published = (folder / WEIGHTS[kind]).read_bytes()
    damaged = folder / "checkpoint-4" / WEIGHTS[kind]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert run("train", kind, "--resume", folder) == 2
    assert "resume from an older one (checkpoint-2)" in capsys.readouterr().err
    assert run("train", kind, "--resume", folder, "--resume_from_checkpoint", folder / "checkpoint-2") == 0
    assert (folder / WEIGHTS[kind]).read_bytes() == published
    assert damaged.read_bytes()[-1:] != b"?"


def test_a_checkpoint_is_a_model_for_every_verb(runs, tmp_path, capsys):
    codec, prior = (runs / kind / "checkpoint-2" for kind in ("autoencoder", "prior"))
    assert type(AutoModel.from_pretrained(codec).autoencoder) is type(VQVAE.from_pretrained(codec)) is VQVAE
    for kind, folder in (("autoencoder", codec), ("prior", prior)):
        capsys.readouterr()
        assert run("inspect", folder, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["kind"], facts["step"], facts["weights"]) == (kind, 2, [WEIGHTS[kind]])
    digits, few = ["--data", "digits"], [*TINY, "--max_steps", 1]
    assert run("tokenize", codec, *digits, "--output", tmp_path / "codes") == 0
    assert run("evaluate", codec, *digits, "--output", tmp_path / "codec.json") == 0
    assert run("evaluate", prior, "--codes", runs / "codes", "--output", tmp_path / "prior.json") == 0
    started = ["--codes", tmp_path / "codes", "--autoencoder", codec, *PRIOR]
    assert run("train", "prior", *started, *few, "--output", tmp_path / "prior") == 0
    assert run("train", "autoencoder", *digits, "--init_from", codec, *few, "--output", tmp_path / "further") == 0


def test_a_schedule_that_needs_arguments_says_so(runs, tmp_path, capsys):
    options = ["--codes", runs / "codes", *PRIOR, *TINY, "--lr_scheduler_type", "warmup_stable_decay"]
    assert run("train", "prior", *options, "--output", tmp_path / "no") == 2
    assert "lr_scheduler_kwargs=None" in capsys.readouterr().err.splitlines()[-1]
    assert run("train", "prior", *options, "--lr_scheduler_kwargs.num_decay_steps=2", "--output", tmp_path / "it") == 0


def test_a_recipe_which_is_published_keeps_no_token(runs):
    assert "secret" not in (runs / "prior" / "recipe.yaml").read_text()
    assert "secret" not in (runs / "prior" / "report.json").read_text()


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_changed_learning_rate_scales_every_later_step(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(resume_runs, "OPTIONS", {**resume_runs.OPTIONS, "logging_steps": 1, "max_steps": 8})
    whole_run = resume_runs.run(kind, str(tmp_path))
    resume_runs.OPTIONS["learning_rate"] /= 4
    changed = resume_runs.run(kind, str(tmp_path), resume=str(tmp_path / "checkpoint-5"))

    def rates(report):
        return {entry["step"]: entry["learning_rate"] for entry in report["history"] if "loss" in entry}

    before, after = rates(whole_run), rates(changed)
    assert after == pytest.approx({step: rate / (4 if step > 5 else 1) for step, rate in before.items()})
    state = torch.load(next((tmp_path / "checkpoint-8").glob("optimizer.*")))
    assert state["param_groups"][0]["initial_lr"] == resume_runs.OPTIONS["learning_rate"]


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        lambda optimizer: ExponentialLR(optimizer, 0.5),  # goes from one rate to the next
    ],
    ids=["function of the step", "factor of the last"],
)
def test_a_renewed_rate_moves_the_weights_of_the_very_next_step(make):
    def begin(rate):
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.SGD([weight], rate)
        return weight, optimizer, make(optimizer)

    def moves(weight, optimizer, schedule, steps):
        found = []
        for _ in range(steps):
            before = weight.item()
            optimizer.step()
            schedule.step()
            found.append(before - weight.item())
        return found

    planned = moves(*begin(0.1), 6)[3:]
    _, optimizer, schedule = run_before = begin(0.4)
    moves(*run_before, 3)
    weight, resumed, its_schedule = begin(0.1)
    base = base_rates(its_schedule)
    resumed.load_state_dict(optimizer.state_dict())
    its_schedule.load_state_dict(schedule.state_dict())
    renew_learning_rate(resumed, its_schedule, base)
    assert moves(weight, resumed, its_schedule, 3) == pytest.approx(planned)


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_finished_run_that_is_resumed_stays_as_it_is(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(resume_runs, "OPTIONS", {**resume_runs.OPTIONS, "max_steps": 8})
    first = resume_runs.run(kind, str(tmp_path))
    weights = (tmp_path / WEIGHTS[kind]).read_bytes()
    again = resume_runs.run(kind, str(tmp_path), resume=True)
    assert (tmp_path / WEIGHTS[kind]).read_bytes() == weights
    assert again["metrics"] == first["metrics"]
    assert len(again["history"]) == len(first["history"])


class SmallFiles(resume_runs.KilledAfter):
    """A data set after whose `count` items no file may grow beyond `size` bytes: the error of a full disk."""

    def __init__(self, dataset, count, size):
        super().__init__(dataset, count)
        self.size = size

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
        return self.dataset[index]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "size", "more", "file"),
    [
        ("autoencoder", 4000, {}, "/checkpoint-10"),  # in torch.save: the optimizer's state alone is longer
        ("prior", 40000, {}, "/checkpoint-10"),
        ("prior", 8192, {}, "/checkpoint-10"),  # in safetensors
        ("autoencoder", 40, {"report_to": "tensorboard", "logging_steps": 1}, ""),  # in a thread of its own
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_and_says_how_to_go_on(kind, size, more, file, tmp_path, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(WriteError) as failure:
            resume_runs.run(
                kind, str(tmp_path), dataset_wrapper=lambda dataset: SmallFiles(dataset, 16 * 9, size), **more
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = str(failure.value)
    assert said.startswith(f"cannot write {tmp_path}{file}: File too large; make room, then resume from {tmp_path}/")
    assert f"resume from {tmp_path / 'checkpoint-5'}" in said
    assert "\n" not in said
    assert "Training stopped" not in caplog.text  # the error says it all
    assert latest_checkpoint(tmp_path).name == "checkpoint-5"
    assert {path.name for path in tmp_path.iterdir()} - {"logs"} == {"checkpoint-5"}


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_an_error_has_a_line_of_its_own_below_the_progress_bar(kind, runs, tmp_path, capsys):
    folder = tmp_path / kind
    shutil.copytree(runs / kind, folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        assert run("train", kind, "--resume", folder, "--max_steps", 6, "--disable_tqdm", "false") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    told = capsys.readouterr().err
    assert "/6 [" in told  # a bar
    assert told.split("\n")[-2].startswith(
        f"hf-vq: error: cannot write {folder / 'checkpoint-6'}: File too large; make room"
    )


ARRAY = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
WRITERS = {
    "safetensors": lambda path: save_file({"weight": torch.ones(9999)}, path),
    "torch": lambda path: torch.save(torch.ones(9999), path),
    "parquet": lambda path: pyarrow.parquet.write_table(pyarrow.table({"codes": np.random.rand(9999)}), path),  # noqa: NPY002
    "text": lambda path: path.write_text("x" * 9999),
    "picture": lambda path: Image.fromarray(ARRAY).save(path, format="png"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_fails_in_one_line_and_leaves_what_was_there(writer, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(WriteError, match=f"^cannot write {path}: [^\n]+$") as failure, whole(path) as partial:
            WRITERS[writer](partial)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure.value.full or writer == "torch"  # which keeps the reason to itself
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "before"


def hold(folder, ready):
    """Hold a folder, and have a worker of one's own that outlives one."""
    with one_run(folder):
        worker = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=False)
        worker.start()
        ready.send(worker.pid)
        signal.pause()


def test_a_second_run_is_refused_and_a_dead_one_holds_nothing(runs, capsys):
    folder = runs / "autoencoder"
    before = tree(folder)
    mine, theirs = multiprocessing.Pipe()
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(folder, theirs))
    holder.start()
    worker = mine.recv()
    try:
        for arguments in (["--resume", folder], [*AUTOENCODER, *TINY, "--output", folder, "--overwrite"]):
            capsys.readouterr()
            assert run("train", "autoencoder", *arguments) == 2
            assert f"another run is writing into {folder}" in capsys.readouterr().err
        holder.kill()
        holder.join()
        assert holder.exitcode == -signal.SIGKILL
        os.kill(worker, 0)  # still there
        with one_run(folder), one_run(folder):
            pass
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)
    assert tree(folder) == before
    assert not Path(folder / ".lock").exists()


def test_a_checkpoint_is_no_run_to_resume(tmp_path):
    checkpoint = tmp_path / "run/checkpoint-2"
    checkpoint.mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"is a checkpoint: .*--resume {checkpoint.parent}, and --resume_from_ch"):
        resumed_folder({"resume": str(checkpoint)})
    assert resumed_folder({"resume": str(checkpoint.parent)}) == checkpoint.parent

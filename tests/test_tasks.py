"""Tasks of one and of two networks: turns, terms, callbacks, what is best, what a run writes."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import TrainerCallback

from hf_vq import VQVAE
from hf_vq.cli.checks import training_bytes
from hf_vq.training import loop
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.divergence import DivergenceError
from hf_vq.training.tasks import Reconstruction

from .adversarial_task import Adversarial, tiny_discriminator, train_adversarial
from .tiny_models import Images, tiny_autoencoder


def arguments(output_dir, **options):
    options = {"per_device_train_batch_size": 16, "max_steps": 6, "learning_rate": 1e-2, "logging_steps": 1, **options}
    return AutoencoderTrainingArguments(str(output_dir), use_cpu=True, disable_tqdm=True, **options)


def entries(report):
    return [entry for entry in report["history"] if "loss" in entry]


# Two networks


def test_a_discriminator_whose_word_has_no_weight_changes_nothing_in_the_autoencoder(tmp_path):
    """Its own passes through the autoencoder, in training mode, count in no statistic of the codebook."""
    models = []
    for name in ("alone", "two"):
        torch.manual_seed(0)
        models.append(tiny_autoencoder(dropout=0.0))
        args = arguments(tmp_path / name, weight_ema_decay=0.9, gradient_accumulation_steps=2)
        if name == "alone":
            train_autoencoder(models[-1], Images(64), args)
        else:
            discriminator = tiny_discriminator()
            before = discriminator[0].weight.clone()
            train_adversarial(models[-1], discriminator, Images(64), args, weight=0.0, start_step=1)
            assert not torch.equal(discriminator[0].weight, before)
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        assert torch.equal(one, other)


def test_the_codebook_moves_once_a_step_after_the_autoencoders_turn(tmp_path, monkeypatch):
    model, discriminator, seen = tiny_autoencoder(), tiny_discriminator(), []
    update, judge = model.quantizer._update, Adversarial.judge
    monkeypatch.setattr(model.quantizer, "_update", lambda *sums: (seen.append("codebook"), update(*sums)))
    monkeypatch.setattr(Adversarial, "judge", lambda *inputs: (seen.append("judge"), judge(*inputs))[1])
    train_adversarial(model, discriminator, Images(64), arguments(tmp_path, max_steps=3), start_step=1)
    assert seen == ["codebook", "codebook", "judge", "codebook", "judge"]


def test_each_network_gets_the_gradient_of_its_own_loss_alone(tmp_path):
    """With a learning rate of 0 for the autoencoder, its turns leave no trace in the discriminator's steps."""
    states = []
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        model, discriminator = tiny_autoencoder(dropout=0.0), tiny_discriminator()
        args = arguments(tmp_path / str(weight), learning_rate=1e-30)
        train_adversarial(model, discriminator, Images(64), args, weight=weight, start_step=0)
        states.append(discriminator.state_dict())
        assert all(parameter.requires_grad for parameter in [*model.parameters(), *discriminator.parameters()])
    for one, other in zip(*(state.values() for state in states), strict=True):
        assert torch.equal(one, other)


def test_both_turns_log_their_terms_and_the_second_from_its_first_step(tmp_path):
    report = train_adversarial(tiny_autoencoder(), tiny_discriminator(), Images(64), arguments(tmp_path), start_step=4)
    own = {"loss", "reconstruction_loss", "quantizer_loss", "loss_reconstruction", "loss_commitment", "grad_norm"}
    own |= {"learning_rate", "loss_adversarial", "adaptive_weight"}
    second = {f"discriminator_{name}" for name in ("loss", "real", "fake", "grad_norm")}
    for entry in entries(report):
        assert own <= entry.keys()
        assert second <= entry.keys() if entry["step"] > 4 else not second & entry.keys()
        assert (entry["adaptive_weight"] > 0) == (entry["step"] > 4)
    first, last = entries(report)[4:]
    assert last["discriminator_loss"] == pytest.approx(last["discriminator_real"] + last["discriminator_fake"])
    assert last["discriminator_learning_rate"] < first["discriminator_learning_rate"]


def test_a_step_that_diverges_half_way_is_not_saved(tmp_path, monkeypatch):
    judge = Adversarial.judge

    def diverge(self, module, batch):
        loss, terms = judge(self, module, batch)
        return loss * (float("nan") if self.diverges else 1), terms

    def before_turn(self, turn, step):
        Reconstruction.before_turn(self, turn, step)
        self.asked, self.diverges = True, step == 3

    monkeypatch.setattr(Adversarial, "judge", diverge)
    monkeypatch.setattr(Adversarial, "before_turn", before_turn)
    args = arguments(tmp_path, save_steps=2)
    with pytest.raises(DivergenceError, match="step 4: discriminator_loss is nan"):
        train_adversarial(tiny_autoencoder(), tiny_discriminator(), Images(64), args, start_step=0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]  # the autoencoder is already in step 4


# Terms and what is best


def test_terms_of_the_history_are_means_over_micro_batches(tmp_path):
    torch.manual_seed(0)
    model = tiny_autoencoder(dropout=0.0)
    model.initialize_codebook(Images(16).samples)
    batches = Images(16).samples.split(4)
    with torch.no_grad():
        model.set_codebook_updates("off")
        expected = sum(model.train()(batch).losses["commitment"].item() for batch in batches) / 4
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, max_steps=1)
    (entry,) = entries(train_autoencoder(model, Images(16), args))
    assert entry["loss_commitment"] == pytest.approx(expected, rel=1e-5)
    assert entry["loss_reconstruction"] == entry["reconstruction_loss"]


def test_what_is_best_goes_by_the_task_or_by_the_option(tmp_path):
    def best(name, **options):
        torch.manual_seed(0)
        args = arguments(tmp_path / name, eval_steps=1, **options)
        report = train_autoencoder(tiny_autoencoder(), Images(64), args, Images(20))
        return report["best"], [entry for entry in report["history"] if "eval_loss" in entry]

    found, all_of_them = best("own")
    assert found["eval_mse"] == min(entry["eval_mse"] for entry in all_of_them)
    found, all_of_them = best("named", metric_for_best_model="eval_perplexity")
    assert found["eval_perplexity"] == max(entry["eval_perplexity"] for entry in all_of_them)
    assert found["eval_perplexity"] > min(entry["eval_perplexity"] for entry in all_of_them)
    with pytest.raises(ValueError, match="metric_for_best_model='fid' must be one of loss, mse"):
        best("unknown", metric_for_best_model="fid")
    assert not (tmp_path / "unknown").exists()


# Callbacks


class Noting(TrainerCallback):
    """Of transformers' own class; it asks for what the schedule does not have, and stops in step 4."""

    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        assert state.max_steps == args.max_steps == 6
        self.events.append(("begin", type(model).__name__))

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_save = state.global_step == 2
        control.should_training_stop = state.global_step == 4
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert state.log_history[-1]["step"] == state.global_step
        self.events.append(("log", state.global_step, "loss" in logs))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append(("evaluate", state.global_step, "eval_mse" in metrics))

    def on_save(self, args, state, control, **kwargs):
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "checkpoint_manifest.json"
        self.events.append(("save", state.global_step, saved.is_file()))

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append(("end", state.global_step, (Path(args.output_dir) / "report.json").is_file()))


def test_callbacks_are_told_and_heeded(tmp_path):
    noting = Noting()
    args = arguments(tmp_path, logging_steps=3, save_steps=1)
    report = train_autoencoder(tiny_autoencoder(), Images(64), args, Images(20), callbacks=[noting, TrainerCallback])
    assert noting.events == [
        ("begin", "PictureCodec"), ("log", 2, False), ("evaluate", 2, True), ("save", 2, True), ("log", 3, True),
        ("log", 4, False), ("evaluate", 4, True), ("save", 4, True), ("end", 4, True),
    ]  # fmt: skip
    assert report["history"][-1]["step"] == 4


# Refusals, and bytes


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="fp16=True needs a GPU"):
        AutoencoderTrainingArguments("unused", fp16=True, use_cpu=True)


class Pictures(Images):
    def __init__(self, count):
        self.samples = F.interpolate(Images(count).samples, size=16)


def deep_discriminator():
    return nn.Sequential(nn.Conv2d(1, 64, 3), nn.LeakyReLU(0.2), nn.Conv2d(64, 128, 3), nn.Conv2d(128, 1, 1))


class Picturing(Adversarial):
    """Of an autoencoder that has no `last_layer`: the discriminator looks on."""

    def loss(self, batch, output):
        return Reconstruction.loss(self, batch, output)


@pytest.mark.parametrize(
    ("networks", "options"),
    [
        (1, {"save_steps": 2}),
        (1, {"save_steps": 1, "save_total_limit": 1, "weight_ema_decay": 0.9}),
        (2, {"save_steps": 1, "save_total_limit": 2}),
        (2, {"save_steps": 3, "weight_ema_decay": 0.9}),
        (1, {"save_steps": 2, "freeze_codes": True}),
    ],
)
def test_estimated_bytes_are_what_a_run_takes_on_the_disk_at_its_peak(networks, options, tmp_path, monkeypatch):
    model = VQVAE(1, 64, codebook_size=256, codebook_dim=64)
    model.initialize_codebook(Pictures(64).samples)
    args = arguments(tmp_path / "run", **options)
    task = Reconstruction(model, args) if networks == 1 else Picturing(model, deep_discriminator(), args, start_step=0)
    estimate, seen = training_bytes(task, args, num_samples=64), []

    def size():
        seen.append(sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()))

    rotate = loop.rotate_checkpoints
    monkeypatch.setattr(loop, "rotate_checkpoints", lambda *inputs: (size(), rotate(*inputs)))
    loop.TrainingLoop(task, Pictures(64), args).train()
    size()
    assert max(seen) == pytest.approx(estimate, rel=0.2)

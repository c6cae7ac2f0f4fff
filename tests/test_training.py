"""Training: what a step does, what stops it, what it leaves behind."""

import contextlib
import json
import logging
import os
import pickle
import shutil
import signal
from hashlib import sha256

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import Dataset

from hf_vq.modalities.image_pictures import save_code_maps, save_reconstruction_grid, save_sample_grid
from hf_vq.training import loop as training_loop
from hf_vq.training import tasks
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.checkpoints import latest_checkpoint, list_checkpoints
from hf_vq.training.divergence import DivergenceError
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior
from hf_vq.training.pictures import save_loss_curve, save_usage_histogram
from hf_vq.training.prior import PriorTrainingArguments, train_prior
from hf_vq.training.report import write_report
from hf_vq.training.sampling import ShuffledStream

from .tiny_codecs import PictureCodec
from .tiny_models import Codes, Images, tiny_autoencoder, tiny_prior

QUIET = {"use_cpu": True, "disable_tqdm": True}


def autoencoder_arguments(output_dir, **options):
    options = {"per_device_train_batch_size": 16, "max_steps": 6, "learning_rate": 1e-2, **QUIET, **options}
    return AutoencoderTrainingArguments(output_dir=str(output_dir), **options)


def prior_arguments(output_dir, **options):
    options = {"per_device_train_batch_size": 16, "max_steps": 6, "logging_steps": 1, **QUIET, **options}
    return PriorTrainingArguments(output_dir=str(output_dir), **options)


def loop(model, dataset, args):
    return training_loop.TrainingLoop(tasks.Reconstruction(model, args), dataset, args)


class Meddling(Dataset):
    """Images, with something happening at the given item; numbered over the whole training."""

    def __init__(self, at, action):
        self.images, self.at, self.action, self.given = Images(64), at, action, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.given += 1
        return self.action(self.images[index]) if self.given == self.at else self.images[index]


# -- steps


def test_every_pass_over_the_data_is_a_permutation_and_every_position_can_be_resumed():
    stream = ShuffledStream(num_samples=10, batch_size=3, batches_per_step=2, seed=1)
    first, second = stream.indices(0, 10), stream.indices(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    batches = stream.batches()
    steps = [[next(batches), next(batches)] for _ in range(5)]
    resumed = ShuffledStream(10, 3, 2, seed=1).batches(start_step=3)
    assert [next(resumed), next(resumed)] == steps[3]
    shares = [ShuffledStream(10, 3, 1, seed=1, num_processes=2, process_index=rank).batches() for rank in range(2)]
    assert sorted(next(shares[0]) + next(shares[1])) == sorted(steps[0][0] + steps[0][1])


def test_accumulating_four_batches_trains_the_autoencoder_as_one_large_batch_does(tmp_path, monkeypatch):
    updates, reports, models = [], [], []
    for accumulation in [1, 4]:
        torch.manual_seed(0)
        model = tiny_autoencoder(dropout=0.0)
        update = model.quantizer._update
        monkeypatch.setattr(
            model.quantizer, "_update", lambda *sums, update=update: (updates.append(1), update(*sums))
        )
        args = autoencoder_arguments(
            tmp_path / str(accumulation),
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
        )
        reports.append(train_autoencoder(model, Images(64), args))
        models.append(model)
        assert len(updates) == 6  # the codebook moves once an optimizer step
        updates.clear()
    for one, four in zip(*(report["history"] for report in reports), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    for one, four in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_accumulating_four_batches_trains_the_prior_as_one_large_batch_does(tmp_path, num_classes):
    reports = []
    for accumulation in [1, 4]:
        torch.manual_seed(0)
        args = prior_arguments(
            tmp_path / str(accumulation),
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            eval_steps=2,
        )
        reports.append(train_prior(tiny_prior(num_classes, dropout=0.0), Codes(64), args, Codes(24)))
    for name in ["loss", "grad_norm", "eval_loss"]:
        one, four = ([entry[name] for entry in report["history"] if name in entry] for report in reports)
        assert len(one) >= 3
        assert four == pytest.approx(one, rel=1e-3 if name == "grad_norm" else 1e-4)
    assert reports[0]["metrics"]["eval_nats_per_code"] == pytest.approx(reports[0]["metrics"]["eval_loss"], rel=1e-5)


def test_the_first_codebook_comes_from_enough_latents_and_only_where_none_was_loaded(tmp_path, monkeypatch):
    seen = []
    initialize = PictureCodec.initialize_codebook
    monkeypatch.setattr(
        PictureCodec, "initialize_codebook", lambda self, sample: (seen.append(sample), initialize(self, sample))[1]
    )
    model = tiny_autoencoder(codebook_size=32)
    loop(model, Images(400), autoencoder_arguments(tmp_path / "new"))
    assert [len(samples) for samples in seen] == [16 * 32 // 4]  # 16 latents a code, 4 latents an image
    assert model.codebook_initialized

    model.save_pretrained(tmp_path / "saved")
    codebook = model.quantizer.embedding.weight.clone()
    loaded = PictureCodec.from_pretrained(tmp_path / "saved")
    loop(loaded, Images(400), autoencoder_arguments(tmp_path / "loaded"))
    assert len(seen) == 1
    assert torch.equal(loaded.quantizer.embedding.weight, codebook)


def test_weight_decay_spares_biases_and_the_codebook(tmp_path):
    trainer = loop(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path, weight_decay=0.1))
    decayed, spared = trainer.turns[0].optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert {parameter.ndim for parameter in decayed["params"]} == {4}


def test_published_weights_are_the_average_and_the_codebook_is_the_live_one(tmp_path):
    live, averaged = tiny_autoencoder(), tiny_autoencoder()
    averaged.load_state_dict(live.state_dict())
    averaged.quantizer.initialized = False
    train_autoencoder(live, Images(64), autoencoder_arguments(tmp_path / "live"))
    args = autoencoder_arguments(tmp_path / "averaged", weight_ema_decay=0.9)
    report = train_autoencoder(averaged, Images(64), args, Images(20))
    assert not torch.allclose(live.to_latents.weight, averaged.to_latents.weight)
    assert torch.equal(live.quantizer.embedding.weight, averaged.quantizer.embedding.weight)
    published = PictureCodec.from_pretrained(tmp_path / "averaged")
    assert evaluate_autoencoder(published, Images(20))["mse"] == pytest.approx(report["metrics"]["eval_mse"], rel=1e-6)


def test_a_half_precision_run_leaves_the_model_and_the_next_run_in_full_precision(tmp_path):
    model = tiny_autoencoder()
    train_autoencoder(model, Images(64), autoencoder_arguments(tmp_path / "half", bf16=True))
    with torch.no_grad():
        assert torch.equal(model(Images(4).samples).sample, PictureCodec.forward(model, Images(4).samples).sample)
    trainer = loop(model, Images(64), autoencoder_arguments(tmp_path / "full"))
    assert trainer.accelerator.mixed_precision == "no"


# -- evaluation


def test_evaluation_depends_neither_on_the_batch_size_nor_on_dropout_and_costs_training_no_randomness():
    model, prior = tiny_autoencoder().train(), tiny_prior().train()
    before = torch.get_rng_state()
    one, many = (evaluate_autoencoder(model, Images(20), batch_size) for batch_size in (1, 20))
    assert one == pytest.approx(many, rel=1e-5)
    one, many = (evaluate_prior(prior, Codes(20), batch_size, sample_shape=(1, 8, 8)) for batch_size in (1, 20))
    assert one == pytest.approx(many, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert prior.training


def test_a_collapsed_codebook_is_told_once_and_early_with_what_helps(tmp_path, caplog):
    flat = Images(64)
    flat.samples = torch.zeros_like(flat.samples)
    options = {"logging_steps": 1}
    train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path / "fine", **options), Images(20))
    assert "collapsing" not in caplog.text
    model = tiny_autoencoder(quantizer_config={"kmeans_init": False, "restart_threshold": 0.0})
    train_autoencoder(model, flat, autoencoder_arguments(tmp_path / "flat", **options), flat)
    told = [each.message for each in caplog.records if "collapsing" in each.message]
    assert len(told) == 1
    assert told[0].startswith("Step 2: the codebook is collapsing, 1 of ")
    for remedy in ("kmeans_init=True", "restart_threshold=0.05", "a smaller codebook_size", "a lower learning_rate"):
        assert remedy in told[0]
    assert "discriminator_start_step" not in told[0]
    caplog.clear()
    train_autoencoder(tiny_autoencoder(), flat, autoencoder_arguments(tmp_path / "late", logging_steps=1000), flat)
    (told,) = [each.message for each in caplog.records if "collapsing" in each.message]
    assert told.startswith(f"Step {autoencoder_arguments(tmp_path / 'steps').max_steps}: ")  # of the evaluation


# -- stops


def test_a_loss_that_is_no_number_stops_training_by_step_and_loses_nothing(tmp_path, caplog):
    def overflow(item):
        return {"sample": item["sample"] * 1e30}

    fourth_step = 1 + 32 + 3 * 16 + 1  # one sample tells the shape, 32 start the codebook
    models = [tiny_autoencoder(), tiny_autoencoder()]
    models[1].load_state_dict(models[0].state_dict())
    models[1].quantizer.initialized = False
    with pytest.raises(DivergenceError, match="step 4: loss is inf"):
        train_autoencoder(models[0], Meddling(fourth_step, overflow), autoencoder_arguments(tmp_path / "diverged"))
    saved = latest_checkpoint(tmp_path / "diverged")
    assert saved.name == "checkpoint-3"
    assert "Training stopped after step 3 of 6 (DivergenceError: step 4: loss is inf" in caplog.text
    assert f"resume from {saved} with resume_from_checkpoint=True" in caplog.text
    train_autoencoder(models[1], Images(64), autoencoder_arguments(tmp_path / "fine", max_steps=3))
    folders = saved, tmp_path / "fine" / "checkpoint-3"
    weights, expected = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in folders)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_a_prior_whose_loss_is_no_number_stops_by_step(tmp_path):
    prior = tiny_prior(num_classes=0)
    forward, calls = prior.forward, []

    def diverge(codes, class_labels=None, labels=None, return_loss=True):
        calls.append(1)
        output = forward(codes, class_labels, labels, return_loss)
        output.loss = output.loss * (float("nan") if len(calls) == 4 else 1)
        return output

    prior.forward = diverge
    with pytest.raises(DivergenceError, match="step 4: loss is nan"):
        train_prior(prior, Codes(64), prior_arguments(tmp_path))
    assert latest_checkpoint(tmp_path).name == "checkpoint-3"


def test_a_file_that_cannot_be_read_in_the_middle_loses_nothing(tmp_path):
    def fail(item):
        raise OSError("cannot read broken.png")

    with pytest.raises(OSError, match=r"broken\.png"):
        train_autoencoder(tiny_autoencoder(), Meddling(60, fail), autoencoder_arguments(tmp_path))
    (step, path), *_ = list_checkpoints(tmp_path)
    assert latest_checkpoint(tmp_path) == path
    assert step == 1


@pytest.mark.parametrize(("number", "stop"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(tmp_path, caplog, number, stop):
    def send(item):
        os.kill(os.getpid(), number)
        return item

    args = autoencoder_arguments(tmp_path / "interrupted", logging_steps=1)
    with pytest.raises(stop):
        train_autoencoder(tiny_autoencoder(), Meddling(60, send), args)
    assert "resume_from_checkpoint=True" in caplog.text
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    args.resume_from_checkpoint = True
    assert train_autoencoder(tiny_autoencoder(), Images(64), args)["history"][-1]["step"] == 6


def test_a_signal_ends_the_training_of_a_prior_with_a_checkpoint_too(tmp_path):
    class Signalling(Codes):
        given = 0

        def __getitem__(self, index):
            self.given += 1
            if self.given == 40:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().__getitem__(index)

    args = prior_arguments(tmp_path)
    with pytest.raises(SystemExit):
        train_prior(tiny_prior(), Signalling(64), args)
    assert latest_checkpoint(tmp_path).name in ("checkpoint-1", "checkpoint-2", "checkpoint-3")  # data are prefetched
    args.resume_from_checkpoint = True
    assert train_prior(tiny_prior(), Codes(64), args)["history"][-1]["step"] == 6


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch):
    save_state = training_loop.Accelerator.save_state

    def fill(self, folder, **kwargs):
        save_state(self, folder, **kwargs)
        if "checkpoint-4" in folder:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_loop.Accelerator, "save_state", fill)
    with pytest.raises(OSError, match="No space left"):
        train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path, save_steps=2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


# -- what is left behind


def test_no_more_checkpoints_than_asked_for(tmp_path):
    train_autoencoder(
        tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path / "a", save_steps=1, save_total_limit=2)
    )
    train_prior(tiny_prior(), Codes(64), prior_arguments(tmp_path / "p", save_steps=1, save_total_limit=2))
    for name in "ap":
        assert [step for step, _ in list_checkpoints(tmp_path / name)] == [5, 6]


def test_resuming_from_an_older_checkpoint_discards_the_newer_ones(tmp_path, caplog):
    train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path, save_steps=2))
    older = str((tmp_path / "checkpoint-2").rename(tmp_path / "my favourite"))
    loop(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path, resume_from_checkpoint=older)).begin()
    assert latest_checkpoint(tmp_path) is None
    assert f"Resuming from my favourite: the newer {tmp_path / 'checkpoint-6'} no longer counts" in caplog.text


def test_a_checkpoint_of_other_data_or_settings_is_refused(tmp_path):
    train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path / "a"))
    args = autoencoder_arguments(tmp_path / "a", resume_from_checkpoint="true")
    with pytest.raises(ValueError, match="num_samples=64, this run has 65"):
        train_autoencoder(tiny_autoencoder(), Images(65), args)
    train_prior(tiny_prior(), Codes(64), prior_arguments(tmp_path / "p"))
    with pytest.raises(ValueError, match="seed=42, this run has 43"):
        train_prior(tiny_prior(), Codes(64), prior_arguments(tmp_path / "p", resume_from_checkpoint="true", seed=43))


class Malice:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "random_states_0", "rng_state", "training_args"])
@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch, kind, name):
    def train(resume=None):
        if kind == "autoencoder":
            args = autoencoder_arguments(tmp_path / "run", resume_from_checkpoint=resume, save_steps=3)
            return train_autoencoder(tiny_autoencoder(), Images(64), args)
        args = prior_arguments(tmp_path / "run", resume_from_checkpoint=resume, save_steps=3)
        return train_prior(tiny_prior(), Codes(64), args)

    monkeypatch.chdir(tmp_path)
    train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    for path in checkpoint.glob(f"{name}.*"):  # each of these names is one of Trainer's, of accelerate's, or of both
        torch.save({"step": Malice()}, path)
        manifest = json.loads((checkpoint / "checkpoint_manifest.json").read_text())
        manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
        (checkpoint / "checkpoint_manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(pickle.UnpicklingError):
        train(resume=str(checkpoint))
    assert not (tmp_path / "pwned").exists()


def test_the_report_is_strict_json_with_what_was_asked_and_what_came_out(tmp_path):
    report = train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path), Images(20))
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["settings"]["arguments"]["per_device_train_batch_size"] == 16
    assert report["settings"]["model"]["codebook_size"] == 8
    assert report["best"]["step"] == report["history"][-1]["step"] == 6
    assert {"loss", "mse", "error_over_variance", "psnr", "usage", "perplexity", "dead_codes"} <= {
        name.removeprefix("eval_") for name in report["metrics"]
    }
    common = {"arguments": {}, "model_config": {}, "history": [], "best": None, "wall_time": 0, "device": "cpu"}
    assert write_report(tmp_path, metrics={"psnr": float("inf")}, **common)["metrics"]["psnr"] is None


# -- refusals


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("gradient_accumulation_steps", 0),
        ("learning_rate", -1.0),
        ("eval_steps", 0),
        ("report_to", "wandb"),
        ("fp16", True),
    ],
)
def test_a_bad_option_is_named(option, value):
    with pytest.raises(ValueError, match=option):
        AutoencoderTrainingArguments(output_dir="unused", **{"bf16": True, option: value})


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_an_unusable_output_folder_is_refused_before_any_work(tmp_path, monkeypatch, kind):
    def train(output_dir):
        if kind == "autoencoder":
            return train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(output_dir))
        return train_prior(tiny_prior(), Codes(64), prior_arguments(output_dir))

    (tmp_path / "file").write_text("in the way")
    for path in [tmp_path / "file", tmp_path / "file" / "below"]:
        with pytest.raises(ValueError, match="cannot be written"):
            train(path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="MiB free"):
        train(tmp_path / "full")


def test_codes_that_do_not_fit_the_prior_are_refused(tmp_path):
    codes = Codes(8)
    codes.codebook_size = 9
    with pytest.raises(ValueError, match="codebook of 9, the prior has codebook_size=8"):
        train_prior(tiny_prior(), codes, prior_arguments(tmp_path))
    with pytest.raises(ValueError, match="label_names"):
        prior_arguments(tmp_path, label_names=["labels"])


# -- pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_whole_png_files(tmp_path, channels):
    samples = torch.rand(5, channels, 8, 12) * 2 - 1
    save_reconstruction_grid(tmp_path / "reconstructions.png", samples, samples)
    save_code_maps(tmp_path / "codes.png", samples, torch.randint(0, 9, (5, 2, 3)), codebook_size=9)
    save_usage_histogram(tmp_path / "usage.png", torch.tensor([3, 0, 5]))
    save_sample_grid(tmp_path / "samples.png", samples, labels=["zero", 1, torch.tensor(2), 3, 4])
    save_loss_curve(tmp_path / "loss.png", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval_loss": 1.5}])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["codes.png", "loss.png", "reconstructions.png", "samples.png", "usage.png"]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert min(picture.size) > 100
    with pytest.raises(ValueError, match="one for each sample"):
        save_sample_grid(tmp_path / "samples.png", samples, labels=[1])


def test_training_is_quiet_below_warnings(tmp_path, capfd, caplog):
    caplog.set_level(logging.WARNING)
    train_autoencoder(tiny_autoencoder(), Images(64), autoencoder_arguments(tmp_path / "a"), Images(20))
    train_prior(tiny_prior(), Codes(64), prior_arguments(tmp_path / "p"), Codes(20))
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""

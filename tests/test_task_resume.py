"""What a task may be made of, and that a failed or stopped run of it resumes exactly."""

import copy

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback

from hf_vq.training.loop import TrainingLoop
from hf_vq.training.tasks import Reconstruction, Turn

from .adversarial_task import Adversarial, tiny_discriminator
from .test_tasks import arguments, entries
from .tiny_models import Images, tiny_autoencoder


class Numbered(IterableDataset):
    """Images in their order; the item of a number fails once."""

    def __init__(self, fails_at=None):
        self.images, self.fails_at = Images(128), fails_at

    def __iter__(self):
        for index in range(128):
            if index == self.fails_at:
                self.fails_at = None
                raise OSError("the disk is gone")
            yield self.images[index]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def failing(model, call):
    """Its forward fails at one call, after drawing random numbers."""
    forward, calls = model.forward, []

    def fail(*inputs, **options):
        calls.append(0)
        output = forward(*inputs, **options)
        if len(calls) == call:
            raise RuntimeError("out of memory")
        return output

    model.forward = fail
    return model


@pytest.mark.parametrize("where", ["a forward", "the stream"])
def test_a_run_that_failed_within_a_step_resumes_as_if_it_had_not(where, tmp_path):
    models, options = [], {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
    for name in ("whole", "failed", "resumed"):
        torch.manual_seed(0)
        model, stream = tiny_autoencoder(dropout=0.1), Numbered()
        folder = tmp_path / ("whole" if name == "whole" else "failed")
        resume = {"resume_from_checkpoint": "true"} if name == "resumed" else {}
        task = Reconstruction(model, arguments(folder, **options, **resume))
        if name == "failed" and where == "a forward":
            failing(model, call=8)  # the second half of step 4
        elif name == "failed":
            stream.fails_at = 4 * 16 + 5  # in step 5
        if name == "failed":
            with pytest.raises((OSError, RuntimeError), match=r"the disk is gone|out of memory"):
                TrainingLoop(task, stream, task.args).train()
        else:
            report = TrainingLoop(task, stream, task.args).train()
            models.append((model, [entry["loss"] for entry in entries(report)]))
    assert same(models[0][0], models[1][0])
    assert models[0][1] == models[1][1]


class OnlyTheDecoder(Reconstruction):
    def make_turns(self, max_steps):
        (turn,) = super().make_turns(max_steps)
        own = list(self.autoencoder.to_sample.parameters())
        turn.optimizer = torch.optim.AdamW(own, lr=1e-2)
        turn.schedule = torch.optim.lr_scheduler.LambdaLR(turn.optimizer, lambda step: 1.0)
        return [turn]


class Teacher(Reconstruction):
    """With a moving average of the weights, which has no turn."""

    def __init__(self, model, args):
        super().__init__(model, args)
        self.teacher = self.modules["teacher"] = copy.deepcopy(model)

    def after_turn(self, turn, skipped):
        super().after_turn(turn, skipped)
        with torch.no_grad():
            for mine, other in zip(self.teacher.parameters(), self.autoencoder.parameters(), strict=True):
                mine.lerp_(other, 0.5)


@pytest.mark.parametrize("task_class", [OnlyTheDecoder, Teacher])
def test_parameters_without_an_optimizer_and_modules_without_a_turn_resume(task_class, tmp_path):
    results = []
    for folder, steps in (("whole", [6]), ("parts", [3, 6])):
        for count in steps:
            torch.manual_seed(0)
            model = tiny_autoencoder()
            resume = {"resume_from_checkpoint": "true"} if count == 6 and len(steps) > 1 else {}
            task = task_class(model, arguments(tmp_path / folder, max_steps=count, **resume))
            report = TrainingLoop(task, Images(64), task.args).train()
        results.append((task.modules, [entry["grad_norm"] for entry in entries(report)]))
    assert results[0][1] == results[1][1]
    for one, other in zip(results[0][0].values(), results[1][0].values(), strict=True):
        assert same(one, other)


def other_turns(change):
    class Changed(Adversarial):
        def make_turns(self, max_steps):
            return change(super().make_turns(max_steps))

    return Changed


def renamed(turns):
    turns[1].name = "critic"
    return turns


@pytest.mark.parametrize("change", [lambda turns: turns[:1], lambda turns: turns[::-1], renamed])
def test_a_resume_with_other_turns_is_refused_by_name(change, tmp_path):
    def loop(task_class, **options):
        args = arguments(tmp_path, **options)
        return TrainingLoop(task_class(tiny_autoencoder(), tiny_discriminator(), args), Images(64), args)

    loop(Adversarial, max_steps=5).train()
    with pytest.raises(ValueError, match="holds the turns autoencoder, discriminator, this run has"):
        loop(other_turns(change), resume_from_checkpoint="true")


def twice(turns):
    turns[1].name = "autoencoder"
    return turns


def foreign(turns):
    critic = tiny_discriminator()
    return [turns[0], Turn("critic", critic, turns[1].optimizer, turns[1].schedule, turns[1].compute)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (twice, "names of their own, got .'autoencoder', 'autoencoder'"),
        (foreign, "module of the turn 'critic' must be"),
    ],
)
def test_turns_that_no_checkpoint_could_hold_are_refused(change, words, tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match=words):
        TrainingLoop(other_turns(change)(tiny_autoencoder(), tiny_discriminator(), args), Images(64), args)


def test_a_first_turn_may_start_later(tmp_path):
    args = arguments(tmp_path)
    task = other_turns(lambda turns: turns[::-1])(tiny_autoencoder(), tiny_discriminator(), args)
    report = TrainingLoop(task, Images(64), args).train()
    first = [entry["step"] for entry in report["history"] if "loss" in entry]
    assert first == [5, 6]  # the discriminator starts after four steps


def test_transformers_early_stopping_stops(tmp_path):
    model = tiny_autoencoder()
    args = arguments(tmp_path, max_steps=40, eval_steps=2, learning_rate=1e-30, metric_for_best_model="eval_mse")
    task = Reconstruction(model, args)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.to_sample.bias.requires_grad_(True)
    model.quantizer.codebook_updates = "off"
    report = TrainingLoop(task, Images(64), args, Images(16), [EarlyStoppingCallback(2)]).train()
    steps = [entry["step"] for entry in report["history"] if "eval_mse" in entry]
    assert steps[-1] < 40

"""`transformers.Trainer` for priors: what it saves, what it takes up again, what ends it."""

import contextlib
import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_model, save_model
from torch.utils.data import default_collate
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from hf_vq.quiet import without_bars
from hf_vq.training.callbacks import EarlyStopping
from hf_vq.training.checkpoints import TRAINER_STATE, abandon_newer, rotate_checkpoints, seal, unseal
from hf_vq.training.divergence import check_batch, check_terms, check_weights_finite, telling_divergence
from hf_vq.training.evaluation import evaluate_prior
from hf_vq.training.interruption import InterruptGuard, StepStart, save_before_stopping
from hf_vq.training.lengths import LengthsTrainer
from hf_vq.training.progress import Progress
from hf_vq.training.report import best_entry, write_report
from hf_vq.training.resuming import (
    CHANGED,
    HORIZON,
    MAY_CHANGE,
    base_rates,
    changes,
    check_goes_on,
    recorded,
    renew_learning_rate,
)
from hf_vq.training.tracking import TRACKERS, Tracking, costing_nothing_else
from hf_vq.training.weight_ema import WeightEMA
from hf_vq.writing import is_empty, whole_files, write_text, writing

logger = logging.getLogger(__name__)

SAMPLES = "samples"  # folder in that of a run: what `sample_steps` drew
RUN_STATE = "run_state.json"
TRAINING_WEIGHTS = "training_weights.safetensors"  # where model.safetensors is the average
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")  # schedules that know no first rate


class PriorTrainer(LengthsTrainer):
    """`transformers.Trainer` for priors: sealed checkpoints, weight average, an end to training on NaN."""

    model: Any
    args: Any
    train_dataset: Any

    def __init__(
        self,
        prior: Any,
        args: Any,
        train_dataset: Any,
        eval_dataset: Any,
        guard: InterruptGuard,
        callbacks: Iterable[Any] = (),
        draw_samples: Callable[[Path], Sequence[Path]] | None = None,
    ):
        super().__init__(
            model=prior,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=functools.partial(collate, prior),
            callbacks=list(callbacks),
        )
        self.weight_ema = WeightEMA(prior, args.weight_ema_decay) if args.weight_ema_decay is not None else None
        self.guard, self.stopped_by_signal = guard, False
        self.resumed: dict[str, Any] = {}  # the run state of the checkpoint that this run continues
        self.changed: dict[str, Any] = {}  # what is not as it was there
        self.before_step: StepStart | None = None  # while a step runs
        self.whole_step = True  # the weights have not moved since the last finished step
        trackers = [INTEGRATION_TO_CALLBACK[name] for name in TRACKERS]
        for callback in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK, *trackers):  # in their place are ours
            self.remove_callback(callback)
        self.progress = Progress("prior", shown=not args.disable_tqdm, loss_unit="nats per code")
        self.tracking = Tracking(args, args.to_dict(), resumed=bool(args.resume_from_checkpoint))
        self.draw_samples = draw_samples
        self.add_callback(self.progress)
        self.add_callback(self.tracking)
        self.add_callback(_EveryStep(self))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args.early_stopping_patience, "eval_loss"))
        self.started = time.monotonic()

    @property
    def identity(self) -> dict[str, int]:
        """What must be equal for a resumed run to see the data of the interrupted one."""
        args = self.args
        return {
            "num_samples": len(self.train_dataset),
            "batch_size": args.per_device_train_batch_size,
            "batches_per_step": args.gradient_accumulation_steps,
            "seed": args.seed,
            "num_processes": args.world_size,
        }

    def get_batch_samples(self, *inputs: Any) -> tuple[list, Any]:
        if self.state.global_step >= self.state.max_steps:  # a finished run that is resumed
            self.control.should_training_stop = True
            return [], None
        self.before_step = StepStart.now(self._tr_loss.clone())
        return super().get_batch_samples(*inputs)

    def training_step(self, *inputs: Any, **options: Any) -> torch.Tensor:
        step = self.state.global_step + 1
        with telling_divergence(step, "loss", {"prior": self.model}):
            loss = super().training_step(*inputs, **options)
        check_terms(step, {"loss": loss.item()}, None)  # Trainer would log the mean of earlier losses instead
        self.last_loss = loss.item()
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        check_batch(self.state.global_step + self.model.training, inputs)
        return super()._prepare_inputs(inputs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Also raises a `DivergenceError`, before the optimizer's step; fp16's scaler skips such steps by itself."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None and norm is not None:
            check_terms(self.state.global_step + 1, {"loss": self.last_loss}, float(norm))
        return norm

    def as_published(self) -> contextlib.AbstractContextManager[None]:
        """Within the `with` block, the prior has the weights that would be published."""
        return contextlib.nullcontext() if self.weight_ema is None else self.weight_ema.applied()

    def evaluate(self, *inputs: Any, **options: Any) -> dict[str, float]:
        step = self.state.global_step
        check_weights_finite(step, {"prior": self.model})
        with (
            self.as_published(),
            telling_divergence(step, "evaluation", {"prior": self.model}),
        ):
            check_likelihood(self.model, self.eval_dataset)
            metrics = super().evaluate(*inputs, **options)
        check_terms(step, {"loss": metrics["eval_loss"]}, None, prefix="eval_")
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer writes in place and deletes old ones first: here a new one is sealed before any old one goes."""
        check_weights_finite(self.state.global_step, {"prior": self.model})
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        run_state = {
            "seconds": time.monotonic() - self.started,
            "data": self.identity,
            "arguments": recorded(self.args),
            "loss": {
                "running": self.accelerator.reduce(self._tr_loss.clone(), "mean").item(),
                "total": self._total_loss_scalar,
                "logged_step": self._globalstep_last_logged,
            },
        }
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing(folder), without_bars():
                if self.is_world_process_zero():
                    unseal(folder)
                    shutil.rmtree(
                        folder, ignore_errors=True
                    )  # what a run left that was killed in it is not sealed too
                self.accelerator.wait_for_everyone()
                super()._save_checkpoint(model, trial)
                if self.is_world_process_zero():
                    write_text(folder / RUN_STATE, json.dumps(run_state))
                    if self.weight_ema is not None:
                        self.weight_ema.save(folder)
                        save_model(self.model, str(folder / TRAINING_WEIGHTS), {"format": "pt"})
                self.accelerator.wait_for_everyone()
                if self.is_world_process_zero():
                    seal(folder, self.state.global_step)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk gets its space back
            raise
        finally:
            self.args.save_total_limit = limit
        if self.is_world_process_zero():
            rotate_checkpoints(folder.parent, limit, keep=self.state.best_model_checkpoint)

    def _save(self, *inputs: Any, **options: Any) -> None:
        with self.as_published():
            super()._save(*inputs, **options)

    def load_run_state(self, folder: Path) -> None:
        """Check that a checkpoint belongs to this run and take what Trainer does not restore.

        Raises:
            ValueError: the checkpoint belongs to other data, another batch size, seed or number of processes, has
                other options that cannot change, or is of a later step than the last.
        """
        self.resumed = json.loads((folder / RUN_STATE).read_text(encoding="utf-8"))
        may = MAY_CHANGE - ({"learning_rate"} if self.args.lr_scheduler_type in BY_EVALUATION else set())
        self.changed = changes(folder, self.resumed.get("arguments", {}), recorded(self.args), may)
        changes(folder, {name: self.resumed["data"].get(name) for name in self.identity}, self.identity)
        step = TrainerState.load_from_json(str(folder / TRAINER_STATE)).global_step
        check_goes_on(folder, step, self.last_step, self.changed)
        self.started -= self.resumed["seconds"]
        abandon_newer(self.args.output_dir, folder)
        if self.is_world_process_zero():
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit, keep=folder)

    @property
    def last_step(self) -> int:
        """Optimizer steps of the whole run."""
        args = self.args
        batches = math.ceil(len(self.train_dataset) / (args.per_device_train_batch_size * args.world_size))
        steps = math.ceil(batches / args.gradient_accumulation_steps)
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Also loads the average, which a checkpoint publishes, and then the weights that train."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.weight_ema is not None:
            self.weight_ema.load(resume_from_checkpoint, dict(self.model.named_parameters()))
            training = Path(resume_from_checkpoint) / TRAINING_WEIGHTS
            if training.is_file():  # else of an earlier version, which published the weights that train
                load_model(self.model, training)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Also lets a learning rate and a number of steps that have changed come into force."""
        base = base_rates(self.lr_scheduler)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (base_rates(self.lr_scheduler) != base or self.changed.keys() & set(HORIZON)):
            renew_learning_rate(self.optimizer, self.lr_scheduler, base)

    def take_up(self) -> None:
        """Give a resumed run what Trainer starts anew: mean losses since the last entry, and today's intervals."""
        self.state.compute_steps(self.args, self.state.max_steps)
        if self.changed:
            entry: Any = {CHANGED: self.changed, "epoch": self.state.epoch, "step": self.state.global_step}
            self.state.log_history.append(entry)
        if "loss" in self.resumed:
            loss = self.resumed["loss"]
            self._tr_loss = torch.tensor(loss["running"], device=self.args.device)
            self._total_loss_scalar, self._globalstep_last_logged = loss["total"], loss["logged_step"]
            self._initial_global_step = 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Also makes the times of the last entry those of the whole run, not of what follows a resume."""
        if "train_runtime" in logs:
            seconds = time.monotonic() - self.started
            for name in ("train_samples_per_second", "train_steps_per_second"):
                logs[name] = round(logs[name] * logs["train_runtime"] / seconds, 3)
            logs["train_runtime"] = round(seconds, 4)
        super().log(logs, start_time)

    def init_hf_repo(self, *inputs: Any, **options: Any) -> None:
        """Nothing: what is published is pushed at the end, see `hf_vq.training.pushing`."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing, see `init_hf_repo`."""

    def show_samples(self) -> None:
        """Draw samples of what would be published; a signal breaks that off, and then the training after this step."""
        if self.draw_samples is None or not self.is_world_process_zero():
            return
        step = self.state.global_step
        folder = Path(self.args.output_dir) / SAMPLES / f"step-{step}"
        try:
            with costing_nothing_else("samples", step, folder), self.guard.breaking_off(), self.as_published():
                folder.mkdir(parents=True, exist_ok=True)
                files = self.draw_samples(folder)
                self.tracking.show_files({path.stem: path for path in files}, step)
        except KeyboardInterrupt:
            logger.warning("Step %d: drawing samples was broken off.", step)
        finally:
            if folder.is_dir() and is_empty(folder):
                folder.rmdir()

    def stop_early(self, reason: str, together: bool = True) -> None:
        """Save the last finished step where that is possible, and say how to go on; see `save_before_stopping`."""
        save = functools.partial(self._save_checkpoint, self.model, trial=None)
        if self.before_step is not None:
            self._tr_loss = self.before_step.restore()
        save_before_stopping(
            self.model,
            self.args.output_dir,
            self.state.global_step,
            self.state.max_steps,
            save if together and self.whole_step else None,
            reason,
        )

    def finish(self) -> dict[str, Any] | None:
        """Publish the weights, evaluate them and write the report."""
        history, metrics, step = self.state.log_history, {}, self.state.global_step
        check_weights_finite(step, {"prior": self.model})
        losses = [entry["loss"] for entry in history if "loss" in entry]
        if self.eval_dataset is not None:
            metrics = {"eval_loss": self.evaluate()["eval_loss"]}
        if self.weight_ema is not None:
            self.weight_ema.copy_to_model()
        self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)  # takes autocast off the forward
        with telling_divergence(step, "the last weights", {"prior": self.model}):
            check_likelihood(self.model, self.train_dataset)
        if self.eval_dataset is not None and self.model.likelihood is not None:
            likelihood = evaluate_prior(self.model, self.eval_dataset, self.args.per_device_eval_batch_size)
            likelihood = {f"eval_{name}": value for name, value in likelihood.items()}
            self.tracking.log(likelihood, step)
            metrics.update(likelihood)
        if not self.is_world_process_zero():
            return None
        with whole_files(self.args.output_dir) as folder, without_bars():
            self.model.eval().save_pretrained(folder)
        return write_report(
            self.args.output_dir,
            arguments=self.args.to_dict(),
            model_config=self.model.config.to_dict(),
            history=history,
            metrics={"train_loss": losses[-1] if losses else None, **metrics},
            best=best_entry(history, "eval_loss"),
            wall_time=time.monotonic() - self.started,
            device=self.args.device,
        )


def check_likelihood(prior: Any, dataset: Any) -> None:
    """Raise a ValueError where `log_prob` would be no likelihood, by the first item of a data set."""
    item = send_to_device(collate(prior, [dataset[0]]), prior.device)
    prior.check_likelihood(item.pop("codes"), **item)


def collate(prior: Any, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Items of a data set as a batch of what a prior takes: codes, conditions and, where there are, lengths."""
    names = ("codes", "lengths")
    return default_collate(
        [{name: item[name] for name in names if name in item} | prior.pick_conditions(item) for item in items]
    )


class _EveryStep(TrainerCallback):
    """Take up what a resumed run was; after each optimizer step take in the weights and heed a signal."""

    def __init__(self, trainer: PriorTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.take_up()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.whole_step = False

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.weight_ema is not None and not trainer.accelerator.optimizer_step_was_skipped:
            trainer.weight_ema.update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.whole_step, self.trainer.before_step = True, None
        if args.sample_steps and state.global_step % args.sample_steps == 0:
            self.trainer.show_samples()
        if self.trainer.guard.requested(self.trainer.accelerator):
            self.trainer.stopped_by_signal = True
            control.should_save = control.should_training_stop = True
        return control

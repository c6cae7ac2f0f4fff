"""One loop over a task: exactly resumable, with a step of every turn's optimizer in each step."""

import contextlib
import functools
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, send_to_device, set_seed
from torch import nn
from transformers import TrainerState

from hf_vq.figures import is_defined
from hf_vq.processes import without_stride_warnings
from hf_vq.quiet import without_bars
from hf_vq.training.arguments import AutoencoderTrainingArguments, check_stopping_data
from hf_vq.training.callbacks import CallbackArguments, Callbacks, EarlyStopping
from hf_vq.training.checkpoints import (
    TRAINER_STATE,
    abandon_newer,
    advising,
    prepare_output_dir,
    resolve_checkpoint,
    rotate_checkpoints,
    writing_checkpoint,
)
from hf_vq.training.divergence import (
    check_batch,
    check_terms,
    check_weights_finite,
    telling_divergence,
)
from hf_vq.training.interruption import InterruptGuard, StepStart, save_before_stopping
from hf_vq.training.module_states import keep_once
from hf_vq.training.progress import Progress
from hf_vq.training.reading import Batch, check_readable, make_reader
from hf_vq.training.report import best_entry, write_report
from hf_vq.training.resuming import (
    CHANGED,
    HORIZON,
    base_rates,
    check_goes_on,
    check_random_states,
    configs,
    load_states,
    read_state,
    recorded,
    renew_learning_rate,
)
from hf_vq.training.tasks import Task, Turn
from hf_vq.training.tracking import Tracking
from hf_vq.writing import as_write_error, one_run, whole_files, write_text

logger = logging.getLogger(__name__)


class TrainingLoop:
    """One run of a task.

    Everything a checkpoint must hold is in `self.state`, the task's modules and what it saves itself, the turns'
    optimizers and schedules, and the random generators. All of it is built and prepared before any of it is loaded:
    what accelerate does not know, it saves and restores not.

    Args:
        task: what is trained.
        train_dataset: items that the task's collator takes; map-style, or an `IterableDataset`.
        args: `AutoencoderTrainingArguments`.
        eval_dataset: for the task's evaluation, every `eval_steps` and at the end.
        callbacks: see `Callbacks`.

    Raises:
        ValueError: data or options that do not fit, an output folder that cannot be used, an unusable checkpoint.
    """

    def __init__(
        self,
        task: Task,
        train_dataset: Any,
        args: AutoencoderTrainingArguments,
        eval_dataset: Any = None,
        callbacks: Iterable[Any] = (),
    ):
        self.task, self.args, self.eval_dataset = task, args, eval_dataset
        check_readable(train_dataset, args)
        check_stopping_data(args, eval_dataset)
        self.best_metric = task.metric_of(args)
        footprint = task.footprint()
        prepare_output_dir(args.output_dir, footprint.checkpoint + footprint.published)
        checkpoint = resolve_checkpoint(args.output_dir, args.resume_from_checkpoint)
        self.resumed_from = checkpoint
        self.accelerator = self._build_accelerator()
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        set_seed(args.seed)
        for module in task.modules.values():
            module.to(self.accelerator.device)
            if args.channels_last:
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch documents

        self.reader = make_reader(train_dataset, task.collator(train_dataset), args, processes, rank)
        self.max_steps = args.max_steps
        if self.max_steps <= 0:
            self.max_steps = math.ceil(args.num_train_epochs * (len(train_dataset) / self.reader.samples_per_step))
        self.state: dict[str, Any] = {
            "step": 0,
            "history": [],
            "sums": {},
            "seconds": 0.0,
            "stream": self.reader.identity,
            "modules": list(task.modules),
            "arguments": recorded(args),
            "configs": configs(task.modules) | task.identities,
        }
        self.before_step: StepStart | None = None  # while a step runs
        with telling_divergence(1, "start", task.modules):
            task.begin(self.reader, self.accelerator.device, resumed=checkpoint is not None)
        self.turns = self._prepare(task.make_turns(self.max_steps))
        keep_once(self.accelerator, task.save_published)
        self.state["turns"] = [turn.name for turn in self.turns]
        self.whole_step = True  # no turn has moved since the last finished step
        set_seed(args.seed + rank)  # dropout differs between processes; DDP made their weights equal
        if checkpoint is not None:
            self.load_checkpoint(checkpoint)
        facts = TrainerState(max_steps=self.max_steps, log_history=self.state["history"])
        facts.is_world_process_zero = self.accelerator.is_main_process
        facts.is_local_process_zero = self.accelerator.is_local_main_process
        highest = task.metrics[self.best_metric]
        best = best_entry(self.state["history"], f"eval_{self.best_metric}", highest=highest)
        facts.best_metric = None if best is None else best[f"eval_{self.best_metric}"]
        seen = CallbackArguments(args, metric=self.best_metric, greater_is_better=highest)
        self.progress = Progress(self.turns[0].name, shown=not args.disable_tqdm)
        self.tracking = Tracking(args, asdict(args), resumed=checkpoint is not None)
        every = [*callbacks, self.progress, self.tracking]
        if args.early_stopping_patience is not None:
            every.append(EarlyStopping(args.early_stopping_patience, f"eval_{self.best_metric}", highest))
        self.callbacks = Callbacks(every, seen, next(iter(task.modules.values())), facts)
        self._tell_state()

    def _build_accelerator(self) -> Accelerator:
        args = self.args
        AcceleratorState._reset_state(reset_partial_state=True)  # each run has its own, as with TrainingArguments
        accelerator = Accelerator(
            cpu=args.use_cpu,
            mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no",
            dynamo_backend="inductor" if args.torch_compile else "no",
            step_scheduler_with_optimizer=False,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # this loop accumulates by itself
        )
        accelerator.sync_gradients = True
        return accelerator

    def _prepare(self, turns: list[Turn]) -> list[Turn]:
        """Wrap the modules, then the optimizers, then the schedules of all turns; modules without one are saved too.

        Raises:
            ValueError: two turns of one name, a turn whose module the task does not list.
        """
        names = [turn.name for turn in turns]
        if len(set(names)) < len(names):
            raise ValueError(f"the turns of {type(self.task).__name__} must have names of their own, got {names}")
        for turn in turns:
            if not any(turn.module is module for module in self.task.modules.values()):
                raise ValueError(
                    f"the module of the turn {turn.name!r} must be among the modules of {type(self.task).__name__}, "
                    f"which are {', '.join(self.task.modules)}: no checkpoint would hold it"
                )
        for turn in turns:
            owned = {id(parameter) for group in turn.optimizer.param_groups for parameter in group["params"]}
            turn.parameters = [parameter for parameter in turn.module.parameters() if id(parameter) in owned]
        idle = [m for m in self.task.modules.values() if not any(turn.module is m for turn in turns)]
        for kind in ("module", "optimizer", "schedule"):
            for turn in turns:
                setattr(turn, kind, self.accelerator.prepare(getattr(turn, kind)))
        self.idle = [self.accelerator.prepare_model(module, evaluation_mode=True) for module in idle]
        return turns

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.state["step"]

    def train(self) -> dict[str, Any] | None:
        """Run to the last step; see `train_autoencoder`."""
        args = self.args
        alone = one_run(args.output_dir) if self.accelerator.is_main_process else contextlib.nullcontext()
        with alone, advising(args.output_dir), without_stride_warnings(), InterruptGuard() as guard:
            try:
                self.begin()
                stop = self.callbacks.call("on_train_begin").should_training_stop
                steps = self.reader.steps(self.step, pin_memory=self.accelerator.device.type == "cuda")
                while self.step < self.max_steps and not stop:
                    self.before_step = StepStart.now(self.reader.position)
                    self.train_step(next(steps))
                    self.before_step = None
                    stop = self.after_step()
                    if guard.requested(self.accelerator):
                        self.stop_early("it was asked to")
                        guard.stop()
                return self.finish()
            except Exception as error:
                self.progress.close()
                if as_write_error(error, args.output_dir) is None:
                    together = self.accelerator.num_processes == 1 or getattr(error, "everywhere", False)
                    self.stop_early(f"{type(error).__name__}: {error}", together)
                raise
            finally:
                self.progress.close()
                self.tracking.close()

    def begin(self) -> None:
        """What comes before the first step, once no other run is in the folder."""
        args = self.args
        if self.resumed_from is not None:
            abandon_newer(args.output_dir, self.resumed_from)
            if self.accelerator.is_main_process:
                rotate_checkpoints(args.output_dir, args.save_total_limit)
        self.started = time.monotonic() - self.state["seconds"]

    def train_step(self, batches: list[Batch]) -> None:
        """One optimizer step of every turn that has started.

        Raises:
            DivergenceError: before weights or codebook of the turn change.
        """
        for module in self.task.modules.values():
            module.train()
        for place, batch in enumerate(batches):
            check_batch(self.step + 1, batch, lambda place=place: self.reader.rows(self.step, place))  # type: ignore[misc]
        batches = [self.to_device(batch) for batch in batches]
        for index, turn in enumerate(self.turns):
            if self.step >= turn.start_step:
                with self.gradient_for(turn):
                    self.take_turn(turn, batches, prefix="" if index == 0 else f"{turn.name}_")
        self.state["step"] += 1
        self.whole_step = True

    def to_device(self, batch: Batch) -> Batch:
        """A batch where the modules are, and in their memory format."""
        batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
        if self.args.channels_last:
            batch["sample"] = batch["sample"].contiguous(memory_format=torch.channels_last)
        return batch

    @contextlib.contextmanager
    def gradient_for(self, turn: Turn) -> Iterator[None]:
        """Within the `with` block, parameters of the other turns take no gradient, though it passes through them."""
        others = [
            parameter
            for other in self.turns
            if other is not turn
            for group in other.optimizer.param_groups
            for parameter in group["params"]
            if parameter.requires_grad
        ]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def take_turn(self, turn: Turn, batches: list[Batch], prefix: str) -> None:
        """The gradient of the mean loss over the batches, which are all of one size, and a step of the optimizer."""
        self.task.before_turn(turn, self.step)
        total: Any = 0  # of the loss and of every term, a tensor (terms,) float64
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            told = telling_divergence(self.step + 1, f"{prefix}loss", self.task.modules)
            with told, contextlib.nullcontext() if last else self.accelerator.no_sync(turn.module):
                loss, terms = turn.compute(turn.module, batch)
                self.accelerator.backward(loss / len(batches))
            total = total + torch.stack([loss, *terms.values()]).detach().double() / len(batches)
        total = self.accelerator.reduce(total, "mean")
        grad_norm = self.accelerator.clip_grad_norm_(turn.parameters, self.args.max_grad_norm or math.inf)
        values = dict(zip(["loss", *terms], total.tolist(), strict=True))
        scaled = self.accelerator.scaler is not None  # fp16: its scaler skips steps of infinite gradient by itself
        check_terms(self.step + 1, values, None if scaled else grad_norm.item(), prefix)
        self.whole_step = False
        with telling_divergence(self.step + 1, f"{prefix}weights", self.task.modules):
            turn.optimizer.step()
        skipped = turn.optimizer.step_was_skipped
        self.task.after_turn(turn, skipped)
        if not skipped:
            turn.schedule.step()
        for module in self.task.modules.values():  # of parameters that no optimizer has, too
            module.zero_grad(set_to_none=True)
        for name, value in {**values, "grad_norm": grad_norm.item()}.items():
            self.state["sums"].setdefault(f"{prefix}{name}", []).append(value)

    def after_step(self) -> bool:
        """Log, evaluate and save where the step is due; the last step is left to `finish`.

        Returns:
            Whether the training has ended.
        """
        args, last = self.args, self.step == self.max_steps
        self._tell_state()
        control = self.callbacks.step_ended(
            log=self.step % args.logging_steps == 0 or last,
            evaluate=args.eval_steps is not None and self.step % args.eval_steps == 0,
            save=args.save_steps > 0 and self.step % args.save_steps == 0,
        )
        if control.should_log:
            self.log_sums()
        if control.should_evaluate and not (last or control.should_training_stop):
            self.evaluate()
        ending = last or self.callbacks.control.should_training_stop
        if control.should_save and not ending:
            self.save_checkpoint()
        return ending

    def log_sums(self) -> None:
        """Log the means since the last log entry, and what the task tells of the last batch."""
        entry: dict[str, Any] = {name: math.fsum(values) / len(values) for name, values in self.state["sums"].items()}
        self.state["sums"] = {}
        for index, turn in enumerate(self.turns):
            prefix = f"{turn.name}_" if index else ""
            entry[f"{prefix}learning_rate"] = turn.schedule.get_last_lr()[0]
        self.log(entry | self.task.observe())

    def log(self, values: dict[str, Any]) -> None:
        """Add an entry to the history and tell the callbacks of it."""
        self.state["history"].append({"step": self.step, "epoch": self.reader.epoch(self.step), **values})
        self.callbacks.call("on_log", logs=values)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate what would be published.

        Raises:
            DivergenceError: weights that are no numbers, or that give none.
        """
        if self.eval_dataset is None:
            return {}
        check_weights_finite(self.step, self.task.modules)
        with telling_divergence(self.step, "evaluation", self.task.modules):
            metrics = self.task.evaluate(self.eval_dataset, self.args.per_device_eval_batch_size, self.step)
        if "loss" in metrics:
            check_terms(self.step, {"loss": metrics["loss"]}, None, prefix="eval_")
        metrics = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.callbacks.call("on_evaluate", metrics=metrics)
        self.tracking.show(functools.partial(self.task.draw, self.eval_dataset), self.step)
        value, state = metrics[f"eval_{self.best_metric}"], self.callbacks.state
        better = max if self.task.metrics[self.best_metric] else min
        if is_defined(value):
            state.best_metric = value if state.best_metric is None else better(value, state.best_metric)
        return metrics

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<step>`, whole or not at all; never weights that are no numbers."""
        check_weights_finite(self.step, self.task.modules)
        self.state["seconds"] = time.monotonic() - self.started
        self.state["position"] = self.reader.position
        with writing_checkpoint(self.args.output_dir, self.step, self.accelerator) as folder:
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                write_text(folder / TRAINER_STATE, json.dumps(self.state))
                self.task.save(folder)
        if self.accelerator.is_main_process:
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit)
        self.callbacks.call("on_save")

    def load_checkpoint(self, folder: Path) -> None:
        """Continue as if the run had never stopped, but for what this run changes, which the history tells.

        Raises:
            ValueError: the checkpoint belongs to other data, another batch size, seed, number of processes, task or
                model, or is of a later step than the last.
        """
        state, changed = read_state(folder, self.state, self.task.modules, self.args)
        check_goes_on(folder, state["step"], self.max_steps, changed)
        self.state = state
        if state.get("position") is not None:
            self.reader.position = state["position"]
        rates = [base_rates(turn.schedule) for turn in self.turns]
        load_states(self.accelerator, folder)
        self.task.load(folder)
        check_random_states(folder, self.accelerator.process_index)
        for turn, base in zip(self.turns, rates, strict=True):
            if base_rates(turn.schedule) != base or changed.keys() & set(HORIZON):
                renew_learning_rate(turn.optimizer, turn.schedule, base)
        if changed:
            state["history"].append({"step": self.step, "epoch": self.reader.epoch(self.step), CHANGED: changed})
        logger.info("Resumed from %s at step %d of %d.", folder, self.step, self.max_steps)

    def _tell_state(self) -> None:
        """Give the callbacks the current step."""
        self.callbacks.state.global_step = self.step
        self.callbacks.state.epoch = self.reader.epoch(self.step)

    def stop_early(self, reason: str, together: bool = True) -> None:
        """Save the last finished step where that is possible, and say how to go on; see `save_before_stopping`."""
        save = self.save_checkpoint if together and self.whole_step else None
        if self.before_step is not None:
            self.reader.position = self.before_step.restore()
        everything = nn.ModuleDict(self.task.modules)
        save_before_stopping(everything, self.args.output_dir, self.step, self.max_steps, save, reason)

    def finish(self) -> dict[str, Any] | None:
        """Save the last checkpoint, publish the weights, evaluate them and write the report."""
        args = self.args
        if self.state.get("finished") != self.step:  # else the checkpoint resumed from was the last one already
            self.state.update(metrics=self.evaluate(), finished=self.step)
            self.save_checkpoint()
        self.task.finish()
        for module in [*(turn.module for turn in self.turns), *self.idle]:
            self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)  # takes autocast off the forward
        self.accelerator.end_training()
        report = None
        if self.accelerator.is_main_process:
            with whole_files(args.output_dir) as folder, without_bars():
                model_config = self.task.publish(str(folder))
            history = self.state["history"]
            losses = [entry["loss"] for entry in history if "loss" in entry]
            report = write_report(
                args.output_dir,
                arguments=asdict(args),
                model_config=model_config,
                history=history,
                metrics={"train_loss": losses[-1] if losses else None, **self.state["metrics"]},
                best=best_entry(history, f"eval_{self.best_metric}", highest=self.task.metrics[self.best_metric]),
                wall_time=time.monotonic() - self.started,
                device=self.accelerator.device,
            )
        self.callbacks.call("on_train_end")
        return report

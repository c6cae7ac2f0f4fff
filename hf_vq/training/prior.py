"""Trains priors: `transformers.Trainer`, with checkpoints that count only when complete."""

import contextlib
import functools
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import default_collate
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.utils import logging as transformers_logging

from hf_vq.arguments import check_fields, class_hints
from hf_vq.data.identity import differing_hash, tokenizer_of
from hf_vq.ranges import OneOf, Positive, Weight
from hf_vq.saved import CONFIG, read_json
from hf_vq.training.arguments import AutoencoderTrainingArguments, check_precision, launched_precision, take_texts
from hf_vq.training.checkpoints import (
    abandon_newer,
    prepare_output_dir,
    resolve_checkpoint,
    rotate_checkpoints,
    seal,
    unseal,
    write_text,
)
from hf_vq.training.disk import module_footprint
from hf_vq.training.divergence import check_batch, check_terms, check_weights_finite, telling_divergence
from hf_vq.training.evaluation import evaluate_prior
from hf_vq.training.interruption import InterruptGuard, save_before_stopping
from hf_vq.training.lengths import LengthsTrainer
from hf_vq.training.report import best_entry, write_report
from hf_vq.training.weight_ema import WeightEMA

logger = logging.getLogger(__name__)

RUN_STATE = "run_state.json"


SAME_OPTIONS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "num_train_epochs", "max_steps", "lr_scheduler_type", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "weight_ema_decay", "seed", "dataloader_num_workers", "save_total_limit",
)  # fmt: skip  # of both trainings, in the same ranges
ReportTo = Annotated[str, OneOf(("none", "all", *INTEGRATION_TO_CALLBACK))]
OPTIONS: dict[str, Any] = {
    **{name: kind for name, kind in class_hints(AutoencoderTrainingArguments).items() if name in SAME_OPTIONS},
    "warmup_steps": Weight,  # those below 1 are shares of all steps
    "logging_steps": Positive,
    "eval_steps": Positive | None,
    "save_steps": Positive,
    "report_to": ReportTo | list[ReportTo],
}


@dataclass
class PriorTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the set-up that priors need, and defaults for small ones.

    Some settings are not to be changed: `label_names` (empty: Trainer takes `class_labels` for targets otherwise and
    then reports no `eval_loss`), `remove_unused_columns` (False) and `prediction_loss_only` (True: Trainer would
    gather the logits of the whole validation set), `bf16_full_eval` and `fp16_full_eval` (False: they would leave the
    published weights in half precision).

    Args:
        eval_steps: given alone, it switches `eval_strategy` to "steps".
        weight_ema_decay: evaluate and publish a moving average of the weights, in [0, 1); None: no average.
    """

    per_device_train_batch_size: int = field(default=64, metadata={"help": "code grids per process and forward"})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "code grids per process in evaluation"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak learning rate of AdamW"})
    num_train_epochs: float = field(default=10.0, metadata={"help": "passes over the data, unless max_steps is given"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "a schedule of transformers"})
    logging_steps: float = field(default=50, metadata={"help": "optimizer steps between log entries"})
    weight_ema_decay: float | None = field(default=None, metadata={"help": "evaluate and publish averaged weights"})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "for models that skip weights"})

    def __post_init__(self) -> None:
        check_fields(self, OPTIONS)
        take_texts(self)
        fixed = {
            "label_names": (None, []),
            "remove_unused_columns": (True, False),
            "prediction_loss_only": (False, True),
            "fp16_full_eval": (False, False),  # it would cast the weights that are published
            "bf16_full_eval": (False, False),
        }
        for name, (default, ours) in fixed.items():
            if getattr(self, name) not in (default, ours):
                raise ValueError(f"{name}={getattr(self, name)!r} cannot be changed for priors: it is {ours!r}")
            setattr(self, name, ours)
        self.adam_beta1, self.adam_beta2 = float(self.adam_beta1), float(self.adam_beta2)  # torch wants floats
        self.bf16, self.fp16 = launched_precision(self.bf16, self.fp16)
        check_precision(self.bf16, self.fp16, self.use_cpu)
        if self.eval_steps and self.eval_strategy == "no":
            self.eval_strategy = "steps"
        super().__post_init__()


def train_prior(
    prior: Any, train_dataset: Any, args: PriorTrainingArguments, eval_dataset: Any = None
) -> dict[str, Any] | None:
    """Train a prior on codes; write checkpoints, the final weights and `report.json` into `args.output_dir`.

    Args:
        prior: a prior of this package. It ends with the weights that are published: the averaged ones when
            `args.weight_ema_decay` is given.
        train_dataset: map-style, items `{"codes": (*grid) int64, "class_labels": () int64 where there are classes}`;
            with `lengths` () int64, only so many positions of an item are real, and count.
        args: `PriorTrainingArguments`.
        eval_dataset: like `train_dataset`; evaluated every `eval_steps` and at the end.

    Returns:
        The report: `metrics` (final, with `eval_loss` and, of a prior that has a likelihood, `eval_nats_per_code` and
        the rest of `evaluate_prior`), `history`, `best`, `wall_time_seconds`, `settings`.

    Raises:
        ValueError: data that does not fit the prior or is of two tokenizers, a network that sees the codes that it
            predicts, an output folder or a checkpoint that cannot be used.
        DivergenceError: the loss became NaN or infinite.
    """
    for dataset in [train_dataset, *([eval_dataset] if eval_dataset is not None else [])]:
        check_dataset(prior, dataset)
    remember_tokenizer(prior, train_dataset, eval_dataset)
    with telling_divergence(1, "start", {"prior": prior}):
        check_likelihood(prior, train_dataset)
    footprint = module_footprint(prior, averaged=args.weight_ema_decay is not None)
    prepare_output_dir(str(args.output_dir), footprint.checkpoint + footprint.published)
    checkpoint = resolve_checkpoint(str(args.output_dir), args.resume_from_checkpoint)
    for name, value in former_options(type(prior.config), checkpoint).items() if checkpoint is not None else ():
        if getattr(prior.config, name) != value:
            raise ValueError(
                f"{checkpoint} was written with {name}={value}, this prior has {name}={getattr(prior.config, name)}"
            )
    with InterruptGuard() as guard:
        trainer = PriorTrainer(prior, args, train_dataset, eval_dataset, guard)
        if checkpoint is not None:
            trainer.load_run_state(checkpoint)
        try:
            with telling_divergence(lambda: trainer.state.global_step + 1, "weights", {"prior": prior}):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if trainer.stopped_by_signal:
                trainer.stop_early("it was asked to")
                guard.stop()
            return trainer.finish()
        except Exception as error:
            trainer.stop_early(f"{type(error).__name__}: {error}", together=args.world_size == 1)
            raise


class PriorTrainer(LengthsTrainer):
    """`transformers.Trainer` for priors: sealed checkpoints, weight average, an end to training on NaN."""

    model: Any
    args: Any
    train_dataset: Any

    def __init__(
        self, prior: Any, args: PriorTrainingArguments, train_dataset: Any, eval_dataset: Any, guard: InterruptGuard
    ):
        super().__init__(
            model=prior,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=functools.partial(collate, prior),
        )
        self.weight_ema = WeightEMA(prior, args.weight_ema_decay) if args.weight_ema_decay is not None else None
        self.guard, self.stopped_by_signal = guard, False
        self.add_callback(_EveryStep(self))
        self.remove_callback(PrinterCallback)  # every entry is in the report's history
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_LossInProgress)
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

    def evaluate(self, *inputs: Any, **options: Any) -> dict[str, float]:
        step = self.state.global_step
        check_weights_finite(step, {"prior": self.model})
        with (
            self.weight_ema.applied() if self.weight_ema is not None else contextlib.nullcontext(),
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
        if self.is_world_process_zero():
            unseal(folder)
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with _without_shard_bars():
                super()._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                run_state = {"seconds": time.monotonic() - self.started, "data": self.identity}
                write_text(folder / RUN_STATE, json.dumps(run_state))
                if self.weight_ema is not None:
                    self.weight_ema.save(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # a full disk gets its space back
            raise
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(folder, self.state.global_step)
            rotate_checkpoints(folder.parent, limit, keep=self.state.best_model_checkpoint)

    def load_run_state(self, folder: Path) -> None:
        """Check that a checkpoint belongs to this run and take what Trainer does not restore.

        Raises:
            ValueError: the checkpoint belongs to other data, another batch size, seed or number of processes.
        """
        state = json.loads((folder / RUN_STATE).read_text(encoding="utf-8"))
        for name, value in self.identity.items():
            if state["data"].get(name) != value:
                raise ValueError(f"{folder} was written with {name}={state['data'].get(name)}, this run has {value}")
        self.started -= state["seconds"]
        if self.weight_ema is not None:
            self.weight_ema.load(folder)
        abandon_newer(self.args.output_dir, folder)

    def stop_early(self, reason: str, together: bool = True) -> None:
        """Save the last finished step where that is possible, and say how to go on; see `save_before_stopping`."""
        save = functools.partial(self._save_checkpoint, self.model, trial=None) if together else None
        save_before_stopping(
            self.model, self.args.output_dir, self.state.global_step, self.state.max_steps, save, reason
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
            metrics.update({f"eval_{name}": value for name, value in likelihood.items()})
        if not self.is_world_process_zero():
            return None
        with _without_shard_bars():
            self.model.eval().save_pretrained(self.args.output_dir)
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


def remember_tokenizer(prior: Any, dataset: Any, eval_dataset: Any = None) -> None:
    """Tell a prior's config which tokenizer made the codes that it learns; it stays as it is where that is not known.

    Raises:
        ValueError: the two data sets hold codes of different tokenizers.
    """
    identity, other = tokenizer_of(dataset), tokenizer_of(eval_dataset)
    key = differing_hash(identity, other) if identity and other else None
    if key is not None:
        raise ValueError(
            f"the codes to evaluate on were made by another tokenizer than those to train on: {key} is {other[key]}, "
            f"not {identity[key]}"
        )
    if identity:
        prior.config.codes_sha256 = identity.get("codes_sha256")
        prior.config.rounded_codes_sha256 = identity.get("rounded_sha256")


def former_options(config_class: Any, checkpoint: str | Path) -> dict[str, Any]:
    """What the prior of a checkpoint has of those options that older versions did not know, by name."""
    path = Path(checkpoint) / CONFIG
    saved = read_json(path) if path.is_file() else None
    return {} if saved is None else {name: saved.get(name, old) for name, old in config_class.former_options.items()}


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
    """After each optimizer step: take in the weights, and heed a signal."""

    def __init__(self, trainer: PriorTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.weight_ema is not None and not trainer.accelerator.optimizer_step_was_skipped:
            trainer.weight_ema.update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.trainer.guard.requested(self.trainer.accelerator):
            self.trainer.stopped_by_signal = True
            control.should_save = control.should_training_stop = True
        return control


class _LossInProgress(ProgressCallback):
    """One progress bar with the loss at its end: no line for every log entry, no bar for every evaluation."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description("prior")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4f}")

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        pass


@contextlib.contextmanager
def _without_shard_bars() -> Iterator[None]:
    """transformers shows a progress bar for each file it writes, which would cut the training's own in pieces."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def check_dataset(prior: Any, dataset: Any) -> None:
    """Raise a ValueError for a data set that does not fit a prior: empty, of other codes, or without a condition."""
    config = prior.config
    if len(dataset) == 0:
        raise ValueError("the data set of codes is empty")
    size = getattr(dataset, "codebook_size", None)
    if size is not None and size != config.codebook_size:
        raise ValueError(
            f"the codes come from a codebook of {size}, the prior has codebook_size={config.codebook_size}"
        )
    item = dataset[0]
    if config.num_classes and "class_labels" not in item:
        raise ValueError(f"the prior has num_classes={config.num_classes}, the data set has no class_labels")
    for condition in prior.conditions:
        if condition.taken and not condition.optional and condition.name not in item:
            raise ValueError(
                f"this {type(prior).__name__} takes {condition.name} by its config, the data set has "
                f"{', '.join(sorted(item))} alone"
            )

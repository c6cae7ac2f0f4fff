"""Trains priors: `transformers.Trainer`, with checkpoints that count only when complete."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from hf_vq.arguments import check_fields, class_hints
from hf_vq.data.identity import differing_hash, tokenizer_of
from hf_vq.processes import without_stride_warnings
from hf_vq.ranges import Count, OneOf, Range, Size, StepsOrShare, WholeFrom1
from hf_vq.saved import CONFIG, read_json
from hf_vq.training.arguments import (
    LICENSE,
    PATIENCE,
    REPORT_TO,
    AutoencoderTrainingArguments,
    check_precision,
    check_stopping,
    check_stopping_data,
    launched_precision,
    take_texts,
)
from hf_vq.training.checkpoints import advising, prepare_output_dir, resolve_checkpoint
from hf_vq.training.disk import module_footprint
from hf_vq.training.divergence import telling_divergence
from hf_vq.training.interruption import InterruptGuard
from hf_vq.training.prior_trainer import PriorTrainer, check_likelihood
from hf_vq.training.pushing import check_push_options, push_result
from hf_vq.training.resuming import changes, plain
from hf_vq.training.tracking import PROJECT, TRACKERS, tracker_names
from hf_vq.writing import as_write_error, one_run

FEW_STEPS = 100  # to try a schedule whose steps the data will say
OF_THE_FILE = ("architectures", "dtype", "torch_dtype", "transformers_version")  # in a config.json, no options


SAME_OPTIONS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "learning_rate",
    "num_train_epochs", "max_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
    "max_grad_norm", "weight_ema_decay", "seed", "dataloader_num_workers", "save_total_limit",
)  # fmt: skip  # of both trainings, in the same ranges
OTHER_TRACKERS = tuple(name for name in INTEGRATION_TO_CALLBACK if name not in (*TRACKERS, "all"))
OPTIONS: dict[str, Any] = {
    **{name: kind for name, kind in class_hints(AutoencoderTrainingArguments).items() if name in SAME_OPTIONS},
    "lr_scheduler_type": Annotated[str, OneOf(tuple(each.value for each in SchedulerType))],
    "metric_for_best_model": Annotated[str, OneOf(("loss", "eval_loss"))] | None,
    "warmup_steps": StepsOrShare,
    "logging_steps": Annotated[float, Range(0, above=True), WholeFrom1()],
    "eval_steps": StepsOrShare | None,
    "save_steps": StepsOrShare,  # 0: only at the end
    "sample_steps": Count,
    "early_stopping_patience": Size | None,
}


@dataclass
class PriorTrainingArguments(TrainingArguments):
    """Options of the training: `transformers.TrainingArguments` with the set-up that priors need.

    Its defaults are for small ones. Some settings are not to be changed: `label_names` (empty: Trainer takes
    `class_labels` for targets otherwise and then reports no `eval_loss`), `remove_unused_columns` (False) and
    `prediction_loss_only` (True: Trainer would gather the logits of the whole validation set), `bf16_full_eval` and
    `fp16_full_eval` (False: they would leave the published weights in half precision).

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
    sample_steps: int = field(
        default=0, metadata={"help": "optimizer steps between samples drawn during the training; 0: none"}
    )
    early_stopping_patience: int | None = field(default=None, metadata={"help": PATIENCE})
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata={"help": REPORT_TO})
    project: str = field(default=PROJECT, metadata={"help": "of trackers: the project of the run"})
    license: str | None = field(default=None, metadata={"help": LICENSE})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "for models that skip weights"})

    def __post_init__(self) -> None:
        self.report_to = tracker_names(self.report_to, OTHER_TRACKERS, installed_trackers())
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
        check_schedule(self)
        check_stopping(self)
        check_push_options(self)


def installed_trackers() -> list[str]:
    """Those of transformers' other integrations whose packages are here."""
    return [name for name in get_available_reporting_integrations() if name in OTHER_TRACKERS]


def check_schedule(args: TrainingArguments) -> None:
    """Raise a ValueError for a schedule that lacks arguments that it needs, or is given some that it cannot take."""
    kind, given = SchedulerType(args.lr_scheduler_type), cast(dict | None, args.lr_scheduler_kwargs)
    steps = args.max_steps if args.max_steps > 0 else FEW_STEPS
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    try:
        warmup = args.get_warmup_steps(steps)
        get_scheduler(kind, optimizer, warmup, steps, given)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"lr_scheduler_type={kind.value!r} with lr_scheduler_kwargs={given}: {error}") from error


def train_prior(
    prior: Any,
    train_dataset: Any,
    args: PriorTrainingArguments,
    eval_dataset: Any = None,
    callbacks: Iterable[Any] = (),
    draw_samples: Callable[[Path], Sequence[Path]] | None = None,
    push: bool = True,
) -> dict[str, Any] | None:
    """Train a prior on codes; write checkpoints, the final weights and `report.json` into `args.output_dir`.

    Args:
        prior: a prior of this package. It ends with the weights that are published: the averaged ones when
            `args.weight_ema_decay` is given.
        train_dataset: map-style, items `{"codes": (*grid) int64, "class_labels": () int64 where there are classes}`;
            with `lengths` () int64, only so many positions of an item are real, and count.
        args: `PriorTrainingArguments`.
        eval_dataset: like `train_dataset`; evaluated every `eval_steps` and at the end.
        callbacks: `transformers.TrainerCallback` objects or classes.
        draw_samples: writes samples of the prior, as it is when called, into a folder and returns their files. It is
            called every `args.sample_steps`; the samples go to `samples/step-<step>` and to the trackers.
        push: whether `args.push_to_hub` pushes the prior; False where the caller publishes more, such as a pipeline.

    Returns:
        The report: `metrics` (final, with `eval_loss` and, of a prior that has a likelihood, `eval_nats_per_code` and
        the rest of `evaluate_prior`), `history`, `best`, `wall_time_seconds`, `settings`.

    Raises:
        ValueError: data that does not fit the prior or is of two tokenizers, a network that sees the codes that it
            predicts, an output folder or a checkpoint that cannot be used, an option that a resume cannot change.
        ConnectionError: the push at the end failed; the run is whole.
        DivergenceError: the loss became NaN or infinite.
        WriteError: something could not be written, such as on a full disk; the last checkpoint is whole.
    """
    check_trainable(prior, train_dataset, eval_dataset)
    check_stopping_data(args, eval_dataset)
    if args.sample_steps and draw_samples is None:
        raise ValueError(f"sample_steps={args.sample_steps} needs draw_samples, which draws them")
    footprint = module_footprint(prior, averaged=args.weight_ema_decay is not None)
    prepare_output_dir(str(args.output_dir), footprint.checkpoint + footprint.published)
    checkpoint = resolve_checkpoint(str(args.output_dir), args.resume_from_checkpoint)
    if checkpoint is not None:
        check_same_config(prior.config, checkpoint)
    alone = one_run(str(args.output_dir)) if args.process_index == 0 else contextlib.nullcontext()
    with alone, advising(str(args.output_dir)), without_stride_warnings(), InterruptGuard() as guard:
        trainer = PriorTrainer(prior, args, train_dataset, eval_dataset, guard, callbacks, draw_samples)
        if checkpoint is not None:
            trainer.load_run_state(checkpoint)
        try:
            with telling_divergence(lambda: trainer.state.global_step + 1, "weights", {"prior": prior}):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if trainer.stopped_by_signal:
                trainer.stop_early("it was asked to")
                guard.stop()
            report = trainer.finish()
        except Exception as error:
            trainer.progress.close()
            if as_write_error(error, str(args.output_dir)) is None:
                trainer.stop_early(f"{type(error).__name__}: {error}", together=args.world_size == 1)
            raise
        finally:
            trainer.progress.close()
            trainer.tracking.close()
    if push and report is not None:
        push_result(str(args.output_dir), args)
    return report


def check_trainable(prior: Any, train_dataset: Any, eval_dataset: Any = None) -> None:
    """Raise what `train_prior` says of a prior and its data before it begins; the prior remembers their tokenizer."""
    for dataset in [train_dataset, *([eval_dataset] if eval_dataset is not None else [])]:
        check_dataset(prior, dataset)
    remember_tokenizer(prior, train_dataset, eval_dataset)
    with telling_divergence(1, "start", {"prior": prior}):
        check_likelihood(prior, train_dataset)


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


def check_same_config(config: Any, checkpoint: Path) -> None:
    """Raise a ValueError for the first option that the prior of a checkpoint has otherwise."""
    path = checkpoint / CONFIG
    if path.is_file():
        then = type(config).from_dict({**read_json(path), **former_options(type(config), checkpoint)}).to_dict()
        now = {name: value for name, value in config.to_dict().items() if name not in OF_THE_FILE}
        changes(checkpoint, plain(then), plain(now))


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

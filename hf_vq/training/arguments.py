"""Options of training an autoencoder."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from transformers import SchedulerType

from hf_vq.arguments import as_plain, check_argument, check_fields
from hf_vq.ranges import Chance, Count, OneOf, Positive, Range, Samples, Seed, Size, Weight, Workers
from hf_vq.training.adversarial_arguments import AdversarialArguments
from hf_vq.training.pushing import check_push_options
from hf_vq.training.tracking import PROJECT, tracker_names

TEXTS: dict[str, Any] = {
    "output_dir": str,
    "project": str,
    "run_name": str | None,
    "hub_model_id": str | None,
    "license": str | None,
    "metric_for_best_model": str | None,
    "resume_from_checkpoint": str | bool | None,
    "perceptual": str,
    "discriminator_init": str | None,
    "eval_features": str | None,
}
REPORT_TO = "trackers to tell, several if need be: tensorboard, trackio, wandb; all: those installed (default: none)"
PATIENCE = "end the training after so many evaluations without a better one; none: train all steps"
LICENSE = "with push_to_hub: id of the licence on the Hub, such as apache-2.0"
NEED_MORE = (  # metrics at every step, or arguments of their own
    *("reduce_lr_on_plateau", "greedy"),
    *("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay"),
)
SCHEDULES = tuple(each.value for each in SchedulerType if each.value not in NEED_MORE)


def check_precision(bf16: bool, fp16: bool, use_cpu: bool) -> None:
    """Raise a ValueError for a precision of training that would not take effect on this machine."""
    if bf16 and fp16:
        raise ValueError("bf16=True and fp16=True exclude each other")
    gpu = not use_cpu and torch.accelerator.is_available()
    if fp16 and not gpu:
        raise ValueError("fp16=True needs a GPU: on a CPU, train with bf16=True or in full precision")
    if bf16 and gpu and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise ValueError(f"bf16=True: {name} has no bfloat16, train with fp16=True or in full precision")


def launched_precision(bf16: bool, fp16: bool) -> tuple[bool, bool]:
    """`bf16` and `fp16`, where neither is given as `accelerate launch --mixed_precision` says.

    Raises:
        ValueError: it asks for another precision than the options do, or for one that is not known here.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in ("no", "bf16", "fp16"):
        raise ValueError(f"accelerate launch --mixed_precision={launched}: training knows no, bf16 and fp16")
    for name, given in (("bf16", bf16), ("fp16", fp16)):
        if given and launched not in ("no", name):
            raise ValueError(f"{name}=True, but accelerate launch --mixed_precision={launched}: give one of them")
    return bool(bf16 or launched == "bf16"), bool(fp16 or launched == "fp16")


def launched_compilation(torch_compile: bool) -> bool:
    """`torch_compile`, or True where `accelerate launch --dynamo_backend inductor` says so.

    Raises:
        ValueError: it asks for another backend.
    """
    launched = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if launched not in ("no", "inductor"):
        raise ValueError(f"accelerate launch --dynamo_backend={launched}: training compiles with inductor alone")
    return bool(torch_compile or launched == "inductor")


def check_launched_accumulation(gradient_accumulation_steps: int) -> None:
    """Raise a ValueError where accelerate's environment asks for another number of forwards per optimizer step."""
    launched = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "")
    if launched not in ("", "auto", "1", str(gradient_accumulation_steps)):
        raise ValueError(
            f"gradient_accumulation_steps={gradient_accumulation_steps}, but accelerate launch "
            f"--gradient_accumulation_steps={launched}: give the same"
        )


def take_texts(args: Any) -> None:
    """Checks the options of a training that are words: a path becomes its string, and "true" True.

    Raises:
        ValueError: one is of another type.
    """
    for name, kind in TEXTS.items():
        if not hasattr(args, name):  # of the other trainer's
            continue
        value = as_plain(getattr(args, name), kind)
        if name == "resume_from_checkpoint" and str(value).lower() in ("true", "false"):
            value = str(value).lower() == "true"  # a flag of the command line is a str
        check_argument(name, value, kind)
        setattr(args, name, value)


def check_stopping(args: Any) -> None:
    """Raise a ValueError where a training is to stop early that is evaluated at its end alone."""
    evaluates = args.eval_steps is not None or getattr(args, "eval_strategy", "no") != "no"
    if args.early_stopping_patience is not None and not evaluates:
        raise ValueError(
            f"early_stopping_patience={args.early_stopping_patience} counts evaluations: give eval_steps too"
        )


def check_stopping_data(args: Any, eval_dataset: Any) -> None:
    """Raise a ValueError where a training is to stop early that has nothing to be evaluated on."""
    if args.early_stopping_patience is not None and eval_dataset is None:
        raise ValueError(
            f"early_stopping_patience={args.early_stopping_patience} counts evaluations, and there is nothing to "
            "evaluate on"
        )


@dataclass
class AutoencoderTrainingArguments(AdversarialArguments):
    """Options of the training, named as in `transformers.TrainingArguments`.

    A batch of one optimizer step is `per_device_train_batch_size` x `gradient_accumulation_steps` x processes samples.
    What `accelerate launch` says of precision and compilation counts where the options leave it open.

    Raises:
        ValueError: an option out of its range, two that exclude each other, or float16 on a CPU.
    """

    output_dir: str = field(metadata={"help": "folder of checkpoints, final weights and report"})
    per_device_train_batch_size: Samples = field(default=64, metadata={"help": "samples per process and forward"})
    per_device_eval_batch_size: Samples = field(default=64, metadata={"help": "samples per process in evaluation"})
    gradient_accumulation_steps: Samples = field(default=1, metadata={"help": "forwards per optimizer step"})
    learning_rate: Positive = field(default=3e-4, metadata={"help": "peak learning rate of AdamW"})
    num_train_epochs: Positive = field(
        default=10.0, metadata={"help": "passes over the data, unless max_steps is given"}
    )
    max_steps: Annotated[int, Range(-1)] = field(
        default=-1, metadata={"help": "optimizer steps; overrides num_train_epochs when positive"}
    )
    lr_scheduler_type: Annotated[str, OneOf(SCHEDULES)] = field(
        default="constant_with_warmup", metadata={"help": "a schedule of transformers"}
    )
    warmup_steps: Count = field(default=0, metadata={"help": "optimizer steps of linear warm-up"})
    weight_decay: Annotated[float, Range(0, 1e3)] = field(
        default=0.0, metadata={"help": "decoupled decay of weight matrices; spares codebooks"}
    )
    adam_beta1: Chance = field(default=0.9, metadata={"help": "AdamW's first decay"})
    adam_beta2: Chance = field(default=0.999, metadata={"help": "AdamW's second decay"})
    adam_epsilon: Positive = field(default=1e-8, metadata={"help": "AdamW's epsilon"})
    max_grad_norm: Weight = field(default=1.0, metadata={"help": "clip the gradient's norm to this; 0: no clipping"})
    freeze_codes: bool = field(
        default=False, metadata={"help": "train what decodes alone: the codes stay as they are"}
    )
    weight_ema_decay: Chance | None = field(default=None, metadata={"help": "evaluate and publish averaged weights"})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 mixed precision"})
    fp16: bool = field(default=False, metadata={"help": "float16 mixed precision (GPU)"})
    torch_compile: bool = field(default=False, metadata={"help": "compile the model with inductor"})
    channels_last: bool = field(default=False, metadata={"help": "keep channels innermost in memory, often faster"})
    use_cpu: bool = field(default=False, metadata={"help": "stay on the CPU even where there is a GPU"})
    seed: Seed = field(default=42, metadata={"help": "of shuffling, dropout and codebook initialisation"})
    dataloader_num_workers: Workers = field(default=0, metadata={"help": "processes that load data"})
    logging_steps: Size = field(default=50, metadata={"help": "optimizer steps between log entries"})
    eval_steps: Size | None = field(
        default=None, metadata={"help": "steps between evaluations; none: only at the end"}
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "what `best` of the report goes by, such as eval_psnr; none: the task's own"}
    )
    eval_features: str | None = field(
        default=None, metadata={"help": "network whose feature distance evaluations report; none: that of perceptual"}
    )
    save_steps: Count = field(
        default=500, metadata={"help": "optimizer steps between checkpoints; 0: only at the end"}
    )
    save_total_limit: Size | None = field(default=None, metadata={"help": "complete checkpoints to keep; none: all"})
    report_to: list[str] = field(default_factory=lambda: ["none"], metadata={"help": REPORT_TO})
    project: str = field(default=PROJECT, metadata={"help": "of trackers: the project of the run"})
    run_name: str | None = field(default=None, metadata={"help": "of trackers; none: after the output folder"})
    early_stopping_patience: Size | None = field(default=None, metadata={"help": PATIENCE})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "a checkpoint, or true: the latest"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bar, no lines above it"})
    push_to_hub: bool = field(default=False, metadata={"help": "publish the result on the Hub at the end"})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "user/name to push to; none: the name of the output folder"}
    )
    hub_private_repo: bool | None = field(default=None, metadata={"help": "make a new repository private"})
    license: str | None = field(default=None, metadata={"help": LICENSE})

    def __post_init__(self) -> None:
        self.report_to = tracker_names(self.report_to)
        check_fields(self)
        take_texts(self)
        self.adam_beta1, self.adam_beta2 = float(self.adam_beta1), float(self.adam_beta2)  # torch wants floats
        self.bf16, self.fp16 = launched_precision(self.bf16, self.fp16)
        check_precision(self.bf16, self.fp16, self.use_cpu)
        self.torch_compile = launched_compilation(self.torch_compile)
        check_launched_accumulation(self.gradient_accumulation_steps)
        check_stopping(self)
        check_push_options(self)
        self.check_adversarial()

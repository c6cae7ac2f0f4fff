"""Trains autoencoders: one accelerate loop, exactly resumable, that keeps an eye on the codebook."""

import contextlib
import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from accelerate.checkpointing import load as load_tensors_only
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, send_to_device, set_seed, tqdm
from torch.utils.data import DataLoader
from transformers import get_scheduler

from hf_vq.data.padding import collator_for, padding_of
from hf_vq.training.checkpoints import (
    TRAINER_STATE,
    abandon_newer,
    prepare_output_dir,
    resolve_checkpoint,
    rotate_checkpoints,
    write_text,
    writing_checkpoint,
)
from hf_vq.training.evaluation import evaluate_autoencoder
from hf_vq.training.interruption import DivergenceError, InterruptGuard, save_before_stopping
from hf_vq.training.report import best_entry, write_report
from hf_vq.training.sampling import ShuffledStream
from hf_vq.training.weight_ema import WeightEMA

logger = logging.getLogger(__name__)

LATENTS_PER_CODE = 16  # k-means of the first codebook sees this many latents for each code, where the bound allows
INITIAL_BATCHES = 16  # bound on the optimizer steps whose samples are gathered for it
COLLAPSE_USAGE = 0.25  # an evaluation that finds a smaller share of the codes it could have met warns of collapse


@dataclass
class AutoencoderTrainingArguments:
    """Options of `train_autoencoder`, named as in `transformers.TrainingArguments`.

    A batch of one optimizer step is `per_device_train_batch_size` x `gradient_accumulation_steps` x processes samples.

    Raises:
        ValueError: an option out of its range, or two that exclude each other.
    """

    output_dir: str = field(metadata={"help": "folder of checkpoints, final weights and report"})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "samples per process and forward"})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "samples per process in evaluation"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forwards per optimizer step"})
    learning_rate: float = field(default=3e-4, metadata={"help": "peak learning rate of AdamW"})
    num_train_epochs: float = field(default=10.0, metadata={"help": "passes over the data, unless max_steps is given"})
    max_steps: int = field(default=-1, metadata={"help": "optimizer steps; overrides num_train_epochs when positive"})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "a schedule of transformers"})
    warmup_steps: int = field(default=0, metadata={"help": "optimizer steps of linear warm-up"})
    weight_decay: float = field(default=0.0, metadata={"help": "decoupled decay of weight matrices; spares codebooks"})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's first decay"})
    adam_beta2: float = field(default=0.999, metadata={"help": "AdamW's second decay"})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "AdamW's epsilon"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "clip the gradient's norm to this; 0: no clipping"})
    freeze_codes: bool = field(
        default=False, metadata={"help": "train what decodes alone: the codes stay as they are"}
    )
    weight_ema_decay: float | None = field(default=None, metadata={"help": "evaluate and publish averaged weights"})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 mixed precision"})
    fp16: bool = field(default=False, metadata={"help": "float16 mixed precision (GPU)"})
    torch_compile: bool = field(default=False, metadata={"help": "compile the model with inductor"})
    use_cpu: bool = field(default=False, metadata={"help": "stay on the CPU even where there is a GPU"})
    seed: int = field(default=42, metadata={"help": "of shuffling, dropout and codebook initialisation"})
    dataloader_num_workers: int = field(default=0, metadata={"help": "processes that load data"})
    logging_steps: int = field(default=50, metadata={"help": "optimizer steps between log entries"})
    eval_steps: int | None = field(default=None, metadata={"help": "steps between evaluations; none: only at the end"})
    save_steps: int = field(default=500, metadata={"help": "optimizer steps between checkpoints; 0: only at the end"})
    save_total_limit: int | None = field(default=None, metadata={"help": "complete checkpoints to keep; none: all"})
    report_to: str = field(default="none", metadata={"help": "none, tensorboard or trackio"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "a checkpoint, or true: the latest"})
    disable_tqdm: bool = field(default=False, metadata={"help": "no progress bar"})

    def __post_init__(self):
        positive = ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"]
        for name in [*positive, "logging_steps", "learning_rate", "num_train_epochs"]:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ["warmup_steps", "weight_decay", "max_grad_norm", "save_steps", "dataloader_num_workers"]:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ["eval_steps", "save_total_limit"]:
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive, or None")
        if self.bf16 and self.fp16:
            raise ValueError("bf16=True and fp16=True exclude each other")
        if self.report_to not in ("none", "tensorboard", "trackio"):
            raise ValueError(f"report_to={self.report_to!r} must be 'none', 'tensorboard' or 'trackio'")
        if self.report_to != "none" and find_spec(self.report_to) is None:
            raise ValueError(f"report_to={self.report_to!r} needs the package: pip install {self.report_to}")
        if str(self.resume_from_checkpoint).lower() in ("true", "false"):
            self.resume_from_checkpoint = str(self.resume_from_checkpoint).lower() == "true"


def train_autoencoder(model, train_dataset, args, eval_dataset=None):
    """Train an autoencoder; write checkpoints, the final weights and `report.json` into `args.output_dir`.

    Args:
        model: an autoencoder of this package. It ends with the weights that are published: the averaged ones when
            `args.weight_ema_decay` is given.
        train_dataset: map-style, items `{"sample": (channels, *space) float in [-1, 1], ...}`. With `variable_length`
            True the samples may differ in length: batches are padded, the loss is that of what is real.
        args: `AutoencoderTrainingArguments`.
        eval_dataset: like `train_dataset`; evaluated every `eval_steps` and at the end.

    Returns:
        The report: `metrics` (final), `history` (list of dicts with `step`), `best`, `wall_time_seconds`, `settings`.

    Raises:
        ValueError: an output folder that cannot be used, an unusable checkpoint, an empty data set, or codes to freeze
            of a model that has none yet or has BatchNorm.
        DivergenceError: the loss or its gradient became NaN or infinite.
    """
    return AutoencoderTrainer(model, train_dataset, args, eval_dataset).train()


class AutoencoderTrainer:
    """One run of `train_autoencoder`.

    Everything a checkpoint must hold is in `self.state`, the model, the optimizer, the schedule, the weight average
    and the random generators. The data position is the step alone: see `ShuffledStream`.
    """

    def __init__(self, model, train_dataset, args, eval_dataset=None):
        if len(train_dataset) == 0:
            raise ValueError("train_dataset is empty")
        self.args, self.autoencoder = args, model
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.collate = collator_for(model, train_dataset)
        prepare_output_dir(args.output_dir, model)
        self.checkpoint = resolve_checkpoint(args.output_dir, args.resume_from_checkpoint)
        self.accelerator = self._build_accelerator()
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        set_seed(args.seed)
        model.to(self.accelerator.device)

        self.stream = ShuffledStream(
            num_samples=len(train_dataset),
            batch_size=args.per_device_train_batch_size,
            batches_per_step=args.gradient_accumulation_steps,
            seed=args.seed,
            num_processes=processes,
            process_index=rank,
        )
        epoch_steps = len(train_dataset) / self.stream.samples_per_step
        self.max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch_steps)
        self.state = {"step": 0, "history": [], "sums": {}, "seconds": 0.0, "stream": self.stream.identity}

        self.frozen = model.freeze_codes() if args.freeze_codes else []
        if not args.freeze_codes:
            if self.checkpoint is None:
                self.initialize_codebook()  # before any forward is compiled
            model.set_codebook_updates("deferred")  # once an optimizer step, and not for a step that diverges
        optimizer = self._build_optimizer()
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, self.max_steps)
        self.weight_ema = WeightEMA(model, args.weight_ema_decay) if args.weight_ema_decay is not None else None
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        set_seed(args.seed + rank)  # dropout differs between processes; DDP made their weights equal
        if self.checkpoint is not None:
            self.load_checkpoint(self.checkpoint)

    def _build_accelerator(self):
        args = self.args
        AcceleratorState._reset_state(reset_partial_state=True)  # each run has its own, as with TrainingArguments
        accelerator = Accelerator(
            cpu=args.use_cpu,
            mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else "no",
            dynamo_backend="inductor" if args.torch_compile else "no",
            step_scheduler_with_optimizer=False,
            log_with=None if args.report_to == "none" else args.report_to,
            project_config=ProjectConfiguration(project_dir=args.output_dir, logging_dir=f"{args.output_dir}/logs"),
        )
        accelerator.sync_gradients = True  # this loop accumulates by itself
        return accelerator

    def _build_optimizer(self):
        args, decayed, spared = self.args, [], []
        for name, parameter in self.autoencoder.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and not name.endswith("embedding.weight")
                (decayed if decays else spared).append(parameter)
        groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        betas = (args.adam_beta1, args.adam_beta2)
        return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)

    @property
    def step(self):
        """Finished optimizer steps."""
        return self.state["step"]

    def initialize_codebook(self):
        """Run k-means on samples of the first batches, of which each process brings its share."""
        if self.autoencoder.codebook_initialized:
            return
        first = self.collate([self.train_dataset[0]])["sample"]
        grids = zip(self.autoencoder.codebook_sizes, self.autoencoder.code_shapes(tuple(first.shape[1:])), strict=True)
        wanted = max(
            math.ceil(LATENTS_PER_CODE * size * self.autoencoder.num_levels / math.prod(codes))
            for size, codes in grids
        )
        count = min(wanted, INITIAL_BATCHES * self.stream.samples_per_step, len(self.train_dataset))
        batch = self.collate([self.train_dataset[index] for index in self.stream.share(0, count)])
        batch = send_to_device(batch, self.accelerator.device)
        with torch.no_grad():
            self.autoencoder.initialize_codebook(batch["sample"], **padding_of(batch))

    def batches(self):
        """Endless lists of the batches of one optimizer step, from the current step on."""
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.stream.batches(start_step=self.step),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            collate_fn=self.collate,
            generator=torch.Generator().manual_seed(self.args.seed + self.step),
        )
        iterator = iter(loader)
        while True:
            yield [next(iterator) for _ in range(self.args.gradient_accumulation_steps)]

    def train(self):
        """Run to the last step; see `train_autoencoder`."""
        args = self.args
        if args.report_to != "none":
            settings = {
                name: value for name, value in asdict(args).items() if isinstance(value, bool | int | float | str)
            }
            self.accelerator.init_trackers("hf_vq", config=settings)
        bar = tqdm(
            main_process_only=True,
            total=self.max_steps,
            initial=self.step,
            desc="autoencoder",
            disable=args.disable_tqdm,
        )
        self.started = time.monotonic() - self.state["seconds"]
        with InterruptGuard() as guard, bar:
            try:
                batches = self.batches()
                while self.step < self.max_steps:
                    self.train_step(next(batches))
                    bar.update()
                    self.after_step(bar)
                    if guard.requested(self.accelerator):
                        self.stop_early("it was asked to")
                        guard.stop()
                return self.finish()
            except Exception as error:
                together = self.accelerator.num_processes == 1 or isinstance(error, DivergenceError)
                self.stop_early(f"{type(error).__name__}: {error}", together)
                raise

    def train_step(self, batches):
        """One optimizer step: the gradient of the mean loss over its batches, which are all of one size.

        Raises:
            DivergenceError: before weights or codebook change.
        """
        self.model.train()
        terms = 0
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
                output = self.model(batch["sample"], **padding_of(batch))
                self.accelerator.backward(output.loss / len(batches))
            losses = [output.loss, output.reconstruction_loss, output.quantizer_loss]
            terms = terms + torch.stack(losses).detach().double() / len(batches)
        terms = self.accelerator.reduce(terms, "mean")
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
        scaled = self.accelerator.scaler is not None  # fp16: its scaler skips steps of infinite gradient by itself
        if not torch.isfinite(terms[0]) or not (scaled or torch.isfinite(grad_norm)):
            raise DivergenceError(f"step {self.step + 1}: loss is {terms[0].item()}, gradient norm {grad_norm.item()}")
        self.optimizer.step()
        self.autoencoder.update_codebook()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
            if self.weight_ema is not None:
                self.weight_ema.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.state["step"] += 1
        for name, value in zip(["loss", "reconstruction_loss", "quantizer_loss"], terms.tolist(), strict=True):
            self.state["sums"].setdefault(name, []).append(value)
        self.state["sums"].setdefault("grad_norm", []).append(grad_norm.item())

    def after_step(self, bar):
        """Log, evaluate and save where the step is due; the last step is left to `finish`."""
        args, last = self.args, self.step == self.max_steps
        if self.step % args.logging_steps == 0 or last:
            entry = {name: math.fsum(values) / len(values) for name, values in self.state["sums"].items()}
            self.state["sums"] = {}
            self.log({**entry, "learning_rate": self.schedule.get_last_lr()[0]})
            bar.set_postfix(loss=f"{entry['loss']:.4f}")
        if args.eval_steps and self.step % args.eval_steps == 0 and not last:
            self.evaluate()
        if args.save_steps and self.step % args.save_steps == 0 and not last:
            self.save_checkpoint()

    def log(self, values):
        """Add an entry to the history and hand it to the tracker."""
        epoch = self.step * self.stream.samples_per_step / len(self.train_dataset)
        self.state["history"].append({"step": self.step, "epoch": round(epoch, 4), **values})
        self.accelerator.log(values, step=self.step)

    def evaluate(self):
        """Evaluate the weights that would be published; warn when the codebook has collapsed."""
        if self.eval_dataset is None:
            return {}
        with self.weight_ema.applied() if self.weight_ema is not None else contextlib.nullcontext():
            metrics = evaluate_autoencoder(self.autoencoder, self.eval_dataset, self.args.per_device_eval_batch_size)
        size = sum(self.autoencoder.codebook_sizes) * self.autoencoder.num_levels
        used = size - metrics["dead_codes"]
        if used < COLLAPSE_USAGE * min(size, metrics["num_codes"]):
            message = "Step %d: the codebook is collapsing, %d of %d codes are in use (perplexity %.1f)."
            logger.warning(message, self.step, used, size, metrics["perplexity"])
        metrics = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        return metrics

    def save_checkpoint(self):
        """Write `checkpoint-<step>`, whole or not at all."""
        self.state["seconds"] = time.monotonic() - self.started
        with writing_checkpoint(self.args.output_dir, self.step, self.accelerator) as folder:
            self.accelerator.save_state(str(folder))
            if self.accelerator.is_main_process:
                write_text(folder / TRAINER_STATE, json.dumps(self.state))
                if self.weight_ema is not None:
                    self.weight_ema.save(folder)
        if self.accelerator.is_main_process:
            rotate_checkpoints(self.args.output_dir, self.args.save_total_limit)

    def load_checkpoint(self, folder):
        """Continue as if the run had never stopped.

        Accelerate reads its files with `weights_only=True`, as long as nothing is registered for checkpointing: for
        registered objects it would unpickle anything, so our own state is JSON and safetensors.

        Raises:
            ValueError: the checkpoint belongs to other data, another batch size, seed or number of processes.
        """
        state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
        for name, value in self.stream.identity.items():
            if state["stream"].get(name) != value:
                raise ValueError(f"{folder} was written with {name}={state['stream'].get(name)}, this run has {value}")
        self.state = state
        self.accelerator.load_state(str(folder), load_kwargs={"weights_only": True})
        if self.weight_ema is not None:
            self.weight_ema.load(folder)
        random_states = load_tensors_only(folder / f"random_states_{self.accelerator.process_index}.pkl")
        restored = torch.equal(torch.get_rng_state(), random_states["torch_manual_seed"])
        if restored and torch.cuda.is_available():
            expected = random_states.get("torch_cuda_manual_seed", [])
            current = torch.cuda.get_rng_state_all()
            restored = len(current) == len(expected) and all(map(torch.equal, current, expected))
        if not restored:  # accelerate passes over a failure here without a word; torch's states come last
            raise ValueError(f"{folder}: its random states do not fit this machine")
        abandon_newer(self.args.output_dir, folder)
        logger.info("Resumed from %s at step %d of %d.", folder, self.step, self.max_steps)

    def stop_early(self, reason, together=True):
        """Save the last finished step where that is possible, and say how to go on; see `save_before_stopping`."""
        save = self.save_checkpoint if together else None
        save_before_stopping(self.autoencoder, self.args.output_dir, self.step, self.max_steps, save, reason)

    def finish(self):
        """Save the last checkpoint, publish the weights, evaluate them and write the report."""
        args = self.args
        if self.state.get("finished") != self.step:  # else the checkpoint resumed from was the last one already
            self.state.update(metrics=self.evaluate(), finished=self.step)
            self.save_checkpoint()
        if self.weight_ema is not None:
            self.weight_ema.copy_to_model()
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.autoencoder.set_codebook_updates("forward")
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # takes autocast off the model's forward
        self.accelerator.end_training()
        if not self.accelerator.is_main_process:
            return None
        self.autoencoder.eval().save_pretrained(args.output_dir)
        history = self.state["history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        return write_report(
            args.output_dir,
            arguments=asdict(args),
            model_config=dict(self.autoencoder.config),
            history=history,
            metrics={"train_loss": losses[-1] if losses else None, **self.state["metrics"]},
            best=best_entry(history, "eval_mse"),
            wall_time=time.monotonic() - self.started,
            device=self.accelerator.device,
        )

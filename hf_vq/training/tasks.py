"""What is trained: modules, and the turns they take in every optimizer step."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn
from transformers import get_scheduler

from hf_vq.autoencoders.base import RECONSTRUCTION_LOSSES
from hf_vq.data.padding import SampleCollator, collator_for, padding_of
from hf_vq.features import FeatureExtractor, load_features
from hf_vq.grids import as_grids
from hf_vq.processes import sum_over_processes
from hf_vq.registry import modality_of
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.collapse import CollapseWatch
from hf_vq.training.disk import Footprint, module_footprint
from hf_vq.training.divergence import check_batch
from hf_vq.training.evaluation import describe_usage, evaluate_autoencoder, usage_metric
from hf_vq.training.module_states import published_weights
from hf_vq.training.pictures import draw_reconstructions, first_batch
from hf_vq.training.reading import Batch, IndexedReader, StreamReader
from hf_vq.training.scores import cheap_metrics, reconstruction_metrics
from hf_vq.training.weight_ema import WeightEMA

LATENTS_PER_CODE = 16  # k-means of the first codebook sees this many latents for each code, where the bound allows
INITIAL_BATCHES = 16  # bound on the optimizer steps whose samples are gathered for it

Terms = tuple[torch.Tensor, dict[str, torch.Tensor]]  # a loss, and scalars to log by name


@dataclass
class Turn:
    """One module's part of an optimizer step: a gradient over the step's batches, and a step of its optimizer.

    Attributes:
        name: names its figures in the history: `<name>_loss`; those of the first turn have no prefix.
        module: what is wrapped for several processes, mixed precision and compilation.
        optimizer: of the module's parameters, or some of them; no other turn may have them.
        schedule: of its learning rate.
        compute: `(module, batch)` to the loss and the named terms, the same names in every batch. It calls the module
            that it is given, the wrapped one; a module of another turn it calls as the task has it, which then gets no
            gradient of its own.
        start_step: the turn is left out in the first so many steps.
    """

    name: str
    module: nn.Module
    optimizer: Any  # torch.optim.Optimizer, and accelerate's around it
    schedule: Any  # a schedule of torch, and accelerate's around it
    compute: Callable[[nn.Module, Batch], Terms]
    start_step: int = 0
    parameters: list[nn.Parameter] = field(default_factory=list)  # the optimizer's, told by the loop


class Task(ABC):
    """What the loop trains; it calls the methods in their order here.

    Attributes:
        modules: every module that a checkpoint must hold, by name: those with a turn, and others such as a moving
            average that `after_turn` makes.
        identities: of frozen networks that no checkpoint holds, what must be the same for a run to resume, by name.
        metrics: of `evaluate`, those that `metric_for_best_model` may name; True where more is better.
        best_metric: which of them it is by default.
    """

    modules: dict[str, nn.Module]
    identities: dict[str, dict[str, Any]] = {}
    metrics: dict[str, bool]
    best_metric: str

    def metric_of(self, args: AutoencoderTrainingArguments) -> str:
        """Which of `metrics` the best evaluation goes by.

        Raises:
            ValueError: `metric_for_best_model` is none of them.
        """
        name = args.metric_for_best_model
        if name is not None and name.removeprefix("eval_") not in self.metrics:
            raise ValueError(f"metric_for_best_model={name!r} must be one of {', '.join(self.metrics)}")
        return (name or self.best_metric).removeprefix("eval_")

    @abstractmethod
    def footprint(self) -> Footprint:
        """Bytes of a checkpoint and of what is published."""

    @abstractmethod
    def collator(self, dataset: Any) -> SampleCollator:
        """Items of a training data set to a batch."""

    @abstractmethod
    def begin(self, reader: IndexedReader | StreamReader, device: torch.device, resumed: bool) -> None:
        """Make the modules, which are on the device, ready for their first step, or for a checkpoint's weights."""

    @abstractmethod
    def make_turns(self, max_steps: int) -> list[Turn]:
        """The turns of a step, in order; called once."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Take from a checkpoint what `save` wrote."""

    @abstractmethod
    def before_turn(self, turn: Turn, step: int) -> None:
        """Called before the forwards of a turn, with the number of finished steps."""

    @abstractmethod
    def after_turn(self, turn: Turn, skipped: bool) -> None:
        """Called after a turn's optimizer step, which float16's scaler may have skipped."""

    @abstractmethod
    def evaluate(self, dataset: Any, batch_size: int, step: int) -> dict[str, Any]:
        """Figures of what would be published after this step."""

    def save_published(self, folder: Path) -> nn.Module | None:
        """Write into a checkpoint what would be published after this step, so that it loads as a saved model.

        Returns:
            The one of `modules` whose weights those are as they train, under the names of diffusers: they are then
            nowhere else in the checkpoint. None where there is none, such as for averaged weights.
        """
        return None

    def observe(self) -> dict[str, float]:
        """Figures of the last batch of the last step, by name, for its log entry; all processes are asked together."""
        return {}

    def draw(self, dataset: Any, folder: Path) -> list[Path]:
        """Write pictures of what would be published into a folder, always of the same few samples.

        Returns:
            Their files.
        """
        return []

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into a checkpoint what is neither in modules nor in turns, nor in what would be published."""

    @abstractmethod
    def finish(self) -> None:
        """Give the modules the state in which they are published and left."""

    @abstractmethod
    def publish(self, output_dir: str) -> dict[str, Any]:
        """Write the result, whose files go to the run's folder when all are whole; return its config."""


class Reconstruction(Task):
    """Trains an autoencoder on its own loss.

    A task with more turns adds them to `make_turns` and its modules to `modules`, and changes `loss`.

    Args:
        model: an autoencoder of this package.
        args: the training's options.

    Raises:
        ValueError: codes to freeze of a model that has none yet or has BatchNorm.
    """

    metrics = {
        "loss": False, "mse": False, "l1": False, "error_over_variance": False, "psnr": True, "usage": True,
        "perplexity": True, "dead_codes": False,
    }  # fmt: skip

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        if args.freeze_codes:
            model.check_freezable()
        if args.channels_last and model.space_dims != 2:
            raise ValueError(
                f"channels_last=True is for samples with two axes of space, those of {type(model).__name__} have "
                f"{model.space_dims}"
            )
        self.autoencoder, self.args = model, args
        self.metrics = self.metrics | cheap_metrics(model)
        self.modules, self.identities = {"autoencoder": model}, {}
        self.extractor: FeatureExtractor | None = None  # rates reconstructions
        if args.eval_features is not None:
            self.extractor = load_features(args.eval_features)
        distance = model.config.reconstruction_loss in RECONSTRUCTION_LOSSES
        self.best_metric = "mse" if distance else "loss"  # of a decoder with a likelihood the loss is what it is for
        self.frozen: list[nn.Parameter] = []
        self.weight_ema: WeightEMA | None = None
        self.step = 0  # finished ones, before the turns of the present one
        self.watch = CollapseWatch(model, args)
        self.codes: Any = None  # of the last batch, and the mask of those that count
        self.shown: Batch | None = None  # samples whose pictures are drawn

    def footprint(self) -> Footprint:
        mine = module_footprint(
            self.autoencoder,
            trains=self.autoencoder.only_decodes if self.args.freeze_codes else lambda name: True,
            averaged=self.args.weight_ema_decay is not None,
        )
        others = (module for module in self.modules.values() if module is not self.autoencoder)
        return sum((module_footprint(module, published=False) for module in others), mine)

    def collator(self, dataset: Any) -> SampleCollator:
        return collator_for(self.autoencoder, dataset)

    def begin(self, reader: IndexedReader | StreamReader, device: torch.device, resumed: bool) -> None:
        if self.args.freeze_codes:
            self.frozen = self.autoencoder.freeze_codes()
        elif not resumed:
            self.initialize_codebook(reader, device)  # before any forward is compiled

    def check_sample(self, sample: torch.Tensor) -> None:
        """Raise a ValueError for samples (batch, channels, *space) that a network beside the autoencoder refuses."""

    def initialize_codebook(self, reader: IndexedReader | StreamReader, device: torch.device) -> None:
        """Run k-means on the first samples, of which each process brings its share."""
        model = self.autoencoder
        if model.codebook_initialized:
            return
        shape = tuple(reader.first()["sample"].shape[1:])
        wanted = max(
            math.ceil(LATENTS_PER_CODE * size * model.num_levels / math.prod(codes))
            for size, codes in zip(model.codebook_sizes, model.code_shapes(shape), strict=True)
        )
        wanted = min(wanted, INITIAL_BATCHES * reader.samples_per_step)
        batch = reader.beginning(wanted)
        check_batch(1, batch, lambda: reader.beginning_rows(wanted))
        batch = send_to_device(batch, device)
        with torch.no_grad():
            model.initialize_codebook(batch["sample"], **padding_of(batch))

    def make_turns(self, max_steps: int) -> list[Turn]:
        args = self.args
        decayed: list[nn.Parameter] = []
        spared: list[nn.Parameter] = []
        for name, parameter in self.autoencoder.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and not name.endswith("embedding.weight")
                (decayed if decays else spared).append(parameter)
        groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": spared, "weight_decay": 0.0}]
        betas = (args.adam_beta1, args.adam_beta2)
        optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, eps=args.adam_epsilon)
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, max_steps)
        if args.weight_ema_decay is not None:
            self.weight_ema = WeightEMA(self.autoencoder, args.weight_ema_decay)
        return [Turn("autoencoder", self.autoencoder, optimizer, schedule, self.compute)]

    def load(self, folder: Path) -> None:
        if self.weight_ema is not None:
            self.weight_ema.load(folder, published_weights(folder))

    def before_turn(self, turn: Turn, step: int) -> None:
        """Statistics of the codebook are gathered in the autoencoder's turn alone, whatever others do with it."""
        self.step = step
        if not self.args.freeze_codes:
            self.autoencoder.set_codebook_updates("deferred" if turn.name == "autoencoder" else "off")

    def compute(self, module: nn.Module, batch: Batch) -> Terms:
        """The loss of a batch, and every term that the model names."""
        padding = padding_of(batch)
        output = module(batch["sample"], **padding)
        masks = self.autoencoder.without_padding(batch["sample"], **padding)[1] if padding else None
        self.codes = output.codes, masks
        return self.loss(batch, output)

    def loss(self, batch: Batch, output: Any) -> Terms:
        """The loss of a forward, and its terms."""
        terms = {"reconstruction_loss": output.reconstruction_loss, "quantizer_loss": output.quantizer_loss}
        return output.loss, terms | {f"loss_{name}": value for name, value in output.losses.items()}

    def after_turn(self, turn: Turn, skipped: bool) -> None:
        """The codebook moves once an optimizer step, and not for a step that diverges."""
        if turn.name != "autoencoder":
            return
        self.autoencoder.update_codebook()
        if self.weight_ema is not None and not skipped:
            self.weight_ema.update()

    def as_published(self) -> contextlib.AbstractContextManager[None]:
        """Within the `with` block, the autoencoder has the weights that would be published."""
        return contextlib.nullcontext() if self.weight_ema is None else self.weight_ema.applied()

    def evaluate(self, dataset: Any, batch_size: int, step: int) -> dict[str, Any]:
        """`evaluate_autoencoder` of the weights that would be published; warns when the codebook has collapsed."""
        with self.as_published():
            judges = reconstruction_metrics(self.autoencoder, extractor=self.extractor)
            metrics = evaluate_autoencoder(self.autoencoder, dataset, batch_size, judges)
        self.watch.look(step, metrics["dead_codes"], metrics["num_codes"], metrics["perplexity"])
        return metrics

    def save_published(self, folder: Path) -> nn.Module | None:
        with self.as_published():
            self.autoencoder.save_pretrained(folder)
        return self.autoencoder if self.weight_ema is None else None

    def observe(self) -> dict[str, float]:
        """Use of the codebook in the last batch; warns when it has collapsed.

        Nothing where items dropped levels, whose codes are then -1.
        """
        if self.codes is None:
            return {}
        codes, masks = self.codes
        dropped = torch.stack([(grid < 0).any() for grid in as_grids(codes)]).sum()
        if sum_over_processes(dropped):
            return {}
        usage = usage_metric(self.autoencoder).to(self.autoencoder.device)
        usage.update(as_grids(codes), masks)
        used = describe_usage(usage.compute(), self.autoencoder)
        positions = [grid.numel() // self.autoencoder.num_levels for grid in as_grids(codes)]
        self.watch.look_at_batch(self.step + 1, used["dead_codes"], positions, used["perplexity"])
        return {f"batch_{name}": used[name] for name in ("usage", "perplexity")}

    def draw(self, dataset: Any, folder: Path) -> list[Path]:
        """Reconstructions and code maps, as the model's modality shows them; none of a model without one."""
        modality = modality_of(type(self.autoencoder).__name__)
        if modality is None:
            return []
        if self.shown is None:
            self.shown = first_batch(dataset, collator_for(self.autoencoder, dataset))
        with self.as_published():
            return draw_reconstructions(self.autoencoder, modality, self.shown, folder)

    def save(self, folder: Path) -> None:
        if self.weight_ema is not None:
            self.weight_ema.save(folder)

    def finish(self) -> None:
        if self.weight_ema is not None:
            self.weight_ema.copy_to_model()
        for parameter in self.frozen:
            parameter.requires_grad_(True)
        self.autoencoder.set_codebook_updates("forward")

    def publish(self, output_dir: str) -> dict[str, Any]:
        self.autoencoder.eval().save_pretrained(output_dir)
        return dict(self.autoencoder.config)

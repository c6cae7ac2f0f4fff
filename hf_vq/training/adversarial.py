"""Adversarial training: a discriminator takes its own turn in every optimizer step."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from hf_vq.losses import (
    ADVERSARIAL_LOSSES,
    AdaptiveWeight,
    LeCamRegularizer,
    LinearRamp,
    PatchDiscriminator,
    SampleTerm,
    r1_penalty,
)
from hf_vq.processes import is_distributed
from hf_vq.saved import DISCRIMINATOR
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.disk import Footprint, module_footprint
from hf_vq.training.partial_gradients import PartialGradients, uncompiled
from hf_vq.training.perceptual import Perceptual
from hf_vq.training.reading import Batch
from hf_vq.training.tasks import Terms, Turn


class Adversarial(Perceptual):
    """Trains an autoencoder against a discriminator, as VQGAN (https://arxiv.org/abs/2012.09841, eq. 5 to 7).

    The discriminator judges the very reconstructions that the autoencoder's turn has made, which are not computed
    twice. It starts at `discriminator_start_step`; from there on its word counts more with every step, until
    `adversarial_ramp_steps` later it has its full weight.

    Args:
        model: an autoencoder of this package whose samples have two axes of space.
        args: the training's options, with an `adversarial_weight` above 0.

    Raises:
        ValueError: samples of another kind, features or a discriminator that cannot be had or do not fit.
    """

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        super().__init__(model, args)
        self.discriminator: Any = make_discriminator(args, model.in_channels)
        self.lecam = LeCamRegularizer(args.lecam_decay)
        self.modules |= {"discriminator": self.discriminator}
        if args.lecam_weight:
            self.modules["lecam"] = self.lecam
        self.losses = ADVERSARIAL_LOSSES[args.adversarial_loss]
        self.adaptive = AdaptiveWeight(maximum=args.adaptive_weight_maximum)
        self.ramp = LinearRamp(args.discriminator_start_step, args.adversarial_ramp_steps)
        self.partial: PartialGradients | None = None  # for the adaptive weight in compiled code
        self.reconstructions: list[torch.Tensor] = []  # of this step's batches, for the discriminator's turn

    def footprint(self) -> Footprint:
        return super().footprint() + Footprint(0, module_footprint(self.discriminator).published)

    def check_sample(self, sample: torch.Tensor) -> None:
        super().check_sample(sample)
        self.discriminator.check_size(sample)

    def make_turns(self, max_steps: int) -> list[Turn]:
        args, start = self.args, self.args.discriminator_start_step
        optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            lr=args.discriminator_learning_rate or args.learning_rate,
            betas=(args.discriminator_adam_beta1, args.discriminator_adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=0.0,
        )
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, args.warmup_steps, max(max_steps - start, 1))
        self.turn = Turn("discriminator", self.discriminator, optimizer, schedule, self.judge, start)
        turns = [*super().make_turns(max_steps), self.turn]
        if args.torch_compile and args.adaptive_weight:
            self.partial = PartialGradients(self.autoencoder, self.autoencoder.last_layer)
        return turns

    def compute(self, module: torch.nn.Module, batch: Batch) -> Terms:
        with contextlib.nullcontext() if self.partial is None else self.partial.allowed():
            return super().compute(module, batch)

    def before_turn(self, turn: Turn, step: int) -> None:
        super().before_turn(turn, step)
        if turn is self.turn:
            self.unjudged = iter(self.reconstructions)
        else:
            self.reconstructions = []

    def loss(self, batch: Batch, output: Any) -> Terms:
        loss, terms = super().loss(batch, output)
        if self.step < self.turn.start_step:
            return loss, terms
        self.reconstructions.append(output.sample.detach())
        weight: Any = self.args.adversarial_weight * self.ramp(self.step)
        if not weight:
            return loss, terms
        term = SampleTerm.of(self.ask, output.sample, self.scale)
        terms |= {"loss_adversarial": term.value}
        if self.args.adaptive_weight:
            factor = self.adaptive(loss, term.linear(output.sample), self.autoencoder.last_layer)
            weight, terms = weight * factor, terms | {"adaptive_weight": factor}
        return term.added_to(loss, output.sample, weight), terms

    def ask(self, sample: torch.Tensor) -> torch.Tensor:
        """The generator's loss of reconstructions."""
        network = self.discriminator if is_distributed() else self.turn.module  # its wrapper would wait for gradients
        return self.losses.generator(network(sample)[0])

    def judge(self, module: torch.nn.Module, batch: Batch) -> Terms:
        """The discriminator's loss, with its regularisation."""
        args, sample = self.args, batch["sample"].detach()
        penalised = args.r1_weight > 0 and (self.step - self.turn.start_step) % args.r1_interval == 0
        judging = uncompiled(module) if penalised else module
        real, fake = judging(sample.requires_grad_(penalised), next(self.unjudged))
        loss = self.losses.discriminator(real, fake)
        terms = {"real": real.mean(), "fake": fake.mean()}
        if args.lecam_weight:
            terms["lecam"] = self.lecam(real, fake)
            loss = loss + args.lecam_weight * terms["lecam"]
        if penalised:
            terms["r1"] = r1_penalty(real, sample)
            loss = loss + args.r1_weight * args.r1_interval * terms["r1"]
        return loss, terms

    def finish(self) -> None:
        super().finish()
        if self.partial is not None:
            self.partial.undo()

    def publish(self, output_dir: str) -> dict[str, Any]:
        self.discriminator.eval().save_pretrained(Path(output_dir, DISCRIMINATOR))
        return super().publish(output_dir)


def make_discriminator(args: AutoencoderTrainingArguments, channels: int) -> Any:
    """The discriminator to start with; new weights hang on the training's seed alone."""
    if args.discriminator_init is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            given: Any = args.discriminator_config or {}
            return PatchDiscriminator(**{"in_channels": channels, **given})
    if Path(args.discriminator_init).is_file():
        found = PatchDiscriminator.from_single_file(args.discriminator_init)
    else:
        owner = PatchDiscriminator.load_config(args.discriminator_init).get("_class_name")
        subfolder = None if owner in (None, PatchDiscriminator.__name__) else DISCRIMINATOR  # of a training
        found = PatchDiscriminator.from_pretrained(args.discriminator_init, subfolder=subfolder)
    if found.config.in_channels != channels:
        raise ValueError(
            f"discriminator_init={args.discriminator_init!r} takes {found.config.in_channels} channels, the "
            f"autoencoder has {channels}"
        )
    return found

"""Adversarial training: a discriminator takes its own turn in every optimizer step."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from transformers import get_scheduler

from hf_vq.losses import (
    ADVERSARIAL_LOSSES,
    AdaptiveWeight,
    FeatureMatchingLoss,
    LeCamRegularizer,
    LinearRamp,
    SampleTerm,
    mean_over_judges,
    r1_penalty,
    together,
)
from hf_vq.processes import is_distributed
from hf_vq.saved import DISCRIMINATOR
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.discriminators import make_discriminator
from hf_vq.training.disk import Footprint, module_footprint
from hf_vq.training.partial_gradients import PartialGradients, several_gradients, uncompiled
from hf_vq.training.reading import Batch
from hf_vq.training.sample_terms import SampleTerms, real_part
from hf_vq.training.tasks import Terms, Turn


class Adversarial(SampleTerms):
    """Trains an autoencoder against a discriminator, as VQGAN (https://arxiv.org/abs/2012.09841, eq. 5 to 7).

    The discriminator judges the very reconstructions that the autoencoder's turn has made, which are not computed
    twice. It starts at `discriminator_start_step`; from there on its word counts more with every step, until
    `adversarial_ramp_steps` later it has its full weight. Of several sub-discriminators the losses are averaged. With
    `feature_matching_weight` the features by which it judges are to be alike as well.

    Args:
        model: an autoencoder of this package whose samples have one or two axes of space.
        args: the training's options, with an `adversarial_weight` above 0.

    Raises:
        ValueError: samples of another kind, features or a discriminator that cannot be had or do not fit.
    """

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        super().__init__(model, args)
        self.discriminator: Any = make_discriminator(args, model)
        self.lecam = LeCamRegularizer(args.lecam_decay)
        self.modules |= {"discriminator": self.discriminator}
        if args.lecam_weight:
            self.modules["lecam"] = self.lecam
        self.losses = ADVERSARIAL_LOSSES[args.adversarial_loss]
        self.matching = FeatureMatchingLoss(relative=args.feature_matching_loss == "relative")
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
        several = self.args.torch_compile and (self.args.adaptive_weight or self.args.feature_matching_weight)
        with several_gradients() if several else contextlib.nullcontext():
            return super().compute(module, batch)

    def before_turn(self, turn: Turn, step: int) -> None:
        super().before_turn(turn, step)
        if turn is self.turn:
            self.unjudged = iter(self.reconstructions)
        else:
            self.reconstructions = []

    def sample_terms(self, batch: Batch, sample: torch.Tensor) -> dict[str, SampleTerm]:
        found = super().sample_terms(batch, sample)
        if self.step < self.turn.start_step:
            return found
        self.reconstructions.append(real_part(sample.detach(), batch))
        if not self.ramp(self.step):
            return found
        return found | SampleTerm.several(lambda leaf: self.ask(batch, leaf), sample, self.scale)

    def weight_of(self, name: str) -> float:
        weight = super().weight_of(name)
        return weight * self.ramp(self.step) if name in ("adversarial", "feature_matching") else weight

    def weigh(
        self, name: str, term: SampleTerm, loss: torch.Tensor, sample: torch.Tensor
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        if name != "adversarial" or not self.args.adaptive_weight:
            return super().weigh(name, term, loss, sample)
        factor = self.adaptive(loss, term.linear(sample), self.autoencoder.last_layer)
        return self.weight_of(name) * factor, {"adaptive_weight": factor}

    def ask(self, batch: Batch, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        """The generator's losses of reconstructions, by name."""
        network = self.discriminator if is_distributed() else self.turn.module  # its wrapper would wait for gradients
        sample = real_part(sample, batch)
        if not self.args.feature_matching_weight:
            (logits,) = network(sample)
            return {"adversarial": mean_over_judges(self.losses.generator, logits)}
        with torch.no_grad():
            (wanted,) = network(batch["sample"], return_features=True)
        (found,) = network(sample, return_features=True)
        matching = self.matching(wanted.features, found.features)
        return {
            "adversarial": mean_over_judges(self.losses.generator, found.logits),
            "feature_matching": matching,
        }

    def judge(self, module: torch.nn.Module, batch: Batch) -> Terms:
        """The discriminator's loss, with its regularisation."""
        args, sample = self.args, batch["sample"].detach()
        penalised = args.r1_weight > 0 and (self.step - self.turn.start_step) % args.r1_interval == 0
        judging = uncompiled(module) if penalised else module
        judged = judging(sample.requires_grad_(penalised), next(self.unjudged))
        loss = mean_over_judges(self.losses.discriminator, *judged)
        terms = {name: mean_over_judges(torch.mean, each) for name, each in zip(("real", "fake"), judged, strict=True)}
        real, fake = map(together, judged)
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

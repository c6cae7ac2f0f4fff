"""Training on terms of the samples beside the reconstruction's: perceptual, of mels, of spectra."""

import contextlib
from typing import Any

import torch
from torch import nn

from hf_vq.arguments import build
from hf_vq.autoencoders.base import RECONSTRUCTION_LOSSES
from hf_vq.autoencoders.grids import mean_distance
from hf_vq.features import load_perceptual_loss
from hf_vq.losses import Balancer, MelLoss, SampleTerm, SpectralLoss
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.reading import Batch, IndexedReader, StreamReader
from hf_vq.training.tasks import Reconstruction, Terms, Turn

HALF_SCALE = 2.0**10  # of gradients within networks that run in float16
BALANCED = ("reconstruction", "perceptual", "mel", "spectral", "adversarial", "feature_matching")


class SampleTerms(Reconstruction):
    """Trains an autoencoder on its own loss and on named terms of its samples.

    The perceptual term is that of VQGAN (https://arxiv.org/abs/2012.09841, eq. 4), the others are for signals. Each
    counts by its weight; with `loss_balancer` its gradient does, as does the reconstruction's, see `Balancer`, and the
    loss keeps the value that it has without. What is padding is 0 for all of them.

    Args:
        model: an autoencoder of this package.
        args: the training's options.

    Raises:
        ValueError: samples of another kind than a term is for, features that cannot be had, options of a loss that do
            not fit, or a balancer for a reconstruction that is no distance of samples.
    """

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        super().__init__(model, args)
        self.distances = nn.ModuleDict()  # of sample and target, frozen; each a term by its name
        self.perceptual = None
        if args.perceptual != "none":
            check_space_dims("perceptual", args.perceptual, model, 2)
            self.perceptual = self.distances["perceptual"] = load_perceptual_loss(args.perceptual)
            features: Any = self.perceptual.features
            self.identities["perceptual"] = {name: features.identity[name] for name in ("extractor", "sha256")}
            self.extractor = self.extractor or features
        if args.mel_weight:
            check_space_dims("mel_weight", args.mel_weight, model, 1)
            self.distances["mel"] = make_mel_loss(model, args)
        if args.spectral_weight:
            check_space_dims("spectral_weight", args.spectral_weight, model, 1)
            given: Any = args.spectral_config or {}
            self.distances["spectral"] = build(SpectralLoss, "spectral_config", given)
        self.balancer: Balancer | None = None
        if args.loss_balancer:
            if model.config.reconstruction_loss not in RECONSTRUCTION_LOSSES:
                raise ValueError(
                    f"loss_balancer=True needs a reconstruction_loss out of {', '.join(RECONSTRUCTION_LOSSES)}, the "
                    f"autoencoder has {model.config.reconstruction_loss!r}"
                )
            self.balancer = Balancer(BALANCED, args.balancer_norm, args.balancer_decay)
            self.modules |= {"balancer": self.balancer}

    def begin(self, reader: IndexedReader | StreamReader, device: torch.device, resumed: bool) -> None:
        sample = reader.first()["sample"][:1]
        self.check_sample(sample)
        self.distances.to(device)
        super().begin(reader, device, resumed)

    def check_sample(self, sample: torch.Tensor) -> None:
        with torch.no_grad():
            for distance in self.distances.values():
                distance(sample, sample)

    def before_turn(self, turn: Turn, step: int) -> None:
        super().before_turn(turn, step)
        if self.balancer is not None and turn.name == "autoencoder":
            self.balancer.forget()

    def after_turn(self, turn: Turn, skipped: bool) -> None:
        super().after_turn(turn, skipped)
        if self.balancer is not None and turn.name == "autoencoder" and not skipped:
            self.balancer.update()

    def loss(self, batch: Batch, output: Any) -> Terms:
        loss, terms = super().loss(batch, output)
        found = self.sample_terms(batch, output.sample)
        terms |= {f"loss_{name}": term.value for name, term in found.items()}
        if self.balancer is None:
            for name, term in found.items():
                weight, told = self.weigh(name, term, loss, output.sample)
                loss, terms = term.added_to(loss, output.sample, weight), terms | told
            return loss, terms
        value = output.loss + sum(self.weight_of(name) * term.value for name, term in found.items())
        found = {"reconstruction": self.reconstruction(batch, output.sample), **found}
        weights = {name: self.weight_of(name) for name in found}
        scales = self.balancer({name: term.gradient for name, term in found.items()}, weights)
        loss = output.quantizer_loss
        for name, term in found.items():
            loss = loss + scales[name] * term.linear(output.sample)
        loss = loss + (value - loss).detach()  # what it is without a balancer, with the balanced gradient
        return loss, terms | {f"weight_{name}": scale for name, scale in scales.items()}

    def sample_terms(self, batch: Batch, sample: torch.Tensor) -> dict[str, SampleTerm]:
        """The terms of reconstructions (batch, channels, *space), by name in the order in which they are added."""
        return {
            name: SampleTerm.of(lambda leaf, name=name: self.measure(name, batch, leaf), sample, self.scale)  # type: ignore[misc]
            for name in self.distances
        }

    def measure(self, name: str, batch: Batch, sample: torch.Tensor) -> torch.Tensor:
        """The mean distance of reconstructions, a scalar."""
        distance, sample = self.distances[name], real_part(sample, batch)
        if name != "perceptual":
            return distance(sample, batch["sample"], batch.get("padding_mask")).mean()
        with self.autocast(sample):
            return distance(sample, batch["sample"]).float().mean()

    def reconstruction(self, batch: Batch, sample: torch.Tensor) -> SampleTerm:
        """The autoencoder's own distance as a term, for the balancer."""
        distance, target = RECONSTRUCTION_LOSSES[self.autoencoder.config.reconstruction_loss], batch["sample"].float()
        return SampleTerm.of(
            lambda leaf: mean_distance(distance, leaf.float(), target, batch.get("padding_mask")), sample, self.scale
        )

    def weight_of(self, name: str) -> float:
        """A term's weight in this step."""
        if name == "reconstruction":
            return self.autoencoder.config.reconstruction_weight
        return getattr(self.args, f"{name}_weight")

    def weigh(
        self, name: str, term: SampleTerm, loss: torch.Tensor, sample: torch.Tensor
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """What a term that comes next counts in a loss, and scalars to log of that."""
        return self.weight_of(name), {}

    def autocast(self, sample: torch.Tensor) -> contextlib.AbstractContextManager:
        """The training's precision, for networks that no turn has."""
        half = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(sample.device.type, half, enabled=self.args.bf16 or self.args.fp16)

    @property
    def scale(self) -> float:
        return HALF_SCALE if self.args.fp16 else 1.0


def check_space_dims(name: str, value: Any, model: Any, dims: int) -> None:
    """Raise a ValueError for an option that is for samples with another number of axes of space than a model's."""
    if model.space_dims != dims:
        axes = "one axis" if dims == 1 else "two axes"
        raise ValueError(
            f"{name}={value!r} is for samples with {axes} of space, those of {type(model).__name__} have "
            f"{model.space_dims}"
        )


def make_mel_loss(model: Any, args: AutoencoderTrainingArguments) -> MelLoss:
    """The loss of an autoencoder's mels, at its sampling rate or at that of the options."""
    given: Any = args.mel_config or {}
    own = model.config.get("sampling_rate")
    rate = given.get("sampling_rate", own)
    if rate is None or own not in (None, rate):
        found = f"{type(model).__name__} has {'none' if own is None else own}"
        raise ValueError(f"mel_config must have the autoencoder's sampling_rate, got {rate!r}, and {found}")
    return build(MelLoss, "mel_config", {**given, "sampling_rate": rate})


def real_part(sample: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Samples (batch, channels, *space) with 0 in place of what is padding in a batch."""
    mask = batch.get("padding_mask")
    return sample if mask is None else sample * mask[:, None]

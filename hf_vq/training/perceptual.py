"""Training on a perceptual loss beside the reconstruction's."""

import contextlib
from typing import Any

import torch

from hf_vq.features import load_perceptual_loss
from hf_vq.losses import SampleTerm
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.reading import Batch, IndexedReader, StreamReader
from hf_vq.training.tasks import Reconstruction, Terms

HALF_SCALE = 2.0**10  # of gradients within networks that run in float16


class Perceptual(Reconstruction):
    """Trains an autoencoder on its own loss and a perceptual one, as VQGAN (https://arxiv.org/abs/2012.09841, eq. 4).

    Args:
        model: an autoencoder of this package whose samples have two axes of space.
        args: the training's options; `perceptual` names the features, or "none".

    Raises:
        ValueError: samples of another kind, or features that cannot be had.
    """

    def __init__(self, model: Any, args: AutoencoderTrainingArguments):
        super().__init__(model, args)
        if model.space_dims != 2:
            given = ("perceptual", args.perceptual), ("adversarial_weight", args.adversarial_weight)
            name, value = given[args.perceptual == "none"]
            raise ValueError(
                f"{name}={value!r} is for samples with two axes of space, those of {type(model).__name__} have "
                f"{model.space_dims}"
            )
        self.perceptual = None if args.perceptual == "none" else load_perceptual_loss(args.perceptual)
        if self.perceptual is not None:
            features: Any = self.perceptual.features
            self.identities["perceptual"] = {name: features.identity[name] for name in ("extractor", "sha256")}
            self.extractor = self.extractor or features

    def begin(self, reader: IndexedReader | StreamReader, device: torch.device, resumed: bool) -> None:
        sample = reader.first()["sample"][:1]
        self.check_sample(sample)
        if self.perceptual is not None:
            self.perceptual.to(device)
        super().begin(reader, device, resumed)

    def check_sample(self, sample: torch.Tensor) -> None:
        """Raise a ValueError for samples (batch, channels, height, width) that a network of a loss does not take."""
        if self.perceptual is not None:
            with torch.no_grad():
                self.perceptual(sample, sample)

    def loss(self, batch: Batch, output: Any) -> Terms:
        loss, terms = super().loss(batch, output)
        if self.perceptual is None:
            return loss, terms
        distance = self.perceptual

        def measure(sample: torch.Tensor) -> torch.Tensor:
            with self.autocast(sample):
                return distance(sample, batch["sample"]).float().mean()

        term = SampleTerm.of(measure, output.sample, self.scale)
        return term.added_to(loss, output.sample, self.args.perceptual_weight), terms | {"loss_perceptual": term.value}

    def autocast(self, sample: torch.Tensor) -> contextlib.AbstractContextManager:
        """The training's precision, for networks that no turn has."""
        half = torch.bfloat16 if self.args.bf16 else torch.float16
        return torch.autocast(sample.device.type, half, enabled=self.args.bf16 or self.args.fp16)

    @property
    def scale(self) -> float:
        return HALF_SCALE if self.args.fp16 else 1.0

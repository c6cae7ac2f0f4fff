"""A moving average of a model's parameters, for evaluation and publication."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

from hf_vq.arguments import checked


class WeightEMA:
    """Moving average of the parameters of a model, kept beside it (diffusers' `EMAModel`, with its warm-up).

    Buffers, and with them an EMA codebook, are not averaged: they stay as they are.

    Args:
        model: the module to follow.
        decay: weight of the past, in [0, 1).

    Raises:
        ValueError: decay out of its range.
    """

    FILE = "weight_ema.safetensors"  # of earlier versions, whose checkpoints held no published weights
    STATE_FILE = "weight_ema.json"

    @checked
    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"weight_ema_decay={decay} must be in [0, 1)")
        self.model = model
        self.average = EMAModel(model.parameters(), decay=decay)

    def update(self) -> None:
        """Take in the parameters after an optimizer step."""
        self.average.step(self.model.parameters())

    def copy_to_model(self) -> None:
        """Give the model the averaged parameters for good."""
        self.average.copy_to(self.model.parameters())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged parameters within the `with` block."""
        self.average.store(self.model.parameters())
        self.copy_to_model()
        try:
            yield
        finally:
            self.average.restore(self.model.parameters())

    def save(self, folder: str | Path) -> None:
        """Write into a checkpoint folder what its published weights, which are the average, do not tell."""
        state = {"optimization_step": self.average.optimization_step}
        (Path(folder) / self.STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    @torch.no_grad()
    def load(self, folder: str | Path, published: Mapping[str, torch.Tensor]) -> None:
        """Read the average back from a checkpoint folder.

        Args:
            folder: of the checkpoint.
            published: its published weights by name of the parameter.

        Raises:
            ValueError: the checkpoint was written without a weight average.
        """
        folder = Path(folder)
        if not (folder / self.STATE_FILE).is_file():
            raise ValueError(
                f"checkpoint {str(folder)!r} has no {self.STATE_FILE}: it was written without weight_ema_decay"
            )
        tensors = load_file(folder / self.FILE) if (folder / self.FILE).is_file() else published
        for (name, _), average in zip(self.model.named_parameters(), self.average.shadow_params, strict=True):
            average.copy_(tensors[name])
        state = json.loads((folder / self.STATE_FILE).read_text(encoding="utf-8"))
        self.average.optimization_step = state["optimization_step"]

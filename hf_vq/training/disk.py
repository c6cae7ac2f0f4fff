"""How much a training writes: the one estimate, for the check before it and for the command line."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Footprint:
    """Bytes that a training writes.

    Attributes:
        checkpoint: of every checkpoint.
        published: of the weights at the end.
    """

    checkpoint: int
    published: int

    def __add__(self, other: "Footprint") -> "Footprint":
        return Footprint(self.checkpoint + other.checkpoint, self.published + other.published)


def module_footprint(
    module: nn.Module,
    *,
    trains: Callable[[str], bool] = lambda name: True,
    averaged: bool = False,
    published: bool = True,
) -> Footprint:
    """The footprint of a module that AdamW trains.

    Args:
        module: its state is in each checkpoint.
        trains: tells of a parameter's name whether the optimizer has it, with two moments.
        averaged: each checkpoint has the weights twice, as they train and their moving average.
        published: its weights are written at the end.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    sizes = {name: part.numel() * part.element_size() for name, part in module.named_parameters()}
    trained = sum(size for name, size in sizes.items() if module.get_parameter(name).requires_grad and trains(name))
    return Footprint(weights * (2 if averaged else 1) + 2 * trained, weights if published else 0)


def run_bytes(footprint: Footprint, args: Any, num_samples: int | None) -> int:
    """Bytes on the disk of a whole training at the most.

    Args:
        footprint: of its modules.
        args: `AutoencoderTrainingArguments` or `transformers.TrainingArguments`.
        num_samples: in the training data; None for a stream, with `max_steps`.
    """
    steps = args.max_steps
    if num_samples is not None and steps <= 0:
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        steps = math.ceil(num_samples / per_step * args.num_train_epochs)
    strategy, every = getattr(args, "save_strategy", "steps"), args.save_steps  # the autoencoder's only has steps
    if strategy == "no" or (strategy == "steps" and not every):
        checkpoints = 1  # the last one
    elif strategy == "steps":
        checkpoints = math.ceil(steps / every) if every >= 1 else math.ceil(1 / every)  # below 1: share of all steps
    else:
        checkpoints = math.ceil(args.num_train_epochs)
    if args.save_total_limit:
        checkpoints = min(checkpoints, args.save_total_limit + 1)  # the new one is written before an old one goes
    return footprint.published + checkpoints * footprint.checkpoint

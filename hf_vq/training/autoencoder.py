"""Trains autoencoders: a run of the loop over the task that the options ask for."""

from collections.abc import Iterable
from typing import Any

from hf_vq.training.adversarial import Adversarial
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.loop import TrainingLoop
from hf_vq.training.pushing import push_result
from hf_vq.training.sample_terms import SampleTerms
from hf_vq.training.scores import reconstruction_metrics
from hf_vq.training.tasks import Reconstruction

__all__ = ["AutoencoderTrainingArguments", "train_autoencoder"]


def make_task(model: Any, args: AutoencoderTrainingArguments) -> Reconstruction:
    """What the options ask for: reconstruction alone, with other terms of samples, or against a discriminator.

    Raises:
        ValueError: options that do not fit the model, or networks that cannot be had.
    """
    if args.adversarial_weight:
        return Adversarial(model, args)
    terms = args.perceptual != "none" or args.mel_weight or args.spectral_weight
    return SampleTerms(model, args) if terms else Reconstruction(model, args)


def train_autoencoder(
    model: Any,
    train_dataset: Any,
    args: AutoencoderTrainingArguments,
    eval_dataset: Any = None,
    callbacks: Iterable[Any] = (),
    push: bool = True,
) -> dict[str, Any] | None:
    """Train an autoencoder; write checkpoints, the final weights and `report.json` into `args.output_dir`.

    Args:
        model: an autoencoder of this package. It ends with the weights that are published: the averaged ones when
            `args.weight_ema_decay` is given.
        train_dataset: items `{"sample" or "pixel_values": (channels, *space) float in [-1, 1], ...}`; map-style, or an
            `IterableDataset` with `args.max_steps`, which is read in its own order. With `variable_length` True the
            samples may differ in length: batches are padded, the loss is that of what is real.
        args: `AutoencoderTrainingArguments`.
        eval_dataset: like `train_dataset`; evaluated every `eval_steps` and at the end.
        callbacks: objects or classes as `transformers.TrainerCallback`, see `hf_vq.training.callbacks.Callbacks`.
        push: whether `args.push_to_hub` pushes the output folder; False where the caller adds to it before.

    Returns:
        The report: `metrics` (final), `history` (list of dicts with `step`; training entries have `loss`,
        `reconstruction_loss`, `quantizer_loss`, `grad_norm`, `learning_rate` and `loss_<term>` of every term that the
        model names), `best`, `wall_time_seconds`, `settings`. None in other processes than the main one.

    Raises:
        ValueError: an output folder that cannot be used or that another run writes into, an unusable checkpoint, an
            option that a resume cannot change, an empty data set, or codes to freeze of a model that has none yet or
            has BatchNorm.
        ImportError: a library that evaluates is missing.
        ConnectionError: the push at the end failed; the run is whole.
        DivergenceError: the loss or its gradient became NaN or infinite.
        WriteError: something could not be written, such as on a full disk; the last checkpoint is whole.
    """
    if eval_dataset is not None:
        reconstruction_metrics(model)  # an ImportError now, rather than at the end
    report = TrainingLoop(make_task(model, args), train_dataset, args, eval_dataset, callbacks).train()
    if push and report is not None:
        push_result(args.output_dir, args)
    return report

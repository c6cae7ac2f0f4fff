"""What a trained model is worth on held-out data; used during training, by the command line and by reports."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset, Subset

from hf_vq.arguments import checked
from hf_vq.data.identity import tokenizer_of
from hf_vq.data.padding import collator_for, is_stream, padding_of
from hf_vq.grids import as_grids
from hf_vq.metrics.codebook import HierarchyUsage
from hf_vq.metrics.likelihood import CodeLikelihood, CodeLikelihoodOutput
from hf_vq.metrics.reconstruction import ReconstructionError
from hf_vq.modes import evaluating
from hf_vq.processes import sum_over_processes
from hf_vq.ranges import Samples
from hf_vq.registry import modality_of
from hf_vq.training.scores import reconstruction_figures, reconstruction_metrics


@checked
def evaluate_autoencoder(
    model: Any, dataset: Any, batch_size: Samples = 64, metrics: Sequence[Any] | None = None
) -> dict[str, Any]:
    """Reconstruct a data set and measure the error and the use of the codebook.

    Args:
        model: an autoencoder; it is left in the mode, training or evaluation, in which it came.
        dataset: items `{"sample" or "pixel_values": (channels, *space) float in [-1, 1], ...}`, of different lengths
            where it has `variable_length` True; map-style, or an `IterableDataset` that ends.
        batch_size: samples per forward; the result does not depend on it (but for `loss` where lengths differ: it is
            the mean over samples of the batches' losses).
        metrics: further ones, of `hf_vq.training.scores.reconstruction_metrics`, which are added to; None: the cheap
            ones of the model's modality.

    Returns:
        A dict of floats and ints: `loss` (the model's own), `mse`, `l1`, `error_over_variance`, `psnr` (dB), the
        figures of `metrics`, `usage` (share of the codes in use), `perplexity`, `dead_codes`, `bits_per_pixel` (or
        what the modality calls a place; log2 of the codebook's size for each code), `num_codes` (how many were
        counted), `num_samples`. With levels (of a residual quantizer or of a hierarchy), usage and perplexity are
        means over them, dead codes their sum, and `usage_level_0`, `perplexity_level_0` and so on say each, counted
        through all grids; of a hierarchy `usage_top`, `perplexity_top` and so on say those of each grid.

    Raises:
        ValueError: an empty data set, or one with NaN or infinity.
    """
    device = model.device
    metrics = reconstruction_metrics(model) if metrics is None else metrics
    with torch.no_grad(), evaluating(model):
        error, codebook = ReconstructionError().to(device), usage_metric(model).to(device)
        loss, count, bits, places = torch.zeros(4, dtype=torch.float64, device=device).unbind()
        for number, batch in enumerate(batches(dataset, batch_size, device, collator_for(model, dataset))):
            _check_finite(batch["sample"], number * batch_size)
            sample, padding = batch["sample"], padding_of(batch)
            output = model(sample, **padding)
            for metric in (error, *metrics):
                metric.update(sample, output.sample, **padding)
            masks = model.without_padding(sample, **padding)[1] if padding else None
            codebook.update(as_grids(output.codes), masks)
            bits += count_bits(model, as_grids(output.codes), masks)
            places += padding["padding_mask"].sum() if padding else len(sample) * math.prod(sample.shape[2:])
            loss += output.loss.double() * len(sample)
            count += len(sample)
    num_samples = int(sum_over_processes(count))
    if not num_samples:
        raise ValueError("the data set to evaluate on is empty")
    reconstruction, used = error.compute(), codebook.compute()
    modality = modality_of(type(model).__name__)
    unit = "position" if modality is None else modality.unit
    return {
        "loss": sum_over_processes(loss).item() / num_samples,
        "mse": reconstruction.mse,
        "l1": reconstruction.l1,
        "error_over_variance": reconstruction.error_over_variance,
        "psnr": reconstruction.psnr,
        **reconstruction_figures(metrics),
        **describe_usage(used, model),
        f"bits_per_{unit}": (sum_over_processes(bits) / sum_over_processes(places)).item(),
        "num_codes": int(used.counts.sum()),
        "num_samples": num_samples,
    }


def _check_finite(sample: torch.Tensor, first: int) -> None:
    """Raise a ValueError for samples (batch, ...) with NaN or infinity; `first` is this process's row of the first."""
    finite = sample.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        row = first + int((~finite).int().argmax())
        raise ValueError(f"the data to evaluate on hold NaN or infinity: sample of row {row}")


def count_bits(model: Any, grids: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None) -> float:
    """Bits that the codes of a batch cost, log2 of the codebook's size each, those of padding left out."""
    counts = [grid.numel() // model.num_levels for grid in grids] if masks is None else [int(x.sum()) for x in masks]
    bits = (quantizer.bits_per_token for quantizer in model.quantizers)
    return sum(count * each for count, each in zip(counts, bits, strict=True))


def usage_metric(model: Any) -> HierarchyUsage:
    """A metric of codebook usage for the codes of an autoencoder."""
    return HierarchyUsage(model.codebook_sizes, model.num_levels)


def describe_usage(used: Any, model: Any) -> dict[str, Any]:
    """The figures of a `CodebookUsageOutput` for an autoencoder, see `evaluate_autoencoder`."""
    if not isinstance(used.usage, list):
        return {"usage": used.usage, "perplexity": used.perplexity, "dead_codes": used.dead_codes}
    figures = {"usage": used.usage, "perplexity": used.perplexity}
    means = {name: sum(values) / len(values) for name, values in figures.items()}
    each = {f"{name}_level_{index}": value for name, values in figures.items() for index, value in enumerate(values)}
    if model.hierarchical:
        for name, values in figures.items():
            for grid, start in zip(model.grid_names, range(0, len(values), model.num_levels), strict=True):
                each[f"{name}_{grid}"] = sum(values[start : start + model.num_levels]) / model.num_levels
    return {**means, "dead_codes": sum(used.dead_codes), **each}


@checked
def evaluate_prior(
    prior: Any, dataset: Any, batch_size: Samples = 64, sample_shape: tuple[int, ...] | None = None
) -> dict[str, Any]:
    """Measure the likelihood of held-out codes under a prior.

    Args:
        prior: a prior; it is left in the mode, training or evaluation, in which it came.
        dataset: map-style, items `{"codes": (*grid) int64, "class_labels": () int64 where there are classes}`; with
            `lengths` () int64, only so many positions of an item are real, and count.
        batch_size: items per forward; the result does not depend on it.
        sample_shape: (channels, *space) of the samples behind the codes, for `bits_per_dim`.

    Returns:
        A dict: `nats_per_code`, `bits_per_code`, `unigram_entropy` (nats, of the same codes), `ratio` of nats to it,
        `bits_per_dim` (of the codes alone) where `sample_shape` is given, `num_samples`, and `likelihood_is_exact`:
        False where the truth is at most so many nats. A code is a token: `nats_per_token` is `nats_per_code`.

    Raises:
        ValueError: an empty data set, codes of another tokenizer than the prior's, a prior without a likelihood, or
            one whose network sees what it predicts.
    """
    check_likelihood_kind(prior)
    if len(dataset) == 0:
        raise ValueError("the data set to evaluate on is empty")
    told, found = getattr(prior.config, "codes_sha256", None), tokenizer_of(dataset).get("codes_sha256")
    if told is not None and found not in (None, told):
        raise ValueError(
            f"the prior was trained on the codes of another tokenizer: its codes_sha256 is {told}, that of the codes "
            f"to evaluate on {found}"
        )
    device = prior.device
    with torch.no_grad(), evaluating(prior):
        likelihood = CodeLikelihood(prior.config.codebook_size, sample_shape).to(device)
        for number, batch in enumerate(batches(dataset, batch_size, device)):
            conditions, lengths = prior.pick_conditions(batch), batch.get("lengths")
            if lengths is not None:
                conditions["lengths"] = lengths
            if number == 0:
                prior.check_likelihood(batch["codes"], **conditions)
            log_prob = prior.log_prob(batch["codes"], **conditions)
            likelihood.update(batch["codes"], log_prob, lengths, axis=1 + prior.has_levels)
    figures = describe_code_likelihood(likelihood.compute())
    return {**figures, "num_samples": len(dataset), "likelihood_is_exact": prior.likelihood == "exact"}


def check_likelihood_kind(prior: Any) -> None:
    """Raise a ValueError for a prior that has no likelihood to report."""
    if prior.likelihood is None:
        raise ValueError(f"{type(prior).__name__} has likelihood=None: it cannot say how probable codes are")


def describe_code_likelihood(result: CodeLikelihoodOutput) -> dict[str, Any]:
    """The figures of a `CodeLikelihoodOutput`, a dict."""
    figures = {name: value for name, value in asdict(result).items() if value is not None}
    return {"nats_per_code": result.nats_per_code, "nats_per_token": result.nats_per_code, **figures}


class _Share(IterableDataset):
    """Every so many-th item of a stream."""

    def __init__(self, dataset: Any, rank: int, processes: int):
        self.dataset, self.rank, self.processes = dataset, rank, processes

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.dataset, self.rank, None, self.processes)


def batches(
    dataset: Any, batch_size: int, device: torch.device, collate: Callable[[list], Any] | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """This process's share of a data set, in order, as dicts of tensors on the device.

    Args:
        collate: items to a batch, by default torch's way.

    The loader gets a generator of its own: evaluation leaves the training's random numbers where they are.
    """
    if dist.is_available() and dist.is_initialized():
        rank, processes = dist.get_rank(), dist.get_world_size()
        if is_stream(dataset):
            dataset = _Share(dataset, rank, processes)
        else:
            dataset = Subset(dataset, range(rank, len(dataset), processes))
    for batch in DataLoader(dataset, batch_size, collate_fn=collate, generator=torch.Generator()):
        yield send_to_device(batch, device)

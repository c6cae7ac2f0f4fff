"""What a trained model is worth on held-out data; used during training, by the command line and by reports."""

import contextlib
from dataclasses import asdict

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Subset

from hf_vq.metrics.codebook import HierarchyUsage
from hf_vq.metrics.likelihood import CodeLikelihood
from hf_vq.metrics.reconstruction import ReconstructionError
from hf_vq.metrics.reduction import sum_over_processes


def evaluate_autoencoder(model, dataset, batch_size=64):
    """Reconstruct a data set and measure the error and the use of the codebook.

    Args:
        model: an autoencoder; it is left in the mode, training or evaluation, in which it came.
        dataset: map-style, items `{"sample": (channels, *space) float in [-1, 1], ...}`.
        batch_size: samples per forward; the result does not depend on it.

    Returns:
        A dict of floats and ints: `loss` (the model's own), `mse`, `error_over_variance`, `psnr` (dB), `usage` (share
        of the codes in use), `perplexity`, `dead_codes`, `num_codes` (how many were counted), `num_samples`. With
        levels (of a residual quantizer or of a hierarchy), usage and perplexity are means over them, dead codes their
        sum, and `usage_level_0`, `perplexity_level_0` and so on say each.

    Raises:
        ValueError: an empty data set.
    """
    if len(dataset) == 0:
        raise ValueError("the data set to evaluate on is empty")
    with evaluating(model) as device:
        error, codebook = ReconstructionError().to(device), usage_metric(model).to(device)
        loss = torch.zeros((), dtype=torch.float64, device=device)
        for batch in batches(dataset, batch_size, device):
            output = model(batch["sample"])
            error.update(batch["sample"], output.sample)
            codebook.update(output.codes)
            loss += output.loss.double() * len(batch["sample"])
    reconstruction, used = error.compute(), codebook.compute()
    return {
        "loss": sum_over_processes(loss).item() / len(dataset),
        "mse": reconstruction.mse,
        "error_over_variance": reconstruction.error_over_variance,
        "psnr": reconstruction.psnr,
        **_describe_usage(used),
        "num_codes": int(used.counts.sum()),
        "num_samples": len(dataset),
    }


def usage_metric(model):
    """A metric of codebook usage for the codes of an autoencoder."""
    return HierarchyUsage(model.codebook_sizes, model.num_levels)


def _describe_usage(used):
    if not isinstance(used.usage, list):
        return {"usage": used.usage, "perplexity": used.perplexity, "dead_codes": used.dead_codes}
    levels = {}
    for index, (usage, perplexity) in enumerate(zip(used.usage, used.perplexity, strict=True)):
        levels |= {f"usage_level_{index}": usage, f"perplexity_level_{index}": perplexity}
    return {
        "usage": sum(used.usage) / len(used.usage),
        "perplexity": sum(used.perplexity) / len(used.perplexity),
        "dead_codes": sum(used.dead_codes),
        **levels,
    }


def evaluate_prior(prior, dataset, batch_size=64, sample_shape=None):
    """Measure the likelihood of held-out codes under a prior.

    Args:
        prior: a prior; it is left in the mode, training or evaluation, in which it came.
        dataset: map-style, items `{"codes": (*grid) int64, "class_labels": () int64 where there are classes}`; with
            `lengths` () int64, only so many positions of an item are real, and count.
        batch_size: items per forward; the result does not depend on it.
        sample_shape: (channels, *space) of the samples behind the codes, for `bits_per_dim`.

    Returns:
        A dict: `nats_per_code`, `bits_per_code`, `unigram_entropy` (nats, of the same codes), `ratio` of nats to it,
        `bits_per_dim` (of the codes alone) where `sample_shape` is given, `num_samples`, and
        `likelihood`: "exact", or "bound" where the nats are at most so many. A code is a token: `nats_per_token` is
        `nats_per_code`.

    Raises:
        ValueError: an empty data set, a prior without a likelihood, or one whose network sees what it predicts.
    """
    check_likelihood_kind(prior)
    if len(dataset) == 0:
        raise ValueError("the data set to evaluate on is empty")
    with evaluating(prior) as device:
        likelihood = CodeLikelihood(prior.config.codebook_size, sample_shape).to(device)
        for batch in batches(dataset, batch_size, device):
            conditions, lengths = prior.pick_conditions(batch), batch.get("lengths")
            if lengths is not None:
                conditions["lengths"] = lengths
            log_prob = prior.log_prob(batch["codes"], **conditions)
            likelihood.update(batch["codes"], log_prob, lengths, axis=1 + prior.has_levels)
    figures = describe_code_likelihood(likelihood.compute())
    return {**figures, "num_samples": len(dataset), "likelihood": prior.likelihood}


def check_likelihood_kind(prior):
    """Raise a ValueError for a prior that has no likelihood to report."""
    if prior.likelihood is None:
        raise ValueError(f"{type(prior).__name__} has likelihood=None: it cannot say how probable codes are")


def describe_code_likelihood(result):
    """The figures of a `CodeLikelihoodOutput`, a dict."""
    figures = {name: value for name, value in asdict(result).items() if value is not None}
    return {"nats_per_code": result.nats_per_code, "nats_per_token": result.nats_per_code, **figures}


@contextlib.contextmanager
def evaluating(model):
    """Within the `with` block: evaluation mode, no gradient. Yields the model's device."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def batches(dataset, batch_size, device):
    """This process's share of a data set, in order, as dicts of tensors on the device.

    The loader gets a generator of its own: evaluation leaves the training's random numbers where they are.
    """
    if dist.is_available() and dist.is_initialized():
        dataset = Subset(dataset, range(dist.get_rank(), len(dataset), dist.get_world_size()))
    for batch in DataLoader(dataset, batch_size=batch_size, generator=torch.Generator()):
        yield send_to_device(batch, device)

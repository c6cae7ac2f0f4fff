"""Likelihood of a whole model, codes and the values of samples, in bits per dimension: so that models compare."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from hf_vq.arguments import checked
from hf_vq.data.padding import SampleCollator, has_variable_length, sample_of
from hf_vq.grids import as_grids
from hf_vq.metrics.likelihood import CodeLikelihood
from hf_vq.metrics.pixels import LogisticScale, discretized_logistic_log_prob
from hf_vq.modes import evaluating
from hf_vq.pipelines.base import check_tokenizers
from hf_vq.processes import sum_over_processes
from hf_vq.ranges import Samples
from hf_vq.registry import MODALITIES
from hf_vq.training.evaluation import batches, check_likelihood_kind, describe_code_likelihood

FIT_SAMPLES = 1024  # that the scale of a decoder without a distribution is fitted on
BOUND = "upper bound: -log p(x) <= -log p(x | codes) - log p(codes), for the codes that the encoder chooses"


class OwnPixelLikelihood:
    """p(pixels | codes) of a decoder that gives 8-bit pixels a distribution.

    Args:
        autoencoder: one with `reconstruction_log_prob` over pixel values.
        num_values: how many values a pixel of the data can have.

    Raises:
        ValueError: not 256.
    """

    def __init__(self, autoencoder: Any, num_values: int = 256):
        if num_values != 256:
            raise ValueError(f"num_values={num_values}: the decoder's distribution is over 256 values")
        self.log_prob = autoencoder.reconstruction_log_prob
        self.protocol = {"decoder_likelihood": f"{autoencoder.pixel_distribution.description}, the decoder's own"}


class FittedPixelLikelihood:
    """p(pixels | codes) of a decoder that gives a sample alone: a discretised logistic around it, a scale a channel.

    Args:
        autoencoder: any autoencoder.
        dataset: the samples that the scales are fitted on, evenly spaced 1,024 of them where there are more. None of
            them may be evaluated.
        num_values: how many values a number in a sample can have.
        batch_size: samples per forward; the scales do not depend on it.

    Raises:
        ValueError: an empty data set.
    """

    def __init__(self, autoencoder: Any, dataset: Any, num_values: int = 256, batch_size: Samples = 64):
        modality = MODALITIES.get(autoencoder.modality)
        plural = modality.plural if modality else "samples"
        if len(dataset) == 0:
            raise ValueError(f"there are no {plural} to fit the scale of the decoder's likelihood on")
        rows = np.unique(np.linspace(0, len(dataset) - 1, FIT_SAMPLES).round().astype(int)).tolist()
        self.autoencoder, self.num_values = autoencoder, num_values
        device = autoencoder.device
        with torch.no_grad(), evaluating(autoencoder):
            fit = LogisticScale(sample_of(dataset[0]).shape[0], num_values).to(device)
            for batch in batches(Subset(dataset, rows), batch_size, device, SampleCollator()):
                codes = autoencoder.tokenize(batch["sample"])
                fit.update(batch["sample"], autoencoder.detokenize(codes))
            self.log_scale = fit.compute().to(device)
        self.protocol = {
            "decoder_likelihood": "discretised logistic around the decoder's sample, a fixed scale for each channel",
            "decoder_scale": (self.log_scale.exp() * ((num_values - 1) / 2)).tolist(),  # in steps between values
            "decoder_scale_fitted_on": f"{len(rows)} {plural}, none of them evaluated",
        }

    def log_prob(self, sample: torch.Tensor, codes: Any) -> torch.Tensor:
        """Nats (batch,) of samples (batch, channels, *space), given their codes."""
        location = self.autoencoder.detokenize(codes).float()
        log_scale = self.log_scale.view(-1, *[1] * (sample.ndim - 2))
        return discretized_logistic_log_prob(sample, location, log_scale, self.num_values).flatten(1).sum(dim=1)


class UniformPrior:
    """Every code as probable as any other: what codes cost without a prior.

    Args:
        codebook_size: number of codes.
    """

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size

    def log_prob(self, codes: torch.Tensor) -> torch.Tensor:
        """Nats (batch,) of codes (batch, ...)."""
        nats = math.prod(codes.shape[1:]) * math.log(self.codebook_size)
        return torch.full((len(codes),), -nats, device=codes.device)


@checked
def evaluate_likelihood(
    autoencoder: Any,
    priors: Sequence[Any] | None,
    dataset: Any,
    pixels: OwnPixelLikelihood | FittedPixelLikelihood | None = None,
    batch_size: Samples = 64,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Measure how likely held-out samples are under an autoencoder and its priors.

    log p(codes) is a sum over the grids of a hierarchy, coarse to fine: the prior of each knows the coarser codes
    where it takes `context_codes`.

    Args:
        autoencoder: any autoencoder; models are left in the mode in which they came.
        priors: one for each grid of codes, coarse to fine; None: codes are uniform.
        dataset: map-style, items `{"sample": (channels, *space), "class_labels": () where a prior has classes}`.
        pixels: `OwnPixelLikelihood` or `FittedPixelLikelihood`; None leaves the pixels out.
        batch_size: samples per forward; the result does not depend on it.

    Returns:
        Two values: a list of dicts, the figures of the codes of every grid as of `evaluate_prior`; and the figures of
        the whole model, None without `pixels`: `bits_per_dim`, its parts `code_bits_per_dim` and
        `decoder_bits_per_dim`, `nats_per_sample`, `num_samples`, and `protocol`, which says how they were measured.

    Raises:
        ValueError: an empty data set, samples of different lengths, not one prior a grid, a prior without a
            likelihood, or one that was trained on the codes of another autoencoder.
    """
    if len(dataset) == 0:
        raise ValueError("the data set to evaluate on is empty")
    if has_variable_length(dataset):
        raise ValueError("bits per dimension need samples of one length, but the data set has variable_length=True")
    sizes = autoencoder.codebook_sizes
    if priors is not None and len(priors) != len(sizes):
        raise ValueError(f"priors must be {len(sizes)}, one for each grid of codes, coarse to fine; got {len(priors)}")
    for prior in priors or ():
        check_likelihood_kind(prior)
    names = [f"priors[{grid}], prior" for grid in range(len(sizes))]
    check_tokenizers({"autoencoder": autoencoder, **dict(zip(names, priors or (), strict=False))})
    shape = tuple(sample_of(dataset[0]).shape)
    device = autoencoder.device
    with torch.no_grad(), evaluating(autoencoder):
        parts = [CodeLikelihood(size, shape).to(device) for size in sizes]
        nats = torch.zeros(3, dtype=torch.float64, device=device)  # samples, of codes, of pixels
        for number, batch in enumerate(batches(dataset, batch_size, device, SampleCollator())):
            codes = autoencoder.tokenize(batch["sample"])
            total: Any = 0
            log_probs = code_log_probs(priors, sizes, codes, batch, check=number == 0)
            for part, (grid, log_prob) in zip(parts, log_probs, strict=True):
                part.update(grid, log_prob)
                total = total - log_prob.double().sum()
            decoded = torch.zeros_like(total) if pixels is None else -pixels.log_prob(batch["sample"], codes).double()
            nats += torch.stack([torch.full_like(total, len(batch["sample"])), total, decoded.sum()])
    exact = [priors is None or prior.likelihood == "exact" for prior in priors or parts]
    figures = [
        {**describe_code_likelihood(part.compute()), "num_samples": len(dataset), "likelihood_is_exact": each}
        for part, each in zip(parts, exact, strict=True)
    ]
    if pixels is None:
        return figures, None
    count, code_nats, pixel_nats = sum_over_processes(nats).tolist()
    per_dim = 1 / (count * math.prod(shape) * math.log(2))
    whole = {
        "bits_per_dim": (code_nats + pixel_nats) * per_dim,
        "code_bits_per_dim": code_nats * per_dim,
        "decoder_bits_per_dim": pixel_nats * per_dim,
        "nats_per_sample": (code_nats + pixel_nats) / count,
        "num_samples": len(dataset),
    }
    return figures, {**whole, "protocol": {**describe_models(autoencoder, priors, dataset[0]), **pixels.protocol}}


def code_log_probs(
    priors: Sequence[Any] | None,
    codebook_sizes: Sequence[int],
    codes: Any,
    batch: Mapping[str, Any],
    check: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every grid of codes and its log-likelihood given the coarser ones, (batch,) nats, coarse to fine.

    Args:
        priors: one a grid, None: uniform.
        codebook_sizes: of every grid.
        codes: a tensor, or of a hierarchy a tuple of them.
        batch: a dict with the conditions that priors take, such as `class_labels`.
        check: whether the priors' log-likelihoods are to be checked for being such, thoroughly.
    """
    codes = as_grids(codes)
    for index, grid in enumerate(codes):
        if priors is None:
            yield grid, UniformPrior(codebook_sizes[index]).log_prob(grid)
        else:
            known = {**batch, "context_codes": codes[:index]} if index else batch
            conditions = priors[index].pick_conditions(known)
            if check:
                priors[index].check_likelihood(grid, **conditions)
            yield grid, priors[index].log_prob(grid, **conditions)


def describe_models(autoencoder: Any, priors: Sequence[Any] | None, item: Mapping[str, Any]) -> dict[str, Any]:
    """What a report must say of the models for its figures to compare."""
    shape = tuple(sample_of(item).shape)
    protocol = {
        "whole_model": BOUND,
        "codes": "exact" if all(prior.likelihood == "exact" for prior in priors or ()) else "upper bound",
        "bits_per_dim": f"nats over ln 2 and over {math.prod(shape):,} dimensions, {' x '.join(map(str, shape))}",
        "autoencoder": type(autoencoder).__name__,
        "code_shapes": [list(grid) for grid in autoencoder.code_shapes(shape)],
        "codebook_sizes": list(autoencoder.codebook_sizes),
        "priors": ["uniform"] if priors is None else [type(prior).__name__ for prior in priors],
    }
    known = set() if priors is None else {name for prior in priors for name in prior.pick_conditions(item)}
    return {**protocol, "conditions": sorted(known)}

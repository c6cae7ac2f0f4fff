"""What `hf-vq evaluate` measures besides the usual figures: by networks of features, and of new samples."""

from collections.abc import Iterator
from typing import Any

import torch

from hf_vq.cli.sample import draw
from hf_vq.hub import takes_prompts
from hf_vq.metrics.distribution import DistributionDistance
from hf_vq.training.evaluation import batches
from hf_vq.training.scores import cheap_metrics, check_metrics, feature_metrics


def pick_metrics(
    model: Any, words: list[str] | None, extractor: Any, sample_shape: tuple[int, ...]
) -> list[str] | None:
    """Names of metrics, from words such as ["ssim,fid", "kid"].

    Args:
        model: an autoencoder.
        words: as they were given; None: with a network of features, those that are cheap and those that need one.
        extractor: that network, None where there is none.
        sample_shape: (channels, *space) of the data.

    Returns:
        The names, or None where nothing is asked for.

    Raises:
        ValueError: see `check_metrics`.
    """
    if words is not None:
        names = [name for name in ",".join(words).split(",") if name]
    elif extractor is None:
        return None
    else:
        names = [*cheap_metrics(model), *feature_metrics(extractor)]
    check_metrics(model, names, extractor, sample_shape)
    return names


def evaluate_samples(
    pipeline: Any, dataset: Any, extractor: Any, names: list[str], num_samples: int | None, batch_size: int, seed: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Draw samples from a pipeline and measure how far they are from a data set.

    Classes and texts of the samples are those of the data, evenly spread over it.

    Args:
        pipeline: one of ours.
        dataset: the samples to compare with.
        extractor: a `hf_vq.networks.features.FeatureExtractor`, on the pipeline's device.
        names: "fid", "kid" or both.
        num_samples: how many to draw; None: as many as the data set has.
        batch_size: samples drawn at once, which they depend on.
        seed: of the random generator.

    Returns:
        Figures by name; what they are told apart by, by name; and how samples were drawn.

    Raises:
        ValueError: a pipeline of texts, and data without any.
    """
    num_samples = num_samples or len(dataset)
    conditions = conditions_of(pipeline, dataset, num_samples)
    metric = DistributionDistance(extractor, names).to(pipeline.autoencoder.device)
    for batch in batches(dataset, batch_size, pipeline.autoencoder.device):
        metric.add(batch["sample"], real=True)
    for samples in _drawn(pipeline, conditions, num_samples, batch_size, seed):
        metric.add(samples.to(pipeline.autoencoder.device), real=False)
    drawn = {"num_samples": num_samples, "seed": seed, "batch_size": batch_size, "conditions": [*conditions]}
    return {**metric.compute(), "num_samples": num_samples}, metric.describe(), drawn


def conditions_of(pipeline: Any, dataset: Any, num_samples: int) -> dict[str, list]:
    """Classes, speakers and texts of samples, as a pipeline takes them, from items evenly spread over a data set."""
    rows = [number * len(dataset) // num_samples for number in range(num_samples)]
    found: dict[str, list] = {}
    if pipeline.num_classes:
        found["class_labels"] = [int(dataset.labels[row]) for row in rows]
    if pipeline.num_speakers:
        found["speaker_labels"] = [int(dataset.speaker_labels[row]) for row in rows]
    if takes_prompts(type(pipeline).__name__):
        captions = getattr(dataset, "captions", None)
        if captions is None:
            raise ValueError(
                f"metrics: a {type(pipeline).__name__} draws what a text says, and the data have no texts"
            )
        found["prompt"] = [captions[row] for row in rows]
    return found


def _drawn(pipeline, conditions, num_samples, batch_size, seed) -> Iterator[torch.Tensor]:
    """New samples in batches, (batch, channels, *space) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, num_samples, batch_size):
        count = min(batch_size, num_samples - start)
        part = {name: items[start : start + count] for name, items in conditions.items()}
        yield draw(pipeline, part, count, count, generator)

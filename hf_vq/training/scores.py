"""Which figures of reconstructions and of new samples are computed, besides those that every autoencoder has."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import nn

from hf_vq.features import NETWORKS, published_network
from hf_vq.losses import LPIPS, FeatureDistance, load_heads
from hf_vq.metrics.distribution import DistributionDistance, MeanDistance
from hf_vq.registry import modality_of

DISTANCE, LEARNED = "feature_distance", "lpips"
BETWEEN_SETS = ("fid", "kid")
OF_FEATURES = (DISTANCE, LEARNED, *BETWEEN_SETS)  # they need a network
OF_RECONSTRUCTIONS = {"fid": "rfid", "kid": "rkid"}  # what they are called there


def known_metrics(model: Any) -> list[str]:
    """Names of the metrics that can be asked for of an autoencoder; those in `OF_FEATURES` need a network."""
    return [*(each.name for each in _similarities(model)), *OF_FEATURES]


def cheap_metrics(model: Any) -> dict[str, bool]:
    """Metrics of an autoencoder that are computed where nothing is asked for, by name: whether more is better."""
    return {each.name: getattr(each, "more_is_better", True) for each in _similarities(model) if each.cheap}


def check_metrics(
    model: Any, names: Collection[str], extractor: Any = None, sample_shape: Sequence[int] | None = None
) -> None:
    """Raise a ValueError for metrics that are not known, lack what they need, or samples that are too small for them.

    Args:
        model: an autoencoder.
        names: of the metrics.
        extractor: the network of features, None where there is none.
        sample_shape: (channels, *space) of the samples, None where it is not known.
    """
    known = known_metrics(model)
    for name in names:
        if name not in known:
            raise ValueError(f"metrics: {name!r} must be one of {', '.join(known)}")
        if name in OF_FEATURES and extractor is None:
            raise ValueError(f"metrics: {name} needs a network of features, and none is given")
        if name == LEARNED and published_network(extractor) is None:
            raise ValueError(
                f"metrics: {name} has weights for {' and '.join(NETWORKS)} alone, not for "
                f"{extractor.identity['extractor']}"
            )
    if sample_shape is None:
        return
    sizes = {each.name: each.smallest_size for each in _similarities(model)}
    if extractor is not None:
        sizes |= dict.fromkeys(OF_FEATURES, extractor.smallest_size)
    for name in names:
        if min(sample_shape[1:]) < sizes[name]:
            shape = " x ".join(map(str, sample_shape[1:]))
            raise ValueError(f"metrics: {name} needs samples of {sizes[name]} x {sizes[name]} at least, got {shape}")


def reconstruction_metrics(model: Any, names: Collection[str] | None = None, extractor: Any = None) -> list[Any]:
    """Metrics of reconstructions, for `evaluate_autoencoder`.

    Args:
        model: an autoencoder.
        names: of metrics, see `known_metrics`. None: those that are cheap, and with an extractor `feature_distance`.
        extractor: the network of features, a `hf_vq.networks.features.FeatureExtractor`.

    Returns:
        A list of metrics, on the model's device. Each has `update(samples, reconstructions, padding_mask=None)`,
        `compute()`, figures by name, and `describe()`, what figures are told apart by.

    Raises:
        ValueError: see `check_metrics`.
        ImportError: torchmetrics is missing.
    """
    strict = names is not None
    if names is None:
        names = [*cheap_metrics(model), *[DISTANCE] * (extractor is not None)]
    check_metrics(model, names, extractor)
    found: list[nn.Module] = [each(strict=strict) for each in _similarities(model) if each.name in names]
    if extractor is not None:
        extractor.to(model.device)
        if DISTANCE in names:
            found.append(MeanDistance(DISTANCE, FeatureDistance(extractor), extractor))
        if LEARNED in names:
            heads = load_heads(str(published_network(extractor)))
            found.append(MeanDistance(LEARNED, LPIPS(extractor, heads).to(model.device), extractor))
        if between := [name for name in BETWEEN_SETS if name in names]:
            found.append(DistributionDistance(extractor, between))
    return [metric.to(model.device) for metric in found]


def reconstruction_figures(metrics: Iterable[Any], method: str = "compute") -> dict[str, Any]:
    """The figures of `reconstruction_metrics`, or with `method="describe"` what they are told apart by, by name."""
    found = {name: value for metric in metrics for name, value in getattr(metric, method)().items()}
    return {OF_RECONSTRUCTIONS.get(name, name): value for name, value in found.items()}


def feature_metrics(extractor: Any) -> list[str]:
    """Names of the metrics that a network of features allows."""
    return [name for name in OF_FEATURES if name != LEARNED or published_network(extractor) is not None]


def _similarities(model):
    modality = modality_of(type(model).__name__)
    return () if modality is None else modality.similarities

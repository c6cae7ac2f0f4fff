"""How far two sets of samples are apart, and pairs of them, as a frozen network sees them: FID, KID, distances."""

import copy
import math
import warnings
from collections.abc import Collection
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from hf_vq.metrics.padding import real_parts
from hf_vq.modes import full_float32, in_eval_mode
from hf_vq.processes import count_processes, gather_rows, is_distributed, sum_over_processes
from hf_vq.renaming import warn_user

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 0  # of KID
PIXELS = "float32, samples cut to [-1, 1], not rounded"
STATES = ("features_sum", "features_cov_sum", "features_num_samples")  # of torchmetrics' FID, of either set


def seen_by(network: nn.Module, *samples: torch.Tensor, method: str = "__call__") -> torch.Tensor:
    """What a network makes of samples: cut to [-1, 1], in float32, all of it in evaluation mode.

    Args:
        network: a module.
        samples: (batch, channels, *space) each.
        method: of the network.
    """
    with torch.no_grad(), in_eval_mode(network), full_float32(samples[0].device):
        return getattr(network, method)(*(sample.float().clamp(-1, 1) for sample in samples))


class MeanDistance(nn.Module):
    """Mean distance of reconstructions from their samples, by a network, summed in float64.

    Args:
        name: of the figure.
        distance: from two batches in [-1, 1] to the distance (batch,) of each sample, such as `hf_vq.losses.LPIPS`.
        extractor: the network in it, a `hf_vq.networks.features.FeatureExtractor`.
    """

    sums: torch.Tensor

    def __init__(self, name: str, distance: nn.Module, extractor: Any):
        super().__init__()
        self.name, self._parts = name, (distance, extractor)  # they are no part of this module
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # samples, distances

    def update(
        self, samples: torch.Tensor, reconstructions: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> None:
        """Adds samples and their reconstructions; see `StructuralSimilarity.update`."""
        for parts in real_parts(padding_mask, samples, reconstructions):
            distances = seen_by(self._parts[0], *parts).double()
            self.sums += torch.stack([torch.ones_like(distances), distances]).sum(dim=1).to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """The mean over everything added, on all processes, by its name; NaN without samples."""
        count, total = sum_over_processes(self.sums.clone()).tolist()
        return {self.name: total / count if count else math.nan}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What figures are told apart by, by name."""
        distance, extractor = self._parts
        words = f"hf_vq {type(distance).__name__}, {PIXELS}"
        return {self.name: {"implementation": words, "extractor": extractor.identity}}


class DistributionDistance(nn.Module):
    """FID (https://arxiv.org/abs/1706.08500) and KID (https://arxiv.org/abs/1801.01401), through torchmetrics.

    Of the vectors of `extractor.embed`. FID fits a normal distribution to each set: below as many samples as a vector
    has numbers, its covariances are singular and FID is far too large, so that it compares with sets of the same size
    alone; a warning says so. KID is the mean of an unbiased estimate over 100 pairs of subsets, drawn with a seed: it
    may be negative, as that of equal sets is.

    Sums are in float64, and figures depend neither on batch sizes nor on the number of processes, where process r of p
    is given every p-th item, from the r-th on.

    Args:
        extractor: a `hf_vq.networks.features.FeatureExtractor`.
        names: of the figures: "fid", "kid".
    """

    place: torch.Tensor

    def __init__(self, extractor: Any, names: Collection[str] = ("fid", "kid")):
        from torchmetrics import __version__

        super().__init__()
        self._extractor, self.names, self._library = [extractor], names, f"torchmetrics {__version__}"
        self._frechet: Any = None  # torchmetrics' metric, made when vectors have a length
        self._vectors: dict[bool, list[torch.Tensor]] = {True: [], False: []}  # for KID
        self._subset_size = 0
        self.register_buffer("place", torch.zeros(0))  # tells the device

    def update(
        self, samples: torch.Tensor, reconstructions: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> None:
        """Adds samples to the one set, their reconstructions to the other; see `StructuralSimilarity.update`."""
        for part, other in real_parts(padding_mask, samples, reconstructions):
            self.add(part, real=True)
            self.add(other, real=False)

    def add(self, samples: torch.Tensor, *, real: bool) -> None:
        """Adds samples (batch, channels, *space) in [-1, 1] to the set of references, or to the other one."""
        vectors = seen_by(self._extractor[0], samples, method="embed")
        if vectors.shape[:-1] != samples.shape[:1]:
            raise ValueError(f"embed must give ({len(samples)}, dim), one vector a sample, got {tuple(vectors.shape)}")
        if "fid" in self.names:
            self._frechet = self._frechet or _frechet(vectors.shape[1], vectors.device)
            self._frechet.update(vectors.double(), real=real)
        if "kid" in self.names:
            self._vectors[real].append(vectors)

    def compute(self) -> dict[str, float]:
        """`fid` and `kid` of everything added on all processes.

        Raises:
            ValueError: a set of fewer than two samples.
        """
        figures = {}
        if "fid" in self.names:
            figures["fid"] = self._compute_frechet()
        if "kid" in self.names:
            figures["kid"] = self._compute_kernel()
        return figures

    def describe(self) -> dict[str, dict[str, Any]]:
        """What figures are told apart by, by name, once they are computed."""
        library = f"{self._library}, sums in float64, features in {PIXELS}"
        subsets = f"{library}, {SUBSETS} pairs of subsets of {self._subset_size}, seed {SEED}"
        identity = self._extractor[0].identity
        return {
            name: {"implementation": subsets if name == "kid" else library, "extractor": identity}
            for name in self.names
        }

    def _compute_frechet(self):
        lengths = [0 if self._frechet is None else len(self._frechet.real_features_sum)]
        dim = int(gather_rows(torch.tensor(lengths, device=self.place.device)).max())
        whole = copy.deepcopy(self._frechet) or _frechet(dim, self.place.device)
        for name in (f"{kind}_{state}" for kind in ("real", "fake") for state in STATES):
            sum_over_processes(getattr(whole, name))
        count = int(min(whole.real_features_num_samples, whole.fake_features_num_samples))
        _check_count(count)
        if count <= dim:
            warn_user(
                f"fid of {count} samples in {dim} dimensions is too large: its covariances are singular. It compares "
                "with that of as many samples alone; kid has no such bias"
            )
        return whole.compute().item()

    def _compute_kernel(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that vectors are kept
            from torchmetrics.image.kid import KernelInceptionDistance

            sets = {real: self._gathered(real) for real in (True, False)}
            self._subset_size = size = min(SUBSET_SIZE, *map(len, sets.values()))
            _check_count(size)
            subsets = 1 if size == max(map(len, sets.values())) else SUBSETS  # all are one
            metric = KernelInceptionDistance(_AsGiven(), subsets, size, sync_on_compute=False)
            metric.to(self.place.device)
        for real, vectors in sets.items():
            metric.update(vectors.double(), real=real)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return metric.compute()[0].item()

    def _gathered(self, real):
        """The vectors of all processes, (n, dim), in the order in which one process would have them."""
        processes, device = count_processes(), self.place.device
        rank = dist.get_rank() if is_distributed() else 0
        mine = self._vectors[real]
        dim = int(gather_rows(torch.tensor([mine[0].shape[1] if mine else 0], device=device)).max())
        vectors = torch.cat([torch.zeros(0, dim, device=device), *mine])
        rows = torch.arange(len(vectors), device=device) * processes + rank
        return gather_rows(vectors)[gather_rows(rows).argsort()]


class _AsGiven(nn.Module):
    """The network of torchmetrics' metrics, which are given vectors already."""

    def __init__(self, num_features: int = 0):
        super().__init__()
        self.num_features = num_features

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors


def _frechet(dim, device):
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(_AsGiven(dim), sync_on_compute=False).to(device)


def _check_count(count):
    if count < 2:
        raise ValueError(f"fid and kid need two samples of each set, got {count}")

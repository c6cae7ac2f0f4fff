"""What quantizers with a learned codebook share: search, k-means start, statistics, loading."""

import math
from typing import Annotated

import torch
from torch import nn

from hf_vq.quantizers.base import Quantizer
from hf_vq.quantizers.checks import check_codebook_fits
from hf_vq.quantizers.distributed import draw_rows
from hf_vq.quantizers.entropy import assignment_entropies
from hf_vq.quantizers.gradients import directions, rotate, straight_through
from hf_vq.quantizers.kmeans import cluster_statistics, kmeans
from hf_vq.quantizers.lookup import lookup
from hf_vq.quantizers.nearest import nearest_codes
from hf_vq.quantizers.surgery import CodebookSurgery
from hf_vq.ranges import Codebook, OneOf, Positive, Share, Weight, Width

AVERAGES = {"cluster_size", "embedding_sum", "ema_steps"}  # buffers, of which a quantizer has some
GRADIENTS = ("straight_through", "rotation", "bypass")
NORMALIZATIONS = (False, True, "search")


class FrozenCodebook(nn.Module):
    """`weight` (codebook_size, code_dim) as a persistent buffer: under the key of an nn.Embedding, no gradient.

    (As a frozen Parameter the updates of an EMA are silently lost under FSDP2.)
    """

    weight: torch.Tensor

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return lookup(codes, self.weight)


class CodebookQuantizer(CodebookSurgery, Quantizer):
    """Base of the quantizers that pick the nearest of learned code vectors.

    A subclass registers `embedding` (its `weight` is the codebook, (codebook_size, code_dim)) and, where it keeps
    averages, `cluster_size`; it says what its losses are and how statistics move the codebook.

    Args:
        codebook_size: number of codes.
        dim: width of the latents.
        beta: weight of the commitment term, 0 or more.
        decay: of the running averages, in [0, 1]; None: a subclass that takes it has a way of its own.
        kmeans_init: start the codebook by k-means on the first training batch.
        restart_threshold: a code restarts at a random latent when it is used less than this share of the average
            code, in [0, 1]; 0 switches it off.
        code_dim: width of the codes; learned linear maps lead there and back (ViT-VQGAN,
            https://arxiv.org/abs/2110.04627, section 3.2). None: `dim`, without maps.
        normalize: compare latents and codes by direction; both are scaled to length 1 (the same section). "search":
            they are compared so, and keep their length in all else (DAC, https://arxiv.org/abs/2306.06546).
        gradient: "straight_through"; "rotation", the rotation trick (https://arxiv.org/abs/2410.06424); or "bypass",
            straight through past the normalisation too, as ViT-VQGAN does.
        entropy_weight: of the entropy penalty, 0 or more: mean entropy of each latent's soft assignment to the codes,
            minus `diversity` x the entropy of the mean assignment (https://arxiv.org/abs/2310.05737, eq. 4).
        entropy_temperature: of the soft assignments, above 0.
        entropy_offset: added inside the logarithm of the mean assignment, in [0, 1]; taming's heirs have 1e-5.
        diversity: weight of the second entropy, 0 or more.
    """

    metric = "euclidean"

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        beta: Weight = 0.25,
        decay: Share | None = 0.99,
        kmeans_init: bool = True,
        restart_threshold: Share = 0.05,
        code_dim: Width | None = None,
        normalize: Annotated[bool | str, OneOf(NORMALIZATIONS)] = False,
        gradient: Annotated[str, OneOf(GRADIENTS)] = "straight_through",
        entropy_weight: Weight = 0.0,
        entropy_temperature: Positive = 0.01,
        entropy_offset: Share = 0.0,
        diversity: Weight = 1.0,
    ):
        super().__init__(codebook_size, dim, code_dim)
        check_codebook_fits(codebook_size, self.code_dim)
        if gradient == "bypass" and normalize is not True:
            raise ValueError("gradient='bypass' passes by the normalisation: it needs normalize=True")
        self.beta, self.decay, self.restart_threshold = beta, decay, restart_threshold
        self.normalize, self.gradient = normalize, gradient
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.entropy_offset, self.diversity = entropy_offset, diversity
        self.kmeans_init, self.initialized = bool(kmeans_init), not kmeans_init
        self._pending = None

    def first_codebook(self) -> torch.Tensor:
        """A random codebook, (codebook_size, code_dim): Sonnet's variance scaling."""
        bound = math.sqrt(3 / self.code_dim)
        return torch.empty(self.codebook_size, self.code_dim, dtype=torch.float32).uniform_(-bound, bound)

    @property
    def codebook(self) -> torch.Tensor:
        """The vectors that latents are compared with, (codebook_size, code_dim)."""
        if self.normalize is True:  # of a copy: a restart changes the weight before the gradient comes back
            return directions(self._code_vectors().clone())
        return self._code_vectors()

    @property
    def stock_compatible(self) -> bool:
        return not self.normalize and isinstance(self.project_in, nn.Identity)

    @torch.no_grad()
    def mean_vector(self) -> torch.Tensor:
        """The average code, (dim,): by running use where the quantizer keeps it."""
        codes, use = self.codebook, getattr(self, "cluster_size", None)
        weights = codes.new_ones(len(codes)) if use is None else use.clamp_min(1e-12)
        return self.project_out((weights / weights.sum() @ codes)[None])[0]

    @torch.no_grad()
    def update_codebook(self) -> None:
        """Applies what training forwards gathered since the last update (`codebook_updates = "deferred"`)."""
        super().update_codebook()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._update(*pending)

    @torch.no_grad()
    def derive_buffers(self, missing: set[str]) -> set[str]:
        """A codebook without averages (a stock checkpoint) gets those that stand for it."""
        averages = missing & AVERAGES
        if averages and "embedding.weight" not in missing:
            self._start_averages(torch.ones(self.codebook_size, device=self.embedding.weight.device))
        return super().derive_buffers(missing) | averages

    def finish_loading(self, missing: list[str]) -> None:
        super().finish_loading(missing)
        self._pending = None

    def _quantize(self, rows, valid, counted, batch_size):
        compared, codebook = self._comparable(rows), self.codebook
        codes = self._nearest(compared, codebook)
        quantized = lookup(codes, codebook)
        passed = self._pass_gradient(rows, compared, quantized, codebook, counted)
        loss, losses = self._losses(compared, quantized, passed, valid)
        if self.entropy_weight > 0:
            before = codebook.clone()  # statistics change the codebook before the gradient comes back
            each, together = assignment_entropies(
                compared, before, self.entropy_temperature, valid, self.metric, self.entropy_offset
            )
            loss = loss + self.entropy_weight * (each - self.diversity * together)
            losses |= {"sample_entropy": each, "codebook_entropy": together}
        if self.training and self.codebook_updates != "off":
            self._record(compared.detach(), codes, counted)
        return passed, codes, loss, losses

    def _codes(self, rows):
        return self._nearest(self._comparable(rows), self.codebook)

    def _vectors(self, codes):
        return lookup(codes, self.codebook)

    def _code_vectors(self):
        return self.embedding.weight

    def _comparable(self, rows):
        return directions(rows) if self.normalize is True else rows

    def _nearest(self, compared, codebook):
        if self.normalize == "search":
            compared, codebook = directions(compared), directions(codebook)
        return nearest_codes(compared, codebook, self.metric)

    def _pass_gradient(self, rows, compared, quantized, codebook, counted):
        """Quantized rows (n, code_dim), as the decoder gets them."""
        if self.gradient == "rotation":
            return rotate(compared, quantized)
        return straight_through(rows if self.gradient == "bypass" else compared, quantized)

    def _initialize(self, rows):
        found = kmeans(self._comparable(rows), self.codebook_size)
        if found is None:
            return False
        centroids, counts = found
        self._set_codes(centroids)
        self._start_averages(counts * self.codebook_size / counts.sum())
        self.initialized = True
        return True

    def _set_codes(self, centroids):
        """Makes these the codes, (codebook_size, code_dim)."""
        self.embedding.weight.copy_(centroids)

    @torch.no_grad()
    def scatter(self, rows: torch.Tensor) -> None:
        """A codebook of random ones of the rows (n, dim) of all processes, shrunk to all lengths from 0 on."""
        drawn = draw_rows(self._comparable(self.project_in(rows)), self.codebook_size)
        shares = (torch.arange(self.codebook_size, device=rows.device) + 0.5) / self.codebook_size
        self._set_codes(drawn * shares[:, None])

    @torch.no_grad()
    def refine(self, rows: torch.Tensor) -> None:
        """One step of k-means on rows (n, dim) of all processes; unused codes start again at random rows."""
        compared = self._comparable(self.project_in(rows))
        codes = self._nearest(compared, self.codebook)
        counts, sums = cluster_statistics(compared, codes, self.codebook_size)
        means = sums / counts.clamp_min(1)[:, None]
        fresh = draw_rows(compared, self.codebook_size)
        self._set_codes(torch.where(counts[:, None] > 0, means, fresh))
        self._start_averages(counts * self.codebook_size / counts.sum())

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._pending = None

    @torch.no_grad()
    def _was_unstarted(self, missing):
        """By codes that nothing uses."""
        use = self._buffers.get("cluster_size")
        if not self.kmeans_init or use is None or "cluster_size" in missing or use.device.type == "meta" or use.any():
            return False
        self._start_fresh()
        return True

    def _start_fresh(self):
        """Averages of a codebook that has not started, as they are in a new one."""
        self.cluster_size.fill_(1)

    @torch.no_grad()
    def _record(self, rows, codes, valid):
        statistics = self._statistics(rows, codes, valid)
        if statistics is None:
            return
        if self.codebook_updates == "forward":
            self._update(*statistics)
        elif self._pending is None:
            self._pending = statistics
        else:
            *sums, fresh = statistics
            self._pending = (*(a + b for a, b in zip(self._pending, sums, strict=False)), fresh)

    def _losses(self, rows, quantized, passed, valid):
        """The weighted sum and the terms.

        Args:
            rows: (n, code_dim) as compared.
            quantized: (n, code_dim) their codes' vectors.
            passed: the same values with the gradient that the decoder's goes through.
            valid: (n,) bool, rows that count; None: all.
        """
        raise NotImplementedError

    def _statistics(self, rows, codes, valid):
        """What one forward adds: sums, then the rows where dead codes could restart; None where nothing is kept."""

    def _update(self, *statistics):
        """Moves averages and codebook by the statistics of a step."""
        raise NotImplementedError


def find_dead(cluster_size: torch.Tensor, threshold: float, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes used less than `threshold` of the average code, (codebook_size,) bool, and that average.

    None is dead after a step without a single latent, since there is none to restart from.

    Args:
        cluster_size: (codebook_size,) running use.
        threshold: in [0, 1].
        counts: (codebook_size,) use in this step.
    """
    average = cluster_size.mean()
    return (cluster_size < threshold * average) & (counts.sum() > 0), average

"""What quantizers with a learned codebook share: search, k-means start, statistics, loading."""

import math

import torch

from hf_vq.quantizers.base import (
    Quantizer,
    QuantizerOutput,
    check_positive_int,
    check_range,
    straight_through,
    to_grid,
)
from hf_vq.quantizers.kmeans import kmeans
from hf_vq.quantizers.lookup import lookup
from hf_vq.quantizers.nearest import nearest_codes

CODEBOOK_UPDATES = ("forward", "deferred", "off")


class CodebookQuantizer(Quantizer):
    """Base of the quantizers that pick the nearest of learned code vectors.

    A subclass registers `embedding` (its `weight` is the codebook, (codebook_size, dim)) and, where it keeps
    averages, `cluster_size`; it says what its losses are and how statistics move the codebook.

    Attributes:
        initialized: whether k-means has run, was switched off, or a codebook was loaded.
        codebook_updates: when training forwards change the codebook by statistics: "forward" (each), "deferred"
            (they gather until `update_codebook()`) or "off".
        nonfinite_rows: on a GPU, how many latents with NaN or infinity were met.
    """

    def __init__(self, codebook_size, dim, beta, decay, kmeans_init, restart_threshold):
        super().__init__()
        check_positive_int(codebook_size=codebook_size, dim=dim)
        check_range(0, math.inf, beta=beta)
        check_range(0, 1, decay=decay, restart_threshold=restart_threshold)
        self.codebook_size, self.dim = codebook_size, dim
        self.beta, self.decay, self.restart_threshold = beta, decay, restart_threshold
        self.register_buffer("nonfinite_rows", torch.zeros((), dtype=torch.int64), persistent=False)
        self.initialized = not kmeans_init
        self.codebook_updates = "forward"
        self._pending = None

    def first_codebook(self):
        """A random codebook, (codebook_size, dim): Sonnet's variance scaling."""
        bound = math.sqrt(3 / self.dim)
        return torch.empty(self.codebook_size, self.dim, dtype=torch.float32).uniform_(-bound, bound)

    @property
    def bits_per_token(self):
        return math.log2(self.codebook_size)

    def forward(self, latents, padding_mask=None):
        """Quantizes latents.

        Args:
            latents: (batch, dim, *grid).
            padding_mask: (batch, *grid) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            QuantizerOutput.
        """
        if self.training and not self.initialized and not torch.compiler.is_compiling():
            self.initialize(latents, padding_mask)
        rows, valid = self._rows(latents, padding_mask)
        codes = nearest_codes(rows, self.embedding.weight)
        quantized = lookup(codes, self.embedding.weight)
        loss, losses = self._losses(rows, quantized, valid)
        if self.training and self.codebook_updates != "off":
            self._record(rows.detach(), codes, valid)
        return QuantizerOutput(
            latents=to_grid(straight_through(rows, quantized), latents),
            codes=codes.view(latents.shape[0], *latents.shape[2:]),
            loss=loss,
            losses=losses,
        )

    @torch.no_grad()
    def tokenize(self, latents, padding_mask=None):
        """Latents (batch, dim, *grid) to codes (batch, *grid) int64."""
        rows, _ = self._rows(latents, padding_mask)
        if not torch.isfinite(rows).all():
            raise RuntimeError("latents hold NaN or infinity: the encoder diverged")
        return nearest_codes(rows, self.embedding.weight).view(latents.shape[0], *latents.shape[2:])

    def detokenize(self, codes):
        """Codes (batch, *grid) integers to quantized latents (batch, dim, *grid).

        Raises:
            ValueError: codes that are no integers, or outside [0, codebook_size).
        """
        check_codes(codes, self.codebook_size)
        return lookup(codes, self.embedding.weight).movedim(-1, 1)

    @torch.no_grad()
    def initialize(self, latents, padding_mask=None):
        """Starts the codebook by k-means on these latents, unless it has started or was loaded.

        Returns:
            bool: whether it did.
        """
        if self.initialized:
            return False
        rows, valid = self._rows(latents, padding_mask)
        centroids, counts = kmeans(rows if valid is None else rows[valid], self.codebook_size)
        self.embedding.weight.copy_(centroids)
        self._start_averages(counts * self.codebook_size / counts.sum())
        self.initialized = True
        return True

    @torch.no_grad()
    def update_codebook(self):
        """Applies what training forwards gathered since the last update (`codebook_updates = "deferred"`)."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._update(*pending)

    @torch.no_grad()
    def finish_loading(self, missing):
        """Called after a checkpoint was loaded, with the names of this quantizer's tensors that it lacked.

        A codebook without averages (a stock checkpoint) gets those that stand for it.
        """
        if "embedding.weight" in missing:
            return
        self.initialized, self._pending = True, None
        if missing:
            self._start_averages(torch.ones(self.codebook_size, device=self.embedding.weight.device))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *args):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)
        if prefix + "embedding.weight" in state_dict:
            self.initialized, self._pending = True, None

    def _rows(self, latents, padding_mask):
        """Flat rows, and which of them count; None where all do."""
        rows, valid = self.to_rows(latents), self.check_mask(latents, padding_mask)
        if valid is not None:
            rows = torch.where(valid[:, None], rows, 0)
        return rows, valid

    @torch.no_grad()
    def _record(self, rows, codes, valid):
        if rows.device.type != "cpu":  # on the CPU the search has raised
            finite = torch.isfinite(rows).all(dim=1)
            self.nonfinite_rows += (~finite).sum()
            valid = finite if valid is None else valid & finite
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

    def _losses(self, rows, quantized, valid):
        """The weighted sum and the terms, from rows and their codes' vectors, both (n, dim)."""
        raise NotImplementedError

    def _statistics(self, rows, codes, valid):
        """What one forward adds: sums, then the rows where dead codes could restart; None where nothing is kept."""
        raise NotImplementedError

    def _update(self, *statistics):
        """Moves averages and codebook by the statistics of a step."""
        raise NotImplementedError

    def _start_averages(self, counts):
        """Sets the averages to what stands for the present codebook, each code used `counts` a step."""
        raise NotImplementedError

    def extra_repr(self):
        return f"codebook_size={self.codebook_size}, dim={self.dim}"


def find_dead(cluster_size, threshold):
    """Codes used less than `threshold` of the average code, (codebook_size,) bool, and that average."""
    average = cluster_size.mean()
    return cluster_size < threshold * average, average


def check_codes(codes, codebook_size):
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes must be integers, got {codes.dtype}")
    if codes.numel() and not (codes.min() >= 0 and codes.max() < codebook_size):
        raise ValueError(f"codes must be in [0, {codebook_size}), got {codes.min().item()} to {codes.max().item()}")

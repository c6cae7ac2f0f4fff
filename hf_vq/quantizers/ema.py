"""A codebook that follows the latents by moving averages."""

from typing import Annotated, Any

import torch
import torch.nn.functional as F

from hf_vq.quantizers.codebook import CodebookQuantizer, FrozenCodebook, find_dead
from hf_vq.quantizers.distributed import draw_rows
from hf_vq.quantizers.gradients import masked_mse
from hf_vq.quantizers.kmeans import cluster_statistics
from hf_vq.ranges import Codebook, Range, Share, Width
from hf_vq.registry import register


@register("ema")
class EMAVectorQuantizer(CodebookQuantizer):
    """Nearest codebook vector, each code the moving average of its latents (VQ-VAE, appendix A.1).

    With counts n_k and sums m_k of the latents of code k in a step, N_k and M_k their averages with `decay`, and
    T the sum of N, a code is e_k = M_k / (T (N_k + epsilon) / (T + K epsilon)). loss = beta ||z - sg[e]||^2.
    The latents that a forward returns come from the codebook before its update.

    Args:
        codebook_size: number of codes.
        dim: width of the latents.
        decay: of the running averages, in [0, 1].
        epsilon: of the Laplace smoothing, between 0 and 1.
        zero_debias: averages start at zero and are divided by 1 - decay^steps, as in Sonnet: the first step replaces
            the codebook by batch means. Else they start from the codebook with a count of one, as in
            lucidrains/vector-quantize-pytorch.
        beta, kmeans_init, restart_threshold, code_dim, normalize, gradient, entropy_weight,
            entropy_temperature, entropy_offset, diversity: see `CodebookQuantizer`. A restart sets code, sum and
            count together.

    Raises:
        ValueError: an argument out of its range.
    """

    decay: float
    embedding_sum: torch.Tensor
    ema_steps: torch.Tensor  # with zero_debias

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        decay: Share = 0.99,
        epsilon: Annotated[float, Range(0, 1, above=True, below=True)] = 1e-5,
        zero_debias: bool = False,
        **options: Any,
    ):
        super().__init__(codebook_size, dim, decay=decay, **options)
        self.epsilon, self.zero_debias = epsilon, zero_debias
        self.embedding = FrozenCodebook(self.first_codebook())
        codebook = self.codebook
        self.register_buffer("cluster_size", torch.full((codebook_size,), 0.0 if zero_debias else 1.0).float())
        self.register_buffer("embedding_sum", torch.zeros_like(codebook) if zero_debias else codebook.clone())
        if zero_debias:
            self.register_buffer("ema_steps", torch.zeros((), dtype=torch.int64))

    @property
    def started(self) -> bool:
        return super().started and not (self.zero_debias and int(self.ema_steps) == 0)

    def _losses(self, rows, quantized, passed, valid):
        commitment = masked_mse(rows, quantized.detach(), valid)
        return self.beta * commitment, {"commitment": commitment}

    def _statistics(self, rows, codes, valid):
        counts, sums = cluster_statistics(rows, codes, self.codebook_size, valid)
        return counts, sums, draw_rows(rows, self.codebook_size, valid)

    def _update(self, counts, sums, fresh):
        moves = counts.sum() > 0  # a step of nothing but padding moves nothing
        share = moves.to(self.cluster_size.dtype) * (1 - self.decay)
        self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), share)
        self.embedding_sum.lerp_(sums.to(self.embedding_sum.dtype), share)
        started: float | torch.Tensor = 1.0
        if self.zero_debias:
            self.ema_steps += moves
            started = 1 - self.decay ** self.ema_steps.to(self.cluster_size.dtype)
        size, total = self.cluster_size / started, self.embedding_sum / started
        smoothed = (size + self.epsilon) / (size.sum() + self.codebook_size * self.epsilon) * size.sum()
        codebook = total / smoothed[:, None]
        if self.restart_threshold > 0:
            dead, average = find_dead(size, self.restart_threshold, counts)
            codebook = torch.where(dead[:, None], fresh, codebook)
            self.cluster_size.copy_(torch.where(dead, average * started, self.cluster_size))
            self.embedding_sum.copy_(torch.where(dead[:, None], fresh * average * started, self.embedding_sum))
        codebook = F.normalize(codebook, dim=1) if self.normalize is True else codebook
        self.embedding.weight.copy_(torch.where(moves, codebook, self.embedding.weight))

    def _start_fresh(self):
        if not self.zero_debias:  # whose averages start at zero
            super()._start_fresh()

    def _start_averages(self, counts):
        self.cluster_size.copy_(counts)
        self.embedding_sum.copy_(self.codebook * counts[:, None])
        if self.zero_debias:
            self.ema_steps.fill_(2**31)  # nothing is left to correct

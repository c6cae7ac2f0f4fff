"""A codebook that gradients train."""

import torch
from torch import nn

from hf_vq.quantizers.base import masked_mse
from hf_vq.quantizers.codebook import CodebookQuantizer, find_dead
from hf_vq.quantizers.distributed import draw_rows, sum_over_processes
from hf_vq.quantizers.lookup import sum_by_code


class VectorQuantizer(CodebookQuantizer):
    """Nearest codebook vector, trained by the codebook loss (VQ-VAE, https://arxiv.org/abs/1711.00937, eq. 1-3).

    loss = ||sg[z] - e||^2 + beta ||z - sg[e]||^2, both as means. Codes that fall out of use restart at random
    latents. The first training forward of a new codebook runs k-means on its latents.

    Args:
        codebook_size: number of codes.
        dim: width of a code vector.
        beta: weight of the commitment term, 0 or more.
        legacy: put beta on the codebook term instead, as taming-transformers and diffusers do.
        decay: of the running average of how often each code is used, in [0, 1].
        kmeans_init: start the codebook by k-means on the first training batch.
        restart_threshold: a code restarts when it is used less than this share of the average code, in [0, 1];
            0 switches it off (and keeps no running average).

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: latents with NaN or infinity (on the CPU). On a GPU `forward` then returns a NaN loss, leaves
            the statistics untouched and counts the rows in `nonfinite_rows`; `tokenize` raises.
    """

    def __init__(
        self, codebook_size, dim, beta=0.25, legacy=False, decay=0.99, kmeans_init=True, restart_threshold=0.05
    ):
        super().__init__(codebook_size, dim, beta, decay, kmeans_init, restart_threshold)
        self.legacy = legacy
        self.embedding = nn.Embedding(codebook_size, dim, _weight=self.first_codebook())
        if restart_threshold > 0:
            self.register_buffer("cluster_size", torch.ones(codebook_size, dtype=torch.float32))

    def _losses(self, rows, quantized, valid):
        losses = {
            "commitment": masked_mse(rows, quantized.detach(), valid),
            "codebook": masked_mse(quantized, rows.detach(), valid),
        }
        scaled, plain = ("codebook", "commitment") if self.legacy else ("commitment", "codebook")
        return losses[plain] + self.beta * losses[scaled], losses

    def _statistics(self, rows, codes, valid):
        if self.restart_threshold == 0:
            return None
        ones = rows.new_ones(rows.shape[0]) if valid is None else valid.to(rows.dtype)
        counts = sum_over_processes(sum_by_code(ones, codes, self.codebook_size))
        return counts, draw_rows(rows, self.codebook_size, valid)

    def _update(self, counts, fresh):
        self.cluster_size.lerp_(counts.to(self.cluster_size.dtype), 1 - self.decay)
        dead, average = find_dead(self.cluster_size, self.restart_threshold)
        self.embedding.weight.copy_(torch.where(dead[:, None], fresh, self.embedding.weight))
        self.cluster_size.copy_(torch.where(dead, average, self.cluster_size))

    def _start_averages(self, counts):
        if self.restart_threshold > 0:
            self.cluster_size.copy_(counts)

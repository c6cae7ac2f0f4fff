"""A codebook that gradients train."""

from typing import Any

import torch
from torch import nn

from hf_vq.processes import sum_over_processes
from hf_vq.quantizers.codebook import CodebookQuantizer, FrozenCodebook, find_dead
from hf_vq.quantizers.distributed import draw_rows
from hf_vq.quantizers.gradients import masked_mse
from hf_vq.quantizers.lookup import sum_by_code
from hf_vq.ranges import Codebook, Share, Width
from hf_vq.registry import register

_REMEMBERED = 100  # latents per code, by which use is counted
_LEAST_SIZE = 1e-6  # of codes that a transform starts with


@register("vector")
class VectorQuantizer(CodebookQuantizer):
    """Nearest codebook vector, trained by the codebook loss (VQ-VAE, https://arxiv.org/abs/1711.00937, eq. 1-3).

    loss = ||sg[z] - e||^2 + beta ||z - sg[e]||^2, both as means. Codes that fall out of use restart at random
    latents. The first training forward of a new codebook runs k-means on its latents.

    Args:
        codebook_size: number of codes.
        dim: width of the latents.
        decay: share of the running use that a step keeps, in [0, 1]; None: it is the use since the start, later that
            by about the last 100 latents per code, however many a step has, so that a young codebook soon finds its
            dead codes. Configs that were saved without it mean 0.99.
        code_transform: the codes are a frozen codebook times a learned matrix, so that every step moves all of them
            (SimVQ, https://arxiv.org/abs/2411.02038, section 4). Excludes restarts. With `kmeans_init` both start so
            that their product is the clusters of the first batch, and share out their spread: each has its square
            root in every direction. Configs that were saved without it mean False, a random codebook and matrix as
            in the paper.
        frozen_codebook_dim: width of that frozen codebook, whose matrix then leads to the width of the codes; None:
            their own width. It needs `code_transform`.
        legacy: put beta on the codebook term instead, as taming-transformers and diffusers do.
        beta, kmeans_init, restart_threshold, code_dim, normalize, gradient, entropy_weight,
            entropy_temperature, entropy_offset, diversity: see `CodebookQuantizer`.

    Raises:
        ValueError: an argument out of its range.
    """

    code_transform: nn.Linear | None

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        decay: Share | None = None,
        code_transform: bool = False,
        frozen_codebook_dim: Width | None = None,
        legacy: bool = False,
        **options: Any,
    ):
        if frozen_codebook_dim is not None and not code_transform:
            raise ValueError(f"frozen_codebook_dim={frozen_codebook_dim} needs code_transform=True")
        if code_transform and options.setdefault("restart_threshold", 0.0):
            raise ValueError(
                "code_transform keeps its codes frozen: restart_threshold must be 0, "
                f"got {options['restart_threshold']!r}"
            )
        super().__init__(codebook_size, dim, decay=decay, **options)
        self.legacy = legacy
        self.frozen_codebook_dim = (frozen_codebook_dim or self.code_dim) if code_transform else None
        if self.frozen_codebook_dim is not None:
            self.embedding = FrozenCodebook(self.first_codebook())
            self.code_transform = nn.Linear(self.frozen_codebook_dim, self.code_dim, bias=False)
        else:
            self.embedding = nn.Embedding(codebook_size, self.code_dim, _weight=self.first_codebook())
            self.code_transform = None
        if self.restart_threshold > 0:
            self.register_buffer("cluster_size", torch.ones(codebook_size, dtype=torch.float32))

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Use was averaged over steps, and a frozen codebook was random."""
        return {"decay": 0.99, **({"kmeans_init": False} if options.get("code_transform") else {})}

    def first_codebook(self) -> torch.Tensor:
        """A random codebook, (codebook_size, code_dim); with a transform (codebook_size, frozen_codebook_dim)."""
        if self.frozen_codebook_dim is None:
            return super().first_codebook()
        return torch.randn(self.codebook_size, self.frozen_codebook_dim) * self.frozen_codebook_dim**-0.5

    @torch.no_grad()
    def reset(self) -> None:
        super().reset()
        if self.code_transform is not None:
            self.code_transform.reset_parameters()
            self.initialized = not self.kmeans_init

    @property
    def stock_compatible(self) -> bool:
        return super().stock_compatible and self.code_transform is None

    def _code_vectors(self):
        codes = self.embedding.weight
        return codes if self.code_transform is None else self.code_transform(codes)

    def _set_codes(self, centroids):
        if self.code_transform is None:
            return super()._set_codes(centroids)
        transform = self.code_transform.weight  # random, and the same on all processes
        rank = min(transform.shape)
        squares, vectors = torch.linalg.eigh(centroids.T @ centroids / len(centroids))
        principal, roots = vectors[:, -rank:], squares[-rank:].clamp_min(_LEAST_SIZE**2) ** 0.25
        left, _, right = torch.linalg.svd(transform[:rank], full_matrices=False)
        # half of the spread in each: of codes with all of it, a step of the matrix moves the longest direction alone
        basis = principal * roots @ left @ right  # (code_dim, frozen_codebook_dim)
        frozen = centroids @ (principal / roots) @ left @ right
        size = frozen.square().mean().sqrt().clamp_min(_LEAST_SIZE)
        self.embedding.weight.copy_(frozen / size)
        transform.copy_(basis * size)

    def _losses(self, rows, quantized, passed, valid):
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
        counts = counts.to(self.cluster_size.dtype)
        if self.decay is None:
            latents_per_code = counts.sum() / self.codebook_size
            self.cluster_size.mul_((-latents_per_code / _REMEMBERED).exp()).add_(counts)
        else:
            moves = (counts.sum() > 0).to(counts.dtype)  # a step of nothing but padding moves nothing
            self.cluster_size.lerp_(counts, moves * (1 - self.decay))
        dead, average = find_dead(self.cluster_size, self.restart_threshold, counts)
        self.embedding.weight.copy_(torch.where(dead[:, None], fresh, self.embedding.weight))
        self.cluster_size.copy_(torch.where(dead, average, self.cluster_size))

    def _start_averages(self, counts):
        if self.restart_threshold > 0:
            self.cluster_size.copy_(counts)

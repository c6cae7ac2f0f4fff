"""Codes drawn from a categorical distribution, relaxed by Gumbel noise."""

import math
from typing import Annotated, Any

import torch
from torch import nn

from hf_vq.processes import sum_over_processes
from hf_vq.quantizers.base import Quantizer
from hf_vq.quantizers.checks import check_codebook_fits
from hf_vq.quantizers.distances import distance_logits, mean_distance
from hf_vq.quantizers.entropy import in_chunks
from hf_vq.quantizers.gradients import masked_mean, masked_mse
from hf_vq.quantizers.kmeans import kmeans
from hf_vq.quantizers.lookup import lookup
from hf_vq.quantizers.nearest import nearest_codes
from hf_vq.ranges import Codebook, OneOf, Positive, Size, Weight, Width
from hf_vq.registry import register

_UNSTARTED = -1  # as steps in a file, before there was a key for that
LOGITS = ("distance", "projection")
_SHARPNESS = 6.0  # of logits by distance: flatter ones blur, sharper ones learn less (measured)
_LEAST_DISTANCE = 0.01  # of the variance: a batch may have no more latents than there are clusters


@register("gumbel")
class GumbelQuantizer(Quantizer):
    """Gumbel-softmax over codes (https://arxiv.org/abs/1611.01144), as in DALL-E's dVAE and taming's GumbelVQ.

    Training draws softmax((logits + Gumbel noise) / temperature), made one-hot straight through unless soft; eval and
    `tokenize` take the most probable code, without noise. loss = kl_weight x KL(softmax(logits) || uniform), and with
    logits by distance + ||sg[z] - e||^2 + beta ||z - sg[e]||^2 of the nearest code e.

    Args:
        codebook_size: number of codes.
        dim: width of the latents.
        hard: one-hot samples in training; else their soft mixture.
        temperature: at the first training step, above 0; None: 3 for logits by distance, 1 for projected ones.
        final_temperature: where the temperature falls to on a half cosine, as DALL-E's from 1 to 1/16; None: stays.
        temperature_steps: training steps until then; DALL-E took 150,000.
        kl_weight: 0 or more.
        logits: "distance": -|z - e|^2 of latent z and code vector e, over a sixth of the mean of that of the batch's
            latents and their nearest codes, so that they follow latents that move; the most probable code is the
            nearest. "projection": a linear map of the latents, as in DALL-E and taming. None: "distance" where
            `output_dim` is `dim`. Configs that were saved without it mean "projection".
        beta: weight of the commitment term of logits by distance, 0 or more; None: 0.25.
        kmeans_init: the code vectors start at the clusters of the first training batch, where `output_dim` is `dim`.
            So do projected logits: minus the squared distance to each cluster, over the mean squared distance to the
            nearest. Configs that were saved without it mean False: vectors and projection start at random.
        output_dim: width of the code vectors; None: `dim`.

    Attributes:
        steps: training steps so far, (); it is saved.

    Raises:
        ValueError: an argument out of its range, "distance" with another `output_dim`, or `beta` without it.
    """

    proj: nn.Linear | None
    steps: torch.Tensor
    can_be_level = False

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        hard: bool = True,
        temperature: Positive | None = None,
        final_temperature: Positive | None = None,
        temperature_steps: Size = 150_000,
        kl_weight: Weight = 5e-4,
        logits: Annotated[str, OneOf(LOGITS)] | None = None,
        beta: Weight | None = None,
        kmeans_init: bool = True,
        output_dim: Width | None = None,
    ):
        super().__init__(codebook_size, dim)
        self.output_dim = dim if output_dim is None else output_dim
        check_codebook_fits(codebook_size, max(dim, self.output_dim))
        if logits is None:
            logits = "distance" if self.output_dim == dim else "projection"
        if logits == "distance" and self.output_dim != dim:
            raise ValueError(f"logits='distance' needs code vectors of {dim} channels, got output_dim={output_dim}")
        if logits == "projection" and beta is not None:
            raise ValueError(f"beta={beta} needs logits='distance'")
        if temperature is None:
            temperature = 3.0 if logits == "distance" else 1.0
        self.final_temperature = temperature if final_temperature is None else final_temperature
        self.hard, self.first_temperature, self.temperature_steps = hard, temperature, temperature_steps
        self.kl_weight = kl_weight
        self.beta = 0.25 if beta is None else beta
        self.proj = nn.Linear(dim, codebook_size) if logits == "projection" else None
        self.embedding = nn.Embedding(codebook_size, self.output_dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._due: bool | torch.Tensor = False  # a step that is not counted yet
        self.kmeans_init, self.initialized = kmeans_init, not kmeans_init

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Logits were projections, which started at random as code vectors did."""
        return {"logits": "projection", "kmeans_init": False}

    @torch.no_grad()
    def derive_buffers(self, missing: set[str]) -> set[str]:
        if "steps" in missing:  # of a file without them, such as DALL-E's: training starts anew
            self.steps.zero_()
        return super().derive_buffers(missing) | missing & {"steps"}

    @torch.no_grad()
    def _was_unstarted(self, missing):
        """By a number of steps that there is not."""
        told = self.steps.device.type != "meta" and bool(self.steps == _UNSTARTED)
        if told:
            self.steps.zero_()
        return told and self.kmeans_init

    @property
    def temperature(self) -> torch.Tensor:
        """Temperature of the next training step, ()."""
        progress = (self.steps.to(self._one.dtype) / self.temperature_steps).clamp_max(1)
        share = (1 + (math.pi * progress).cos()) / 2
        return self.final_temperature + (self.first_temperature - self.final_temperature) * share

    @torch.no_grad()
    def update_codebook(self) -> None:
        """Moves the temperature on by one step (`codebook_updates = "deferred"`)."""
        self.steps += self._due
        self._due = False

    def _initialize(self, rows):
        found = kmeans(rows, self.codebook_size)
        if found is None:
            return False
        centroids, counts = found
        mean = counts @ centroids / counts.sum()
        nearest = centroids[nearest_codes(rows, centroids)]
        squares = torch.stack([(rows - nearest).square().sum(), (rows - mean).square().sum()])
        distance, variance = sum_over_processes(squares) / counts.sum()
        if variance == 0:
            return False  # latents that are all alike have no clusters
        if self.proj is not None:
            distance = distance.clamp_min(_LEAST_DISTANCE * variance)
            self.proj.weight.copy_(2 * centroids / distance)
            self.proj.bias.copy_(-centroids.square().sum(dim=1) / distance)
        if self.output_dim == self.dim:
            self.embedding.weight.copy_(centroids)
        self.initialized = True
        return True

    def _quantize(self, rows, valid, counted, batch_size):
        losses, loss, scale = {}, rows.new_zeros(()), None
        if self.proj is None:
            nearest = lookup(self._codes(rows), self.embedding.weight)
            scale = mean_distance(rows, nearest, counted, self.training) / _SHARPNESS
            losses["commitment"] = masked_mse(rows, nearest.detach(), valid)
            losses["codebook"] = masked_mse(nearest, rows.detach(), valid)
            loss = losses["codebook"] + self.beta * losses["commitment"]
        if self.training:
            temperature = self.temperature  # of this step, also when a chunk is computed again for the gradient

            def draw(rows, noise):
                return self._draw(self._logits(rows, scale), noise, temperature)

            parts = in_chunks(draw, rows, gumbel_noise(rows, self.codebook_size), width=self.codebook_size)
            if self.codebook_updates != "off":
                self._count_step(counted)
        else:

            def decide(rows):
                codes = self._codes(rows)
                return lookup(codes, self.embedding.weight), codes, self._divergence(self._logits(rows, scale))

            parts = in_chunks(decide, rows, width=self.codebook_size)
        quantized, codes, divergence = (torch.cat(part) for part in zip(*parts, strict=True))
        losses["kl"] = masked_mean(divergence, valid)
        return quantized, codes, loss + self.kl_weight * losses["kl"], losses

    def _logits(self, rows, scale):
        """Of the codes, (n, codebook_size); `scale` is what a distance counts by."""
        return distance_logits(rows, self.embedding.weight, scale) if self.proj is None else self.proj(rows)

    def _draw(self, logits, noise, temperature):
        noisy = (logits + noise) / temperature
        codes, soft = noisy.argmax(dim=1), noisy.softmax(dim=1)
        if self.hard:  # the code's own vector learns by its value, the logits by the mixture
            mixture = soft @ self.embedding.weight.detach()
            quantized = lookup(codes, self.embedding.weight) + (mixture - mixture.detach())
        else:
            quantized = soft @ self.embedding.weight
        return quantized, codes, self._divergence(logits)

    def _divergence(self, logits):
        """KL(softmax(logits) || uniform) of every row, (n,) nats."""
        logarithms = logits.log_softmax(dim=1)
        return (logarithms.exp() * (logarithms + math.log(self.codebook_size))).sum(dim=1)

    def _count_step(self, counted):
        """Notes a step; one of nothing but padding, on all processes, is none."""
        rows = self.steps.new_ones(()) if counted is None else counted.sum()
        self._due = self._due | (sum_over_processes(rows) > 0)
        if self.codebook_updates == "forward":
            self.update_codebook()

    def _codes(self, rows):
        if self.proj is None:
            return nearest_codes(rows, self.embedding.weight)
        ones = rows.new_ones(rows.shape[0], 1)  # the bias is one more channel of a search by dot product
        weights = torch.cat([self.proj.weight, self.proj.bias[:, None]], dim=1)
        return nearest_codes(torch.cat([rows, ones], dim=1), weights, "dot")

    def _vectors(self, codes):
        return lookup(codes, self.embedding.weight)

    def mean_vector(self) -> torch.Tensor:
        """The average code, (output_dim,)."""
        return self.embedding.weight.mean(dim=0)


def gumbel_noise(rows: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Standard Gumbel noise (n, codebook_size) for rows (n, dim)."""
    return -torch.empty(rows.shape[0], codebook_size, dtype=rows.dtype, device=rows.device).exponential_().log()

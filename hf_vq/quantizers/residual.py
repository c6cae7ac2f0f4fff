"""Residual quantization: every level quantizes what the levels before it left."""

import math
from typing import Annotated, Any

import torch
from torch import nn

from hf_vq.processes import sum_over_processes
from hf_vq.quantizers.checks import check_positive_int, check_range
from hf_vq.quantizers.codebook import CodebookQuantizer
from hf_vq.quantizers.composite import CompositeQuantizer
from hf_vq.quantizers.fitted import FittedLatents
from hf_vq.quantizers.gradients import rotate, straight_through
from hf_vq.quantizers.lookup_free import EARLIER
from hf_vq.quantizers.nearest import widest_float
from hf_vq.quantizers.registry import level_types
from hf_vq.ranges import Codebook, Depth, OneOf, Share, Width
from hf_vq.registry import QUANTIZERS, register

LEVEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "finite_scalar": {"preserve_symmetry": True, "bound": "clamp", "fit_latents": False},
    "lookup_free": EARLIER,
}
SHARED_STARTS, SHARED_STEPS = 4, 10  # of k-means for a codebook that all levels share


@register("residual")
class ResidualQuantizer(CompositeQuantizer):
    """RVQ (SoundStream, https://arxiv.org/abs/2107.03312, section III-C; RQ-VAE, https://arxiv.org/abs/2203.01941).

    Level i quantizes the residual z - sg[q_1 + ... + q_(i-1)], so that its commitment term reaches the encoder. The
    quantized latent is the sum over levels, and its gradient passes straight to z; where levels have a `code_dim` it
    passes through their linear maps, which learn by it (DAC, https://arxiv.org/abs/2306.06546, section 3.2).

    Args:
        codebook_size: number of codes of each level.
        dim: width of the latents.
        num_levels: levels.
        level_type: "ema", "vector", "finite_scalar", "lookup_free", or another `quantizer_type` that can be a level.
            The grids of the third and fourth shrink from level to level; finite scalar levels are symmetric and
            bounded by "clamp", those of the fourth weigh commitment by 0.25 and entropy by 0.1.
        level_config: the options of a level's quantizer.
        shared_codebook: one codebook for all levels. It starts by k-means on what all levels see, and is updated once
            a step by what all levels saw.
        update_each_level: update a shared codebook after each level, as RQ-VAE does: codes and latents of later levels
            then come from a codebook that has moved.
        level_dropout: probability that a training item uses only its first levels, a number drawn uniformly from 1 to
            `num_levels` (SoundStream, section III-D). The codes of the levels left out are -1.
        code_dim: width in which levels work; learned linear maps lead there and back where it is given.
        gradient: "straight_through", or "rotation" from z to the sum.
        fit_latents: move and scale latents once, before the first level, to the size of the levels' grid; see
            `FiniteScalarQuantizer`. None: where `level_type` is "finite_scalar". Configs that were saved without it
            mean False.
        loss_reduction: the loss is the "mean" over levels, so that each level's terms count 1 / `num_levels`, or their
            "sum", as in SoundStream, EnCodec and DAC. RQ-VAE takes the mean.
            A `beta` that was tuned for a sum needs the sum.

    Raises:
        ValueError: an argument out of its range; codes with more levels than `num_levels`.
    """

    lowest_code = -1

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        num_levels: Depth = 8,
        level_type: Annotated[str, OneOf(level_types)] = "ema",
        level_config: dict | None = None,
        shared_codebook: bool = False,
        update_each_level: bool = False,
        level_dropout: Share = 0.0,
        code_dim: Width | None = None,
        gradient: Annotated[str, OneOf(("straight_through", "rotation"))] = "straight_through",
        fit_latents: bool | None = None,
        loss_reduction: Annotated[str, OneOf(("mean", "sum"))] = "mean",
    ):
        if update_each_level and not shared_codebook:
            raise ValueError("update_each_level=True is a way to update a shared codebook: it needs shared_codebook")
        parts = 1 if shared_codebook else num_levels
        level_config = {**LEVEL_DEFAULTS.get(level_type, {}), **(level_config or {})}
        super().__init__(
            codebook_size, dim, parts, code_dim or dim, level_type, level_config, code_dim, loss_reduction
        )
        self.num_levels, self.level_dropout, self.gradient = num_levels, level_dropout, gradient
        self._fit_once(fit_latents, level_type, level_config)
        self.gathers = shared_codebook and not update_each_level
        self.codebook_updates = "forward"

    def _fit_once(self, fit_latents, level_type, level_config):
        """Fits latents before the first of levels that lie on a fixed grid, unless `fit_latents` is False."""
        level = self.levels[0]
        spreads = level.latent_spreads
        if spreads is None and fit_latents:
            raise ValueError(
                f"fit_latents={fit_latents!r} needs levels on a fixed grid, as of 'finite_scalar'; got {level_type!r}"
            )
        if spreads is None:
            return
        if level_config.get("fit_latents"):
            raise ValueError("level_config: fit_latents is an option of the residual quantizer, which fits them once")
        if not isinstance(level.project_out, nn.Identity):
            given = None if isinstance(self.project_in, nn.Identity) else self.code_dim
            raise ValueError(
                f"code_dim must be {level.code_dim}, one channel for each of the levels' grid, got code_dim={given} "
                f"and latents of {self.dim} channels"
            )
        if fit_latents is not False:
            self.fitted = FittedLatents(spreads)

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Latents were not fitted."""
        level_class = QUANTIZERS.get(str(options.get("level_type", "ema")))
        return {} if getattr(level_class, "latent_spreads", None) is None else {"fit_latents": False}

    @classmethod
    def part_types(cls, options: dict[str, Any]) -> dict[str, str]:
        level_type = str(options.get("level_type", "ema"))
        return {} if level_type in LEVEL_DEFAULTS else {"level_config": level_type}  # those stay as they are

    @property
    def codebook_updates(self) -> str:
        return self._codebook_updates

    @codebook_updates.setter
    def codebook_updates(self, mode: str) -> None:
        self._codebook_updates = mode
        for level in self.levels:
            level.codebook_updates = "deferred" if mode == "forward" and self.gathers else mode

    def _level(self, index):
        """The quantizer of a level, and the factor by which it sees its residual larger."""
        level = self.levels[index % len(self.levels)]
        return level, level.residual_scale(index)

    def _quantize(self, rows, valid, counted, batch_size, num_levels=None):
        count = self._check_count(num_levels)
        depth = self._draw_depth(rows.shape[0], batch_size, rows.device)
        rows = self.levels[0].residual_input(rows)
        total, learned, outputs = torch.zeros_like(rows), torch.zeros_like(rows), []
        for index in range(count):
            level, scale = self._level(index)
            mask = counted
            if depth is not None:
                used = index < depth
                mask = used if counted is None else counted & used
            output = level((rows - total) / scale, mask)
            quantized = output.latents * scale
            if depth is not None:
                quantized = torch.where(used[:, None], quantized, 0)
                output.codes = torch.where(used, output.codes, -1)
            learned, total = learned + quantized, total + quantized.detach()
            outputs.append(output)
        if self.training and self.gathers and self.codebook_updates == "forward":
            self.update_codebook()
        codes = torch.stack([output.codes for output in outputs], dim=1)
        return self._pass_gradient(rows, total, learned), codes, *self._reduce_losses(outputs)

    def _pass_gradient(self, rows, total, learned):
        """The sum over levels with its gradient: to z, and to the linear maps of the levels where they have some."""
        projected = not isinstance(self.levels[0].project_out, nn.Identity)
        if self.gradient == "rotation":
            passed = rotate(rows, total)
            return passed + (learned - learned.detach()) if projected else passed
        return straight_through(learned if projected else rows, total)

    def _codes(self, rows, num_levels=None):
        rows = self.levels[0].residual_input(rows)
        total, codes = torch.zeros_like(rows), []
        for index in range(self._check_count(num_levels)):
            level, scale = self._level(index)
            codes.append(level.tokenize((rows - total) / scale))
            total = total + level.detokenize(codes[-1]) * scale
        return torch.stack(codes, dim=1)

    def _vectors(self, codes):
        total = 0
        for index, level_codes in enumerate(codes.unbind(dim=1)):
            level, scale = self._level(index)
            vectors = level.detokenize(level_codes.clamp_min(0)) * scale
            total = total + vectors.masked_fill((level_codes < 0)[:, None], 0)
        return total

    def _level_vectors(self, codes):
        return torch.stack(
            [level.detokenize(codes) * scale for level, scale in map(self._level, range(self.num_levels))]
        )

    def _initialize(self, rows):
        rows, started = self.levels[0].residual_input(rows), False
        if len(self.levels) < self.num_levels and isinstance(self.levels[0], CodebookQuantizer):
            return self._initialize_shared(rows)
        for index in range(self.num_levels):
            level, scale = self._level(index)
            started |= level.initialize(rows / scale)
            rows = rows - level.detokenize(level.tokenize(rows / scale)) * scale
        return started

    def _initialize_shared(self, rows):
        """K-means on what all levels see: of several starts from codes of all lengths, the one that leaves least.

        (Started from the first level's latents alone, no code would be as small as the residuals of later levels.)
        """
        level, least, best = self.levels[0], math.inf, None
        if sum_over_processes(torch.tensor(rows.shape[0], device=rows.device)) == 0:
            return False
        level.initialized = True  # before the first copy of it: one that has not started is saved as such
        for _ in range(SHARED_STARTS):
            level.scatter(rows)
            residuals = self._residuals(rows)
            for _ in range(SHARED_STEPS):
                level.refine(torch.stack(residuals[:-1], dim=1).flatten(0, 1))  # ordered as by one process
                residuals = self._residuals(rows)
                left = sum_over_processes(residuals[-1].square().sum(dtype=widest_float(rows.device))).item()
                if best is None or left < least * (1 - 1e-6):  # not by rounding
                    least, best = left, {name: tensor.clone() for name, tensor in level.state_dict().items()}
        level.load_state_dict(best)
        return True

    def _residuals(self, rows):
        """What each level gets, and what the last leaves: tensors of (n, dim)."""
        residuals = [rows]
        for index in range(self.num_levels):
            level, scale = self._level(index)
            codes = level.tokenize(residuals[-1] / scale)
            residuals.append(residuals[-1] - level.detokenize(codes) * scale)
        return residuals

    def _draw_depth(self, rows, batch_size, device):
        """Levels that each row uses, (rows,); None where all use all."""
        if not self.training or self.level_dropout == 0 or rows == 0:
            return None
        depth = torch.randint(1, self.num_levels + 1, (batch_size,), device=device)
        keep = torch.rand(batch_size, device=device) >= self.level_dropout
        return torch.where(keep, self.num_levels, depth).repeat_interleave(rows // batch_size)

    def _check_count(self, num_levels):
        if num_levels is None:
            return self.num_levels
        check_positive_int(num_levels=num_levels)
        check_range(1, self.num_levels, num_levels=num_levels)
        return num_levels

    def _check_levels(self, count):
        if not 1 <= count <= self.num_levels:
            raise ValueError(f"codes must have 1 to {self.num_levels} levels, got {count}")

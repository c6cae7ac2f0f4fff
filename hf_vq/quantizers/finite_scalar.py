"""Finite scalar quantization: every channel is rounded to a few levels; the codebook is their grid."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch

from hf_vq.quantizers.base import Quantizer
from hf_vq.quantizers.fitted import FittedLatents
from hf_vq.quantizers.gradients import straight_through
from hf_vq.ranges import Codebook, OneOf, Range, Width
from hf_vq.registry import register

_EDGE = 1e-3  # the outermost levels are reached a little before tanh's limit


@register("finite_scalar")
class FiniteScalarQuantizer(Quantizer):
    """FSQ (https://arxiv.org/abs/2309.15505): no codebook to learn, no loss, nothing to collapse.

    Channel i is squashed into L_i levels and rounded, straight through; the first channel is the least significant
    digit of the code. Values lie in [-1, 1]; with `bound="clamp"` and `fit_latents`, where the latents lie. With
    `bound="clamp"` quantized latents that are quantized again keep their codes; "tanh" squashes them a second time.

    Args:
        codebook_size: the product of `levels_per_dim`.
        dim: width of the latents; learned linear maps lead to one channel per level count and back where it differs.
        levels_per_dim: levels of every channel, each at least 2.
        preserve_symmetry: levels symmetric about 0, also where their number is even
            (https://arxiv.org/abs/2411.19842, section 3.2).
        bound: "tanh" squashes channels into the levels' range; "clamp" cuts them off there, so that values within
            keep their place: for levels of a residual quantizer. It needs `preserve_symmetry`.
        fit_latents: the bound gets latents with zero mean and a standard deviation of 1 (of half the grid's reach with
            "clamp"), by their running moments (`FittedLatents`), so that codes differ from the first step; the middle
            of an even number of levels is then at 0. Without it few levels never start, since an encoder's first
            latents are small. Configs that were saved without it mean False.

    Raises:
        ValueError: levels that are missing, too few, or not `codebook_size` together.
    """

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        levels_per_dim: Sequence[Annotated[int, Range(2, 2**16)]] | None = None,
        preserve_symmetry: bool = False,
        bound: Annotated[str, OneOf(("tanh", "clamp"))] = "tanh",
        fit_latents: bool = True,
    ):
        if not levels_per_dim:
            raise ValueError(f"levels_per_dim must list integers of at least 2, like [8, 5], got {levels_per_dim!r}")
        if math.prod(levels_per_dim) != codebook_size:
            raise ValueError(
                f"levels_per_dim={list(levels_per_dim)} makes {math.prod(levels_per_dim)} codes, "
                f"but codebook_size is {codebook_size}"
            )
        if bound == "clamp" and not preserve_symmetry:
            raise ValueError("bound='clamp' needs preserve_symmetry=True: else the levels do not span [-1, 1]")
        channels = len(levels_per_dim)
        super().__init__(codebook_size, dim, None if channels == dim else channels)
        self.levels_per_dim, self.preserve_symmetry = tuple(levels_per_dim), preserve_symmetry
        self.bound = bound
        if fit_latents:
            self.fitted = FittedLatents(self.latent_spreads)

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Latents were not fitted."""
        return {"fit_latents": False}

    @property  # type: ignore[misc]  # set by none: the moments tell
    def initialized(self) -> bool:
        return self.fitted is None or self.fitted.started

    @property
    def latent_spreads(self) -> tuple[float, ...]:
        """Standard deviation of each channel for which its levels are made."""
        if self.bound == "tanh":
            return (1.0,) * len(self.levels_per_dim)
        return tuple(0.5 * count / (count - 1) for count in self.levels_per_dim)  # the outermost cells end at twice it

    @property
    def _levels(self):
        return torch.tensor(self.levels_per_dim, device=self._one.device)

    def residual_scale(self, index: int) -> torch.Tensor:
        """Size of the grid at level `index` of a residual quantizer, (channels,)."""
        return (1.0 * self._levels) ** -index

    def residual_input(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, channels) as the first level of a residual quantizer gets them: softly kept near the levels."""
        limit = 1 + 1 / (self._levels - 1)
        return limit * (rows / limit).tanh()

    @torch.no_grad()
    def mean_vector(self) -> torch.Tensor:
        """The middle of the grid, (dim,)."""
        place = self._place
        return super().mean_vector() if place is None else self.project_out(place.mean[None])[0]

    def squash(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, channels) in level units: rounding gives level - L // 2, or the level where symmetric."""
        levels = self._levels
        if self.preserve_symmetry:
            bounded = rows.tanh() if self.bound == "tanh" else rows.clamp(-1, 1)
            return (levels - 1) * (bounded + 1) / 2
        half = (levels - 1) * (1 + _EDGE) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        shift = (offset / half).atanh() if self.fitted is None else 0.0  # without it, 0 is the middle of the levels
        return (rows + shift).tanh() * half - offset

    def _initialize(self, rows):
        return False  # nothing but `fitted` starts

    def _digits(self):
        """What one level of each channel adds to the code, (channels,)."""
        places = [math.prod(self.levels_per_dim[:channel]) for channel in range(len(self.levels_per_dim))]
        return torch.tensor(places, device=self._one.device)

    def _quantize(self, rows, valid, counted, batch_size):
        bounded = self._scale(self.squash(rows))
        codes = self._codes(rows)
        return straight_through(bounded, self._vectors(codes)), codes, rows.new_zeros(()), {}

    def _codes(self, rows):
        bounded = self.squash(rows)
        if self.preserve_symmetry:
            levels = (bounded + 0.5).floor()
        else:
            levels = bounded.round() + self._levels // 2
        levels = levels.nan_to_num().long().clamp(min=0).minimum(self._levels - 1)
        return (levels * self._digits()).sum(dim=1)

    def _vectors(self, codes):
        levels = codes[:, None] // self._digits() % self._levels
        if not self.preserve_symmetry:
            levels = levels - self._levels // 2
        return self._scale(levels.to(self._one.dtype))

    def _scale(self, bounded):
        """From level units to [-1, 1]; where fitted latents are cut off, to their own place."""
        if not self.preserve_symmetry:
            return bounded / (self._levels // 2)
        values = bounded * 2 / (self._levels - 1) - 1
        return values if self._place is None else self._place.inverse(values)

    @property
    def _place(self) -> FittedLatents | None:
        """Where values lie that keep their place."""
        return self.fitted if self.bound == "clamp" else None

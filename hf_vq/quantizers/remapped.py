"""A large codebook of which a data set uses few codes, counted anew."""

from typing import Annotated, Any, cast

import torch

from hf_vq.quantizers.base import Quantizer
from hf_vq.quantizers.nearest import nearest_codes
from hf_vq.quantizers.registry import make_quantizer
from hf_vq.ranges import Codebook, Count, OneOf, Width
from hf_vq.registry import register


@register("remapped")
class RemappedQuantizer(Quantizer):
    """`VectorQuantizer` whose codes are numbered by their place in `used`, as taming-transformers' `remap` does.

    A prior then models `num_used` codes instead of all. Quantized latents are those of the whole codebook: a latent
    whose code is not among the used ones gets that code's vector in `forward`, and another number as its code.

    Args:
        codebook_size: number of code vectors.
        dim: width of the latents.
        num_used: how many of them are counted; it must be given.
        unknown_code: the code of a latent whose nearest vector is not used: "nearest", the nearest used one; "extra",
            `num_used`, which decodes as code 0; or a code.
        base_config: options of the `VectorQuantizer`.

    Attributes:
        codebook_size: codes that occur: `num_used`, and one more with "extra".
        used: (num_used,) int64, the used vectors; it is saved.

    Raises:
        ValueError: an argument out of its range.
    """

    used: torch.Tensor
    base: Any  # a VectorQuantizer
    can_be_level = False

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        num_used: Codebook | None = None,
        unknown_code: Count | Annotated[str, OneOf(("nearest", "extra"))] = "nearest",
        base_config: dict | None = None,
    ):
        if num_used is None:
            raise ValueError("num_used must be an integer of at least 1, got None")
        base_config = base_config or {}
        if num_used > codebook_size:
            raise ValueError(f"num_used must be at most codebook_size={codebook_size}, got {num_used!r}")
        if isinstance(unknown_code, int) and unknown_code >= num_used:
            raise ValueError(
                f"unknown_code must be 'nearest', 'extra' or a code below num_used={num_used}, got {unknown_code!r}"
            )
        if base_config.get("code_dim") is not None:
            raise ValueError(f"base_config must not have code_dim, got {base_config['code_dim']!r}")
        super().__init__(num_used + (unknown_code == "extra"), dim)
        self.num_used, self.unknown_code = num_used, unknown_code
        self.base = make_quantizer("vector", codebook_size, dim, base_config)
        self.register_buffer("used", torch.arange(num_used))

    @classmethod
    def part_types(cls, options: dict[str, Any]) -> dict[str, str]:
        return {"base_config": "vector"}

    @property  # type: ignore[misc]  # set by none: its parts tell
    def initialized(self) -> bool:
        return self.base.initialized

    @property
    def started(self) -> bool:
        return self.base.started

    @property
    def codebook_updates(self) -> str:
        return self.base.codebook_updates

    @codebook_updates.setter
    def codebook_updates(self, mode: str) -> None:
        self.base.codebook_updates = mode

    def update_codebook(self) -> None:
        self.base.update_codebook()

    def mean_vector(self) -> torch.Tensor:
        """The average of the used codes, (dim,)."""
        return self.base.codebook[self.used].mean(dim=0)

    def _quantize(self, rows, valid, counted, batch_size):
        quantized, codes, loss, losses = self.base._quantize(rows, valid, counted, batch_size)
        return quantized, self._remap(codes, rows), loss, losses

    def _codes(self, rows):
        return self._remap(self.base._codes(rows), rows)

    def _vectors(self, codes):
        return self.base._vectors(self.used[torch.where(codes < self.num_used, codes, 0)])

    def _initialize(self, rows):
        return self.base._initialize(rows)

    def _remap(self, codes, rows):
        place = torch.full((self.base.codebook_size,), -1, device=codes.device)
        place[self.used] = torch.arange(self.num_used, device=codes.device)
        places = place[codes]
        other: torch.Tensor | int
        if self.unknown_code == "nearest":
            other = nearest_codes(self.base._comparable(rows), self.base.codebook[self.used], self.base.metric)
        else:
            other = self.num_used if self.unknown_code == "extra" else cast(int, self.unknown_code)
        return torch.where(places < 0, other, places)

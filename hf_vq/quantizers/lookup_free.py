"""Lookup-free quantization: a code is the signs of its channels."""

from typing import Annotated, Any

import torch

from hf_vq.quantizers.base import Quantizer
from hf_vq.quantizers.entropy import bit_entropies
from hf_vq.quantizers.fitted import FittedLatents
from hf_vq.quantizers.gradients import directions, masked_mse, straight_through
from hf_vq.ranges import Codebook, OneOf, Positive, Range, Share, Weight, Width
from hf_vq.registry import register

_MOST_BITS_TOGETHER = 26  # the mean assignment of one group has 2^bits entries

EARLIER: dict[str, Any] = {"fit_latents": False, "beta": 0.25, "entropy_weight": 0.1, "entropy_temperature": 0.01}


@register("lookup_free")
class LookupFreeQuantizer(Quantizer):
    """LFQ (https://arxiv.org/abs/2310.05737), or BSQ (https://arxiv.org/abs/2406.07548) where spherical.

    loss = beta ||z - sg[q]||^2 + entropy_weight (mean entropy of each latent's assignment - diversity x entropy of
    the mean assignment). Assignments are softmax(2 z.c / temperature) over all codes c, which factorises over bits:
    memory grows with n x 2^(bits / 2), never with n x codebook_size.

    Args:
        codebook_size: a power of two.
        dim: width of the latents; learned linear maps lead to one channel per bit and back where it differs.
        spherical: latents and codes have length 1.
        beta: weight of the commitment term, 0 or more; fitted latents do without. Configs that were saved without it
            mean 0.25.
        entropy_weight: of the entropy penalty, 0 or more. Configs that were saved without it mean 0.1, which is
            several times the reconstruction's part of the loss.
        diversity: weight of the second entropy, 0 or more.
        entropy_temperature: above 0. Configs that were saved without it mean 0.01, with which only latents within
            0.01 of 0 have a gradient.
        entropy_groups: groups of bits whose mean assignments count as independent; 1 is exact.
        entropy_floor, entropy_offset: the mean assignment's logarithm is log(max(p, floor) + offset). lucidrains has
            floor 1e-5, Open-MAGVIT2 offset 1e-5; with more than 2^17 codes either hides most of the gradient.
        first_bit: whether the first channel is the "most" or the "least" significant bit of a code, as in lucidrains'
            package and in Open-MAGVIT2.
        fit_latents: channels get zero mean and a standard deviation of 1 by their running moments (`FittedLatents`),
            so that every bit takes both values from the first step; gradients then pass through their tanh, unless
            `spherical`, so that signs that are far from turning have little. Configs that were saved without it mean
            False.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        codebook_size: Codebook,
        dim: Width,
        *,
        spherical: bool = False,
        beta: Weight = 0.0,
        entropy_weight: Weight = 0.01,
        diversity: Weight = 1.0,
        entropy_temperature: Positive = 1.0,
        entropy_groups: Annotated[int, Range(1, 63)] = 1,
        entropy_floor: Share = 0.0,
        entropy_offset: Share = 0.0,
        first_bit: Annotated[str, OneOf(("most", "least"))] = "most",
        fit_latents: bool = True,
    ):
        bits = codebook_size.bit_length() - 1
        if bits < 1 or codebook_size != 1 << bits:
            raise ValueError(f"codebook_size must be a power of two, at least 2, got {codebook_size}")
        if entropy_weight > 0 and -(-bits // entropy_groups) > _MOST_BITS_TOGETHER:
            raise ValueError(
                f"entropy_groups must be at least {-(-bits // _MOST_BITS_TOGETHER)} for {bits} bits, "
                f"got {entropy_groups}"
            )
        super().__init__(codebook_size, dim, None if bits == dim else bits)
        self.spherical, self.beta, self.entropy_weight = spherical, beta, entropy_weight
        self.diversity, self.entropy_temperature = diversity, entropy_temperature
        self.entropy_groups, self.entropy_floor, self.entropy_offset = entropy_groups, entropy_floor, entropy_offset
        self.length = bits**-0.5 if spherical else 1.0
        self.first_bit = first_bit
        if fit_latents:
            self.fitted = FittedLatents((1.0,) * bits)

    @classmethod
    def earlier_defaults(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Latents were not fitted, and entropy and commitment weighed more, the first of sharper assignments."""
        return EARLIER

    @property  # type: ignore[misc]  # set by none: the moments tell
    def initialized(self) -> bool:
        return self.fitted is None or self.fitted.started

    @property
    def _places(self):
        """Significance of each channel's bit, (bits,)."""
        places = torch.arange(self.code_dim, device=self._one.device)
        return places.flip(0) if self.first_bit == "most" else places

    def residual_scale(self, index: int) -> float:
        """Size of the grid at level `index` of a residual quantizer."""
        return 2.0**-index

    def _initialize(self, rows):
        return False  # nothing but `fitted` starts

    def _quantize(self, rows, valid, counted, batch_size):
        compared = self._comparable(rows)
        codes = self._codes(rows)
        quantized = self._vectors(codes)
        losses = {"commitment": masked_mse(compared, quantized, valid)}
        loss = self.beta * losses["commitment"]
        if self.entropy_weight > 0:
            log_odds = 4 * self.length / self.entropy_temperature * compared
            each, together = bit_entropies(
                log_odds, valid, self.entropy_groups, self.entropy_floor, self.entropy_offset
            )
            loss = loss + self.entropy_weight * (each - self.diversity * together)
            losses |= {"sample_entropy": each, "codebook_entropy": together}
        passing = compared if self.fitted is None or self.spherical else compared.tanh()
        return straight_through(passing, quantized), codes, loss, losses

    def _codes(self, rows):
        return ((rows > 0).long() << self._places).sum(dim=1)

    def _vectors(self, codes):
        bits = codes[:, None] >> self._places & 1
        return (2 * bits - 1).to(self._one.dtype) * self.length

    def _comparable(self, rows):
        return directions(rows) if self.spherical else rows

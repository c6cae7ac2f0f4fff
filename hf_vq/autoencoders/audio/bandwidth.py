"""From kbit/s to levels of residual codes."""

import math

from hf_vq.arguments import checked
from hf_vq.hosts import ModelHost
from hf_vq.ranges import Positive, Size

ROUNDING = 1e-9  # of a number of levels, which is a quotient


class Bandwidths(ModelHost):
    """Of a codec with `quantizers`, `hop` and `config.sampling_rate`."""

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.config.sampling_rate / self.hop

    @property
    def bandwidth(self) -> float:
        """kbit/s of all codes."""
        strides = self.code_strides
        bits = sum(q.bits_per_token / stride for q, stride in zip(self.quantizers, strides, strict=True))
        return bits * self.frame_rate / 1000

    @property
    def level_bandwidths(self) -> tuple[float, ...]:
        """kbit/s of every level, of a hierarchy those of the coarsest grid first."""
        found: list[float] = []
        for quantizer, stride in zip(self.quantizers, self.code_strides, strict=True):
            sizes = quantizer.codebook_size
            sizes = sizes if isinstance(sizes, tuple) else (sizes,) * quantizer.num_levels
            found += [math.log2(size) * self.frame_rate / stride / 1000 for size in sizes]
        return tuple(found)

    @checked
    def levels_for(self, num_levels: Size | None = None, bandwidth: Positive | None = None) -> int | None:
        """Levels of a number of them or of a bandwidth in kbit/s; None where neither is given.

        A bandwidth gives as many levels as it can carry, each of log2(codebook_size) bits a frame. One of the config's
        `target_bandwidths` gives at least one level and at most all of them.

        Raises:
            ValueError: both are given, to a codec whose levels are not residual, or what it does not have.
        """
        if num_levels is None and bandwidth is None:
            return None
        name, value = ("bandwidth", bandwidth) if num_levels is None else ("num_levels", num_levels)
        if num_levels is not None and bandwidth is not None:
            raise ValueError(f"num_levels={num_levels} and bandwidth={bandwidth} say the same: give one of them")
        if self.config.quantizer_type != "residual" or self.hierarchical:
            raise ValueError(f"{name}={value} needs the levels of quantizer_type='residual' in one grid")
        most = self.quantizer.num_levels
        if bandwidth is None:
            if num_levels > most:
                raise ValueError(f"num_levels must be at most {most}, got {num_levels}")
            return num_levels
        each = self.quantizer.bits_per_token / most * self.frame_rate / 1000
        levels = math.floor(bandwidth / each + ROUNDING)
        if bandwidth in (self.config.target_bandwidths or ()):
            return min(max(levels, 1), most)
        if not 1 <= levels <= most:
            raise ValueError(
                f"bandwidth must be {each:g} kbit/s, one level, to {each * most:g}, all {most}, or one of "
                f"target_bandwidths={self.config.target_bandwidths}; got {bandwidth}"
            )
        return levels

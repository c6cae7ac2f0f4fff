"""Causal codecs piece by piece: any cutting of a sound gives the codes and the sound of the whole."""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from hf_vq.autoencoders.audio.chunks import Chunks
from hf_vq.grids import as_int64
from hf_vq.hosts import ModelHost
from hf_vq.ranges import Positive, Size

PCM16 = 2**15  # full scale of 16-bit integers


class SignalCache(NamedTuple):
    """What an encoder or a decoder remembers of a signal so far; a call leaves the one that it gets as it was.

    Attributes:
        states: of its layers.
        seen: samples, or frames, that have come in.
    """

    states: list[Any]
    seen: int


class StreamingVerbs(ModelHost):
    """`tokenize` and `detokenize` of a causal codec, with an explicit cache."""

    encoder: Any
    decoder: Any
    quantizer: Any
    hop: int
    chunks: Chunks
    levels_for: Any

    @property
    def latency(self) -> int:
        """Samples from the start of a frame until its sound can come out: the hop, and what the decoder holds back.

        The first frames take longer where `pad_mode="reflect"` mirrors the beginning of the signal, which must be
        there for that.

        Raises:
            ValueError: a codec that does not stream.
        """
        self.check_streams()
        held, rest = 0, self.hop
        for layer in self.decoder.layers:
            if hasattr(layer, "left"):
                rest //= layer.stride
                held += layer.left * rest
        return self.hop + held

    def check_streams(self) -> None:
        """Raise a ValueError unless every frame hangs on what was before it alone."""
        config = self.config
        reasons = {"causal=False": not config.causal, "normalize=True": config.normalize,
                   f"chunk_length_s={config.chunk_length_s}": config.chunk_length_s is not None,
                   f"code_strides={config.code_strides}": config.code_strides is not None}  # fmt: skip
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"this {type(self).__name__} cannot work piece by piece: {reason}")

    @torch.no_grad()
    def tokenize_chunk(
        self,
        sample: torch.Tensor,
        cache: SignalCache | None = None,
        end: bool = False,
        num_levels: Size | None = None,
        bandwidth: Positive | None = None,
    ) -> tuple[torch.Tensor, SignalCache]:
        """The codes of the frames that the next piece of a signal completes.

        Args:
            sample: (batch, channels, any number of samples, also 0) in [-1, 1].
            cache: as the last call gave it; None at the start.
            end: nothing comes after this piece: the last frame is completed.
            num_levels, bandwidth: as of `tokenize`, the same for all pieces.

        Returns:
            Codes (batch, levels, frames), together those of the whole, and the cache for the next call.

        Raises:
            ValueError: a codec that does not stream, or a sample of another type or shape.
        """
        self.check_streams()
        if not sample.is_floating_point() or sample.ndim != 3 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"sample must be floating point, (batch, {self.config.in_channels}, time); got {sample.dtype} of "
                f"shape {tuple(sample.shape)}"
            )
        levels = self.levels_for(num_levels, bandwidth)
        states, seen = cache or SignalCache([], 0)
        seen += sample.shape[-1]
        if end and self.config.pad_input:
            sample = F.pad(sample, (0, -seen % self.chunks.unit))
        latents, states = self.encoder.stream(sample, states, end)
        if latents.shape[-1]:
            codes = self.quantizer.tokenize(latents, **({} if levels is None else {"num_levels": levels}))
        else:
            count = levels or self.quantizer.num_levels
            axis = () if self.quantizer.num_levels == 1 else (count,)
            codes = torch.zeros(len(sample), *axis, 0, dtype=torch.int64, device=sample.device)
        return codes, SignalCache(states, seen)

    @torch.no_grad()
    def detokenize_chunk(
        self, codes: torch.Tensor, cache: SignalCache | None = None, end: bool = False
    ) -> tuple[torch.Tensor, SignalCache]:
        """The sound of the next frames.

        Args:
            codes: (batch, levels, any number of frames, also 0).
            cache: as the last call gave it; None at the start.
            end: nothing comes after these: what the decoder held back comes out.

        Returns:
            Samples (batch, channels, time), together those of the whole, and the cache for the next call.

        Raises:
            ValueError: a codec that does not stream, or codes that do not fit.
        """
        self.check_streams()
        codes = as_int64("codes", codes)
        states, seen = cache or SignalCache([], 0)
        if codes.shape[-1]:
            latents = self.quantizer.detokenize(codes).to(self.dtype)
        else:
            latents = torch.zeros(len(codes), self.quantizer.dim, 0, dtype=self.dtype, device=codes.device)
        sample, states = self.decoder.stream(latents, states, end)
        sample = sample.tanh() if self.config.output_activation == "tanh" else sample
        return sample, SignalCache(states, seen + codes.shape[-1])


class StreamingTokenizer:
    """One sound as it comes, from a microphone or a socket, to codes.

    Args:
        codec: a causal `AudioCodec`.
        num_levels, bandwidth: as of its `tokenize`.

    Raises:
        ValueError: a codec that does not stream, or levels that it does not have.
    """

    def __init__(self, codec: Any, num_levels: int | None = None, bandwidth: float | None = None):
        codec.check_streams()
        self.codec, self.num_levels = codec, codec.levels_for(num_levels, bandwidth)
        self.reset()

    def reset(self) -> None:
        """Begin another sound."""
        self.cache: SignalCache | None = None

    def push(self, sample: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Codes (levels, frames) of the frames that a piece completes, perhaps of none.

        Args:
            sample: (time,) or (channels, time), floats in [-1, 1] or 16-bit integers.
        """
        return self._push(self._read(sample), end=False)

    def finish(self) -> torch.Tensor:
        """Codes (levels, frames) of what is left at the end; the next push begins another sound."""
        codes = self._push(self._read(np.zeros((self.codec.config.in_channels, 0), np.float32)), end=True)
        self.reset()
        return codes

    def _push(self, sample, end):
        codes, self.cache = self.codec.tokenize_chunk(sample, self.cache, end, self.num_levels)
        return codes[0]

    def _read(self, sample):
        values = torch.as_tensor(sample)
        if values.dtype == torch.int16:
            values = values.float() / PCM16
        values = values[None] if values.ndim == 1 else values
        return values[None].to(self.codec.device, self.codec.dtype if values.is_floating_point() else values.dtype)


class StreamingDetokenizer:
    """Codes as they come to the sound that they are of.

    Args:
        codec: a causal `AudioCodec`.

    Raises:
        ValueError: a codec that does not stream.
    """

    def __init__(self, codec: Any):
        codec.check_streams()
        self.codec = codec
        self.reset()

    def reset(self) -> None:
        """Begin another sound."""
        self.cache: SignalCache | None = None

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """Samples (channels, time) of codes (levels, frames)."""
        return self._push(codes, end=False)

    def finish(self) -> torch.Tensor:
        """Samples (channels, time) that the decoder held back; the next push begins another sound."""
        levels = () if self.codec.num_levels == 1 else (self.codec.num_levels,)
        sample = self._push(torch.zeros(*levels, 0, dtype=torch.int64, device=self.codec.device), end=True)
        self.reset()
        return sample

    def _push(self, codes, end):
        sample, self.cache = self.codec.detokenize_chunk(codes[None].to(self.codec.device), self.cache, end)
        return sample[0]

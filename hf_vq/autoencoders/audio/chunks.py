"""A long signal in chunks that overlap, each coded for itself and added to the next where they overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Chunks:
    """Where chunks lie in a signal, and their frames in its codes.

    The codes are those of the chunks one after another; only the last chunk may have fewer frames.

    Attributes:
        unit: samples that a chunk is padded to multiples of before it is encoded.
        hop: samples of a frame.
        length: samples of a chunk; None: the whole signal is one.
        stride: samples from the start of a chunk to that of the next, at most `length`.
    """

    unit: int
    hop: int
    length: int | None = None
    stride: int | None = None

    def spans(self, samples: int) -> list[tuple[int, int]]:
        """Start and end of every chunk of a signal: no more of them than it takes to cover it."""
        if self.length is None or self.stride is None:
            return [(0, samples)]
        more = -(-max(0, samples - self.length) // self.stride)
        return [
            (start, min(start + self.length, samples)) for start in range(0, (more + 1) * self.stride, self.stride)
        ]

    def frames_of(self, samples: int) -> int:
        """Frames of one chunk of so many samples."""
        return -(-samples // self.unit) * self.unit // self.hop

    def frames(self, samples: int) -> int:
        """Frames of a signal of so many samples."""
        return sum(self.frames_of(end - start) for start, end in self.spans(samples))

    def frame_spans(self, frames: int) -> list[tuple[int, int]]:
        """Start and end of the frames of every chunk among those of a signal."""
        each = frames if self.length is None else self.frames_of(self.length)
        return [(start, min(start + each, frames)) for start in range(0, frames, each)]

    def samples(self, frames: int) -> int:
        """Samples that so many frames decode to."""
        spans = self.frame_spans(frames)
        start, end = spans[-1]
        return (len(spans) - 1) * (self.stride or 0) + (end - start) * self.hop

    def overlap_add(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Decoded chunks (batch, channels, time) as one signal, each faded in and out in a triangle, as in EnCodec."""
        if len(pieces) == 1 or self.stride is None:
            return pieces[0]
        longest = pieces[0].shape[-1]
        ramp = torch.linspace(0, 1, longest + 2, device=pieces[0].device, dtype=pieces[0].dtype)[1:-1]
        triangle = 0.5 - (ramp - 0.5).abs()
        total = (len(pieces) - 1) * self.stride + pieces[-1].shape[-1]
        signal = pieces[0].new_zeros(*pieces[0].shape[:-1], total)
        weights = pieces[0].new_zeros(total)
        for index, piece in enumerate(pieces):
            start, size = index * self.stride, piece.shape[-1]
            signal[..., start : start + size] += triangle[:size] * piece
            weights[start : start + size] += triangle[:size]
        return signal / weights

"""Signals of any length, and batches of different lengths, each of which has the codes that it has alone."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from hf_vq.autoencoders.audio.chunks import Chunks
from hf_vq.hosts import ModelHost
from hf_vq.quantizers.checks import check_mask


class SignalLengths(ModelHost):
    """Of a codec that gives `chunks`, `encode_signal` and `decode_signal`; stands before `AutoencoderMixin`."""

    lengths_alone: ClassVar[bool] = True
    chunks: Chunks
    encode_signal: Any
    decode_signal: Any

    def check_space(self, space: Sequence[int], sample_shape: Sequence[int]) -> None:
        """Raise a ValueError unless there is one axis with something on it."""
        if len(space) != 1 or space[0] < 1:
            raise ValueError(f"sample must be (channels, length) with a length of at least 1, got {sample_shape}")

    def code_shapes(self, sample_shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """`code_shape` of every grid, coarse to fine: a tuple also where there is one."""
        channels, *space = sample_shape
        if channels != self.in_channels:
            raise ValueError(f"sample must have {self.in_channels} channels, got shape {tuple(sample_shape)}")
        self.check_space(space, sample_shape)
        levels = () if self.num_levels == 1 else (self.num_levels,)
        frames = self.chunks.frames(space[0])
        return tuple((*levels, frames // stride) for stride in self.code_strides)

    def without_padding(
        self, sample: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
        """A sample that is 0 where it is padding, and the mask of every grid; None for each without a mask."""
        lengths = self.signal_lengths(sample, padding_mask)
        strides = self.code_strides
        if lengths is None or padding_mask is None:
            return sample, (None,) * len(strides)
        mask = self._frame_mask(lengths, self.chunks.frames(sample.shape[-1]))
        masks = tuple(mask.unflatten(1, (-1, stride)).any(dim=2) for stride in strides)
        return sample.masked_fill(~padding_mask[:, None], 0), masks

    def grid_lengths(self, length: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Real cells of every grid, coarse to fine, each (batch,) int64, of lengths (batch,) or (batch, 1)."""
        first = length if length.ndim == 1 else length[:, 0]
        frames = self._frames(first)
        return tuple(frames // stride for stride in self.code_strides)

    def signal_lengths(self, sample: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor | None:
        """How far each signal is real, (batch,) int64; None without a mask.

        Raises:
            ValueError: a sample or a mask that does not fit, with nothing real, or that is not real from the start on.
        """
        self.check_sample(sample)
        if padding_mask is None:
            return None
        check_mask(padding_mask, (sample.shape[0], sample.shape[-1]))
        self._check_padding(padding_mask)
        return self.real_length(padding_mask)

    def encode_batch(
        self, sample: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Latents (batch, dim, frames), a mask of real ones (batch, frames) or None, and scales (batch, chunks).

        Signals of one length are encoded together, and without what lies beyond it.
        """
        if lengths is None:
            latents, scales = self.encode_signal(sample)
            return latents, None, scales
        rows, parts, kept = [], [], []
        frames, chunks = self.chunks.frames(sample.shape[-1]), len(self.chunks.spans(sample.shape[-1]))
        for length, group in _by_value(lengths):
            latents, scales = self.encode_signal(sample[group, :, :length])
            rows.append(group)
            parts.append(F.pad(latents, (0, frames - latents.shape[-1])))
            kept.append(None if scales is None else F.pad(scales, (0, chunks - scales.shape[-1]), value=1.0))
        order = torch.cat(rows).argsort()
        joined = None if kept[0] is None else torch.cat(kept)[order]  # type: ignore[arg-type]
        return torch.cat(parts)[order], self._frame_mask(lengths, frames), joined

    def decode_batch(
        self, latents: torch.Tensor, scales: torch.Tensor | None, lengths: torch.Tensor | None
    ) -> torch.Tensor:
        """Samples (batch, channels, time) of what `encode_batch` gave, each decoded from its own frames alone."""
        if lengths is None:
            return self.decode_signal(latents, scales)
        rows, parts, total = [], [], self.chunks.samples(latents.shape[-1])
        for frames, group in _by_value(self._frames(lengths)):
            chunks = len(self.chunks.frame_spans(frames))
            own = None if scales is None else scales[group, :chunks]
            part = self.decode_signal(latents[group, :, :frames], own)
            rows.append(group)
            parts.append(F.pad(part, (0, total - part.shape[-1])))
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def decoded_space(self, grid: Sequence[int]) -> list[int]:
        """Samples that a coarsest grid of so many cells decodes to, as a list of one."""
        return [self.chunks.samples(grid[0] * self.code_strides[0])]

    def check_scales(self, scales: torch.Tensor | None, latents: torch.Tensor) -> None:
        """Raise a ValueError for scales of a model that does not normalise, or of another shape."""
        if scales is None:
            return
        if not self.config.normalize:
            raise ValueError(f"scales given, but this {type(self).__name__} does not normalise its input")
        wanted = (len(latents), len(self.chunks.frame_spans(latents.shape[-1])))
        if tuple(scales.shape) != wanted:
            raise ValueError(f"scales must be (batch, chunks) = {wanted}, got shape {tuple(scales.shape)}")

    def _frames(self, lengths):
        """Frames of signals of these lengths, (batch,)."""
        return torch.tensor([self.chunks.frames(length) for length in lengths.tolist()], device=lengths.device)

    def _frame_mask(self, lengths, frames):
        return torch.arange(frames, device=lengths.device) < self._frames(lengths)[:, None]


def _by_value(values):
    """Every value of (batch,) integers as an int, with the indices of those that have it, (n,)."""
    return [(value, (values == value).nonzero()[:, 0]) for value in values.unique().tolist()]

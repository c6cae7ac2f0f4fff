"""Between a prior and an audio autoencoder: which levels it models, sounds to continue, scales of codecs."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from hf_vq.autoencoders.audio.lengths import SignalLengths
from hf_vq.pipelines.base import check_prior

USUAL_LOUDNESS = 0.1  # root mean square; 20 dB below a square wave of full scale, as much music is


def level_count(prior: Any, autoencoder: Any) -> int:
    """How many levels of an autoencoder's codes a prior models: those of its grids, the first ones."""
    if prior.grid_dims == 1:
        return 1
    if prior.config.code_shape:
        return prior.config.code_shape[0]
    levels = getattr(prior.config, "num_levels", 1)
    return levels if levels > 1 else autoencoder.num_levels


def check_levels(prior: Any, autoencoder: Any) -> None:
    """Raise a ValueError unless a prior speaks of an autoencoder's codes, of all levels or the first residual ones.

    Args:
        prior: over (levels, length), or over (length,), the first level alone.
        autoencoder: of sounds.
    """
    check_prior("prior", prior, autoencoder.codebook_size, 1 if prior.grid_dims == 1 else autoencoder.grid_dims)
    levels, all_levels = level_count(prior, autoencoder), autoencoder.num_levels
    residual = autoencoder.quantizers[0].quantizer_type == "residual"
    if levels > all_levels or (levels < all_levels and not residual):
        raise ValueError(f"prior models {levels} levels, but the codes of the autoencoder have {all_levels}")


def normalizes(autoencoder: Any) -> bool:
    """Whether samples are divided by their loudness in chunks, so that codes need scales (batch, chunks)."""
    return isinstance(autoencoder, SignalLengths) and autoencoder.config.normalize


def new_scales(
    autoencoder: Any, frames: int, count: int, loudness: float | None, device: torch.device
) -> torch.Tensor | None:
    """Scales (count, chunks) of new codes of so many frames; None of a codec that does not normalise."""
    if not normalizes(autoencoder):
        return None
    chunks = len(autoencoder.chunks.frame_spans(frames))
    return torch.full((count, chunks), USUAL_LOUDNESS if loudness is None else loudness, device=device)


@dataclass(frozen=True)
class Sounds:
    """Sounds to continue.

    Attributes:
        sample: (sounds, channels, length) in [-1, 1], padded at their ends.
        mask: (sounds, length) bool, True = real.
    """

    sample: torch.Tensor
    mask: torch.Tensor

    @classmethod
    def read(cls, autoencoder: Any, audio: Any, sampling_rate: int | None) -> "Sounds":
        """Sounds in any form that the processor of an autoencoder takes; what it says of others is raised."""
        batch = autoencoder.processor(audio, sampling_rate, return_mask=True)
        sample, mask = batch["sample"], batch["padding_mask"]
        missing = -sample.shape[-1] % autoencoder.grid_strides[0][0]  # some autoencoders take whole frames alone
        return cls(F.pad(sample, (0, missing)), F.pad(mask, (0, missing)))

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def lengths(self) -> torch.Tensor:
        """Real samples of each, (sounds,)."""
        return self.mask.sum(dim=1)

    def check_count(self, count: int, copies: int) -> None:
        """Raise a ValueError unless there is one for all `count` results, for each `copies` in a row, or for each."""
        if len(self) not in (1, count // copies, count):
            raise ValueError(f"audio must be one sound, or one for each of {count} waveforms, got {len(self)}")

    def begin(
        self, autoencoder: Any, code_shape: tuple[int, ...], count: int, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What is known of codes that begin with these sounds', and the scales of the whole.

        Args:
            autoencoder: makes the codes.
            code_shape: of the whole, longer than the codes of each sound; its levels are the first ones.
            count: of results, in rows of as many for each sound.
            device: where to compute.

        Returns:
            A dict of `known_codes` (count, *code_shape) int64 and `known_mask`, bool; and scales (count, chunks), of
            which chunks that begin after a sound has ended have its last one, or as the autoencoder gives them: None
            of one that does not normalise.
        """
        mask = self.mask.to(device)
        found = autoencoder.tokenize(self.sample.to(device, autoencoder.dtype), mask, return_dict=True)
        codes, frames = found.codes, autoencoder.grid_lengths(self.lengths)[0].to(device)
        if codes.ndim == 3:
            codes = codes[:, : code_shape[0]] if len(code_shape) == 2 else codes[:, 0]
        codes = codes[..., : code_shape[-1]]
        known = codes.new_zeros(len(self), *code_shape)
        known[..., : codes.shape[-1]] = codes
        real = torch.arange(code_shape[-1], device=device) < frames[:, None]  # (sounds, frames)
        real = real.view(len(self), *[1] * (len(code_shape) - 1), -1).expand_as(known)
        scales = found.scales
        if normalizes(autoencoder):
            chunks = autoencoder.chunks
            last = torch.tensor([len(chunks.spans(length)) - 1 for length in self.lengths.tolist()], device=device)
            places = torch.arange(len(chunks.frame_spans(code_shape[-1])), device=device)
            scales = scales.gather(1, torch.minimum(places, last[:, None]))
        each = count // len(self)
        repeated = {"known_codes": known.repeat_interleave(each, 0), "known_mask": real.repeat_interleave(each, 0)}
        return repeated, None if scales is None else scales.repeat_interleave(each, 0)

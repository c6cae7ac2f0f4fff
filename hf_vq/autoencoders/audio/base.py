"""What codecs of sound share: any length in, the same length out; chunks, scales, levels by bandwidth."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook

from hf_vq.autoencoders.audio.bandwidth import Bandwidths
from hf_vq.autoencoders.audio.chunks import Chunks
from hf_vq.autoencoders.audio.lengths import SignalLengths
from hf_vq.autoencoders.base import AutoencoderMixin
from hf_vq.autoencoders.outputs import AutoencoderOutput, EncoderOutput, ReconstructionOutput, TokenizerOutput
from hf_vq.grids import codes_as_int64
from hf_vq.modalities.audio import AUDIO

RESIDUAL_DEFAULTS = {"num_levels": 8, "level_dropout": 0.5}
QUIET = 1e-8  # added to a loudness that is divided by, as in EnCodec


class SoundCodec(Bandwidths, SignalLengths, AutoencoderMixin):
    """An autoencoder of samples (batch, channels, time); a subclass gives `encoder`, `decoder` and `hop`.

    Its config has `sampling_rate`, `normalize`, `chunk_length_s`, `overlap` and `target_bandwidths`.

    Attributes:
        hop: samples of a frame.
        code_strides: frames of a code in every grid, coarse to fine.
        pads_input: a sample is padded with zeros to whole frames; else the encoder makes ceil(time / hop) of it.
    """

    modality = AUDIO.name
    space_dims = 1
    decoder_modules = ("decoder",)
    code_strides: tuple[int, ...] = (1,)
    pads_input = True
    hop: int
    encoder: Any
    decoder: Any

    @property
    def downsample_factors(self) -> tuple[int, ...]:
        return tuple(self.hop * stride for stride in self.code_strides)

    @property
    def downsample_factor(self) -> int:
        return self.downsample_factors[0]

    @property
    def chunks(self) -> Chunks:
        """How a sample is cut into chunks."""
        config, unit = self.config, self.downsample_factor if self.pads_input else self.hop
        if config.chunk_length_s is None:
            return Chunks(unit, self.hop)
        length = int(config.chunk_length_s * config.sampling_rate)
        return Chunks(unit, self.hop, length, max(1, int((1.0 - config.overlap) * length)))

    # One signal, or several of one length

    def encode_signal(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Samples (batch, channels, time) to latents (batch, dim, frames) and scales (batch, chunks), or None."""
        latents, scales = [], []
        for start, end in self.chunks.spans(sample.shape[-1]):
            part = sample[..., start:end]
            if self.config.normalize:
                mono = part.float().mean(dim=1)
                scales.append(mono.square().mean(dim=1).sqrt() + QUIET)
                part = part / scales[-1][:, None, None].to(part.dtype)
            latents.append(self.encoder(F.pad(part, (0, self._missing(end - start)))))
        return torch.cat(latents, dim=-1), torch.stack(scales, dim=1) if scales else None

    def decode_signal(self, latents: torch.Tensor, scales: torch.Tensor | None = None) -> torch.Tensor:
        """Latents (batch, dim, frames) and scales (batch, chunks) to samples (batch, channels, time)."""
        pieces = []
        for index, (start, end) in enumerate(self.chunks.frame_spans(latents.shape[-1])):
            piece = self._decode(latents[..., start:end])
            pieces.append(piece if scales is None else piece * scales[:, index, None, None].to(piece.dtype))
        return self.chunks.overlap_add(pieces)

    def _missing(self, samples):
        """Zeros that a chunk lacks."""
        return -samples % self.chunks.unit if self.pads_input else 0

    def _decode(self, latents):
        return self.decoder(latents)

    # The verbs

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, time) in [-1, 1] to latents (batch, dim, frames), not yet quantized."""
        self.check_sample(sample)
        latents, _ = self.encode_signal(sample)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> ReconstructionOutput | tuple[torch.Tensor]:
        """Latents (batch, dim, frames), as given, to samples (batch, channels, time), of scale 1."""
        sample = self.decode_signal(latents)
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    @apply_forward_hook
    def tokenize(
        self,
        sample: Any,
        padding_mask: torch.Tensor | None = None,
        return_dict: bool = False,
        num_levels: int | None = None,
        bandwidth: float | None = None,
    ) -> Any:
        """Sounds to codes (batch, levels, frames) int64; of a hierarchy a tuple of (batch, frames of the grid).

        A shorter sound of a padded batch has the codes that it has alone. Frames beyond its own mean nothing.

        Args:
            sample: (batch, channels, time) float in [-1, 1]; or what `processor` makes samples of.
            padding_mask: (batch, time) bool, True = real, from the start of each.
            return_dict: a `TokenizerOutput` with the `scales` and the `length` that `detokenize` takes.
            num_levels: the first so many levels of a residual quantizer.
            bandwidth: instead, in kbit/s: as many levels as it can carry.

        Raises:
            ValueError: a sample of another type, shape or scale, a mask that does not fit, a number of levels or a
                bandwidth that the codec does not have.
        """
        if not torch.compiler.is_compiling():
            self.warn_unless_started()
        levels = self.levels_for(num_levels, bandwidth)
        sample = self.as_sample(sample)
        self.check_sample(sample)
        lengths = self.signal_lengths(sample, padding_mask)
        self.check_scale(sample if padding_mask is None else sample.masked_fill(~padding_mask[:, None], 0))
        latents, mask, scales = self.encode_batch(sample, lengths)
        options = {} if levels is None else {"num_levels": levels}
        codes = self.quantizer.tokenize(latents, mask, **options)
        if not return_dict:
            return codes
        if lengths is None:
            lengths = torch.full((len(sample),), sample.shape[-1], device=sample.device)
        return TokenizerOutput(codes=codes, scales=scales, length=lengths)

    @torch.no_grad()
    @apply_forward_hook
    def detokenize(
        self,
        codes: torch.Tensor | Sequence[torch.Tensor | None],
        scales: torch.Tensor | None = None,
        length: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Codes to samples (batch, channels, time).

        Args:
            codes: (batch, levels, frames) of any integer type, all levels or the first ones; of a hierarchy a tuple,
                with None for a finer grid that is left out.
            scales: (batch, chunks), as `tokenize` gave them, of a model that normalises; None: of scale 1.
            length: as `tokenize` gave it: the sample ends there, shorter ones of the batch are 0 from there on.

        Raises:
            ValueError: codes, scales or a length that do not fit.
        """
        codes = codes_as_int64(codes)
        self.check_codes(codes)
        latents = self.quantizer.detokenize(codes).to(self.dtype)
        self.check_scales(scales, latents)
        lengths = None if length is None else self.check_length(length, codes)
        sample = self.decode_batch(latents, scales, None if lengths is None else lengths[:, 0])
        return sample if lengths is None else self.cut_to_length(sample, lengths)

    def forward(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> AutoencoderOutput:
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, time) in [-1, 1].
            padding_mask: (batch, time) bool, True = real, from the start of each: the rest counts in no loss and no
                statistic, and changes nothing.

        Returns:
            AutoencoderOutput, its sample of the length that came in.
        """
        lengths = self.signal_lengths(sample, padding_mask)
        latents, mask, scales = self.encode_batch(sample, lengths)
        quantized = self.quantizer(latents, mask)
        reconstruction = self.decode_batch(quantized.latents, scales, lengths)[..., : sample.shape[-1]]
        return self.training_output(sample, reconstruction, quantized, padding_mask)

    @torch.no_grad()
    def initialize_codebook(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> bool:
        if self.codebook_initialized:
            return False
        latents, mask, _ = self.encode_batch(sample, self.signal_lengths(sample, padding_mask))
        return self.quantizer.initialize(latents, mask)

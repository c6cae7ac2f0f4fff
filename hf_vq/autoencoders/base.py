"""What every autoencoder answers: sample <-> codes, and a loss that trains."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook

from hf_vq.autoencoders.codebooks import CodebookControl
from hf_vq.autoencoders.contract import check_autoencoder
from hf_vq.autoencoders.folders import SavedFolder
from hf_vq.autoencoders.grids import Geometry, mean_distance
from hf_vq.autoencoders.outputs import AutoencoderOutput, TokenizerOutput, check_rebuilds
from hf_vq.grids import codes_as_int64
from hf_vq.modes import InferenceVerbs
from hf_vq.quantizers import Quantizer
from hf_vq.quantizers.base import QuantizerOutput
from hf_vq.registry import MODALITIES

RECONSTRUCTION_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}


class AutoencoderMixin(InferenceVerbs, Geometry, CodebookControl, SavedFolder):
    """For a diffusers ModelMixin around a `quantizer`, with any number of axes of space.

    A subclass gives `space_dims`, `downsample_factor`, `encode` and `decode`. A hierarchy has `quantizers` and
    `downsample_factors`, coarse to fine, and its own `tokenize_sample` and `decode_codes`; its codes are tuples in
    that order.

    `tokenize`, `detokenize` and `reconstruction_log_prob` run in evaluation mode, and leave every module in the mode
    that it had: codes depend on nothing else in the batch, and nothing in the model moves.

    Attributes:
        lengths_alone: each sample of a padded batch is encoded without what lies beyond its length: how far the batch
            is padded changes no code.
    """

    registry_kind = "autoencoder"
    lengths_alone: ClassVar[bool] = False
    inference_verbs: ClassVar[tuple[str, ...]] = ("tokenize", "detokenize", "reconstruction_log_prob")
    quantizer: Any  # of one with a single grid
    encode: Callable
    decode: Callable

    @classmethod
    def check_contract(cls) -> None:
        """Raise a TypeError or ValueError that says what a class lacks to be registered."""
        check_autoencoder(cls, AutoencoderMixin)

    @property
    def quantizers(self) -> Sequence[Quantizer]:
        """Every quantizer, coarse to fine."""
        return (self.quantizer,)

    @torch.no_grad()
    @apply_forward_hook
    def tokenize(
        self, sample: Any, padding_mask: torch.Tensor | None = None, return_dict: bool = False, **options: Any
    ) -> Any:
        """Samples to codes (batch, *grid) or (batch, num_levels, *grid) int64; of a hierarchy a tuple of them.

        Args:
            sample: (batch, channels, *space) float in [-1, 1]; or what `processor` makes samples of, such as PIL
                images, uint8 arrays and lists of them.
            padding_mask: (batch, *space) bool, True = real. What is padding says nothing of the codes, those of cells
                without anything real mean nothing.
            return_dict: a `TokenizerOutput`, with what the way back needs besides codes.
            options: `num_levels`, of a residual quantizer: take only so many levels.

        Raises:
            ValueError: a sample of another type, shape or scale, see `check_scale`, or a mask that does not fit.
        """
        if not torch.compiler.is_compiling():
            self.warn_unless_started()
        sample, masks = self.without_padding(self.as_sample(sample), padding_mask)
        self.check_scale(sample)
        sample, scales = self.normalize(sample, padding_mask)
        codes = self.tokenize_sample(sample, masks, **options)
        if not return_dict:
            return codes
        return TokenizerOutput(codes=codes, scales=scales, length=self.real_length(padding_mask))

    def as_sample(self, sample: Any) -> torch.Tensor:
        """A floating-point tensor as it is; all else through the processor."""
        if torch.is_tensor(sample) and sample.is_floating_point():
            return sample
        if self.processor is None:
            found = sample.dtype if torch.is_tensor(sample) else type(sample).__name__
            raise ValueError(f"sample must be a floating-point tensor, got {found}: this model has no processor")
        device = None if self.device.type == "meta" else self.device  # offloaded: the hooks of accelerate move it
        return self.processor(sample, device=device).to(self.dtype)

    def check_scale(self, sample: torch.Tensor) -> None:
        """Raise a ValueError for NaN and for values of another scale, such as pixels 0 to 255 as floats.

        Values somewhat beyond [-1, 1] pass, see `Modality.largest_value`, which a model of no modality has not; so do
        all values of a model that normalises its input.
        """
        largest = None if self.modality is None else MODALITIES[self.modality].largest_value
        scaled = type(self).normalize is not AutoencoderMixin.normalize
        if largest is None or scaled or sample.is_meta or torch.compiler.is_compiling() or not sample.numel():
            return
        low, high = (extreme.item() for extreme in sample.aminmax())
        if not -largest <= low <= high <= largest:
            raise ValueError(f"sample must be in [-1, 1], got {low} to {high}, which is NaN or another scale")

    def tokenize_sample(
        self, sample: torch.Tensor, grid_masks: Sequence[torch.Tensor | None], **options: Any
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """`tokenize` of a normalised sample and the masks of its grids, see `without_padding`."""
        return self.quantizer.tokenize(self.encode(sample).latents, grid_masks[0], **options)

    @torch.no_grad()
    @apply_forward_hook
    def detokenize(
        self,
        codes: torch.Tensor | Sequence[torch.Tensor | None],
        scales: torch.Tensor | None = None,
        length: int | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Codes to samples (batch, channels, *space) in [-1, 1].

        Of a residual quantizer the first levels alone decode to a coarser sample. Of a hierarchy, None for a finer
        grid decodes without it.

        Args:
            codes: (batch, *grid) or (batch, levels, *grid) of any integer type, such as Parquet files hold; of a
                hierarchy a tuple of them, coarse to fine.
            scales: as `tokenize` gave them, of a model that normalises its input.
            length: as `tokenize` gave it: the sample ends there, shorter ones of the batch are 0 from there on.

        Raises:
            ValueError: codes, scales or a length that do not fit, such as codes that `flatten_codes` made a sequence.
        """
        codes = codes_as_int64(codes)
        self.check_codes(codes)
        if length is not None:
            length = self.check_length(length, codes)
        sample = self.denormalize(self.decode_codes(codes), scales)
        return sample if length is None else self.cut_to_length(sample, length)

    def decode_codes(self, codes: Any) -> torch.Tensor:
        """`detokenize` to a normalised sample."""
        return self.decode(self.quantizer.detokenize(codes).to(self.dtype)).sample

    def normalize(
        self, sample: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A sample as the encoder takes it, and the scales that undo it; here as it is, and None."""
        return sample, None

    def denormalize(self, sample: torch.Tensor, scales: torch.Tensor | None) -> torch.Tensor:
        """Undoes `normalize`.

        Raises:
            ValueError: scales for a model that does not normalise.
        """
        if scales is not None:
            raise ValueError(f"scales given, but {type(self).__name__} does not normalise its input")
        return sample

    def forward(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> Any:
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, *space) in [-1, 1].
            padding_mask: (batch, *space) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            AutoencoderOutput.
        """
        sample, masks = self.without_padding(sample, padding_mask)
        normalized, scales = self.normalize(sample, padding_mask)
        quantized = self.quantizer(self.encode(normalized).latents, masks[0])
        reconstruction = self.denormalize(self.decode(quantized.latents).sample, scales)
        return self.training_output(sample, reconstruction, quantized, padding_mask)

    @torch.no_grad()
    def initialize_codebook(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> bool:
        """Starts the codebook by k-means on the latents of these samples, unless it has started or was loaded.

        Returns:
            bool: whether it did.
        """
        if self.codebook_initialized:
            return False
        sample, masks = self.without_padding(sample, padding_mask)
        sample, _ = self.normalize(sample, padding_mask)
        return self.quantizer.initialize(self.encode(sample).latents, masks[0])

    def training_output(
        self,
        sample: torch.Tensor,
        reconstruction: torch.Tensor,
        quantized: QuantizerOutput,
        padding_mask: torch.Tensor | None = None,
        output_class: type = AutoencoderOutput,
        reconstruction_loss: torch.Tensor | None = None,
        **more: Any,
    ) -> Any:
        """The output of `forward`, with its losses.

        Args:
            sample, reconstruction: (batch, channels, *space).
            quantized: QuantizerOutput.
            padding_mask: (batch, *space) bool, True = real, or None.
            output_class: an `AutoencoderOutput`, or a dataclass with its fields; all but the first have defaults.
            reconstruction_loss: scalar, of a decoder with a likelihood; None: the config's distance.

        Raises:
            TypeError: an `output_class` that cannot be built anew.
        """
        if not torch.compiler.is_compiling():
            check_rebuilds(output_class)
        if reconstruction_loss is None:
            distance = RECONSTRUCTION_LOSSES[self.config.reconstruction_loss]
            reconstruction_loss = mean_distance(distance, reconstruction.float(), sample.float(), padding_mask)
        return output_class(
            sample=reconstruction,
            codes=quantized.codes,
            loss=self.config.reconstruction_weight * reconstruction_loss + quantized.loss,
            reconstruction_loss=reconstruction_loss,
            quantizer_loss=quantized.loss,
            losses={"reconstruction": reconstruction_loss, **(quantized.losses or {})},
            **more,
        )


def check_reconstruction(
    reconstruction_loss: str, reconstruction_weight: float, distributions: Iterable[str] = ()
) -> None:
    known = sorted([*RECONSTRUCTION_LOSSES, *distributions])
    if reconstruction_loss not in known:
        raise ValueError(f"reconstruction_loss must be one of {known}, got {reconstruction_loss!r}")
    if not reconstruction_weight > 0:
        raise ValueError(f"reconstruction_weight must be above 0, got {reconstruction_weight!r}")

"""The VQ-VAE of 2017: strided convolutions, residual blocks, one codebook."""

from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.autoencoders.images.base import ImageAutoencoderMixin
from hf_vq.autoencoders.images.blocks import CheckpointedLayers, ConvNorm, ResidualStack, TransposedConvNorm
from hf_vq.autoencoders.images.convolutional import initialize_like_sonnet
from hf_vq.autoencoders.images.grid_networks import PatchShortcut
from hf_vq.autoencoders.images.pixel_distributions import BY_VALUE, PIXEL_DISTRIBUTIONS, PixelDecoder, decoder_channels
from hf_vq.autoencoders.images.tiling import LocalPart, TilingMixin
from hf_vq.autoencoders.outputs import AutoencoderOutput, EncoderOutput
from hf_vq.quantizers import make_quantizer
from hf_vq.ranges import (
    Codebook,
    FreeDepth,
    KernelSize,
    NotEmpty,
    Number,
    OneOf,
    Positive,
    QuantizerType,
    Range,
    Width,
)
from hf_vq.registry import register

PADDINGS, NORMS, ACTIVATIONS = ("symmetric", "same"), ("none", "batch"), ("none", "tanh")
RESIDUAL_FORMS = ("pre_activation", "rectified")
SHORTCUTS = (False, True, "principal")


@register
class VQVAE(CheckpointedLayers, PixelDecoder, TilingMixin, ImageAutoencoderMixin, ModelMixin, ConfigMixin):
    """VQ-VAE (https://arxiv.org/abs/1711.00937, section 4.1) with the initialisers of Sonnet's example.

    Encoder: a strided convolution per stage, a middle convolution, a residual stack, a projection to the codebook's
    width. Decoder: the mirror image, with transposed convolutions. The defaults are Sonnet's example; the options
    also express the Keras example (`stage_channels=(32, 64), kernel_size=3, padding="same", middle_kernel_size=None,
    num_residual_layers=0, output_kernel_size=3`) and ritheshkumar95/pytorch-vqvae (`stage_channels=(256, 256),
    middle_kernel_size=None, codebook_dim=None, norm="batch", residual_form="rectified", residual_channels=256,
    output_activation="tanh"`).

    Args:
        in_channels: channels of a sample.
        hidden_channels: width of the middle and of the residual blocks.
        num_residual_layers: blocks in each of the two residual stacks, 0 or more.
        residual_channels: inner width of a block; None: a quarter of `hidden_channels`.
        codebook_size: number of codes; of each level where there are several.
        codebook_dim: width of a code; None: no projection, codes are as wide as the encoder's end.
        quantizer_type: QuantizerType,
            "finite_scalar", "lookup_free", "gumbel" or "index_backpropagation".
        quantizer_config: the quantizer's other options.
        stage_channels: width after each halving of the sides; None: (hidden_channels // 2, hidden_channels).
        kernel_size: of the strided convolutions, at least 2.
        middle_kernel_size: of the convolution beside each residual stack, odd; None: no such convolution.
        output_kernel_size: of a last convolution without stride, odd; None: the last transposed convolution ends.
        padding: "symmetric", or "same" as TensorFlow pads (odd kernels then pad one side more).
        norm: "none", or "batch": after each convolution of a block and between strided ones.
        residual_form: "pre_activation", x + f(relu(x)); "rectified", relu(x) + f(relu(x)).
        output_activation: "none" or "tanh".
        reconstruction_loss: "mse" or "l1", on [-1, 1]; or the negative log-likelihood, nats for each channel of a
            pixel, of a decoder that gives 8-bit pixels a distribution: "softmax" over their 256 values, of which the
            sample is the mean; "logistic", cut at them, with the location as sample; or "logistic_softmax", a softmax
            over their logits under a logistic plus free ones. `with_reconstruction_loss` changes it.
        reconstruction_weight: its weight in `loss`, above 0. Sonnet and Keras minimise the mean squared error on
            [-0.5, 0.5] over the variance of the data there: 1 / (4 x that variance).
        shortcut: a linear code of patches beside encoder and decoder, which then start at zero: training is far ahead
            for its first thousands of steps (after DC-AE, https://arxiv.org/abs/2410.10733). True: the patches are
            random directions. "principal": they overlap by half, and start with the codebook, at the principal
            directions of the training images, which the groups of a product quantizer share out; a "logistic"
            decoder then starts at the scale of the error that is left. It needs a quantizer that k-means starts and
            a `kernel_size` of 3 or more; neither goes with "softmax".
        input_scale, input_shift: the network sees sample x input_scale + input_shift.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    to_latents: Any  # nn.Identity or nn.Conv2d
    upsample: Any  # nn.ModuleList of TransposedConvNorm
    face_type = "hf_vq_vqvae"
    decoder_modules = ("decoder_middle", "decoder_residual", "upsample", "output", "patches.decoder")
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        hidden_channels: Annotated[int, Range(2, 2**16)] = 128,
        num_residual_layers: FreeDepth = 2,
        residual_channels: Width | None = None,
        codebook_size: Codebook = 512,
        codebook_dim: Width | None = 64,
        quantizer_type: QuantizerType = "ema",
        quantizer_config: dict | None = None,
        stage_channels: Annotated[tuple[Width, ...], NotEmpty()] | None = None,
        kernel_size: Annotated[int, Range(2, 2**8)] = 4,
        middle_kernel_size: KernelSize | None = 3,
        output_kernel_size: KernelSize | None = None,
        padding: Annotated[str, OneOf(PADDINGS)] = "symmetric",
        norm: Annotated[str, OneOf(NORMS)] = "none",
        residual_form: Annotated[str, OneOf(RESIDUAL_FORMS)] = "pre_activation",
        output_activation: Annotated[str, OneOf(ACTIVATIONS)] = "none",
        reconstruction_loss: str = "mse",
        reconstruction_weight: Positive = 1.0,
        input_scale: Number = 1.0,
        input_shift: Number = 0.0,
        shortcut: Annotated[bool | str, OneOf(SHORTCUTS)] = False,
    ):
        super().__init__()
        _check_options(self.config)
        stages = _stage_channels(stage_channels, hidden_channels)
        width = hidden_channels if middle_kernel_size else stages[-1]
        dim = width if codebook_dim is None else codebook_dim
        if middle_kernel_size is None and num_residual_layers and dim != width:
            raise ValueError(
                f"codebook_dim must be None or {width} where middle_kernel_size is None: the decoder's residual "
                f"blocks then follow the codes directly; got {codebook_dim!r}"
            )
        self._add_encoder(stages, width, dim)
        self.quantizer = make_quantizer(quantizer_type, codebook_size, dim, quantizer_config)
        self._add_decoder(stages, dim)
        self.apply(initialize_like_sonnet)
        if shortcut:
            self._add_shortcut(dim)

    def _add_encoder(self, stages, width, dim):
        """Layers from a sample to latents of `dim` channels; `width` is that of the residual blocks."""
        config, last = self.config, len(stages) - 1
        self.downsample = nn.ModuleList(
            ConvNorm(
                a, b, kernel_size=config.kernel_size, padding=config.padding, norm=config.norm if i < last else "none"
            )
            for i, (a, b) in enumerate(zip((config.in_channels, *stages), stages, strict=False))
        )
        self.encoder_middle = self._make_middle(stages[-1])
        self.encoder_residual = self._make_blocks(width, end_activation=config.codebook_dim is not None)
        self.to_latents = nn.Identity() if config.codebook_dim is None else nn.Conv2d(width, dim, 1)

    def _add_decoder(self, stages, dim):
        """Layers from latents of `dim` channels to the sample, or to the parameters of its pixels."""
        config = self.config
        self.decoder_middle = self._make_middle(dim)
        width = config.hidden_channels if config.middle_kernel_size else dim
        activated = bool(config.middle_kernel_size or config.num_residual_layers)  # codes themselves are not rectified
        self.decoder_residual = self._make_blocks(width, end_activation=activated)
        out_channels = decoder_channels(config.in_channels, config.reconstruction_loss)
        size = config.output_kernel_size
        ends = stages[::-1] if size else (*stages[-2::-1], out_channels)
        last = len(ends) if size else len(ends) - 1  # without a norm
        self.upsample = nn.ModuleList(
            TransposedConvNorm(
                a, b, kernel_size=config.kernel_size, padding=config.padding, norm=config.norm if i < last else "none"
            )
            for i, (a, b) in enumerate(zip((width, *ends), ends, strict=False))
        )
        self.output = nn.Conv2d(ends[-1], out_channels, size, padding=size // 2) if size else nn.Identity()

    def _add_shortcut(self, dim):
        config = self.config
        if config.codebook_dim is None or config.reconstruction_loss == "softmax":
            raise ValueError(
                f"shortcut={config.shortcut!r} needs a codebook_dim, and a decoder that ends in a place for each "
                f"pixel; got codebook_dim={config.codebook_dim!r}, reconstruction_loss={config.reconstruction_loss!r}"
            )
        principal = config.shortcut == "principal"
        if principal and (self.quantizer.initialized or config.kernel_size < 3):  # tiles reach so far
            raise ValueError(
                "shortcut='principal' needs a quantizer that k-means starts and a kernel_size of 3 or more; got "
                f"quantizer_type={config.quantizer_type!r}, quantizer_config={config.quantizer_config!r}, "
                f"kernel_size={config.kernel_size}"
            )
        stride = self.downsample_factor
        self.patches = PatchShortcut(config.in_channels, dim, stride, stride // 2 if principal else 0)
        nn.init.zeros_(self.to_latents.weight)
        nn.init.zeros_(self.last_layer)

    def _make_middle(self, in_width):
        size = self.config.middle_kernel_size
        if size is None:
            return nn.Identity()
        return nn.Conv2d(in_width, self.config.hidden_channels, size, padding=size // 2)

    def _make_blocks(self, width, end_activation):
        config = self.config
        return ResidualStack(
            width,
            num_layers=config.num_residual_layers,
            residual_channels=config.residual_channels or max(1, config.hidden_channels // 4),
            norm=config.norm,
            form=config.residual_form,
            end_activation=end_activation,
        )

    @property
    def downsample_factor(self) -> int:
        return 2 ** len(self.downsample)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return self._last_convolution.weight

    @property
    def _last_convolution(self):
        return self.output if self.config.output_kernel_size else self.upsample[-1].conv

    @torch.no_grad()
    def initialize_codebook(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> bool:
        fresh = not self.codebook_initialized and not self.last_layer.any()  # which training makes other than zero
        if self.config.shortcut != "principal" or not fresh:
            return super().initialize_codebook(sample, padding_mask)
        groups = len(self.quantizer.levels) if self.config.quantizer_type == "product" else 1
        sample, (real,) = self.without_padding(sample, padding_mask)
        self.patches.start_at_principal_directions(self._inputs(sample), groups, self.quantizer.bits_per_token, real)
        started = super().initialize_codebook(sample, padding_mask)
        if started and self.pixel_distribution is not None:
            parts: list[Any] = [self.tokenize_sample(part, (None,)) for part in sample.split(16)]  # in this mode
            error = torch.cat([self._locations(self.vectors(codes)) for codes in parts]) - sample
            if padding_mask is not None:
                error = error.movedim(1, -1)[padding_mask]  # (values, channels)
            self.pixel_distribution.start_scale(self._last_convolution.bias, error)
        return started

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, height, width) in [-1, 1] to latents (batch, dim, *grid), not yet quantized."""
        self.check_sample(sample)
        latents = self.in_slices(partial(self.in_tiles, self.local_parts()[0]), sample)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    def decode_parameters(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (batch, dim, *grid) to what the decoder ends in: the sample, or the parameters of its pixels."""
        return self.in_slices(partial(self.in_tiles, self.local_parts()[1]), latents)

    def vectors(self, codes: Any) -> torch.Tensor:
        return self.quantizer.detokenize(codes).to(self.dtype)

    def forward(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> AutoencoderOutput:
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, height, width) in [-1, 1].
            padding_mask: (batch, height, width) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            AutoencoderOutput.
        """
        if self.training and not self.codebook_initialized and not torch.compiler.is_compiling():
            self.initialize_codebook(sample, padding_mask)  # a shortcut may start with it
        sample, masks = self.without_padding(sample, padding_mask)
        quantized = self.quantizer(self.encode(sample).latents, masks[0])
        return self.decoded_output(sample, quantized.latents, quantized, padding_mask)

    def local_parts(self) -> tuple[LocalPart, ...]:
        encoder = [self.downsample, self.encoder_middle, self.encoder_residual, self.to_latents]
        decoder = [self.decoder_middle, self.decoder_residual, self.upsample, self.output]
        return (
            LocalPart(self._encode, encoder, 1, self.downsample_factor),
            LocalPart(self._decode, decoder, self.downsample_factor, 1),
        )

    def _encode(self, sample):
        inputs = hidden = self._inputs(sample)
        for layer in self.downsample:
            hidden = F.relu(self.run(layer, hidden))
        if self.config.middle_kernel_size:
            hidden = F.relu(self.encoder_middle(hidden))
        latents = self.to_latents(self.encoder_residual(hidden))
        return latents + self.patches.encoder(inputs) if self.config.shortcut else latents

    def _inputs(self, sample):
        return sample * self.config.input_scale + self.config.input_shift

    def _locations(self, latents):
        return self._outputs(self.patches.decoder(latents))

    def _outputs(self, hidden):
        return (hidden - self.config.input_shift) / self.config.input_scale

    def _decode(self, latents):
        hidden = self.decoder_residual(self.decoder_middle(latents))
        for index, layer in enumerate(self.upsample):
            hidden = self.run(layer, hidden)
            if index + 1 < len(self.upsample) or self.config.output_kernel_size:
                hidden = F.relu(hidden)
        if self.pixel_distribution in BY_VALUE:  # the 256 logits side by side: half the time on a CPU
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        hidden = self.output(hidden)
        if self.config.shortcut and self.pixel_distribution is None:
            hidden = hidden + self.patches.decoder(latents)
        elif self.config.shortcut:
            first = hidden.unflatten(1, (self.config.in_channels, -1))[:, :, 0]
            first += self._locations(latents)  # in place: a softmax has 258 parameters
        if self.pixel_distribution is not None:
            return hidden
        if self.config.output_activation == "tanh":
            hidden = hidden.tanh()
        return self._outputs(hidden)


def _check_options(config):
    """Raise a ValueError for an argument of `VQVAE` that is out of its range."""
    check_reconstruction(config.reconstruction_loss, config.reconstruction_weight, PIXEL_DISTRIBUTIONS)
    if config.reconstruction_loss in PIXEL_DISTRIBUTIONS and config.output_activation != "none":
        raise ValueError(
            f"output_activation must be 'none' where reconstruction_loss={config.reconstruction_loss!r}: the network "
            f"ends in the parameters of a distribution; got {config.output_activation!r}"
        )
    for name in ("middle_kernel_size", "output_kernel_size"):
        size = config[name]
        if size is not None and size % 2 == 0:
            raise ValueError(f"{name} must be odd or None, got {size!r}")
    if config.input_scale == 0:
        raise ValueError("input_scale must not be 0")


def _stage_channels(stage_channels, hidden_channels):
    return (max(1, hidden_channels // 2), hidden_channels) if stage_channels is None else tuple(stage_channels)

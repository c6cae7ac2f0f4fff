"""DALL-E's discrete VAE: Gumbel-softmax codes and a logit-Laplace distribution of pixels."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from hf_vq.autoencoders.base import RECONSTRUCTION_LOSSES, check_reconstruction
from hf_vq.autoencoders.grids import mean_of_real
from hf_vq.autoencoders.images.base import ImageAutoencoderMixin
from hf_vq.autoencoders.images.blocks import CheckpointedLayers
from hf_vq.autoencoders.images.tiling import LocalPart, TilingMixin
from hf_vq.autoencoders.outputs import AutoencoderOutput, EncoderOutput, ReconstructionOutput
from hf_vq.quantizers import make_quantizer
from hf_vq.quantizers.gradients import widened
from hf_vq.ranges import Codebook, Depth, NotEmpty, Number, Positive, QuantizerType, Range, Width
from hf_vq.registry import register

LOSSES = ("logit_laplace", *sorted(RECONSTRUCTION_LOSSES))


@register
class DVAE(TilingMixin, ImageAutoencoderMixin, ModelMixin, ConfigMixin):
    """The discrete VAE of DALL-E (https://arxiv.org/abs/2102.12092, section 2.1 and appendix A).

    Pixels x in [0, 1] are mapped to (1 - 2 e) x + e, e = `pixel_epsilon`, on which the decoder gives every channel a
    logit-Laplace distribution of location mu and scale b: the decoder ends in twice the channels, mu and log b. The
    sample that it returns is the median, sigmoid(mu), mapped back.

    Args:
        in_channels: channels of a sample.
        block_out_channels: width of every group of blocks, fine to coarse; the sides halve between groups. Multiples
            of 4.
        layers_per_block: residual blocks in a group.
        codebook_size: number of codes.
        codebook_dim: width of a code.
        quantizer_type: "gumbel", which takes its logits from the last group: by distance where that is `codebook_dim`
            wide, unless its option `logits` says "projection", as in DALL-E's; or another of
            `hf_vq.quantizers.QUANTIZERS`, before which a 1x1 convolution leads to `codebook_dim`.
        quantizer_config: its other options.
        reconstruction_loss: "logit_laplace", the negative log-likelihood of the mapped pixels, a mean over them
            (appendix A.3); or "mse" or "l1" of the sample.
        reconstruction_weight: its weight in `loss`, above 0.
        pixel_epsilon: above 0 and below 0.5.
        min_log_scale: lower bound of log b, or None. Without it the density of pixels that are always the same, such
            as a black background, grows without end and the rest is not learned: 8-bit pixels warrant about -3.4.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    to_latents: nn.Module
    face_type = "hf_vq_dvae"
    decoder_modules = ("decoder_groups", "decoder_output")
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        block_out_channels: Annotated[tuple[Width, ...], NotEmpty()] = (256, 512, 1024, 2048),
        layers_per_block: Depth = 2,
        codebook_size: Codebook = 8192,
        codebook_dim: Width = 128,
        quantizer_type: QuantizerType = "gumbel",
        quantizer_config: dict | None = None,
        reconstruction_loss: str = "logit_laplace",
        reconstruction_weight: Positive = 1.0,
        pixel_epsilon: Annotated[float, Range(0, 0.5, above=True, below=True)] = 0.1,
        min_log_scale: Number | None = None,
    ):
        super().__init__()
        if reconstruction_loss not in LOSSES:
            raise ValueError(f"reconstruction_loss must be one of {list(LOSSES)}, got {reconstruction_loss!r}")
        check_reconstruction("mse", reconstruction_weight)
        widths = tuple(block_out_channels)
        if any(width % 4 for width in widths):
            raise ValueError(f"block_out_channels must be multiples of 4, got {block_out_channels!r}")
        gain = 1 / (len(widths) * layers_per_block) ** 2
        self.encoder_input = nn.Conv2d(in_channels, widths[0], 7, padding=3)
        self.encoder_groups = nn.ModuleList(
            BlockGroup(a, b, layers_per_block, gain, kernels=(3, 3, 3, 1))
            for a, b in zip((widths[0], *widths), widths, strict=False)
        )
        options = dict(quantizer_config or {})
        if quantizer_type == "gumbel":
            self.to_latents, dim = nn.Identity(), widths[-1]
            options.setdefault("output_dim", codebook_dim)
            if options["output_dim"] != codebook_dim:
                raise ValueError(f"quantizer_config: output_dim must be codebook_dim, {codebook_dim}")
        else:
            self.to_latents, dim = nn.Conv2d(widths[-1], codebook_dim, 1), codebook_dim
        self.quantizer = make_quantizer(quantizer_type, codebook_size, dim, options)
        self.decoder_groups = nn.ModuleList(
            BlockGroup(a, b, layers_per_block, gain, kernels=(1, 3, 3, 3))
            for a, b in zip((codebook_dim, *widths[::-1]), widths[::-1], strict=False)
        )
        self.decoder_output = nn.Conv2d(widths[0], 2 * in_channels, 1)
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest")
        self.apply(_initialize)

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return self.decoder_output.weight

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, height, width) in [-1, 1] to latents (batch, dim, *grid), not yet quantized.

        With "gumbel", `quantizer.proj` makes the logits of the codes from them, unless its `logits` are distances.
        """
        self.check_sample(sample)
        latents = self.in_slices(partial(self.in_tiles, self.local_parts()[0]), sample)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> ReconstructionOutput | tuple[torch.Tensor]:
        """Latents (batch, codebook_dim, *grid), as given, to samples (batch, channels, height, width) in [-1, 1]."""
        location, _ = self._distribution(latents)
        sample = self._median(location)
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)

    @torch.no_grad()
    @apply_forward_hook
    def reconstruction_log_prob(self, sample: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Log density of samples in [-1, 1] given their codes.

        Args:
            sample: (batch, channels, height, width) in [-1, 1].
            codes: (batch, *grid).

        Returns:
            (batch,) nats, of the density with respect to `sample`.
        """
        self.check_sample(sample)
        self.check_codes(codes)
        location, log_scale = self._distribution(self.quantizer.detokenize(codes).to(self.dtype))
        density = logit_laplace_log_prob(*map(widened, (self._map_pixels(sample), location, log_scale)))
        return (density + math.log(0.5 - self.config.pixel_epsilon)).flatten(1).sum(dim=1)

    def forward(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> AutoencoderOutput:
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, height, width) in [-1, 1].
            padding_mask: (batch, height, width) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            AutoencoderOutput.
        """
        sample, masks = self.without_padding(sample, padding_mask)
        quantized = self.quantizer(self.encode(sample).latents, masks[0])
        location, log_scale = self._distribution(quantized.latents)
        loss = None
        if self.config.reconstruction_loss == "logit_laplace":
            pixels = self._map_pixels(sample).float()
            log_prob = logit_laplace_log_prob(pixels, location.float(), log_scale.float())
            loss = -mean_of_real(log_prob, padding_mask)
        return self.training_output(sample, self._median(location), quantized, padding_mask, reconstruction_loss=loss)

    def local_parts(self) -> tuple[LocalPart, ...]:
        encoder = [self.encoder_input, *_between(self.encoder_groups, self.pool), self.to_latents]
        decoder = [*_between(self.decoder_groups, self.upsample), self.decoder_output]
        return (
            LocalPart(partial(self._run, encoder, mapped=True), encoder, 1, self.downsample_factor),
            LocalPart(partial(self._run, decoder), decoder, self.downsample_factor, 1),
        )

    def _run(self, steps, hidden, mapped=False):
        hidden = self._map_pixels(hidden) if mapped else hidden
        for step in steps[:-1]:
            hidden = step(hidden)
        return steps[-1](F.relu(hidden))

    def _distribution(self, latents):
        """Location and log scale of the mapped pixels' logits, (batch, channels, height, width) each."""
        location, log_scale = self.in_slices(partial(self.in_tiles, self.local_parts()[1]), latents).chunk(2, dim=1)
        return location, log_scale if self.config.min_log_scale is None else log_scale.clamp_min(
            self.config.min_log_scale
        )

    def _map_pixels(self, sample):
        return (0.5 - self.config.pixel_epsilon) * sample + 0.5

    def _median(self, location):
        return ((location.sigmoid() - 0.5) / (0.5 - self.config.pixel_epsilon)).clamp(-1, 1)


class BlockGroup(CheckpointedLayers):
    """Residual blocks (batch, in, h, w) to (batch, out, h, w), of which the first changes the width.

    Args:
        gain: factor of every residual branch.
        kernels: sides of the four kernels of a branch, each after a relu.
    """

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, gain: float, kernels: Sequence[int]):
        super().__init__()
        self.blocks = nn.ModuleList(
            BottleneckBlock(out_channels if index else in_channels, out_channels, gain, kernels)
            for index in range(num_blocks)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = self.run(block, hidden)
        return hidden


class BottleneckBlock(nn.Module):
    """input + gain x four convolutions of a quarter of the width."""

    def __init__(self, in_channels: int, out_channels: int, gain: float, kernels: Sequence[int]):
        super().__init__()
        self.gain = gain
        widths = (in_channels, *[out_channels // 4] * 3, out_channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=kernel // 2)
            for a, b, kernel in zip(widths[:-1], widths[1:], kernels, strict=True)
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        branch = hidden
        for conv in self.convs:
            branch = conv(F.relu(branch))
        return self.shortcut(hidden) + self.gain * branch


def _between(groups, step):
    """The groups with a step between each two."""
    return [part for index, group in enumerate(groups) for part in ((step, group) if index else (group,))]


def logit_laplace_log_prob(pixels: torch.Tensor, location: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log f(x) = -log(2 b x (1 - x)) - |logit(x) - mu| / b (DALL-E, eq. 2), elementwise.

    Args:
        pixels: x in (0, 1).
        location: mu.
        log_scale: log b.
    """
    logit = pixels.log() - (-pixels).log1p()
    jacobian = pixels.log() + (-pixels).log1p()
    return -(math.log(2) + log_scale + jacobian + (logit - location).abs() * (-log_scale).exp())


def _initialize(module):
    """Normal of deviation 1 / sqrt(fan-in), biases zero."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=(module.in_channels * math.prod(module.kernel_size)) ** -0.5)
        nn.init.zeros_(cast(torch.Tensor, module.bias))

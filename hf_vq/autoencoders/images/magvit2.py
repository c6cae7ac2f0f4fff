"""MAGVIT-v2's tokenizer of images, as Open-MAGVIT2 builds it: residual convolutions around lookup-free codes."""

from collections.abc import Callable, Sequence
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
from hf_vq.autoencoders.images.convolutional import check_widths
from hf_vq.autoencoders.images.tiling import LocalPart, TilingMixin
from hf_vq.autoencoders.outputs import EncoderOutput, ReconstructionOutput
from hf_vq.quantizers import make_quantizer
from hf_vq.ranges import Codebook, Depth, NotEmpty, Number, Positive, QuantizerType, Width
from hf_vq.registry import register

NORM_EPSILON = 1e-6


class ResidualBlock(nn.Module):
    """Twice norm, swish, 3x3 convolution, added to the input, or to its 1x1 projection where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, eps=NORM_EPSILON)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, eps=NORM_EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        branch = self.conv1(F.silu(self.norm1(hidden)))
        return self.conv2(F.silu(self.norm2(branch))) + self.shortcut(hidden)


class ResidualBlocks(nn.ModuleList):
    """Residual blocks in a row; the first changes the width."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, norm_num_groups: int):
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        super().__init__(ResidualBlock(width, out_channels, norm_num_groups) for width in widths)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = self._gradient_checkpointing_func(block, hidden)
            else:
                hidden = block(hidden)
        return hidden


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift are linear in the deviation and mean of each channel of the latents."""

    def __init__(self, channels: int, dim: int, norm_num_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=NORM_EPSILON, affine=False)
        self.to_scale = nn.Linear(dim, channels)
        self.to_shift = nn.Linear(dim, channels)

    def condition(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift for latents (batch, dim, *grid), of the whole grid: (batch, channels, 1, 1) each."""
        deviation = (latents.var(dim=(2, 3)) + NORM_EPSILON).sqrt()  # (batch, dim)
        scale, shift = self.to_scale(deviation), self.to_shift(latents.mean(dim=(2, 3)))
        return scale[:, :, None, None], shift[:, :, None, None]

    def forward(self, hidden: torch.Tensor, condition: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        repeats = len(hidden) // len(condition[0])  # several patches of a sample when tiles estimate statistics
        scale, shift = (value.repeat(repeats, 1, 1, 1) for value in condition)
        return scale * self.norm(hidden) + shift


class DepthToSpace(nn.Module):
    """A convolution to four values per channel that become 2x2 pixels: channel (dy x 2 + dx) x channels + c."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        pixels = self.conv(hidden).unflatten(1, (4, -1)).transpose(1, 2)  # PixelShuffle has the four last
        return self.shuffle(pixels.flatten(1, 2))


class EncoderStage(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, num_layers: int, norm_num_groups: int, downsamples: int):
        super().__init__()
        self.blocks = ResidualBlocks(in_channels, out_channels, num_layers, norm_num_groups)
        self.downsample = (
            nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if downsamples else nn.Identity()
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.downsample(self.blocks(hidden))


class DecoderStage(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, dim: int, num_layers: int, norm_num_groups: int, upsamples: int
    ):
        super().__init__()
        self.norm = AdaptiveGroupNorm(in_channels, dim, norm_num_groups)
        self.blocks = ResidualBlocks(in_channels, out_channels, num_layers, norm_num_groups)
        self.upsample = DepthToSpace(out_channels) if upsamples else nn.Identity()

    def forward(self, hidden: torch.Tensor, condition: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.upsample(self.blocks(self.norm(hidden, condition)))


class Encoder(nn.Module):
    """Samples (batch, in_channels, height, width) to latents (batch, dim, *grid)."""

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        stem_channels: int,
        dim: int,
        num_layers: int,
        norm_num_groups: int,
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False)
        self.levels = nn.ModuleList(  # stages, under the name that saved weights have
            EncoderStage(a, b, num_layers, norm_num_groups, downsamples=i + 1 < len(widths))
            for i, (a, b) in enumerate(zip((stem_channels, *widths), widths, strict=False))
        )
        self.middle = ResidualBlocks(widths[-1], widths[-1], num_layers, norm_num_groups)
        self.norm = nn.GroupNorm(norm_num_groups, widths[-1], eps=NORM_EPSILON)
        self.to_latents = nn.Conv2d(widths[-1], dim, 1)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(sample)
        for stage in self.levels:
            hidden = stage(hidden)
        return self.to_latents(F.silu(self.norm(self.middle(hidden))))


class Decoder(nn.Module):
    """Latents (batch, dim, *grid) to samples; `levels[i]` mirrors the encoder's, so the last one works first."""

    levels: Any  # nn.ModuleList of DecoderStage

    def __init__(self, out_channels: int, widths: Sequence[int], dim: int, num_layers: int, norm_num_groups: int):
        super().__init__()
        self.from_latents = nn.Conv2d(dim, widths[-1], 3, padding=1)
        self.middle = ResidualBlocks(widths[-1], widths[-1], num_layers, norm_num_groups)
        self.levels = nn.ModuleList(
            DecoderStage(a, b, dim, num_layers, norm_num_groups, upsamples=i > 0)
            for i, (a, b) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm = nn.GroupNorm(norm_num_groups, widths[0], eps=NORM_EPSILON)
        self.output = nn.Conv2d(widths[0], out_channels, 3, padding=1)

    @property
    def steps(self) -> list[nn.Module]:
        """What runs, in this order."""
        return [self.from_latents, self.middle, *reversed(self.levels), self.norm, self.output]

    def conditions(self, latents: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What the norms of every stage take from the whole latents."""
        return [stage.norm.condition(latents) for stage in self.levels]

    def forward(self, latents: torch.Tensor, conditions: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        hidden = self.middle(self.from_latents(latents))
        for stage, condition in zip(reversed(self.levels), reversed(conditions), strict=True):
            hidden = stage(hidden, condition)
        return self.output(F.silu(self.norm(hidden)))


@register
class MAGVIT2Model(TilingMixin, ImageAutoencoderMixin, ModelMixin, ConfigMixin):
    """The image tokenizer of Open-MAGVIT2 (https://arxiv.org/abs/2409.04410, section 3.1), after MAGVIT-v2
    (https://arxiv.org/abs/2310.05737): lookup-free codes, and a decoder whose norms follow the quantized latents.

    Args:
        in_channels: channels of a sample.
        block_out_channels: width of each stage, at full resolution first; sides halve between stages.
        layers_per_block: residual blocks in each stage and in each middle, at least 1.
        stem_channels: width of the first convolution; None: `block_out_channels[0]`.
        norm_num_groups: groups of every norm; it divides every width.
        codebook_size: number of codes; of each level where there are several.
        codebook_dim: width of a code; None: one channel per bit of `codebook_size`.
        quantizer_type: a key of `hf_vq.quantizers.QUANTIZERS`.
        quantizer_config: the quantizer's other options.
        reconstruction_loss: "mse" or "l1", on [-1, 1].
        reconstruction_weight: its weight in `loss`, above 0.
        input_scale, input_shift: the network sees sample x input_scale + input_shift.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_magvit2"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        block_out_channels: Annotated[tuple[Width, ...], NotEmpty()] = (128, 128, 256, 256, 512),
        layers_per_block: Depth = 4,
        stem_channels: Width | None = None,
        norm_num_groups: Width = 32,
        codebook_size: Codebook = 262144,
        codebook_dim: Width | None = None,
        quantizer_type: QuantizerType = "lookup_free",
        quantizer_config: dict | None = None,
        reconstruction_loss: str = "mse",
        reconstruction_weight: Positive = 1.0,
        input_scale: Number = 1.0,
        input_shift: Number = 0.0,
    ):
        super().__init__()
        check_reconstruction(reconstruction_loss, reconstruction_weight)
        if input_scale == 0:
            raise ValueError("input_scale must not be 0")
        widths = tuple(block_out_channels)
        stem = widths[0] if stem_channels is None else stem_channels
        named = {f"block_out_channels[{i}]": width for i, width in enumerate(widths)}
        check_widths(norm_num_groups, **named, stem_channels=stem)
        dim = max(1, (codebook_size - 1).bit_length()) if codebook_dim is None else codebook_dim
        self.register_to_config(codebook_dim=dim)  # a resized codebook keeps its width
        self.quantizer = make_quantizer(quantizer_type, codebook_size, dim, quantizer_config)
        self.encoder = Encoder(in_channels, widths, stem, dim, layers_per_block, norm_num_groups)
        self.decoder = Decoder(in_channels, widths, dim, layers_per_block, norm_num_groups)

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.encoder.levels) - 1)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return self.decoder.output.weight

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, height, width) in [-1, 1] to latents (batch, dim, *grid), not yet quantized."""
        self.check_sample(sample)
        latents = self.in_slices(partial(self.in_tiles, self.local_parts()[0]), sample)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> ReconstructionOutput | tuple[torch.Tensor]:
        """Latents (batch, dim, *grid), as given, to samples (batch, channels, height, width) in [-1, 1].

        Raises:
            ValueError: a grid of one position: its norms need the deviation over positions.
        """
        if latents.ndim != 4 or latents.shape[2] * latents.shape[3] < 2:
            raise ValueError(
                f"latents must be (batch, dim, height, width) with at least 2 positions, got {tuple(latents.shape)}"
            )
        sample = self.in_slices(self._decode, latents)
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)

    def local_parts(
        self, conditions: Sequence[tuple[torch.Tensor, torch.Tensor]] | None = None
    ) -> tuple[LocalPart, ...]:
        return (
            LocalPart(self._encode_tile, [self.encoder], 1, self.downsample_factor),
            LocalPart(partial(self._decode_tile, conditions), self.decoder.steps, self.downsample_factor, 1),
        )

    def _encode_tile(self, sample):
        return self.encoder(sample * self.config.input_scale + self.config.input_shift)

    def _decode(self, latents):
        return self.in_tiles(self.local_parts(self.decoder.conditions(latents))[1], latents)

    def _decode_tile(self, conditions, latents):
        return (self.decoder(latents, conditions) - self.config.input_shift) / self.config.input_scale

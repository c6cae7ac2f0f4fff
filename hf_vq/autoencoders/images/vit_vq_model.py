"""ViT-VQGAN: a vision transformer to a normalised codebook and another one back."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.autoencoders.images.base import ImageAutoencoderMixin
from hf_vq.autoencoders.outputs import EncoderOutput, ReconstructionOutput
from hf_vq.quantizers import make_quantizer
from hf_vq.ranges import Codebook, Depth, Number, Positive, QuantizerType, Side, Width
from hf_vq.registry import register

NORMALIZED = ("vector", "ema")  # quantizers that compare by direction here unless `quantizer_config` says otherwise


class Attention(nn.Module):
    """Every token looks at every token."""

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False)
        single = heads == 1 and head_dim == dim  # then the original has no projection
        self.to_out = nn.Identity() if single else nn.Linear(heads * head_dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, _ = tokens.shape
        heads = self.to_qkv(tokens).view(batch, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head_dim)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    """Attention, then two linear maps around tanh; each behind a norm and added to its input."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp_in = nn.Linear(dim, mlp_dim)
        self.mlp_out = nn.Linear(mlp_dim, dim)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp_out(self.mlp_in(self.mlp_norm(tokens)).tanh())


class Transformer(nn.Module):
    """Blocks over a grid of tokens with a place each, and a last norm: (batch, height x width, dim) both ways.

    `position_embedding` (1, height x width, dim) is a buffer: saved and loaded, not trained.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable
    position_embedding: torch.Tensor

    def __init__(self, grid: tuple[int, int], dim: int, depth: int, heads: int, head_dim: int, mlp_dim: int):
        super().__init__()
        self.grid = grid
        self.register_buffer("position_embedding", sine_cosine_table(*grid, dim)[None])
        self.blocks = nn.ModuleList(Block(dim, heads, head_dim, mlp_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    @torch.no_grad()
    def derive_buffers(self, missing: set[str]) -> set[str]:
        """As of a quantizer: older files may lack the places, which are what they always are."""
        if "position_embedding" in missing:
            self.position_embedding.copy_(sine_cosine_table(*self.grid, self.position_embedding.shape[-1])[None])
        return missing & {"position_embedding"}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # (transformers loads the buffers of a half-precision model in float32)
        tokens = tokens + self.position_embedding.to(tokens.dtype)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        return self.norm(tokens)


@register
class ViTVQModel(ImageAutoencoderMixin, ModelMixin, ConfigMixin):
    """ViT-VQGAN (https://arxiv.org/abs/2110.04627, section 3), the image tokenizer of Parti.

    Patches become tokens, a transformer encodes them, a linear map leads to a narrow codebook that is searched by
    direction; a second transformer and a patch of pixels per token lead back. The defaults are the paper's small
    model; images of one size only.

    Args:
        in_channels: channels of a sample.
        image_size: sides of a sample, an int or (height, width).
        patch_size: sides of a token's patch, an int or (height, width); it divides `image_size`.
        encoder_dim, decoder_dim: width of the tokens, a multiple of 4.
        encoder_depth, decoder_depth: number of blocks.
        encoder_heads, decoder_heads: heads of attention.
        encoder_head_dim, decoder_head_dim: width of a head.
        encoder_mlp_dim, decoder_mlp_dim: inner width of a block's last two maps.
        codebook_size: number of codes; of each level where there are several.
        codebook_dim: width of a code.
        quantizer_type: a key of `hf_vq.quantizers.QUANTIZERS`.
        quantizer_config: the quantizer's other options; `normalize` is True for "vector" and "ema" unless it is here.
        reconstruction_loss: "mse" or "l1", on [-1, 1].
        reconstruction_weight: its weight in `loss`, above 0.
        input_scale, input_shift: the network sees sample x input_scale + input_shift; the defaults make it [0, 1].

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_vit_vq_model"
    decoder_modules = ("from_latents", "decoder", "to_pixels")
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        image_size: Side | tuple[Side, Side] = 256,
        patch_size: Side | tuple[Side, Side] = 8,
        encoder_dim: Width = 512,
        encoder_depth: Depth = 8,
        encoder_heads: Depth = 8,
        encoder_head_dim: Width = 64,
        encoder_mlp_dim: Width = 2048,
        decoder_dim: Width = 512,
        decoder_depth: Depth = 8,
        decoder_heads: Depth = 8,
        decoder_head_dim: Width = 64,
        decoder_mlp_dim: Width = 2048,
        codebook_size: Codebook = 8192,
        codebook_dim: Width = 32,
        quantizer_type: QuantizerType = "vector",
        quantizer_config: dict | None = None,
        reconstruction_loss: str = "mse",
        reconstruction_weight: Positive = 1.0,
        input_scale: Number = 0.5,
        input_shift: Number = 0.5,
    ):
        super().__init__()
        check_reconstruction(reconstruction_loss, reconstruction_weight)
        if input_scale == 0:
            raise ValueError("input_scale must not be 0")
        for name, dim in (("encoder_dim", encoder_dim), ("decoder_dim", decoder_dim)):
            if dim % 4:
                raise ValueError(f"{name} must be a multiple of 4 (sine and cosine of row and column), got {dim}")
        self.image_sides, self.patch_sides = _sides(image_size=image_size), _sides(patch_size=patch_size)
        if any(side % patch for side, patch in zip(self.image_sides, self.patch_sides, strict=True)):
            raise ValueError(f"image_size must be a multiple of patch_size, {patch_size!r}; got {image_size!r}")
        self.grid = tuple(side // patch for side, patch in zip(self.image_sides, self.patch_sides, strict=True))

        options = {"normalize": True} if quantizer_type in NORMALIZED else {}
        options |= quantizer_config or {}
        self.quantizer = make_quantizer(quantizer_type, codebook_size, codebook_dim, options)
        patch = {"kernel_size": self.patch_sides, "stride": self.patch_sides}
        self.from_pixels = nn.Conv2d(in_channels, encoder_dim, **patch)
        self.encoder = Transformer(
            self.grid, encoder_dim, encoder_depth, encoder_heads, encoder_head_dim, encoder_mlp_dim
        )
        self.to_latents = nn.Linear(encoder_dim, codebook_dim)
        self.from_latents = nn.Linear(codebook_dim, decoder_dim)
        self.decoder = Transformer(
            self.grid, decoder_dim, decoder_depth, decoder_heads, decoder_head_dim, decoder_mlp_dim
        )
        self.to_pixels = nn.ConvTranspose2d(decoder_dim, in_channels, **patch)
        for part in (self.from_pixels, self.encoder, self.to_latents, self.from_latents, self.decoder, self.to_pixels):
            part.apply(_initialize_like_the_original)

    @property
    def downsample_factor(self) -> int | tuple[int, int]:
        """Side of a patch; (height, width) where patches are not square."""
        height, width = self.patch_sides
        return height if height == width else (height, width)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return self.to_pixels.weight

    def check_space(self, space: Sequence[int], sample_shape: Sequence[int]) -> None:
        """Raise a ValueError for sides other than `image_size`."""
        if tuple(space) != self.image_sides:
            raise ValueError(
                f"sample must have the sides {self.image_sides} of image_size, got shape {tuple(sample_shape)} "
                f"(downsampling {self.downsample_factor})"
            )

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, height, width) in [-1, 1] to latents (batch, dim, *grid), not yet quantized."""
        self.check_sample(sample)
        patches = self.from_pixels(sample * self.config.input_scale + self.config.input_shift)
        latents = _to_grid(self.to_latents(self.encoder(_to_tokens(patches))), self.grid)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> ReconstructionOutput | tuple[torch.Tensor]:
        """Latents (batch, dim, *grid), as given, to samples (batch, channels, height, width) in [-1, 1].

        Raises:
            ValueError: another grid than that of `image_size`.
        """
        if latents.ndim != 4 or tuple(latents.shape[2:]) != self.grid:
            raise ValueError(
                f"latents must be (batch, dim, *grid) with the grid {self.grid} of image_size "
                f"{self.config.image_size}, got shape {tuple(latents.shape)}"
            )
        tokens = self.decoder(self.from_latents(_to_tokens(latents)))
        sample = (self.to_pixels(_to_grid(tokens, self.grid)) - self.config.input_shift) / self.config.input_scale
        return ReconstructionOutput(sample=sample) if return_dict else (sample,)


def sine_cosine_table(height: int, width: int, dim: int) -> torch.Tensor:
    """Places of a grid, (height x width, dim), row by row: sines and cosines of the column, then of the row."""
    frequencies = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def waves(positions):
        angles = positions[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (positions, dim // 2)

    columns = waves(torch.arange(width)).repeat(height, 1)
    rows = waves(torch.arange(height)).repeat_interleave(width, dim=0)
    return torch.cat([columns, rows], dim=1).float()


def _to_tokens(grid):
    return grid.flatten(2).transpose(1, 2)  # (batch, height x width, dim)


def _to_grid(tokens, grid):
    return tokens.transpose(1, 2).unflatten(2, grid)  # (batch, dim, height, width)


def _sides(**sizes):
    ((name, size),) = sizes.items()
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"{name} must be an int or (height, width), got {size!r}")
    return sides


def _initialize_like_the_original(module):
    """Glorot's uniform for every map, a patch's convolution seen as one linear map of its pixels; biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""VQ-VAE-2: a hierarchy of codes, each finer grid conditioned on the coarser ones."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.autoencoders.grids import mean_distance
from hf_vq.autoencoders.images.base import ImageAutoencoderMixin
from hf_vq.autoencoders.images.convolutional import initialize_like_sonnet
from hf_vq.autoencoders.images.grid_networks import (
    GridDecoder,
    GridEncoder,
    PatchShortcut,
    make_upsampler,
)
from hf_vq.autoencoders.images.pixel_distributions import PIXEL_DISTRIBUTIONS, PixelDecoder, decoder_channels
from hf_vq.autoencoders.images.tiling import LocalPart, TilingMixin
from hf_vq.autoencoders.outputs import AutoencoderOutput, EncoderOutput
from hf_vq.grids import GRID_NAMES
from hf_vq.quantizers import Quantizer, QuantizerOutput, make_quantizer
from hf_vq.quantizers.gradients import widened
from hf_vq.ranges import Codebook, FreeDepth, NotEmpty, Number, Positive, QuantizerType, Share, Size, Weight, Width
from hf_vq.registry import register
from hf_vq.renaming import renamed_options, warn_renamed


@register
class VQVAE2(PixelDecoder, TilingMixin, ImageAutoencoderMixin, ModelMixin, ConfigMixin):
    """VQ-VAE-2 (https://arxiv.org/abs/1906.00446, section 3.1 and figure 2a), laid out as rosinality/vq-vae-2-pytorch.

    An encoder leads from the sample to the finest features, one more from each grid to the next coarser. The coarsest
    features are quantized first; every finer grid quantizes its features beside what a small decoder makes of all
    coarser codes. The decoder sees the codes of every grid. Codes, latents and all that exists once a grid are tuples,
    coarse to fine: `(top, bottom)`.

    Args:
        in_channels: channels of a sample.
        hidden_channels: width of encoders and decoders, at least 2; or one for each grid, coarse to fine.
        num_residual_layers: residual blocks in each of them, 0 or more.
        residual_channels: inner width of a block.
        codebook_size: number of codes of every grid, or one for each, coarse to fine.
        codebook_dim: width of a code.
        strides: of the encoders, powers of two: from the sample to the finest grid, then from each grid to the next
            coarser. At least two grids.
        quantizer_type: a key of `hf_vq.quantizers.QUANTIZERS`.
        quantizer_config: its other options.
        reconstruction_loss: "mse" or "l1", on [-1, 1]; or the negative log-likelihood, nats for each channel of a
            pixel, of a decoder that gives 8-bit pixels a distribution: "softmax" over their 256 values, of which the
            sample is the mean; "logistic", cut at them, with the location as sample; or "logistic_softmax", a softmax
            over their logits under a logistic plus free ones. `with_reconstruction_loss` changes it.
        reconstruction_weight: its weight in `loss`, above 0.
        input_scale, input_shift: the network sees sample x input_scale + input_shift.
        grid_dropout: probability that a training item is decoded without its finest grids, a number drawn uniformly,
            in whose place the average code vector stands: coarse grids then decode alone. 0 is the paper's.
        residual: instead of the paper's layout, code each finer grid as the difference of its latents from what the
            coarser codes predict, as a residual quantizer does within one grid (https://arxiv.org/abs/2203.01941),
            and decode the sum: no bits repeat what is known. Shortcuts go around all networks (after DC-AE,
            https://arxiv.org/abs/2410.10733): a linear code of patches, means and interpolation between grids.
        prediction_weight: of the residual layout, 0 or more: weight in `loss` of the mean squared distance between a
            finer grid's latents, held fixed, and what coarser codes predict. At 1 the coarse latents outrun the
            averages of their codes.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_vqvae2"
    hierarchical = True
    _supports_gradient_checkpointing = True

    @renamed_options(level_dropout="grid_dropout")
    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        hidden_channels: Width | tuple[Width, ...] = 128,
        num_residual_layers: FreeDepth = 2,
        residual_channels: Width = 32,
        codebook_size: Codebook | tuple[Codebook, ...] = 512,
        codebook_dim: Width = 64,
        strides: Annotated[tuple[Size, ...], NotEmpty()] = (4, 2),
        quantizer_type: QuantizerType = "ema",
        quantizer_config: dict | None = None,
        reconstruction_loss: str = "mse",
        reconstruction_weight: Positive = 1.0,
        input_scale: Number = 1.0,
        input_shift: Number = 0.0,
        grid_dropout: Share = 0.0,
        residual: bool = False,
        prediction_weight: Weight = 0.1,
    ):
        super().__init__()
        check_reconstruction(reconstruction_loss, reconstruction_weight, PIXEL_DISTRIBUTIONS)
        if input_scale == 0:
            raise ValueError("input_scale must not be 0")
        if residual and grid_dropout:
            raise ValueError(f"grid_dropout must be 0 where residual=True, got {grid_dropout}")
        if residual and reconstruction_loss in PIXEL_DISTRIBUTIONS:
            raise ValueError(
                f"reconstruction_loss={reconstruction_loss!r} does not go with residual=True, whose shortcuts end in "
                "pixels"
            )
        strides = _check_strides(strides)
        sizes = _per_grid("codebook_size", codebook_size, len(strides))
        widths = _per_grid("hidden_channels", hidden_channels, len(strides))
        for width in widths:
            if type(width) is not int or width < 2:
                raise ValueError(f"hidden_channels must be ints of at least 2, got {hidden_channels!r}")

        blocks = (num_residual_layers, residual_channels)
        inputs = (*widths[1:], in_channels)
        self.encoders = nn.ModuleList(  # like everything below, coarse to fine
            GridEncoder(inside, stride, width, *blocks)
            for inside, stride, width in zip(inputs, strides[::-1], widths, strict=True)
        )
        contexts = [codebook_dim] * len(strides)
        if not residual:
            contexts[1:] = [2 * codebook_dim] * (len(strides) - 1)  # a grid's codes beside the coarser ones'
        steps = list(zip(contexts, strides[:0:-1], widths, strict=False))
        self.conditioners = nn.ModuleList(
            GridDecoder(inside, codebook_dim, stride, width, *blocks) for inside, stride, width in steps
        )
        self.upsamplers = nn.ModuleList(
            make_upsampler(inside, codebook_dim, stride) for inside, stride, _ in ([] if residual else steps)
        )
        self.to_latents = nn.ModuleList(
            nn.Conv2d(width + (codebook_dim if grid and not residual else 0), codebook_dim, 1)
            for grid, width in enumerate(widths)
        )
        self._modules["quantizers"] = nn.ModuleList(
            make_quantizer(quantizer_type, size, codebook_dim, quantizer_config) for size in sizes
        )
        out_channels = decoder_channels(in_channels, reconstruction_loss)
        self.decoder = GridDecoder(contexts[-1], out_channels, strides[0], widths[-1], *blocks)
        self.apply(initialize_like_sonnet)
        if residual:
            self.shortcut = PatchShortcut(in_channels, codebook_dim, strides[0])
            ends = [network.upsample[-1] for network in (*self.conditioners, self.decoder)]
            for layer in (*self.to_latents, *ends):
                nn.init.zeros_(layer.weight)

    @property
    def quantizers(self) -> Sequence[Quantizer]:
        return cast(Sequence[Quantizer], self._modules["quantizers"])

    @property
    def decoder_modules(self) -> tuple[str, ...]:
        return ("decoder", "shortcut.decoder", f"upsamplers.{len(self.upsamplers) - 1}")  # those before it condition

    @property
    def grid_names(self) -> tuple[str, ...]:
        count = len(self.quantizers)
        return GRID_NAMES.get(count, tuple(f"grid_{index}" for index in range(count)))

    @property
    def level_names(self) -> tuple[str, ...]:
        """The old name of `grid_names`."""
        warn_renamed(type(self).__name__, "level_names", "grid_names")
        return self.grid_names

    @property
    def downsample_factor(self) -> int:
        """Of the coarsest grid: what the sides of a sample must be multiples of."""
        return math.prod(self.config.strides)

    @property
    def downsample_factors(self) -> tuple[int, ...]:
        strides = self.config.strides
        return tuple(math.prod(strides[:count]) for count in range(len(strides), 0, -1))

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return cast(nn.ConvTranspose2d, self.decoder.upsample[-1]).weight

    @apply_forward_hook
    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor, ...]:
        """Samples (batch, channels, height, width) in [-1, 1] to the latents of every grid, not yet quantized.

        The latents of a finer grid depend on the codes of the coarser ones; with `residual` they are differences.
        """
        latents, *_ = self._encode(sample, self._decide)
        return EncoderOutput(latents=latents) if return_dict else (latents,)

    def decode_parameters(self, latents: Sequence[torch.Tensor]) -> torch.Tensor:
        """Latents of every grid to what the decoder ends in: the sample, or the parameters of its pixels."""
        context = latents[0]
        for grid, finer in enumerate(latents[1:]):
            if self.config.residual:
                context = self._predict(grid, context) + finer
            else:
                context = torch.cat([self.upsamplers[grid](context), finer], dim=1)
        return self.in_slices(partial(self.in_tiles, self.local_parts()[1]), context)

    def tokenize_sample(
        self, sample: torch.Tensor, grid_masks: Sequence[torch.Tensor | None], **options: Any
    ) -> tuple[torch.Tensor, ...]:
        codes = []

        def quantize(grid, latents):
            codes.append(self.quantizers[grid].tokenize(latents, grid_masks[grid], **options))
            return self.quantizers[grid].detokenize(codes[-1]).to(latents.dtype)

        self._encode(sample, quantize)
        return tuple(codes)

    def vectors(self, codes: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        """Latents of every grid, of codes as `detokenize` takes them: the average code vector stands for None.

        Raises:
            ValueError: not one entry a grid, no codes of the coarsest, or grids that do not fit together.
        """
        count = len(self.quantizers)
        if not isinstance(codes, tuple | list) or len(codes) != count:
            raise ValueError(f"codes must be a tuple of {count}, one for each grid {self.grid_names}")
        if codes[0] is None:
            raise ValueError("codes[0], the coarsest grid, must not be None: only finer grids may be left out")
        latents, shape = [], (codes[0].shape[0], *codes[0].shape[-2:])
        for grid, (quantizer, one) in enumerate(zip(self.quantizers, codes, strict=True)):
            if grid:
                stride = self.config.strides[::-1][grid - 1]
                shape = (shape[0], shape[1] * stride, shape[2] * stride)
            if one is None:
                vectors = quantizer.mean_vector()[None, :, None, None].expand(shape[0], -1, *shape[1:])
            elif (one.shape[0], *one.shape[-2:]) != shape:
                raise ValueError(f"codes[{grid}] must have a grid of {shape}, got shape {tuple(one.shape)}")
            else:
                vectors = quantizer.detokenize(one)
            latents.append(vectors.to(self.dtype))
        return tuple(latents)

    @torch.no_grad()
    def initialize_codebook(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> bool:
        if self.codebook_initialized:
            return False
        sample, masks = self.without_padding(sample, padding_mask)

        def quantize(grid, latents):
            self.quantizers[grid].initialize(latents, masks[grid])
            return self._decide(grid, latents)

        self._encode(sample, quantize)
        return True

    def forward(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> AutoencoderOutput:
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, height, width) in [-1, 1].
            padding_mask: (batch, height, width) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            AutoencoderOutput; `codes` is a tuple, the loss of the quantizers their sum, in the residual layout with
            that of the predictions, its terms named by grid.
        """
        sample, masks = self.without_padding(sample, padding_mask)
        outputs = []

        def quantize(grid, latents):
            outputs.append(self.quantizers[grid](latents, masks[grid]))
            return outputs[-1].latents

        _, quantized, distances = self._encode(sample, quantize, masks)
        losses = {
            f"{name}_{grid}": value
            for grid, output in zip(self.grid_names, outputs, strict=True)
            for name, value in output.losses.items()
        }
        losses |= {f"prediction_{grid}": value for grid, value in zip(self.grid_names[1:], distances, strict=False)}
        together = QuantizerOutput(
            codes=cast(Any, tuple(output.codes for output in outputs)),
            loss=sum(output.loss for output in outputs) + self.config.prediction_weight * sum(distances),
            losses=losses,
        )
        return self.decoded_output(sample, self._drop_grids(quantized), together, padding_mask)

    def _drop_grids(self, quantized):
        """Quantized latents as the decoder gets them in training."""
        if not self.training or self.config.grid_dropout == 0:
            return quantized
        count, batch, device = len(quantized), len(quantized[0]), quantized[0].device
        kept = torch.randint(1, count, (batch,), device=device)  # grids of the items that lose some
        kept = torch.where(torch.rand(batch, device=device) < self.config.grid_dropout, kept, count)
        dropped = [quantized[0]]
        for grid in range(1, count):
            mean = self.quantizers[grid].mean_vector().to(quantized[grid].dtype)[None, :, None, None]
            dropped.append(torch.where((grid < kept)[:, None, None, None], quantized[grid], mean))
        return tuple(dropped)

    def local_parts(self) -> tuple[LocalPart, ...]:
        """The ends at the sample's resolution; what lies between works on small maps."""
        encoder, stride = self.encoders[-1], self.config.strides[0]
        return (
            LocalPart(self._encode_pixels, [encoder], 1, stride),
            LocalPart(self._decode_pixels, [self.decoder], stride, 1),
        )

    def _encode_pixels(self, sample):
        hidden = sample * self.config.input_scale + self.config.input_shift
        features = self.encoders[-1](hidden)
        return torch.cat([features, self.shortcut.encoder(hidden)], dim=1) if self.config.residual else features

    def _decode_pixels(self, context):
        hidden = self.decoder(context)
        if self.config.residual:
            hidden = hidden + self.shortcut.decoder(context)
        if self.pixel_distribution is not None:
            return hidden
        return (hidden - self.config.input_shift) / self.config.input_scale

    def _decide(self, grid, latents):
        """Quantized latents of a grid, whatever the mode, without touching its quantizer's state."""
        quantizer = self.quantizers[grid]
        return quantizer.detokenize(quantizer.tokenize(latents)).to(latents.dtype)

    def _predict(self, grid, context):
        """What coarser codes say of the latents of the grid after `grid`, in the residual layout."""
        stride = self.config.strides[-1 - grid]
        return self.conditioners[grid](context) + F.interpolate(context, scale_factor=stride, mode="bicubic")

    def _encode(self, sample, quantize, grid_masks=None):
        """Latents of every grid and what `quantize(grid, latents)` made of them, coarse to fine.

        The residual layout adds the distances of its predictions, of the finer grids; the paper's has none.
        """
        self.check_sample(sample)
        features = self.in_slices(partial(self.in_tiles, self.local_parts()[0]), sample)
        if self.config.residual:
            return self._encode_residual(features, quantize, grid_masks or (None,) * len(self.quantizers))
        features = self._coarser_features(features)
        latents, quantized, context = [], [], None
        for grid, hidden in enumerate(features):
            if grid:
                hidden = torch.cat([self.conditioners[grid - 1](context), hidden], dim=1)
            latents.append(self.to_latents[grid](hidden))
            quantized.append(quantize(grid, latents[-1]))
            finer = quantized[-1]
            context = torch.cat([self.upsamplers[grid - 1](context), finer], dim=1) if grid else finer
        return tuple(latents), tuple(quantized), ()

    def _encode_residual(self, features, quantize, grid_masks):
        dim = self.config.codebook_dim
        features, linear = features[:, :-dim], features[:, -dim:]
        whole: list[torch.Tensor] = []
        for grid, hidden in reversed(list(enumerate(self._coarser_features(features)))):
            whole.insert(0, self.to_latents[grid](hidden) + linear)
            if grid:
                linear = F.avg_pool2d(whole[0], self.config.strides[-grid])
        latents, quantized = [whole[0]], [quantize(0, whole[0])]
        context, distances = quantized[0], []
        for grid in range(1, len(whole)):
            predicted = self._predict(grid - 1, context)
            pair = widened(predicted), widened(whole[grid].detach())
            distances.append(mean_distance(F.mse_loss, *pair, grid_masks[grid]))
            predicted = predicted.detach()  # it learns where it is added again: here it would undo that of the latents
            latents.append(whole[grid] - predicted)
            quantized.append(quantize(grid, latents[-1]))
            context = predicted + quantized[-1]
        return tuple(latents), tuple(quantized), tuple(distances)

    def _coarser_features(self, finest):
        features = [finest]
        for encoder in reversed(self.encoders[:-1]):
            features.insert(0, encoder(features[0]))
        return features


def _check_strides(strides):
    strides = tuple(strides)
    if len(strides) < 2:
        raise ValueError(f"strides must name at least two grids, got {strides}; one grid is a VQVAE")
    for index, stride in enumerate(strides):
        if type(stride) is not int or stride < 2 or stride & (stride - 1):
            raise ValueError(f"strides[{index}] must be a power of two of at least 2, got {stride!r}")
    return strides


def _per_grid(name, value, num_grids):
    if isinstance(value, int):
        return (value,) * num_grids
    if not isinstance(value, tuple | list) or len(value) != num_grids:
        raise ValueError(f"{name} must be an int or {num_grids} of them, coarse to fine, got {value!r}")
    return tuple(value)

"""diffusers' VQModel (VQGAN, MoVQ, aMUSEd) that trains and gives token ids."""

import functools
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import diffusers
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.autoencoders.images.base import ImageAutoencoderMixin
from hf_vq.autoencoders.images.convolutional import check_widths, make_decoder, make_encoder
from hf_vq.autoencoders.images.stages import StagedNetwork
from hf_vq.quantizers import QUANTIZERS, make_quantizer
from hf_vq.quantizers.base import QuantizerOutput
from hf_vq.ranges import Depth, NotEmpty, Number, OneOf, Positive, QuantizerType, Range, Side, Width
from hf_vq.registry import register

STOCK = frozenset(inspect.signature(diffusers.VQModel.__init__).parameters)


@dataclass
class VQModelOutput(DecoderOutput):
    """Result of `VQModel.forward`: diffusers' output, and what training and tokens need.

    Attributes:
        sample: (batch, channels, height, width) reconstruction.
        commit_loss: scalar, the same as `quantizer_loss`.
        codes, loss, reconstruction_loss, quantizer_loss, losses: as in `AutoencoderOutput`.
    """

    codes: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    reconstruction_loss: torch.Tensor | None = None
    quantizer_loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None


if TYPE_CHECKING:  # what it stands before
    from hf_vq.quantizers import Quantizer as Host
else:
    Host = object


class StockProtocol(Host):
    """Lets a quantizer answer as diffusers' does, because stock pipelines call `VQModel.quantize`."""

    def forward(self, latents: torch.Tensor) -> Any:
        """Latents to (quantized latents, loss, (None, None, codes as one flat row))."""
        output: Any = super().forward(latents)
        return output.latents, output.loss, (None, None, output.codes.reshape(-1))

    def quantize(self, latents: torch.Tensor, padding_mask: torch.Tensor | None = None) -> QuantizerOutput:
        """Latents to a QuantizerOutput, as any quantizer's forward."""
        return super().forward(latents, padding_mask)

    def get_codebook_entry(self, indices: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
        """Code vectors: (n, dim), or (batch, dim, height, width) where shape = (batch, height, width, dim)."""
        if self.num_levels > 1:
            raise ValueError(f"stock pipelines know one code per position, this quantizer has {self.num_levels}")
        vectors = self.detokenize(indices.reshape(-1))
        if shape is None:
            return vectors
        return vectors.view(shape).movedim(-1, 1).contiguous()


@functools.cache
def stock_variant(base: type) -> type:
    """A quantizer class with `StockProtocol`, named `Stock<Name>`."""
    return type(f"Stock{base.__name__}", (StockProtocol, base), {"__module__": __name__})


def __getattr__(name: str) -> Any:
    """The stock variants of all registered quantizers: pickle looks for them here."""
    for base in QUANTIZERS.values():
        if name == f"Stock{base.__name__}":
            return stock_variant(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@register
class VQModel(StagedNetwork, ImageAutoencoderMixin, diffusers.VQModel):
    """diffusers' `VQModel` with training, token ids and a choice of quantizer (https://arxiv.org/abs/2012.09841).

    It takes the same arguments, loads the same folders, and with those arguments alone saves folders that stock
    loads without a warning. `encode` and `decode` do what stock's do (`encode` does not quantize, `decode` does);
    `tokenize` and `detokenize` are the clear way.

    Args:
        in_channels ... force_upcast: as in diffusers.
        quantizer_type: "vector" (stock), "ema" or another of `hf_vq.quantizers.QUANTIZERS`.
        quantizer_config: the quantizer's options. For "vector" those left out are stock's: `legacy=True`, beta on the
            codebook term, and `restart_threshold=0`, since a stock folder has no room for a running usage. What stock
            cannot decode is saved under names that it does not know: it fails instead of decoding wrongly.
        reconstruction_loss: "mse" or "l1".
        reconstruction_weight: its weight in `loss`, above 0.
        stem_channels: width after the first convolution; None: the first of `block_out_channels`. (taming's
            checkpoints whose `ch_mult` does not begin with 1.)
        decoder_block_out_channels: widths of the decoder where they differ, fine to coarse (LlamaGen's).

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_vqmodel"
    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: Width = 3,
        out_channels: Width = 3,
        down_block_types: Annotated[tuple[str, ...], NotEmpty()] = ("DownEncoderBlock2D",),
        up_block_types: Annotated[tuple[str, ...], NotEmpty()] = ("UpDecoderBlock2D",),
        block_out_channels: Annotated[tuple[Width, ...], NotEmpty()] = (64,),
        layers_per_block: Depth = 1,
        act_fn: Annotated[str, OneOf(("swish", "silu", "mish", "gelu", "relu"))] = "silu",
        latent_channels: Width = 3,
        sample_size: Side = 32,
        num_vq_embeddings: Annotated[int, Range(1, 2**24)] = 256,
        norm_num_groups: Width = 32,
        vq_embed_dim: Width | None = None,
        scaling_factor: Number = 0.18215,
        norm_type: Annotated[str, OneOf(("group", "spatial"))] = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        quantizer_type: QuantizerType = "vector",
        quantizer_config: dict | None = None,
        reconstruction_loss: str = "mse",
        reconstruction_weight: Positive = 1.0,
        stem_channels: Width | None = None,
        decoder_block_out_channels: Annotated[tuple[Width, ...], NotEmpty()] | None = None,
    ):
        check_reconstruction(reconstruction_loss, reconstruction_weight)
        stages, own = len(down_block_types), {} if stem_channels is None else {"stem_channels": stem_channels}
        per_stage: dict[str, Any] = {
            "block_out_channels": block_out_channels,
            "up_block_types": up_block_types,
            "decoder_block_out_channels": decoder_block_out_channels,
        }
        for name, values in per_stage.items():
            if values is not None and len(values) != stages:
                raise ValueError(f"{name} must have {stages} entries, as down_block_types has, got {values!r}")
            own |= {f"{name}[{i}]": one for i, one in enumerate(values or ()) if not isinstance(one, str)}
        check_widths(norm_num_groups, **own)
        dim = latent_channels if vq_embed_dim is None else vq_embed_dim
        options = {"legacy": True, "restart_threshold": 0.0} if quantizer_type == "vector" else {}
        options.update(quantizer_config or {})
        quantizer = make_quantizer(quantizer_type, num_vq_embeddings, dim, options, stock_variant)
        super().__init__(**self._stock_config())
        network: dict[str, Any] = {
            "layers_per_block": layers_per_block,
            "mid_block_add_attention": mid_block_add_attention,
            "norm_num_groups": norm_num_groups,
            "act_fn": act_fn,
        }
        if stem_channels is not None:
            self.encoder = make_encoder(
                in_channels,
                latent_channels,
                block_out_channels,
                down_block_types,
                stem_channels=stem_channels,
                **network,
            )
        if decoder_block_out_channels is not None:
            self.decoder = make_decoder(
                latent_channels,
                out_channels,
                decoder_block_out_channels,
                up_block_types,
                norm_type=norm_type,
                **network,
            )
        if quantizer.stock_compatible:
            self._modules["quantize"] = quantizer
        else:
            del self._modules["quantize"]
            self._modules["quantizer"] = quantizer

    @classmethod
    def with_written_options(cls, config: dict[str, Any], earlier: bool) -> dict[str, Any]:
        """As of all families, but stock's arguments stay alone: what they leave out is stock's for ever."""
        if config.get("quantizer_type", "vector") == "vector" and not config.get("quantizer_config"):
            return config
        return super().with_written_options(config, earlier)

    def _stock_config(self):
        return {name: value for name, value in self.config.items() if name in STOCK}

    @property
    def quantizer(self) -> Any:
        return self._modules["quantizer" if "quantizer" in self._modules else "quantize"]

    @property
    def quantize(self) -> Any:
        return self.quantizer

    @property
    def downsample_factor(self) -> int:
        return 2 ** (len(self.config.block_out_channels) - 1)

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample: for the adaptive weight of an adversarial loss."""
        return self.decoder.conv_out.weight

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Samples (batch, channels, height, width) to latents (batch, dim, *grid), before quantization."""
        self.check_sample(x)
        latents = self.in_slices(self.encode_slice, x)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        h: torch.Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: Sequence[int] | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Latents (batch, dim, *grid), which it quantizes first, to samples (batch, channels, height, width).

        Args:
            h: latents; codes where `force_not_quantize` meets the config's `lookup_from_codebook`.
            force_not_quantize: takes latents as they are.
            shape: of those codes' vectors, (batch, height, width, dim).
        """
        if not force_not_quantize:
            quantized, commit_loss, _ = self.quantize(h)
        else:
            quantized = self.quantize.get_codebook_entry(h, shape) if self.config.lookup_from_codebook else h
            commit_loss = torch.zeros(len(h), device=h.device, dtype=h.dtype)
        sample = self.in_slices(self.decode_slice, quantized)
        return DecoderOutput(sample=sample, commit_loss=commit_loss) if return_dict else (sample, commit_loss)

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        return self.in_slices(self.decode_slice, self.quantizer.detokenize(codes).to(self.dtype))

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True, padding_mask: torch.Tensor | None = None
    ) -> VQModelOutput | tuple[torch.Tensor, torch.Tensor]:
        """Reconstructs a sample.

        Args:
            sample: (batch, channels, height, width), in [-1, 1].
            return_dict: False gives stock's tuple (sample, commit_loss).
            padding_mask: (batch, height, width) bool, True = real: the rest counts in no loss and no statistic.

        Returns:
            VQModelOutput.
        """
        sample, masks = self.without_padding(sample, padding_mask)
        quantized = self.quantizer.quantize(self.encode(sample).latents, masks[0])
        reconstruction = self.in_slices(self.decode_slice, quantized.latents)
        if not return_dict:
            return reconstruction, quantized.loss
        return self.training_output(
            sample,
            reconstruction,
            quantized,
            padding_mask,
            output_class=VQModelOutput,
            commit_loss=quantized.loss,
        )

    def to_diffusers(self) -> diffusers.VQModel:
        """A stock `diffusers.VQModel` with these weights: a copy, for sharing with people who do not have hf_vq."""
        if not self.quantizer.stock_compatible:
            raise ValueError(f"stock diffusers has no {type(self.quantizer).__name__} with these options")
        for name in ("stem_channels", "decoder_block_out_channels"):
            if self.config[name] is not None:
                raise ValueError(f"stock diffusers has no {name}, this model has {self.config[name]}")
        stock: Any = diffusers.VQModel(**self._stock_config())
        weights = self.state_dict()  # the averages of an EMA codebook have no place in stock
        stock.load_state_dict({name: weights[name] for name in stock.state_dict()})
        torch.nn.Module.to(stock, self.device, self.dtype)  # diffusers' own `to` warns of every dtype
        return stock.train(self.training)

    def to_json_string(self) -> str:
        """Own options at their defaults are left out, so that stock reads the file without a warning."""
        config, own = json.loads(super().to_json_string()), inspect.signature(type(self).__init__).parameters
        for name, parameter in own.items():
            if name not in STOCK and config.get(name) == parameter.default:
                config.pop(name, None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

"""Audio codecs: SEANet's networks around residual codes, as SoundStream, EnCodec, DAC and SNAC have them."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from hf_vq.autoencoders.audio.base import RESIDUAL_DEFAULTS, SoundCodec
from hf_vq.autoencoders.audio.convolutions import NORMS, PAD_MODES, Rules, fold_weight_norm
from hf_vq.autoencoders.audio.multi_scale import MultiScaleQuantizer
from hf_vq.autoencoders.audio.seanet import Shape, make_decoder, make_encoder
from hf_vq.autoencoders.audio.streaming import StreamingVerbs
from hf_vq.autoencoders.base import check_reconstruction
from hf_vq.quantizers import Quantizer, make_quantizer
from hf_vq.ranges import (
    Chance,
    Codebook,
    Depth,
    FreeDepth,
    KernelSize,
    NotEmpty,
    OneOf,
    Positive,
    QuantizerType,
    Range,
    Share,
    Size,
    Width,
)
from hf_vq.registry import register
from hf_vq.single_file import to_transformers

ACTIVATIONS, ENDS = ("elu", "snake"), ("none", "tanh")
Stride = Annotated[int, Range(1, 2**10)]


@register
class AudioCodec(StreamingVerbs, SoundCodec, ModelMixin, ConfigMixin):
    """Sound to codes and back: any length in, the same length out.

    The defaults are EnCodec's for 24 kHz (https://arxiv.org/abs/2210.13438, section 3.1) with levels for 6 kbit/s.
    Other options express

    - SoundStream (https://arxiv.org/abs/2107.03312): `strides=(2, 4, 5, 8), num_residual_layers=3,
      residual_kernel_size=7, dilation_growth=3, residual_compress=1, residual_shortcut=False, latent_kernel_size=3,
      lstm_layers=0, pad_mode="constant"`;
    - DAC (https://arxiv.org/abs/2306.06546): those, and `causal=False, activation="snake", pad_input=True,
      output_activation="tanh", codebook_dim=1024, quantizer_config={"level_type": "vector", "level_config":
      {"code_dim": 8, "normalize": "search"}, "loss_reduction": "sum"}`;
    - SNAC (https://arxiv.org/abs/2410.14411): those, and `depthwise=True, attention_layers=1, code_strides=(4, 2, 1)`
      with a quantizer of one level for every grid.

    Args:
        sampling_rate: samples a second.
        in_channels: 1, or 2 for stereo.
        hidden_channels: width of the encoder's first convolution; it doubles with every stride.
        strides: downsampling of every stage of the encoder, fine to coarse; their product is the hop, the samples of
            a frame.
        decoder_channels: width of the decoder's first convolution; it halves with every stride. None: the encoder's
            widest.
        decoder_strides: upsampling of every stage of the decoder; None: `strides` reversed.
        kernel_size: of the first convolutions.
        latent_kernel_size, output_kernel_size: of the encoder's and of the decoder's last convolution.
        num_residual_layers: residual units in a stage.
        residual_kernel_size: of their first convolution.
        dilation_growth: its dilation is this to the power of the unit's index.
        residual_compress: their inner width is the outer one over this.
        residual_shortcut: a convolution beside the unit, else an identity.
        activation: "elu" or "snake".
        norm: "weight", "time_group" or "none"; see `Rules`. A group norm over time does not stream.
        causal: no frame depends on later samples: the codec can stream.
        pad_mode: "reflect", "constant" or "replicate": what convolutions see beyond the ends.
        pad_input: the sample is padded with zeros to whole frames, as in DAC; else every strided convolution pads
            what it lacks by `pad_mode`, as in EnCodec.
        trim_right_ratio, symmetric_trim, depthwise: see `Rules`.
        lstm_layers: of an LSTM at the coarse end of encoder and decoder, 0 for none.
        attention_layers, attention_heads, attention_window: of a transformer there, whose frames see so many.
        output_activation: "none" or "tanh".
        normalize: a sample is divided by its loudness, the root mean square of its mono mix, which is its scale; of
            long ones every chunk by its own.
        chunk_length_s: seconds of the chunks in which a longer sample is coded; None: it is coded as a whole.
        overlap: share of a chunk that the next one codes too.
        codebook_size: number of codes of a level.
        codebook_dim: width of the latents.
        quantizer_type: "residual" or another of `hf_vq.quantizers.QUANTIZERS`.
        quantizer_config: its other options. For "residual" those left out are `num_levels=8, level_dropout=0.5`, and
            levels are started by k-means, moved by averages, and restarted where they fall out of use.
        code_strides: frames of a code in every grid of a hierarchy, coarse to fine, each a multiple of the next; None:
            one grid. Codes are then a tuple.
        target_bandwidths: kbit/s that users are offered, as EnCodec's config has them; None: every number of levels.
        reconstruction_loss: "l1" or "mse" in time.
        reconstruction_weight: its weight in `loss`, above 0.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    face_type = "hf_vq_audio_codec"
    inference_verbs = (*SoundCodec.inference_verbs, "tokenize_chunk", "detokenize_chunk")

    @register_to_config
    def __init__(
        self,
        sampling_rate: Size = 24000,
        in_channels: Width = 1,
        hidden_channels: Width = 32,
        strides: Annotated[tuple[Stride, ...], NotEmpty()] = (2, 4, 5, 8),
        decoder_channels: Width | None = None,
        decoder_strides: Annotated[tuple[Stride, ...], NotEmpty()] | None = None,
        kernel_size: KernelSize = 7,
        latent_kernel_size: KernelSize = 7,
        output_kernel_size: KernelSize = 7,
        num_residual_layers: FreeDepth = 1,
        residual_kernel_size: KernelSize = 3,
        dilation_growth: Depth = 2,
        residual_compress: Width = 2,
        residual_shortcut: bool = True,
        activation: Annotated[str, OneOf(ACTIVATIONS)] = "elu",
        norm: Annotated[str, OneOf(NORMS)] = "weight",
        causal: bool = True,
        pad_mode: Annotated[str, OneOf(PAD_MODES)] = "reflect",
        pad_input: bool = False,
        trim_right_ratio: Share = 1.0,
        symmetric_trim: bool = False,
        depthwise: bool = False,
        lstm_layers: FreeDepth = 2,
        attention_layers: FreeDepth = 0,
        attention_heads: Depth = 8,
        attention_window: Depth = 32,
        output_activation: Annotated[str, OneOf(ENDS)] = "none",
        normalize: bool = False,
        chunk_length_s: Positive | None = None,
        overlap: Chance = 0.01,
        codebook_size: Codebook = 1024,
        codebook_dim: Width = 128,
        quantizer_type: QuantizerType = "residual",
        quantizer_config: dict | None = None,
        code_strides: Annotated[tuple[Stride, ...], NotEmpty()] | None = None,
        target_bandwidths: Annotated[tuple[Positive, ...], NotEmpty()] | None = None,
        reconstruction_loss: str = "l1",
        reconstruction_weight: Positive = 1.0,
    ):
        super().__init__()
        check_reconstruction(reconstruction_loss, reconstruction_weight)
        self._check_options()
        rules = Rules(causal, norm, pad_mode, trim_right_ratio, symmetric_trim, depthwise)
        shape = Shape(
            kernel_size, num_residual_layers, residual_kernel_size, dilation_growth, residual_compress,
            residual_shortcut, activation, lstm_layers, attention_layers, attention_heads, attention_window, rules,
        )  # fmt: skip
        strides, back = tuple(strides), tuple(decoder_strides or reversed(strides))
        wide = decoder_channels or hidden_channels * 2 ** len(strides)
        self.encoder = make_encoder(in_channels, hidden_channels, codebook_dim, strides, latent_kernel_size, shape)
        options = {**(RESIDUAL_DEFAULTS if quantizer_type == "residual" else {}), **(quantizer_config or {})}
        self.quantizer = self._make_quantizer(
            lambda: make_quantizer(quantizer_type, codebook_size, codebook_dim, options)
        )
        self.decoder = make_decoder(codebook_dim, wide, in_channels, back, output_kernel_size, shape)

    def _check_options(self):
        config = self.config
        strides, back = tuple(config.strides), tuple(config.decoder_strides or config.strides)
        if math.prod(strides) != math.prod(back):
            raise ValueError(f"decoder_strides must have the product of strides={strides}, got {back}")
        widest = config.decoder_channels or config.hidden_channels * 2 ** len(strides)
        if widest < 2 ** len(back):
            raise ValueError(f"decoder_channels must be at least {2 ** len(back)}, halved so often, got {widest}")
        if config.causal and config.norm == "time_group":
            raise ValueError("norm='time_group' averages over all of time: it needs causal=False")
        if not config.causal and config.trim_right_ratio != 1:
            raise ValueError(f"trim_right_ratio={config.trim_right_ratio} needs causal=True")
        if config.causal and config.symmetric_trim:
            raise ValueError("symmetric_trim=True needs causal=False")
        coarse = {widest, config.hidden_channels * 2 ** len(strides)}
        if config.attention_layers and any(width % (2 * config.attention_heads) for width in coarse):
            raise ValueError(
                f"attention_heads={config.attention_heads} needs widths at the coarse end that are multiples of "
                f"{2 * config.attention_heads}, got {sorted(coarse)}"
            )
        if config.chunk_length_s is not None and config.chunk_length_s * config.sampling_rate < 1:
            raise ValueError(f"chunk_length_s={config.chunk_length_s} is less than a sample")
        grids = tuple(config.code_strides or ())
        if any(coarser % finer for coarser, finer in itertools.pairwise(grids)):
            raise ValueError(f"code_strides must each be a multiple of the next, got {grids}")

    def _make_quantizer(self, make: Callable[[], Quantizer]) -> Any:
        if self.config.code_strides is None:
            return make()
        quantizer = MultiScaleQuantizer(self.config.code_strides, make)
        if quantizer.grids[0].num_levels > 1:
            raise ValueError(
                f"code_strides={tuple(self.config.code_strides)} needs a quantizer of one level for each grid, got "
                f"quantizer_type={self.config.quantizer_type!r} of {quantizer.grids[0].num_levels}"
            )
        return quantizer

    # Geometry

    @property
    def hierarchical(self) -> bool:  # type: ignore[override]
        """Whether there are several grids of codes."""
        return self.config.code_strides is not None

    @property
    def quantizers(self) -> Sequence[Quantizer]:
        return tuple(self.quantizer.grids) if self.hierarchical else (self.quantizer,)

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.config.strides)

    @property
    def grid_names(self) -> tuple[str, ...]:
        return tuple(f"every_{stride}" for stride in self.config.code_strides) if self.hierarchical else ("codes",)

    @property
    def code_strides(self) -> tuple[int, ...]:  # type: ignore[override]
        """Frames of a code in every grid, coarse to fine."""
        return tuple(self.config.code_strides or (1,))

    @property
    def pads_input(self) -> bool:  # type: ignore[override]
        """Whether a sample is padded with zeros to whole frames."""
        return self.config.pad_input or self.hierarchical

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the layer that makes the sample, its direction where it is normalised."""
        conv = self.decoder.layers[-1].conv
        return conv.parametrizations.weight.original1 if self.config.norm == "weight" else conv.weight

    def fold_weight_norm(self) -> "AudioCodec":
        """Makes normalised weights plain ones, in place: the same sound, sooner; training goes on without them.

        Returns:
            This model.
        """
        if self.config.norm == "weight":
            for network in (self.encoder, self.decoder):
                fold_weight_norm(network)
            self.register_to_config(norm="none")
        return self

    def to_transformers(self) -> Any:
        """This codec as transformers' `EncodecModel`, or with Snake as its `DacModel`: the same codes and sound.

        Raises:
            ValueError: an option that the stock model does not have.
        """
        return to_transformers(self)

    def _decode(self, latents):
        sample = self.decoder(latents)
        if self.config.output_activation == "tanh":
            sample = sample.tanh()
        return F.pad(sample, (0, latents.shape[-1] * self.hop - sample.shape[-1]))  # after a symmetric trim

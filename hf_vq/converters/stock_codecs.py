"""Our audio codecs as transformers' EncodecModel or DacModel, where their networks can be the same."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from hf_vq.autoencoders import AudioCodec
from hf_vq.converters.base import FORMATS, Config, Source

KINDS = {EncodecModel: "transformers-encodec", DacModel: "transformers-dac"}
FREE = {  # options that change neither codes nor sound; of others only what they come to counts
    "norm", "target_bandwidths", "reconstruction_loss", "reconstruction_weight", "quantizer_config",
    "decoder_channels", "decoder_strides", "symmetric_trim", "overlap", "attention_heads", "attention_window",
}  # fmt: skip


@torch.no_grad()
def to_transformers(codec: AudioCodec) -> EncodecModel | DacModel:
    """The stock model with the codec's weights, in evaluation mode: with Snake a DacModel, else an EncodecModel.

    Raises:
        ValueError: an option that the stock model does not have, with what it has in its place.
    """
    codec = copy.deepcopy(codec).fold_weight_norm()
    if codec.config.quantizer_type != "residual":
        raise ValueError(
            f"transformers' codecs have no quantizer_type={codec.config.quantizer_type!r}: only 'residual'"
        )
    stock: Any = _dac(codec) if codec.config.activation == "snake" else _encodec(codec)
    tensors = stock.state_dict()
    source = Source(Path(type(stock).__name__), tensors, config=Config(stock.config.to_dict()))
    plan = FORMATS[KINDS[type(stock)]].plan(source)
    _check_same(codec, plan.build(), type(stock).__name__)
    for name, tensor in codec.state_dict().items():
        taken: list[str] = []
        plan.weight(name, lambda theirs, taken=taken: taken.append(theirs) or tensors[theirs])
        tensors[taken[0]] = tensor.reshape(tensors[taken[0]].shape)
        for length in taken[1:]:  # of a weight that is a direction times a length
            tensors[length] = tensor.flatten(1).norm(dim=1).reshape(tensors[length].shape)
    stock.load_state_dict(tensors)
    return stock.eval()


def _encodec(codec):
    config, levels = codec.config, codec.quantizer.num_levels
    if not config.lstm_layers:
        raise ValueError("EncodecModel has an LSTM: lstm_layers must be at least 1, got 0")
    made = EncodecConfig(
        sampling_rate=config.sampling_rate, audio_channels=config.in_channels, normalize=config.normalize,
        chunk_length_s=config.chunk_length_s, overlap=config.overlap, hidden_size=config.codebook_dim,
        num_filters=config.hidden_channels, num_residual_layers=config.num_residual_layers,
        upsampling_ratios=list(reversed(config.strides)), kernel_size=config.kernel_size,
        norm_type="time_group_norm" if config.norm == "time_group" else "weight_norm",
        last_kernel_size=config.latent_kernel_size, residual_kernel_size=config.residual_kernel_size,
        dilation_growth_rate=config.dilation_growth, use_causal_conv=config.causal, pad_mode=config.pad_mode,
        compress=config.residual_compress, num_lstm_layers=config.lstm_layers, codebook_size=config.codebook_size,
        trim_right_ratio=config.trim_right_ratio, use_conv_shortcut=config.residual_shortcut,
    )  # fmt: skip
    each = made.frame_rate * made.codebook_nbits / 1000  # kbit/s of a level, as stock counts them
    made.target_bandwidths = list(config.target_bandwidths or ())
    if not made.target_bandwidths or made.num_quantizers != levels:
        made.target_bandwidths = [each * count for count in range(1, levels + 1)]
    while made.num_quantizers < levels:  # by rounding
        made.target_bandwidths[-1] = math.nextafter(made.target_bandwidths[-1], math.inf)
    return EncodecModel(made)


def _dac(codec):
    config, level = codec.config, codec.quantizer.levels[0]
    made = DacConfig(
        encoder_hidden_size=config.hidden_channels, downsampling_ratios=list(config.strides),
        decoder_hidden_size=codec.decoder.layers[0].conv.out_channels, n_codebooks=codec.quantizer.num_levels,
        codebook_size=config.codebook_size, codebook_dim=level.code_dim, sampling_rate=config.sampling_rate,
        quantizer_dropout=codec.quantizer.level_dropout, commitment_loss_weight=getattr(level, "beta", 0.25),
    )  # fmt: skip
    return DacModel(made)


def _check_same(codec, other, name):
    """Raise a ValueError for what the codec has and the one that stock's would become has not."""
    theirs = _facts(other)
    for option, value in _facts(codec).items():
        if value != theirs[option]:
            raise ValueError(f"{name} has no {option}={value!r} of this codec, only {theirs[option]!r}")


def _facts(codec):
    """What codes and sound hang on, by option."""
    config, level = codec.config, codec.quantizer.levels[0]
    listed = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    facts = {key: value for key, value in listed.items() if key not in FREE and not key.startswith("_")}
    back = list(config.decoder_strides or reversed(config.strides))
    trims = config.symmetric_trim and any(stride % 2 for stride in back)
    return facts | {
        "decoder_channels": codec.decoder.layers[0].conv.out_channels,
        "decoder_strides": back,
        "symmetric_trim": trims,
        "overlap": None if config.chunk_length_s is None else config.overlap,
        "shared_codebook": len(codec.quantizer.levels) != codec.quantizer.num_levels,
        "code_dim": None if isinstance(level.project_in, torch.nn.Identity) else level.code_dim,
        "search": getattr(level, "normalize", None),
        "code_transform": getattr(level, "code_transform", None),
        "codebook": "nearest" if hasattr(level, "embedding") and level.metric == "euclidean" else type(level).__name__,
        "projection": type(codec.quantizer.project_in).__name__,
    }

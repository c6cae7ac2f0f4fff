"""The Descript Audio Codec: the original's checkpoints and transformers' folders."""

import re

from hf_vq.autoencoders import AudioCodec
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.weight_norm import folded, layer_tensor, weight_kind

UNITS = 3  # residual units in a stage


def _original(source):
    return source.has("encoder.block.0.bias", "quantizer.quantizers.0.codebook.weight")


def _transformers(source):
    return source.has("encoder.conv1.bias", "quantizer.quantizers.0.codebook.weight")


@add_format("dac", "https://github.com/descriptinc/descript-audio-codec", _original)
def plan_original(source: Source) -> Plan:
    told = source.config
    if not told:
        metadata = source.rest.get("metadata")
        told = metadata.get("kwargs", {}) if isinstance(metadata, dict) else {}
    names = {"encoder_dim": "encoder_hidden_size", "encoder_rates": "downsampling_ratios",
             "decoder_dim": "decoder_hidden_size", "decoder_rates": "upsampling_ratios",
             "sample_rate": "sampling_rate", "latent_dim": "hidden_size"}  # fmt: skip
    return _plan(source, {names.get(key, key): value for key, value in told.items()}, _original_stem)


@add_format("transformers-dac", "https://github.com/huggingface/transformers", _transformers)
def plan_transformers(source: Source) -> Plan:
    return _plan(source, source.config, _transformers_stem)


def _plan(source, told, theirs):
    tensors = source.tensors
    told = {key: value for key, value in told.items() if value is not None}
    if "sampling_rate" not in told:
        raise ValueError("the weights do not say the sampling rate: give a config with sampling_rate")
    arguments = _arguments(tensors, told, theirs)
    stages = len(arguments["strides"])

    def weight(name, take):
        level = re.fullmatch(r"quantizer\.levels\.(\d+)\.(\w+)\.(\w+)", name)
        if level:
            stem = f"quantizer.quantizers.{level[1]}"
            if level[2] == "embedding":
                return take(f"{stem}.codebook.weight")
            stem += {"project_in": ".in_proj", "project_out": ".out_proj"}[level[2]]
            return folded(tensors, take, stem) if level[3] == "weight" else take(f"{stem}.bias")
        side, layer, rest = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)", name).groups()
        if rest.endswith("alpha"):
            return take(f"{theirs(side, stages, int(layer), rest.removesuffix('.alpha'))}.alpha")
        inner, part = re.fullmatch(r"((?:block\.\d+\.)?conv)\.(.+)", rest).groups()
        return layer_tensor(tensors, take, theirs(side, stages, int(layer), inner.removesuffix(".conv")), part)

    return Plan(as_before(AudioCodec, arguments), weight)


def _place(side, stages, layer):
    """What a layer of ours is: ("first",), ("act", stage), ("conv", stage), ("unit", stage, index) or an end."""
    stage, index = divmod(layer - 1, UNITS + 2)
    if layer == 0:
        return ("first",)
    if stage == stages:
        return ("last_act",) if index == 0 else ("last",)
    if side == "encoder":
        return ("unit", stage, index) if index < UNITS else (("act", "conv")[index - UNITS], stage)
    return (("act", "conv")[index], stage) if index < 2 else ("unit", stage, index - 2)


def _original_stem(side, stages, layer, inner):
    """The original's name: of a layer, or of the part of a unit that `inner`, "block.N", is."""
    root, place = f"{side}.{'block' if side == 'encoder' else 'model'}", _place(side, stages, layer)
    if place[0] in ("first", "last_act", "last"):
        return f"{root}.{ {'first': 0, 'last_act': stages + 1, 'last': stages + 2}[place[0]] }"
    within = f"{root}.{place[1] + 1}.block"
    if place[0] == "unit":
        return f"{within}.{place[2] + (0 if side == 'encoder' else 2)}.{inner}"
    before = UNITS if side == "encoder" else 0
    return f"{within}.{before + ('act', 'conv').index(place[0])}"


def _transformers_stem(side, stages, layer, inner):
    """The same of transformers."""
    place = _place(side, stages, layer)
    if place[0] in ("first", "last_act", "last"):
        return f"{side}.{ {'first': 'conv1', 'last_act': 'snake1', 'last': 'conv2'}[place[0]] }"
    within = f"{side}.block.{place[1]}"
    if place[0] == "unit":
        parts = {"block.0": "snake1", "block.1": "conv1", "block.2": "snake2", "block.3": "conv2"}
        return f"{within}.res_unit{place[2] + 1}.{parts[inner]}"
    return f"{within}.{'snake1' if place[0] == 'act' else 'conv1' if side == 'encoder' else 'conv_t1'}"


def _arguments(tensors, told, theirs):
    """What weights and config say of an `AudioCodec`."""
    stages = count(tensors, "encoder.block") - (3 if "encoder.block.0.bias" in tensors else 0)
    if stages < 1:
        raise ValueError("encoder.block has no stages")

    def shape(side, layer, inner=""):
        stem = theirs(side, stages, layer, inner)
        return shape_of(tensors, f"{stem}.{weight_kind(tensors, stem)}", 3)

    step, end = UNITS + 2, 1 + stages * (UNITS + 2)
    width, channels, kernel = shape("encoder", 0)
    latent, _, last = shape("encoder", end + 1)
    wide, _, _ = shape("decoder", 0)
    size, dim = shape_of(tensors, "quantizer.quantizers.0.codebook.weight", 2)
    found = {
        "encoder_hidden_size": width,
        "downsampling_ratios": [shape("encoder", (stage + 1) * step)[2] // 2 for stage in range(stages)],
        "decoder_hidden_size": wide,
        "upsampling_ratios": [shape("decoder", 2 + stage * step)[2] // 2 for stage in range(stages)],
        "hidden_size": latent,
        "n_codebooks": count(tensors, "quantizer.quantizers"),
        "codebook_size": size,
        "codebook_dim": dim,
    }
    check_agrees(told, "", **found)
    first = theirs("encoder", stages, 0, "")
    return {
        "sampling_rate": told["sampling_rate"],
        "in_channels": channels,
        "hidden_channels": width,
        "strides": tuple(found["downsampling_ratios"]),
        "decoder_channels": wide,
        "decoder_strides": tuple(found["upsampling_ratios"]),
        "kernel_size": kernel,
        "latent_kernel_size": last,
        "output_kernel_size": shape("decoder", end + 1)[2],
        "num_residual_layers": UNITS,
        "residual_kernel_size": shape("encoder", 1, "block.1")[2],
        "dilation_growth": 3,
        "residual_compress": 1,
        "residual_shortcut": False,
        "activation": "snake",
        "norm": "none" if weight_kind(tensors, first) == "weight" else "weight",
        "causal": False,
        "pad_mode": "constant",
        "pad_input": True,
        "symmetric_trim": True,
        "lstm_layers": 0,
        "output_activation": "tanh",
        "codebook_size": size,
        "codebook_dim": latent,
        "quantizer_type": "residual",
        "quantizer_config": {
            "num_levels": found["n_codebooks"],
            "level_type": "vector",
            "level_dropout": float(told.get("quantizer_dropout", 0.0)),
            "loss_reduction": "sum",
            "level_config": {
                "code_dim": dim,
                "normalize": "search",
                "beta": told.get("commitment_loss_weight", 0.25),
                "restart_threshold": 0.0,
            },
        },
    }

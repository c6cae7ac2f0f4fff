"""EnCodec: the original's checkpoints and transformers' folders."""

import re
import warnings
from typing import Any

from hf_vq.autoencoders import AudioCodec
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.weight_norm import layer_tensor, weight_kind

ORIGINS = {
    "encodec": "https://github.com/facebookresearch/encodec",
    "transformers-encodec": "https://github.com/huggingface/transformers",
}
PUBLISHED: dict[str, dict[str, Any]] = {  # what the two published files do not say of themselves, by their norm
    "weight": {"sampling_rate": 24000, "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0]},
    "time_group": {
        "sampling_rate": 48000, "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "normalize": True, "chunk_length_s": 1.0,
        "overlap": 0.01, "use_causal_conv": False,
    },
}  # fmt: skip
NOTE = (
    "A sound of just one chunk is one chunk here; transformers codes its end once more, as a chunk that the first one "
    "covers."
)


def _original(source):
    return source.has("encoder.model.0.conv.conv.bias", "quantizer.vq.layers.0._codebook.embed")


def _transformers(source):
    return source.has("encoder.layers.0.conv.bias", "quantizer.layers.0.codebook.embed")


@add_format("encodec", ORIGINS["encodec"], _original, notes=(NOTE,))
def plan_original(source: Source) -> Plan:
    return _plan(source, _original_stem, "quantizer.vq.layers", "_codebook")


@add_format("transformers-encodec", ORIGINS["transformers-encodec"], _transformers, notes=(NOTE,))
def plan_transformers(source: Source) -> Plan:
    return _plan(source, lambda tensors, stem: stem, "quantizer.layers", "codebook")


def _plan(source, theirs, levels, codebook):
    tensors = source.tensors
    arguments = _arguments(source, lambda stem: theirs(tensors, stem), levels, codebook)
    unused = [float(take.sum()) <= 0 for take in _each(tensors, levels, f"{codebook}.cluster_size")]

    def weight(name, take):
        level = re.match(r"quantizer\.levels\.(\d+)\.(.+)", name)
        if level:
            stem = f"{levels}.{level[1]}.{codebook}"
            if level[2] == "embedding.weight":
                return take(f"{stem}.embed")
            kept = take(f"{stem}.{'cluster_size' if level[2] == 'cluster_size' else 'embed_avg'}")
            return None if unused[int(level[1])] else kept  # averages that were never filled say nothing
        if ".lstm." in name:
            stem, _, part = name.partition(".lstm.")
            return take(f"{theirs(tensors, stem)}.lstm.{part}")
        stem, part = re.fullmatch(r"(.+?\.(?:conv|norm))\.(.+)", name).groups()
        return layer_tensor(tensors, take, theirs(tensors, stem), part)

    inited = tuple(f"{levels}.{i}.{codebook}.inited" for i in range(count(tensors, levels)))
    return Plan(as_before(AudioCodec, arguments), weight, inited)


def _each(tensors, levels, part):
    return [
        tensors[f"{levels}.{i}.{part}"] for i in range(count(tensors, levels)) if f"{levels}.{i}.{part}" in tensors
    ]


def _original_stem(tensors, stem):
    """The original's name of one of our layers."""
    stem = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", stem)
    outer, _, last = stem.rpartition(".")
    if last not in ("conv", "norm"):
        return stem
    kind = "convtr" if any(name.startswith(f"{outer}.convtr.") for name in tensors) else "conv"
    return f"{outer}.{kind}.{last if last == 'norm' else kind}"


def _told(source, norm):
    """The config; where it has no rate, that of the published file with this norm."""
    told = {key: value for key, value in source.config.items() if value is not None}
    if "sampling_rate" in told:
        return told
    if norm not in PUBLISHED:
        raise ValueError("the weights do not say the sampling rate: give a config with sampling_rate")
    told = {**PUBLISHED[norm], **told}
    warnings.warn(
        f"{source.path} has no config with a sampling_rate: it is taken for EnCodec's published model of "
        f"{told['sampling_rate']} Hz",
        stacklevel=2,
    )
    return told


def _arguments(source, theirs, levels, codebook):
    """What weights and config say of an `AudioCodec`."""
    tensors = source.tensors
    places = range(256)

    def shape(stem):
        return shape_of(tensors, f"{theirs(stem)}.{weight_kind(tensors, theirs(stem))}", 3)

    def there(stem):
        return any(name.startswith(f"{theirs(stem)}.") for name in tensors)

    top = [place for place in places if there(f"encoder.layers.{place}.conv")]
    units = [place for place in places if there(f"encoder.layers.{place}.block.1.conv")]
    stages = top[1:-1]
    if not stages or len(units) % len(stages):
        raise ValueError(f"encoder.layers: {len(units)} residual blocks and {len(stages)} strided convolutions")
    width, channels, kernel = shape("encoder.layers.0.conv")
    latent, _, last = shape(f"encoder.layers.{top[-1]}.conv")
    kind = weight_kind(tensors, theirs("encoder.layers.0.conv"))
    grouped = there("encoder.layers.0.norm")
    norm = "time_group" if grouped else "none" if kind == "weight" else "weight"
    told = _told(source, norm)
    size, dim = shape_of(tensors, f"{levels}.0.{codebook}.embed", 2)
    lstm = next((place for place in places if there(f"encoder.layers.{place}.lstm")), None)
    stem = "" if lstm is None else theirs(f"encoder.layers.{lstm}") + ".lstm.weight_ih_l"
    ratios = [shape(f"encoder.layers.{place}.conv")[2] // 2 for place in reversed(stages)]
    found = {
        "audio_channels": channels,
        "num_filters": width,
        "upsampling_ratios": ratios,
        "num_residual_layers": len(units) // len(stages),
        "kernel_size": kernel,
        "last_kernel_size": last,
        "hidden_size": latent,
        "codebook_size": size,
        "codebook_dim": dim,
        "num_lstm_layers": sum(name.startswith(stem) for name in tensors) if stem else 0,
        "norm_type": {"time_group": "time_group_norm"}.get(norm, "weight_norm"),
    }
    check_agrees(told, "", **found)
    if dim != latent:
        raise ValueError(f"the codebooks' width is {dim}, that of the latents {latent}")
    inner, _, residual_kernel = shape(f"encoder.layers.{units[0]}.block.1.conv") if units else (1, 1, 3)
    check_agrees(told, "", residual_kernel_size=residual_kernel)
    compress = told.get("compress", max(1, width // inner))
    if units and width // compress != inner:
        raise ValueError(f"compress is {compress!r} in the config, but blocks of {width} channels have {inner} inside")
    return {
        "sampling_rate": told["sampling_rate"],
        "in_channels": channels,
        "hidden_channels": width,
        "strides": tuple(reversed(ratios)),
        "kernel_size": kernel,
        "latent_kernel_size": last,
        "output_kernel_size": told.get("last_kernel_size", last),
        "num_residual_layers": found["num_residual_layers"],
        "residual_kernel_size": residual_kernel,
        "dilation_growth": told.get("dilation_growth_rate", 2),
        "residual_compress": compress,
        "residual_shortcut": there(f"encoder.layers.{units[0]}.shortcut.conv") if units else True,
        "norm": norm,
        "causal": told.get("use_causal_conv", True),
        "pad_mode": told.get("pad_mode", "reflect"),
        "trim_right_ratio": told.get("trim_right_ratio", 1.0),
        "lstm_layers": found["num_lstm_layers"],
        "normalize": told.get("normalize", False),
        "chunk_length_s": told.get("chunk_length_s"),
        "overlap": told.get("overlap", 0.0),
        "codebook_size": size,
        "codebook_dim": latent,
        "quantizer_type": "residual",
        "quantizer_config": {"num_levels": count(tensors, levels), "level_dropout": 0.0, "loss_reduction": "sum"},
        "target_bandwidths": tuple(told["target_bandwidths"]) if "target_bandwidths" in told else None,
    }

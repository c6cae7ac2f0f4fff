"""r9y9's WaveNet vocoder: mu-law codes, or waveforms with a mixture of logistics."""

import re

from hf_vq.converters.base import Plan, Source, add_format
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.sources import read_config
from hf_vq.converters.weight_norm import DIRECTIONS, folded, weight_kind
from hf_vq.priors import MixtureWaveNet, MixtureWaveNetConfig, WaveNet, WaveNetConfig

ORIGIN = "https://github.com/r9y9/wavenet_vocoder"
LAYER = {
    "conv": "conv",
    "local_condition": "conv1x1c",
    "global_condition": "conv1x1g",
    "residual": "conv1x1_out",
    "skip": "conv1x1_skip",
}
HEAD = {"hidden": "last_conv_layers.1", "output": "last_conv_layers.3"}
ACTIVATIONS = {"ReLU": "relu", "LeakyReLU": "leaky_relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
QUANTIZED, SCALAR = ("mulaw-quantize",), ("raw", "mulaw")  # values of input_type


def _recognises(source):
    return source.has("first_conv.bias", "conv_layers.0.conv1x1_skip.bias", "last_conv_layers.3.bias")


@add_format("r9y9-wavenet", ORIGIN, _recognises)
def plan_wavenet(source: Source) -> Plan:
    tensors, told = source.tensors, _hparams(source)
    if source.starts("upsample_conv.") or any(name.endswith("conv1x1c.bias") for name in tensors):
        raise ValueError("upsample_conv or conv1x1c.bias: a layout of 2018, whose sums of skips were scaled otherwise")
    layers = count(tensors, "conv_layers")
    out_channels, skip, _ = _shape(tensors, "last_conv_layers.3")
    residual, in_channels, _ = _shape(tensors, "first_conv")
    gates, _, taps = _shape(tensors, "conv_layers.0.conv")
    local = _width(tensors, "conv_layers.0.conv1x1c")
    wide = _width(tensors, "conv_layers.0.conv1x1g")
    speakers = shape_of(tensors, "embed_speakers.weight", 2)[0] if source.has("embed_speakers.weight") else 0
    check_agrees(
        told,
        "",
        layers=layers,
        out_channels=out_channels,
        skip_out_channels=skip,
        residual_channels=residual,
        gate_channels=gates,
        kernel_size=taps,
        **({"n_speakers": speakers} if speakers else {}),
        **({"use_speaker_embedding": speakers > 0} if wide else {}),
    )
    for key, width in (("cin_channels", local), ("gin_channels", wide)):
        check_agrees({key: max(told.get(key, width), 0)}, "", **{key: width})  # -1 is none
    arguments = {
        "residual_channels": residual,
        "gate_channels": gates,
        "skip_channels": skip,
        "num_layers": layers,
        "num_cycles": _num_cycles(source, told, layers),
        "kernel_size": taps,
        "dropout": told.get("dropout", 0.0),
        "num_speakers": speakers,
        "use_global_features": bool(wide) and not speakers,
        **({"global_channels": wide} if wide else {}),
        "local_channels": local,
        **_upsampling(source, told, local),
    }
    scalar = in_channels == 1 and out_channels > 1
    kind = told.get("input_type")
    if kind is not None and kind not in (SCALAR if scalar else QUANTIZED):
        raise ValueError(f"input_type is {kind!r} in the config, but the first layer reads {in_channels} channels")
    check_agrees(told, "", scalar_input=scalar)
    if scalar:
        config = _mixture_config(told, out_channels, arguments)
    else:
        if in_channels != out_channels:
            raise ValueError(f"first_conv reads {in_channels} codes, but last_conv_layers.3 gives {out_channels}")
        check_agrees(told, "", quantize_channels=out_channels)
        silence = (out_channels - 1) // 2  # with which the original begins
        config = WaveNetConfig(codebook_size=out_channels, start_code=silence, **arguments)

    def weight(name, take):
        return _weight(name, lambda stem: folded(tensors, take, stem), take, _smoothing(tensors))

    unused = f"conv_layers.{layers - 1}.conv1x1_out."  # the last residual sum goes nowhere
    return Plan(lambda: (MixtureWaveNet if scalar else WaveNet)(config), weight, (unused,))


def _weight(name, folded, take, smoothing_stems):
    """The tensor of a name in our state dict."""
    if name == "embedding.weight":  # their first layer reads one-hot vectors
        return folded("first_conv")[:, :, 0].T + take("first_conv.bias")
    if name == "speaker_embedding.weight":
        return take("embed_speakers.weight")
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"stack\.layers\.(\d+)\.(\w+)", stem)
    smoothing = re.fullmatch(r"upsampler\.smoothing\.(\d+)", stem)
    if layer:
        theirs = f"conv_layers.{layer[1]}.{LAYER[layer[2]]}"
    elif smoothing:
        return folded(smoothing_stems[int(smoothing[1])])
    elif stem == "upsampler.input_conv":
        theirs = "upsample_net.conv_in"
    else:
        theirs = "first_conv" if stem == "input" else HEAD[stem.removeprefix("stack.")]
    return folded(theirs) if kind == "weight" else take(f"{theirs}.{kind}")


def _shape(tensors, stem):
    return shape_of(tensors, f"{stem}.{weight_kind(tensors, stem)}", 3)


def _width(tensors, stem):
    """Channels that a condition's layer reads; 0 where there is none."""
    return _shape(tensors, stem)[1] if any(f"{stem}.{kind}" in tensors for kind in DIRECTIONS) else 0


def _hparams(source):
    """The original's hparams: of the config given or found, else of the one JSON beside the weights that holds them.

    They are the file's content, or lie in it under "hyperparameters".
    """
    found = [(source.config_path, source.config)]
    if source.config_path is None:
        folder = source.path if source.path.is_dir() else source.path.parent
        found = [(path, read_config(path)) for path in sorted(folder.glob("*.json"))]
    plain = [(path, content) for path, content in found if "stacks" in content]
    nested = [(path, content.get("hyperparameters")) for path, content in found]
    told = plain or [(path, content) for path, content in nested if isinstance(content, dict) and "stacks" in content]
    if len(told) > 1:
        names = ", ".join(str(path) for path, _ in told)
        raise ValueError(f"several files hold hparams, give one of them as the config: {names}")
    return {key: value for key, value in told[0][1].items() if value is not None} if told else {}


def _num_cycles(source, told, layers):
    if "stacks" not in told and layers > 1:
        raise ValueError(
            "the weights do not say how dilations repeat: give the hparams (a JSON file with 'stacks') as the config, "
            f"or put them beside {source.path}"
        )
    cycles = told.get("stacks", 1)
    if not isinstance(cycles, int) or cycles < 1 or layers % cycles:
        raise ValueError(f"stacks is {cycles!r} in the config, but the weights have {layers} layers")
    return cycles


def _smoothing(tensors):
    """Stems of the smoothing convolutions, in order."""
    pattern = re.compile(r"(upsample_net\.(?:upsample\.)?up_layers\.(\d+))\.")
    stems = {int(match[2]): match[1] for match in map(pattern.match, tensors) if match}
    return [stems[place] for place in sorted(stems)]


def _upsampling(source, told, local):
    """Our options of the upsampling network."""
    tensors, stems = source.tensors, _smoothing(source.tensors)
    if not stems:
        check_agrees(told, "", upsample_conditional_features=False)
        return {}
    if not local:
        raise ValueError(f"{stems[0]} upsamples local features, but conv_layers.0 has no conv1x1c")
    shapes = [shape_of(tensors, f"{stem}.{weight_kind(tensors, stem)}", 4) for stem in stems]
    params = told.get("upsample_params") or {}
    scales = [shape[3] // 2 for shape in shapes]
    check_agrees(params, "upsample_params.", upsample_scales=scales, freq_axis_kernel_size=shapes[0][2])
    check_agrees(told, "", upsample_conditional_features=True)
    name = params.get("upsample_activation", "none")
    if name != "none" and name not in ACTIVATIONS:
        raise ValueError(f"upsample_params.upsample_activation must be none or of {', '.join(ACTIVATIONS)}: {name!r}")
    places = [int(stem.rpartition(".")[2]) for stem in stems]  # of stretch, convolution and perhaps activation
    if places != list(range(1, 3 * len(stems), 2 if name == "none" else 3))[: len(stems)]:
        raise ValueError(
            f"upsample_params.upsample_activation is {name!r}, but up_layers has convolutions at {places}"
        )
    context = params.get("cin_pad", told.get("cin_pad", 0))
    input_conv = source.starts("upsample_net.conv_in.")
    if input_conv:
        context = (_shape(tensors, "upsample_net.conv_in")[2] - 1) // 2
        check_agrees(params, "upsample_params.", cin_pad=context)
        check_agrees(told, "", cin_pad=context)
    slope = (params.get("upsample_activation_params") or {}).get("negative_slope", 0.01)
    return {
        "upsample_scales": scales,
        "upsample_context": context,
        "upsample_input_conv": input_conv,
        "upsample_kernel_size": shapes[0][2],
        "upsample_mode": params.get("mode", "nearest"),
        "upsample_activation": ACTIVATIONS.get(name),
        "upsample_negative_slope": slope,
    }


def _mixture_config(told, out_channels, arguments):
    distribution = told.get("output_distribution", "Logistic")
    if distribution != "Logistic" or out_channels % 3:
        raise ValueError(
            f"output_distribution is {distribution!r} with out_channels {out_channels}: only mixtures of logistics, "
            "with 3 channels each, are known"
        )
    return MixtureWaveNetConfig(
        codebook_size=told.get("quantize_channels", 256),  # the defaults of the original's loss
        min_log_scale=told.get("log_scale_min", -7.0),
        num_mixtures=out_channels // 3,
        **arguments,
    )

"""WaveNet beside r9y9's: numbers, other sizes and options, wrong checkpoints."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from hf_vq import AutoVQPrior
from hf_vq.converters import convert
from hf_vq.priors import WaveNet

from .conftest import FIXTURES, fixture
from .test_wavenet import CLOSE

CASES = ["onehot_local", "onehot_global_upsample", "scalar_mixture"]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_converted_checkpoints_agree_with_r9y9_before_and_after_saving(case, tmp_path):
    expected, meta = fixture(f"wavenet_r9y9/{case}")
    (tmp_path / "hparams.json").write_text(json.dumps(meta["hyperparameters"]))
    (tmp_path / "checkpoint.pth").write_bytes((FIXTURES / "wavenet_r9y9" / case / "checkpoint.pth").read_bytes())
    converted = convert(tmp_path / "checkpoint.pth", tmp_path / "out", license="mit")
    conditions = {"local_features": expected["in.c"]}
    if "in.speaker" in expected:
        conditions["speaker_labels"] = expected["in.speaker"][:, 0]
    inputs = expected["in.codes"] if "in.codes" in expected else expected["in.x"][:, 0]
    start = "start_codes" if "in.codes" in expected else "start_values"
    # theirs reads inputs up to the present one and predicts the next: ours with their first input as the start
    following = torch.cat([inputs[:, 1:], inputs[:, :1]], dim=1)
    for prior in (converted, AutoVQPrior.from_pretrained(tmp_path / "out")):
        logits = prior(following, **conditions, **{start: inputs[:, 0]}).logits
        torch.testing.assert_close(logits.transpose(1, 2), expected["out.logits"], **CLOSE)
        steps = prior.start_stack(2, inputs.shape[1], **prior.check_conditions(conditions))
        embedded = prior.embedding(inputs) if "in.codes" in expected else prior.input(inputs[:, None]).transpose(1, 2)
        cached = torch.stack([steps.step(one) for one in embedded.unbind(1)], dim=2)
        torch.testing.assert_close(cached, expected["out.incremental_logits"], **CLOSE)
        if "in.codes" in expected:
            drawn = prior.sample(
                code_shape=inputs.shape[1:], temperature=0, start_codes=expected["in.start_code"], **conditions
            )
            assert torch.equal(drawn, expected["out.greedy_codes"])
        else:
            conditions["local_features"] = expected["in.c"][..., :-1]
            nats = -prior.log_prob(inputs[:, 1:], start_values=inputs[:, 0], **conditions)
            torch.testing.assert_close(nats.double(), expected["out.mixture_nll"].sum((1, 2)), atol=1e-4, rtol=1e-5)
            conditions["local_features"] = expected["in.c"]
        if "out.upsampled_c" in expected:
            torch.testing.assert_close(prior.upsampler(expected["in.c"]), expected["out.upsampled_c"], **CLOSE)


def original_checkpoint(layers, taps, local, wide, speakers, scales, context, input_conv, height, activation, scalar):
    """Random weights in the original's layout, without weight norms, and hparams that fit them."""
    residual, gates, skip, out = 6, 8, 5, 6 if scalar else 7
    weights = {"first_conv": (residual, 1 if scalar else out, 1)}
    for layer in range(layers):
        weights[f"conv_layers.{layer}.conv"] = (gates, residual, taps)
        weights[f"conv_layers.{layer}.conv1x1_out"] = (residual, gates // 2, 1)
        weights[f"conv_layers.{layer}.conv1x1_skip"] = (skip, gates // 2, 1)
    weights |= {"last_conv_layers.1": (skip, skip, 1), "last_conv_layers.3": (out, skip, 1)}
    tensors = {f"{name}.bias": torch.randn(shape[0]) for name, shape in weights.items()}
    for layer in range(layers):
        weights |= {f"conv_layers.{layer}.conv1x1c": (gates, local, 1)} if local else {}
        weights |= {f"conv_layers.{layer}.conv1x1g": (gates, wide, 1)} if wide else {}
    inner = "upsample_net.upsample.up_layers" if input_conv else "upsample_net.up_layers"
    for place, scale in enumerate(scales):
        weights[f"{inner}.{place * (3 if activation else 2) + 1}"] = (1, 1, height, 2 * scale + 1)
    weights |= {"upsample_net.conv_in": (local, local, 2 * context + 1)} if scales and input_conv else {}
    weights |= {"embed_speakers": (speakers, wide)} if speakers else {}
    tensors |= {f"{name}.weight": torch.randn(shape) for name, shape in weights.items()}
    hparams = {
        "layers": layers, "out_channels": out, "residual_channels": residual, "gate_channels": gates,
        "skip_out_channels": skip, "kernel_size": taps, "input_type": "raw" if scalar else "mulaw-quantize",
        "quantize_channels": 65536 if scalar else out, "log_scale_min": -9.0, "dropout": 0.05,
        "cin_channels": local or -1, "gin_channels": wide or -1, "n_speakers": speakers or 7, "cin_pad": context,
        "upsample_conditional_features": bool(scales), "upsample_net": "UpsampleNetwork",
        "upsample_params": {
            "upsample_scales": scales, "freq_axis_kernel_size": height, "upsample_activation": activation or "none",
            "upsample_activation_params": {"negative_slope": 0.3} if activation else {},
        },
    }  # fmt: skip
    return tensors, hparams


def original_logits(tensors, inputs, local, wide, dilations, scales, context, activation):
    """Logits (batch, out, length) of inputs (batch, channels, length), written from the original's description."""

    def conv(name, value, **options):
        return F.conv1d(value, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), **options)

    if "upsample_net.conv_in.weight" in tensors:
        local = conv("upsample_net.conv_in", local)
    smoothing = [tensor for name, tensor in tensors.items() if "up_layers" in name]
    for kernel, scale in zip(smoothing, scales, strict=True):
        local = local.repeat_interleave(scale, dim=2)[:, None]
        local = F.conv2d(local, kernel, padding=(kernel.shape[2] // 2, scale))[:, 0]
        local = F.leaky_relu(local, 0.3) if activation else local
    if smoothing and "upsample_net.conv_in.weight" not in tensors and context:
        local = local[..., context * math.prod(scales) : -context * math.prod(scales)]
    hidden, skips = conv("first_conv", inputs), 0
    for layer, dilation in enumerate(dilations):
        stem = f"conv_layers.{layer}"
        reach = dilation * (tensors[f"{stem}.conv.weight"].shape[2] - 1)
        gates = conv(f"{stem}.conv", hidden, padding=reach, dilation=dilation)[..., : hidden.shape[2]]
        gates = gates + (conv(f"{stem}.conv1x1c", local) if local is not None else 0)
        gates = gates + (conv(f"{stem}.conv1x1g", wide[..., None]) if wide is not None else 0)
        first, second = gates.tensor_split(2, dim=1)
        opened = first.tanh() * second.sigmoid()
        skips = skips + conv(f"{stem}.conv1x1_skip", opened)
        hidden = (conv(f"{stem}.conv1x1_out", opened) + hidden) * math.sqrt(0.5)
    hidden = conv("last_conv_layers.1", F.relu(skips * math.sqrt(1 / len(dilations))))
    return conv("last_conv_layers.3", F.relu(hidden))


@pytest.mark.parametrize("norm", ["none", "old", "new"])
@pytest.mark.parametrize(
    ("sizes", "dilations"),
    [
        ((5, 2, 0, 0, 0, [], 0, True, 1, None, False), [1, 2, 4, 8, 16]),
        ((4, 3, 3, 4, 0, [], 0, True, 1, None, True), [1, 2, 1, 2]),
        ((3, 4, 3, 4, 2, [2, 3], 2, False, 3, "LeakyReLU", False), [1, 1, 1]),
        ((2, 2, 5, 2, 3, [4], 1, True, 3, "LeakyReLU", True), [1, 2]),
        ((1, 3, 2, 0, 0, [3, 1], 0, True, 1, None, False), [1]),
    ],
)
@torch.no_grad()
def test_other_sizes_and_options_convert(sizes, dilations, norm, tmp_path):
    layers, _, local, wide, speakers, scales, context, _, _, activation, scalar = sizes
    tensors, hparams = original_checkpoint(*sizes)
    stored = dict(tensors)
    for name in [name for name in tensors if name.endswith(".weight") and norm != "none" and "embed" not in name]:
        stem, direction = name.removesuffix(".weight"), stored.pop(name)
        magnitude = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.ndim - 1))
        old = norm == "old"
        stored[f"{stem}.weight_g" if old else f"{stem}.parametrizations.weight.original0"] = magnitude
        stored[f"{stem}.weight_v" if old else f"{stem}.parametrizations.weight.original1"] = 3 * direction
    torch.save({"state_dict": stored, "optimizer": {"state": {}}, "global_step": 1}, tmp_path / "checkpoint.pth")
    (tmp_path / "hparams.json").write_text(json.dumps({**hparams, "stacks": layers // (dilations[-1].bit_length())}))
    prior = convert(tmp_path, tmp_path / "out", license="mit")
    assert prior.config.dropout == 0.05
    if scalar:
        assert (prior.config.codebook_size, prior.config.min_log_scale) == (65536, -9.0)
    frames = prior.upsampler.num_frames(12) if scales else 12
    local = torch.randn(2, local, frames) if local else None
    conditions = {} if local is None else {"local_features": local}
    if speakers:
        conditions["speaker_labels"] = torch.tensor([speakers - 1, 0])
        wide = tensors["embed_speakers.weight"][conditions["speaker_labels"]]
    elif wide:
        wide = conditions["global_features"] = torch.randn(2, wide)
    else:
        wide = None
    inputs = torch.rand(2, 13) * 2 - 1 if scalar else torch.randint(7, (2, 13))
    channels = inputs[:, None, :-1] if scalar else F.one_hot(inputs[:, :-1], 7).float().transpose(1, 2)
    expected = original_logits(tensors, channels, local, wide, dilations, scales, context, activation)
    start = {"start_values" if scalar else "start_codes": inputs[:, 0]}
    logits = prior(inputs[:, 1:], **conditions, **start).logits.transpose(1, 2)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "changes", "words"),
    [
        ("onehot_local", {"stacks": None}, "'stacks'"),
        ("onehot_local", {"stacks": 4}, "stacks is 4 in the config, but the weights have 6 layers"),
        ("onehot_local", {"layers": 8}, "layers is 8 in the config, but the weights say 6"),
        ("onehot_local", {"cin_channels": -1}, "cin_channels is 0 in the config, but the weights say 9"),
        ("onehot_local", {"input_type": "raw"}, "input_type is 'raw'"),
        ("onehot_local", {"upsample_conditional_features": True}, "upsample_conditional_features is True"),
        ("scalar_mixture", {"output_distribution": "Normal"}, "output_distribution is 'Normal'"),
        ("scalar_mixture", {"scalar_input": False}, "scalar_input is False"),
        ("onehot_global_upsample", {"gin_channels": 6}, "gin_channels is 6"),
        ("onehot_global_upsample", {"upsample_params": {"upsample_scales": [2, 3]}}, r"upsample_scales is \[2, 3\]"),
        (
            "onehot_global_upsample",
            {"upsample_params": {"upsample_activation": "ReLU"}},
            "upsample_activation is 'ReLU'",
        ),
        ("onehot_global_upsample", {"upsample_params": {"cin_pad": 2}}, "cin_pad is 2"),
    ],
)
def test_hparams_that_do_not_fit_are_named_and_nothing_is_written(case, changes, words, tmp_path):
    hparams = fixture(f"wavenet_r9y9/{case}")[1]["hyperparameters"]
    config = tmp_path / "hparams.json"
    config.write_text(json.dumps({**hparams, **changes} if changes != {"stacks": None} else {"layers": 6}))
    with pytest.raises(ValueError, match=words):
        convert(FIXTURES / "wavenet_r9y9" / case / "checkpoint.pth", tmp_path / "out", config=config)
    assert not (tmp_path / "out").exists()


def test_layouts_of_2018_are_refused(tmp_path):
    tensors, _ = original_checkpoint(1, 2, 3, 0, 0, [], 0, True, 1, None, False)
    tensors["conv_layers.0.conv1x1c.bias"] = torch.zeros(8)
    torch.save(tensors, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="2018"):
        WaveNet.from_single_file(tmp_path / "checkpoint.pth")

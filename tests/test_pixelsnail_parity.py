"""PixelSNAIL beside rosinality's network: numbers, other sizes, wrong checkpoints."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F

import hf_vq
from hf_vq.converters import convert
from hf_vq.priors.pixelsnail import PixelSNAIL

from .conftest import FIXTURES, fixture
from .test_pixelsnail import ORIGINAL, cached_logits

SYSTEM = FIXTURES / "vqvae2"


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_the_originals_numbers_before_and_after_saving(level, tmp_path):
    tensors = fixture("vqvae2")[0]
    converted = convert(SYSTEM / f"pixelsnail_{level}.pt", tmp_path / "out", license="mit")
    assert converted.config.code_shape == tuple(tensors[f"codes_{level}"].shape[1:])
    conditions = {"context_codes": (tensors["codes_top"],)} if level == "bottom" else {}
    batch_size = None if conditions else 2
    for prior in (converted, hf_vq.AutoVQPrior.from_pretrained(tmp_path / "out")):
        with torch.no_grad():
            output = prior(tensors[f"codes_{level}"], **conditions)
            greedy_logits = prior(tensors[f"greedy_{level}"], **conditions).logits
        torch.testing.assert_close(output.logits.movedim(-1, 1), tensors[f"prior_{level}_logits"], **ORIGINAL)
        torch.testing.assert_close(output.loss, tensors[f"prior_{level}_ce"], **ORIGINAL)
        torch.testing.assert_close(greedy_logits.movedim(-1, 1), tensors[f"greedy_{level}_logits"], **ORIGINAL)
        greedy = prior.sample(batch_size, temperature=0, **conditions)
        assert torch.equal(greedy, tensors[f"greedy_{level}"])


class Original:
    """rosinality's network on random weights of its names, drawn as they are asked for."""

    def __init__(self, options):
        self.options, self.tensors = options, {}

    def folded(self, name, *shape):
        direction = self.tensors.setdefault(f"{name}.weight_v", torch.randn(shape))
        ones = [1] * (len(shape) - 1)
        length = self.tensors.setdefault(f"{name}.weight_g", torch.rand(shape[0], *ones) + 0.5)
        if ".resblocks." in name and ".conv.conv" in name:
            direction = direction.clone()
            direction[:, :, -1, shape[-1] // 2 :] = 0
        return length * direction / direction.flatten(1).norm(dim=1).view(-1, *ones)

    def bias(self, name, size):
        return self.tensors.setdefault(f"{name}.bias", torch.randn(size))

    def conv(self, name, inputs, channels, kernel=(1, 1), pad=(0, 0, 0, 0), bias=True):
        weight = self.folded(f"{name}.conv", channels, inputs.shape[1], *kernel)
        return F.conv2d(F.pad(inputs, pad), weight, self.bias(f"{name}.conv", channels) if bias else None)

    def gated(self, name, inputs, width, kernel=1, causal=False, extra=None, condition=None):
        reach = kernel // 2
        pad = (reach, reach, kernel - 1, 0) if causal else (reach,) * 4
        suffix = ".conv" if causal else ""
        hidden = self.conv(f"{name}.conv1{suffix}", F.elu(inputs), width, (kernel, kernel), pad)
        if extra is not None:
            hidden = hidden + self.conv(f"{name}.aux_conv", F.elu(extra), width)
        gates = self.conv(f"{name}.conv2{suffix}", F.elu(hidden), 2 * inputs.shape[1], (kernel, kernel), pad)
        if condition is not None:
            gates = gates + self.conv(f"{name}.condition", condition, 2 * inputs.shape[1], bias=False)
        return inputs + F.glu(gates, 1)

    def attend(self, name, queries, keys, channels):
        def heads(part, inputs):
            weight = self.folded(f"{name}.{part}", channels, inputs.shape[1])
            flat = F.linear(inputs.flatten(2).transpose(1, 2), weight, self.bias(f"{name}.{part}", channels))
            return flat.unflatten(2, (8, -1)).transpose(1, 2)

        query, key, value = heads("query", queries), heads("key", keys), heads("value", keys)
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        before = torch.ones(scores.shape[-2:]).tril(-1)
        weights = scores.masked_fill(before == 0, -1e4).softmax(-1) * (torch.arange(len(before)) > 0)[:, None]
        return (weights @ value).transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, queries.shape[2:])

    def __call__(self, codes, top=None):
        o = self.options
        size, channels, kernel = o["n_class"], o["channel"], o["kernel_size"]
        height, width = codes.shape[1:]
        inputs, half = F.one_hot(codes, size).movedim(-1, 1).float(), kernel // 2
        above = self.conv("horizontal.conv", inputs, channels, (half, kernel), (half, half, half - 1, 0))
        left = self.conv("vertical.conv", inputs, channels, (half + 1, half), (half - 1, 0, half, 0))
        x = F.pad(above, (0, 0, 1, 0))[:, :, :height] + F.pad(left, (1, 0))[..., :width]
        rows, columns = torch.arange(height) / height - 0.5, torch.arange(width) / width - 0.5
        background = torch.stack([rows[:, None].expand(height, width), columns.expand(height, width)])[None]
        self.tensors["background"], condition = background, None
        background = background.expand(len(codes), -1, -1, -1)
        if top is not None:
            wide, around = o["cond_res_channel"], o["cond_res_kernel"]
            condition = F.one_hot(top, size).movedim(-1, 1).float()
            condition = self.conv("cond_resnet.blocks.0", condition, wide, (around, around), (around // 2,) * 4)
            for index in range(o["n_cond_res_block"]):
                condition = self.gated(f"cond_resnet.blocks.{index + 1}", condition, wide, around)
            condition = F.interpolate(condition, scale_factor=2)[:, :, :height]
        for index in range(o["n_block"]):
            name, start = f"blocks.{index}", x
            for layer in range(o["n_res_block"]):
                x = self.gated(f"{name}.resblocks.{layer}", x, o["res_channel"], kernel, True, condition=condition)
            if not o["attention"]:
                x = self.conv(f"{name}.out", torch.cat([x, background], 1), channels)
                continue
            keys = self.gated(f"{name}.key_resblock", torch.cat([start, x, background], 1), channels)
            queries = self.gated(f"{name}.query_resblock", torch.cat([x, background], 1), channels)
            attended = self.attend(f"{name}.causal_attention", queries, keys, channels // 2)
            x = self.gated(f"{name}.out_resblock", x, channels, extra=attended)
        for index in range(o["n_out_res_block"]):
            x = self.gated(f"out.{index}", x, o["res_channel"])
        return self.conv(f"out.{o['n_out_res_block'] + 1}", F.elu(x), size)


SIZES = {
    "top": {"n_class": 9, "channel": 16, "kernel_size": 3, "n_block": 1, "n_res_block": 3, "n_out_res_block": 2},
    "top, 7x7": {"n_class": 5, "channel": 33, "kernel_size": 7, "n_block": 3, "n_res_block": 1, "n_out_res_block": 0},
    "bottom": {
        "n_class": 12, "channel": 10, "kernel_size": 5, "n_block": 3, "n_res_block": 2, "n_out_res_block": 1,
        "attention": False, "n_cond_res_block": 1, "cond_res_channel": 14, "cond_res_kernel": 5,
    },
    "bottom with attention": {
        "n_class": 12, "channel": 16, "kernel_size": 3, "n_block": 1, "n_res_block": 1, "n_out_res_block": 0,
        "n_cond_res_block": 3, "cond_res_channel": 6, "cond_res_kernel": 1,
    },
}  # fmt: skip


def write(name, folder, args=True, change=None):
    """A checkpoint as the training script writes it, what its network gives, and the inputs."""
    options = {"res_channel": 6, "attention": True, "cond_res_kernel": 3, **SIZES[name]}
    original = Original(options)
    codes = torch.randint(options["n_class"], (2, 6, 4))
    top = torch.randint(options["n_class"], (2, 3, 2)) if "cond_res_channel" in options else None
    logits = original(codes, top).movedim(1, -1)
    told = {
        "hier": "top" if top is None else "bottom", "channel": options["channel"], "dropout": 0.25, "sched": None,
        "n_res_block": options["n_res_block"], "n_res_channel": 6, "n_out_res_block": options["n_out_res_block"],
        "n_cond_res_block": options.get("n_cond_res_block", 3),
    }  # fmt: skip
    if change is not None:
        change(original.tensors, told)
    path = folder / "prior.pt"
    content = {"model": original.tensors, "args": Namespace(**told)}
    torch.save(content if args else original.tensors, path)
    return path, codes, {} if top is None else {"context_codes": (top,)}, logits


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("args", [True, False], ids=["args", "bare"])
@torch.no_grad()
def test_other_sizes_agree_with_the_original(name, args, tmp_path):
    path, codes, conditions, logits = write(name, tmp_path, args)
    prior = PixelSNAIL.from_single_file(path)
    assert prior.config.dropout == (0.25 if args else 0.1)
    assert prior.config.code_shape == (6, 4)
    torch.testing.assert_close(prior(codes, **conditions).logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cached_logits(prior, codes, **conditions), logits, rtol=1e-4, atol=1e-4)


KEY = "blocks.0.resblocks.0.conv1.conv.conv.weight_v"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors, args: tensors.pop(KEY), KEY),
        (lambda tensors, args: tensors.pop("background"), "background"),
        (lambda tensors, args: tensors["background"].add_(1), "background"),
        (lambda tensors, args: tensors.update({KEY: torch.ones(3)}), f"{KEY}.*4 dimensions"),
        (lambda tensors, args: tensors[KEY].mul_(0), "conv1.conv.conv.weight_v.*zeros"),
        (lambda tensors, args: tensors.update({"blocks.0.more.bias": torch.ones(3)}), "blocks.0.more.bias"),
        (lambda tensors, args: args.update(channel=32), "args.channel is 32.*16"),
        (lambda tensors, args: args.update(n_out_res_block=4), "args.n_out_res_block is 4.*2"),
        (lambda tensors, args: args.update(hier="bottom"), "args.hier is 'bottom'.*cond_resnet"),
        (lambda tensors, args: args.update(dropout="much"), "args.dropout must be a number.*much"),
    ],
)
def test_a_wrong_checkpoint_names_file_and_key(change, words, tmp_path):
    path, *_ = write("top", tmp_path, change=change)
    with pytest.raises(ValueError, match=words) as error:
        convert(path, tmp_path / "out")
    assert "prior.pt" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_config_beside_the_weights_must_agree(tmp_path):
    shutil.copy(SYSTEM / "pixelsnail_top.pt", tmp_path)
    told = json.loads((SYSTEM / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"top": told["top"] | {"n_block": 5}}))
    with pytest.raises(ValueError, match=r"top\.n_block is 5 .* the weights say 2"):
        convert(tmp_path / "pixelsnail_top.pt", tmp_path / "out")

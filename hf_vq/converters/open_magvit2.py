"""Open-MAGVIT2 (TencentARC/SEED-Voken): names and sizes of its tensors."""

import re
from typing import Any

import torch

from hf_vq.arguments import check_argument
from hf_vq.autoencoders import MAGVIT2Model
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.taming import model_config

AVERAGES = "model_ema."  # followed by a plain name without its dots
_PARTS = (
    (r"encoder\.stem\.", "encoder.conv_in."),
    (r"encoder\.to_latents\.", "encoder.conv_out."),
    (r"decoder\.from_latents\.", "decoder.conv_in."),
    (r"decoder\.output\.", "decoder.conv_out."),
    (r"(en|de)coder\.norm\.", r"\1coder.norm_out."),
    (r"(en|de)coder\.middle\.(\d+)\.", r"\1coder.mid_block.\2."),
    (r"encoder\.levels\.(\d+)\.downsample\.", r"encoder.down.\1.downsample."),
    (r"decoder\.levels\.(\d+)\.upsample\.conv\.", r"decoder.up.\1.upsample.conv1."),
    (r"encoder\.levels\.(\d+)\.blocks\.", r"encoder.down.\1.block."),
    (r"decoder\.levels\.(\d+)\.blocks\.", r"decoder.up.\1.block."),
    (r"decoder\.levels\.(\d+)\.norm\.to_scale\.", r"decoder.adaptive.\1.gamma."),
    (r"decoder\.levels\.(\d+)\.norm\.to_shift\.", r"decoder.adaptive.\1.beta."),
)


def original_name(name: str) -> str:
    """The name in Open-MAGVIT2 of a tensor of `MAGVIT2Model`."""
    for ours, theirs in _PARTS:
        name = re.sub("^" + ours, theirs, name)
    return name.replace(".shortcut.", ".nin_shortcut.")


def _recognises(source):
    return source.starts("decoder.adaptive.0.gamma.") and source.has("encoder.mid_block.0.conv1.weight")


@add_format("open-magvit2", "https://github.com/TencentARC/SEED-Voken", _recognises)
def plan_open_magvit2(source: Source) -> Plan:
    config = model_config(source.config).get("params") or {}
    arguments = open_magvit2_config(source.tensors, config)
    averaged = source.starts(AVERAGES) and config.get("use_ema", True)  # what the authors evaluate

    def weight(name, take):
        theirs = original_name(name)
        tensor = take(theirs)
        return take(AVERAGES + theirs.replace(".", "")) if averaged else tensor

    return Plan(as_before(MAGVIT2Model, arguments), weight, (AVERAGES, "loss."))


def open_magvit2_config(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `MAGVIT2Model`.

    Args:
        tensors: the original state dict.
        config: `init_args` of the original's config, or {}: checked against the weights; it gives the loss's weights.

    Raises:
        ValueError: a tensor that is missing, or a config that disagrees with the weights, naming the key.
    """
    stem, in_channels, *_ = shape_of(tensors, "encoder.conv_in.weight", 4)
    dim = shape_of(tensors, "encoder.conv_out.weight", 4)[0]
    out_channels = shape_of(tensors, "decoder.conv_out.weight", 4)[0]
    if out_channels != in_channels:
        raise ValueError(f"decoder.conv_out.weight makes {out_channels} channels of samples that have {in_channels}")
    widths = [
        shape_of(tensors, f"encoder.down.{stage}.block.0.conv1.weight", 4)[0]
        for stage in range(count(tensors, "encoder.down"))
    ]
    num_layers = count(tensors, "encoder.mid_block")
    stacks = [f"{side}.{stage}.block" for side in ("encoder.down", "decoder.up") for stage in range(len(widths))]
    for stack in ("decoder.mid_block", *stacks):
        if count(tensors, stack) != num_layers:
            raise ValueError(f"{stack} has {count(tensors, stack)} blocks, but encoder.mid_block has {num_layers}")

    network = config.get("ddconfig", {})
    check_agrees(
        network, "ddconfig.", in_channels=in_channels, out_ch=out_channels, z_channels=dim, ch=stem,
        num_res_blocks=num_layers, double_z=False,
    )  # fmt: skip
    if "ch_mult" in network:
        check_agrees({"ch_mult": [stem * factor for factor in network["ch_mult"]]}, "ch x ddconfig.", ch_mult=widths)
    check_agrees(config, "", n_embed=2**dim, embed_dim=dim)
    weights = config.get("lossconfig", {}).get("params", {})
    sample, batch = (config.get(f"{term}_weight", 1.0) for term in ("sample_minimization", "batch_maximization"))
    check_argument("sample_minimization_weight", sample, float)
    check_argument("batch_maximization_weight", batch, float)
    if sample <= 0:
        raise ValueError(f"sample_minimization_weight must be above 0, got {sample!r}")
    return {
        "in_channels": in_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": num_layers,
        "stem_channels": stem,
        "norm_num_groups": 32,  # the same in every model of the original
        "codebook_size": 2**dim,
        "codebook_dim": dim,
        "quantizer_type": "lookup_free",
        "quantizer_config": {
            "first_bit": "least",
            "beta": weights.get("commit_weight", 0.25),
            "entropy_weight": weights.get("codebook_weight", 0.1) * sample,
            "diversity": batch / sample,
            "entropy_offset": 1e-5,
        },
    }

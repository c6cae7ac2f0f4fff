"""taming-transformers' convolutional encoder and decoder, which VQGAN's heirs share: names and sizes of tensors."""

import re
from typing import Any

import torch

from hf_vq.converters.shapes import check_agrees, count, shape_of

_PARTS = (
    (r"(en|de)coder\.mid_block\.resnets\.(\d+)\.", lambda m: f"{m[1]}coder.mid.block_{int(m[2]) + 1}."),
    (r"(en|de)coder\.mid_block\.attentions\.0\.", lambda m: f"{m[1]}coder.mid.attn_1."),
    (r"(en|de)coder\.conv_norm_out\.", lambda m: f"{m[1]}coder.norm_out."),
    (r"encoder\.down_blocks\.(\d+)\.", lambda m: f"encoder.down.{m[1]}."),
)
_LAYERS = (
    (".resnets.", ".block."),
    (".attentions.", ".attn."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)


def original_name(name: str, num_stages: int) -> str:
    """The name in taming's checkpoints of a tensor of diffusers' Encoder or Decoder.

    Args:
        name: such as "encoder.down_blocks.0.resnets.1.conv1.weight".
        num_stages: stages of the network; taming counts those of the decoder from the finest.
    """
    up = re.match(r"decoder\.up_blocks\.(\d+)\.", name)
    if up:
        name = f"decoder.up.{num_stages - 1 - int(up[1])}." + name[up.end() :]
    for pattern, replacement in _PARTS:
        name = re.sub("^" + pattern, replacement, name)
    for ours, theirs in _LAYERS:
        name = name.replace(ours, theirs)
    return name


def network_arguments(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], section: str = "ddconfig."
) -> dict[str, Any]:
    """What the tensors say of the network, checked against its section of the original's config.

    Args:
        tensors: the original state dict, names as taming's.
        config: the section, such as taming's `ddconfig`, or {}. Sizes in it are of squares, or (height, width).
        section: its name with a dot, for messages.

    Returns:
        dict of `in_channels`, `out_channels`, `widths` and `decoder_widths` (fine to coarse), `attention` (of each
        stage), `mid_block_add_attention`, `layers_per_block`, `latent_channels`, `stem_channels`.

    Raises:
        ValueError: a tensor that is missing, or a config that disagrees with the weights, naming the key.
    """
    stem, in_channels, *_ = shape_of(tensors, "encoder.conv_in.weight", 4)
    latent_channels = shape_of(tensors, "encoder.conv_out.weight", 4)[0]
    stages, layers = max(1, count(tensors, "encoder.down")), count(tensors, "encoder.down.0.block")
    widths = [shape_of(tensors, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(stages)]
    decoder_widths = [shape_of(tensors, f"decoder.up.{i}.block.0.conv1.weight", 4)[0] for i in range(stages)]
    attention = [f"encoder.down.{i}.attn.0.q.weight" in tensors for i in range(stages)]
    for stage in range(stages):
        _check_both(tensors, f"encoder.down.{stage}.attn.0.q.weight", f"decoder.up.{stage}.attn.0.q.weight")
    middle = _check_both(tensors, "encoder.mid.attn_1.q.weight", "decoder.mid.attn_1.q.weight")
    for width in {stem, *widths, *decoder_widths}:
        if width % 32:
            raise ValueError(f"the norms have 32 groups, but a stage has {width} channels")
    out_channels = shape_of(tensors, "decoder.conv_out.weight", 4)[0]
    check_agrees(
        config, section, in_channels=in_channels, out_ch=out_channels, ch=stem, num_res_blocks=layers,
        z_channels=latent_channels, double_z=False,
    )  # fmt: skip
    if "ch_mult" in config:
        check_agrees({"widths": [stem * factor for factor in config["ch_mult"]]}, "ch x ch_mult, ", widths=widths)
    if "attn_resolutions" in config and "resolution" in config and config.get("attn_type", "vanilla") != "none":
        sizes = [[side // 2**stage for side in _as_pair(config["resolution"])] for stage in range(stages)]
        asked = [*map(_as_pair, config["attn_resolutions"])]
        told = [size for size in sizes if size in asked]
        found = [size for size, there in zip(sizes, attention, strict=True) if there]
        check_agrees({"attn_resolutions": told}, section, attn_resolutions=found)
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "widths": tuple(widths),
        "decoder_widths": tuple(decoder_widths),
        "attention": tuple(attention),
        "mid_block_add_attention": middle,
        "layers_per_block": layers,
        "latent_channels": latent_channels,
        "stem_channels": None if stem == widths[0] else stem,
    }


def _as_pair(size):
    """Height and width of a size that may be that of a square."""
    return list(size) if isinstance(size, list | tuple) else [size, size]


def _check_both(tensors, *names):
    """Whether tensors of encoder and decoder are there; one alone is an error."""
    there = [name for name in names if name in tensors]
    if len(there) == 1:
        lacking = names[1 - names.index(there[0])]
        raise ValueError(f"attention is in both of encoder and decoder or in none: there is {there[0]}, no {lacking}")
    return bool(there)


def vq_model_arguments(network: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `VQModel` for the network, from `network_arguments`."""
    attention, widths, decoder_widths = network["attention"], network["widths"], network["decoder_widths"]
    return {
        "in_channels": network["in_channels"],
        "out_channels": network["out_channels"],
        "down_block_types": tuple("AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in attention),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in attention[::-1]),
        "block_out_channels": widths,
        "decoder_block_out_channels": None if decoder_widths == widths else decoder_widths,
        "layers_per_block": network["layers_per_block"],
        "latent_channels": network["latent_channels"],
        "mid_block_add_attention": network["mid_block_add_attention"],
        "stem_channels": network["stem_channels"],
    }

"""OpenAI's discrete VAE of DALL-E: encoder and decoder are two files."""

import re

from hf_vq.autoencoders import DVAE
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of

ORIGIN = "https://github.com/openai/DALL-E"
ENCODER, DECODER = "encoder.blocks.", "decoder.blocks."


def _recognises(source):
    return source.has(f"{ENCODER}input.w", f"{DECODER}input.w")


@add_format("dalle-dvae", ORIGIN, _recognises)
def plan_dalle(source: Source) -> Plan:
    tensors = source.tensors
    groups = count(tensors, f"{ENCODER}group", "_") - 1  # they are counted from one
    layers = count(tensors, f"{ENCODER}group_1.block", "_") - 1
    width, in_channels, *_ = shape_of(tensors, f"{ENCODER}input.w", 4)
    size = shape_of(tensors, f"{ENCODER}output.conv.w", 4)[0]
    dim, vocabulary, *_ = shape_of(tensors, f"{DECODER}input.w", 4)
    if vocabulary != size:
        raise ValueError(f"decoder.blocks.input.w reads {vocabulary} codes, encoder.blocks.output.conv.w makes {size}")
    out_channels = shape_of(tensors, f"{DECODER}output.conv.w", 4)[0]
    if out_channels != 2 * in_channels:
        raise ValueError(f"decoder.blocks.output.conv.w must make {2 * in_channels} channels, got {out_channels}")
    common = {"group_count": groups, "n_hid": width, "n_blk_per_group": layers, "vocab_size": size}
    check_agrees(source.config.get("encoder") or {}, "encoder.", input_channels=in_channels, **common)
    check_agrees(source.config.get("decoder") or {}, "decoder.", output_channels=in_channels, n_init=dim, **common)
    widths = [
        shape_of(tensors, f"{ENCODER}group_{index + 1}.block_1.res_path.conv_4.w", 4)[0] for index in range(groups)
    ]
    arguments = {
        "in_channels": in_channels,
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "codebook_size": size,
        "codebook_dim": dim,
    }

    def weight(name, take):
        if name == "quantizer.steps":
            return None
        if name == "quantizer.embedding.weight":  # the decoder's first convolution reads one-hot codes
            kernel = take(f"{DECODER}input.w")
            return kernel[:, :, 0, 0].T + take(f"{DECODER}input.b")
        return take(_original_name(name))

    return Plan(as_before(DVAE, arguments), weight)


def _original_name(name):
    stem, _, kind = name.rpartition(".")
    ends = {
        "encoder_input": f"{ENCODER}input",
        "quantizer.proj": f"{ENCODER}output.conv",
        "decoder_output": f"{DECODER}output.conv",
    }
    if stem not in ends:
        side, group, block, part = re.fullmatch(r"(\w+)_groups\.(\d+)\.blocks\.(\d+)\.(.+)", stem).groups()
        part = "id_path" if part == "shortcut" else f"res_path.conv_{int(part.removeprefix('convs.')) + 1}"
        ends[stem] = f"{side}.blocks.group_{int(group) + 1}.block_{int(block) + 1}.{part}"
    return f"{ends[stem]}.{'w' if kind == 'weight' else 'b'}"

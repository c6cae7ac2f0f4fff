"""rosinality's PixelSNAIL, the priors of its VQ-VAE-2: `pixelsnail_top_*.pt` and `pixelsnail_bottom_*.pt`."""

import re

import torch

from hf_vq.converters.base import Plan, Source, add_format
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.priors import PixelSNAIL, PixelSNAILConfig
from hf_vq.priors.pixelsnail_layers import coordinates

ORIGIN = "https://github.com/rosinality/vq-vae-2-pytorch"
NUM_HEADS = 8  # fixed there, and no shape tells
DROPOUT = 0.1  # its default
FIRST = {"above": "horizontal", "left": "vertical"}  # what the original calls them
BLOCK = {"key_layer": "key_resblock", "query_layer": "query_resblock", "attention": "causal_attention"}


def _recognises(source):
    return source.starts("horizontal.conv.conv.") and source.starts("blocks.0.resblocks.0.conv1.conv.conv.")


@add_format("rosinality-pixelsnail", ORIGIN, _recognises)
def plan_pixelsnail(source: Source) -> Plan:
    tensors = source.tensors
    config = _read_config(tensors)
    told = source.rest.get("args") or {}
    _check_config(config, told, source.config)
    dropout = told.get("dropout", DROPOUT)
    if not isinstance(dropout, (int, float)):
        raise ValueError(f"args.dropout must be a number, got {dropout!r}")
    config = PixelSNAILConfig(**config, dropout=dropout)
    num_outputs, reach = config.num_output_layers, config.kernel_size // 2

    def folded(name, take, causal=False):
        """A weight without its weight norm; a causal one first without what the original masks before the norm."""
        direction, length = take(f"{name}.weight_v"), take(f"{name}.weight_g")
        if causal:
            direction = direction.clone()
            direction[:, :, -1, reach:] = 0
        norm = direction.flatten(1).norm(dim=1).view([-1] + [1] * (direction.ndim - 1))
        if not norm.all():
            raise ValueError(f"{name}.weight_v has an output channel of zeros: its weight norm is not defined")
        return direction * (length.view_as(norm) / norm)

    def weight(name, take):
        stem, _, kind = name.rpartition(".")
        causal = re.fullmatch(r"blocks\.(\d+)\.residual_layers\.(\d+)\.(conv\d)\.(above|left)", stem)
        if causal:
            theirs = f"blocks.{causal[1]}.resblocks.{causal[2]}.{causal[3]}.conv.conv"
            if kind == "bias":
                return take(f"{theirs}.bias")
            tensor = folded(theirs, take, causal=True)
            return tensor[:, :, :-1] if causal[4] == "above" else tensor[:, :, -1:, :reach]
        theirs = _original_name(stem, num_outputs)
        return folded(theirs, take) if kind == "weight" else take(f"{theirs}.bias")

    return Plan(lambda: PixelSNAIL(config), weight, ignored=("background",))


def _read_config(tensors):
    """What the shapes say."""
    channels, size, _, kernel_size = shape_of(tensors, "horizontal.conv.conv.weight_v", 4)
    _, ones, height, width = shape_of(tensors, "background", 4)
    if height < 1 or width < 1 or ones != 2:
        raise ValueError(f"background must be (1, 2, height, width), got {tuple(tensors['background'].shape)}")
    expected = coordinates((height, width), tensors["background"].float())
    if not torch.allclose(tensors["background"].float(), expected, atol=1e-3):
        raise ValueError("background is not the coordinates of its grid: this is another network")
    config = {
        "codebook_size": size,
        "code_shape": (height, width),
        "hidden_channels": channels,
        "kernel_size": kernel_size,
        "num_blocks": count(tensors, "blocks"),
        "num_residual_layers": count(tensors, "blocks.0.resblocks"),
        "residual_channels": shape_of(tensors, "blocks.0.resblocks.0.conv1.conv.conv.weight_v", 4)[0],
        "attention": any(name.startswith("blocks.0.causal_attention.") for name in tensors),
        "num_attention_heads": NUM_HEADS,
        "sees_row_ends": False,
        "num_output_layers": max(0, count(tensors, "out") - 2),  # then an ELU and the logits
    }
    if any(name.startswith("cond_resnet.") for name in tensors):
        condition, size, kernel_size, _ = shape_of(tensors, "cond_resnet.blocks.0.conv.weight_v", 4)
        config |= {
            "context_codebook_sizes": (size,),
            "num_context_layers": count(tensors, "cond_resnet.blocks") - 1,
            "context_kernel_size": kernel_size,
            "condition_channels": condition,
        }
    return config


def _check_config(config, args, sections):
    """The arguments of the training script, which are in the file, and those of a config beside it."""
    conditioned = "context_codebook_sizes" in config
    grid = args.get("hier") or ("bottom" if conditioned else "top")
    if grid == "bottom" and not conditioned:
        raise ValueError("args.hier is 'bottom', but there is no tensor 'cond_resnet.blocks.0.conv.weight_v'")
    if grid == "top" and conditioned:
        raise ValueError("args.hier is 'top', but there are tensors 'cond_resnet.'")
    shared = {"channel": config["hidden_channels"], "n_res_block": config["num_residual_layers"]}
    context = {"n_cond_res_block": config["num_context_layers"]} if conditioned else {}
    outputs = {} if conditioned else {"n_out_res_block": config["num_output_layers"]}  # the script's bottom has none
    check_agrees(args, "args.", n_res_channel=config["residual_channels"], **shared, **context, **outputs)
    if conditioned:
        context["cond_res_channel"] = config["condition_channels"]
        context["cond_res_kernel"] = config["context_kernel_size"]
    check_agrees(
        sections.get(grid) or {},
        f"{grid}.",
        shape=list(config["code_shape"]),
        n_class=config["codebook_size"],
        kernel_size=config["kernel_size"],
        n_block=config["num_blocks"],
        res_channel=config["residual_channels"],
        attention=config["attention"],
        n_out_res_block=config["num_output_layers"],
        **shared,
        **context,
    )


def _original_name(stem, num_outputs):
    """Their name of a layer that is not causal."""
    part, _, rest = stem.partition(".")
    if part == "first":
        return f"{FIRST[rest]}.conv.conv"
    if part == "head":
        return f"out.{num_outputs + 1}.conv"
    if part == "output_layers":
        return f"out.{rest}.conv"
    if part == "contexts":
        layer = re.fullmatch(r"0\.layers\.(\d+)\.(conv\d)", rest)
        return f"cond_resnet.blocks.{int(layer[1]) + 1}.{layer[2]}.conv" if layer else "cond_resnet.blocks.0.conv"
    index, _, rest = rest.partition(".")
    condition = re.fullmatch(r"residual_layers\.(\d+)\.condition", rest)
    if condition:
        return f"blocks.{index}.resblocks.{condition[1]}.condition.conv"
    if rest == "output":  # without attention
        return f"blocks.{index}.out.conv"
    layer, _, rest = rest.partition(".")
    if layer == "attention":
        return f"blocks.{index}.{BLOCK[layer]}.{rest}"
    rest = {"extra": "aux_conv"}.get(rest, rest)
    return f"blocks.{index}.{BLOCK.get(layer, 'out_resblock')}.{rest}.conv"

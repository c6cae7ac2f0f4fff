"""Open-MAGVIT2 (TencentARC/SEED-Voken): names and sizes of its tensors."""

import re

from hf_vq.converters.shapes import check_agrees, count, shape_of

AVERAGES = "model_ema."  # followed by a plain name without its dots
_PARTS = (
    (r"encoder\.conv_in\.", "encoder.stem."),
    (r"encoder\.conv_out\.", "encoder.to_latents."),
    (r"decoder\.conv_in\.", "decoder.from_latents."),
    (r"decoder\.conv_out\.", "decoder.output."),
    (r"(en|de)coder\.norm_out\.", r"\1coder.norm."),
    (r"(en|de)coder\.mid_block\.(\d+)\.", r"\1coder.middle.\2."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.levels.\1.downsample."),
    (r"decoder\.up\.(\d+)\.upsample\.conv1\.", r"decoder.levels.\1.upsample.conv."),
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.levels.\1.blocks.\2."),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.levels.\1.blocks.\2."),
    (r"decoder\.adaptive\.(\d+)\.gamma\.", r"decoder.levels.\1.norm.to_scale."),
    (r"decoder\.adaptive\.(\d+)\.beta\.", r"decoder.levels.\1.norm.to_shift."),
)


def rename_open_magvit2(name):
    """The name in `MAGVIT2Model` of a tensor of Open-MAGVIT2; None for losses and running averages.

    Raises:
        ValueError: a name that Open-MAGVIT2 does not have.
    """
    if name.startswith((AVERAGES, "loss.")):
        return None
    for theirs, ours in _PARTS:
        renamed, found = re.subn("^" + theirs, ours, name)
        if found:
            return renamed.replace(".nin_shortcut.", ".shortcut.")
    raise ValueError(f"{name} is no tensor of Open-MAGVIT2's image tokenizer")


def open_magvit2_weights(tensors, use_averages=True):
    """The state dict of `MAGVIT2Model` from one of Open-MAGVIT2.

    Args:
        tensors: the original state dict.
        use_averages: take the running averages of the weights where there are any, as the authors evaluate.

    Raises:
        ValueError: an unknown name, or averages that lack a weight.
    """
    names = {name: renamed for name in tensors if (renamed := rename_open_magvit2(name)) is not None}
    if not use_averages or not any(name.startswith(AVERAGES) for name in tensors):
        return {renamed: tensors[name] for name, renamed in names.items()}
    weights = {}
    for name, renamed in names.items():
        average = AVERAGES + name.replace(".", "")
        if shape_of(tensors, average, tensors[name].ndim) != tuple(tensors[name].shape):
            raise ValueError(f"{average} has shape {tuple(tensors[average].shape)}, unlike {name}")
        weights[renamed] = tensors[average]
    return weights


def open_magvit2_config(tensors, config):
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
        shape_of(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0]
        for level in range(count(tensors, "encoder.down"))
    ]
    num_layers = count(tensors, "encoder.mid_block")
    stacks = [f"{side}.{level}.block" for side in ("encoder.down", "decoder.up") for level in range(len(widths))]
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

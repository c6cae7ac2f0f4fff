"""LlamaGen's VQ tokenizer."""

import re

from hf_vq.autoencoders import VQModel
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.convolutional import original_name, vq_model_arguments
from hf_vq.converters.shapes import check_agrees, count, shape_of

ORIGIN = "https://github.com/FoundationVision/LlamaGen"
IGNORED = ("quantize.codebook_used", "loss.")


def _recognises(source):
    return source.has("encoder.conv_blocks.0.res.0.conv1.weight", "quantize.embedding.weight", "quant_conv.weight")


@add_format("llamagen-vq", ORIGIN, _recognises)
def plan_llamagen(source: Source) -> Plan:
    tensors, config = source.tensors, source.config
    told = config.get("model_args", config)
    stages = max(1, count(tensors, "encoder.conv_blocks"))
    stem, in_channels, *_ = shape_of(tensors, "encoder.conv_in.weight", 4)
    widths = [shape_of(tensors, f"encoder.conv_blocks.{i}.res.0.conv1.weight", 4)[0] for i in range(stages)]
    decoder = [
        shape_of(tensors, f"decoder.conv_blocks.{stages - 1 - i}.res.0.conv1.weight", 4)[0] for i in range(stages)
    ]
    size, dim = shape_of(tensors, "quantize.embedding.weight", 2)
    network = {
        "in_channels": in_channels,
        "out_channels": shape_of(tensors, "decoder.conv_out.weight", 4)[0],
        "widths": tuple(widths),
        "decoder_widths": tuple(decoder),
        "attention": tuple(f"encoder.conv_blocks.{i}.attn.0.q.weight" in tensors for i in range(stages)),
        "mid_block_add_attention": "encoder.mid.1.q.weight" in tensors,
        "layers_per_block": count(tensors, "encoder.conv_blocks.0.res"),
        "latent_channels": shape_of(tensors, "encoder.conv_out.weight", 4)[0],
        "stem_channels": None if stem == widths[0] else stem,
    }
    normalize = told.get("codebook_l2_norm", True)
    check_agrees(
        told, "", codebook_size=size, codebook_embed_dim=dim, z_channels=network["latent_channels"],
    )  # fmt: skip
    for name, found in (("encoder_ch_mult", widths), ("decoder_ch_mult", decoder)):
        if name in told:
            check_agrees({name: [stem * factor for factor in told[name]]}, f"{stem} x ", **{name: found})
    entropy = told.get("entropy_loss_ratio", 0.0)
    arguments = {
        **vq_model_arguments(network),
        "num_vq_embeddings": size,
        "vq_embed_dim": dim,
        "quantizer_type": "vector",
        "quantizer_config": {
            "legacy": False,
            "beta": told.get("commit_loss_beta", 0.25),
            "normalize": normalize,
            "restart_threshold": 0.0,
            **({"entropy_weight": entropy, "entropy_offset": 1e-5} if entropy else {}),
        },
    }

    def weight(name, take):
        if name.startswith(("quantize.", "quantizer.")):
            return take("quantize.embedding.weight")
        return take(_llamagen_name(original_name(name, stages), stages))

    return Plan(as_before(VQModel, arguments), weight, IGNORED)


def _llamagen_name(name, stages):
    """From taming's name: middle parts are counted, blocks are `res`, the decoder's stages begin with the coarsest."""
    name = (
        name.replace(".mid.block_1.", ".mid.0.").replace(".mid.attn_1.", ".mid.1.").replace(".mid.block_2.", ".mid.2.")
    )
    up = re.match(r"decoder\.up\.(\d+)\.", name)
    if up:
        name = f"decoder.conv_blocks.{stages - 1 - int(up[1])}." + name[up.end() :]
    name = name.replace("encoder.down.", "encoder.conv_blocks.")
    return name.replace(".block.", ".res.")

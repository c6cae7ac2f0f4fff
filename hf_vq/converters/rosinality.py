"""rosinality's VQ-VAE-2."""

import re

from hf_vq.autoencoders import VQVAE2
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of

ORIGIN = "https://github.com/rosinality/vq-vae-2-pytorch"
GRIDS = ("t", "b")  # top and bottom
FIRST_RESIDUAL = 5  # after three convolutions with a relu after all but the last
EMA = {"embedding.weight": "embed", "embedding_sum": "embed_avg", "cluster_size": "cluster_size"}


def _recognises(source):
    return source.has("quantize_t.embed", "quantize_b.embed", "enc_b.blocks.0.weight")


@add_format("rosinality-vqvae2", ORIGIN, _recognises)
def plan_rosinality(source: Source) -> Plan:
    tensors, told = source.tensors, source.config.get("vqvae", source.config)
    layers = max(0, count(tensors, "enc_b.blocks") - FIRST_RESIDUAL)
    convolutions = {"enc_b": (0, 2, 4), "enc_t": (0, 2), "dec": (0, layers + 2, layers + 4), "dec_t": (0, layers + 2)}
    hidden = shape_of(tensors, "dec.blocks.0.weight", 4)[0]
    in_channels = shape_of(tensors, "enc_b.blocks.0.weight", 4)[1]
    dim, size = shape_of(tensors, "quantize_t.embed", 2)
    residual_channels = 32
    if layers:
        residual_channels = shape_of(tensors, f"enc_b.blocks.{FIRST_RESIDUAL}.conv.1.weight", 4)[0]
        check_agrees(told, "", n_res_channel=residual_channels)
    check_agrees(told, "", in_channel=in_channels, channel=hidden, n_res_block=layers, embed_dim=dim, n_embed=size)
    arguments = {
        "in_channels": in_channels,
        "hidden_channels": hidden,
        "num_residual_layers": layers,
        "residual_channels": residual_channels,
        "codebook_size": size,
        "codebook_dim": dim,
        "strides": (4, 2),
        "quantizer_config": {"decay": 0.99, "epsilon": 1e-5, "restart_threshold": 0.0},
    }

    def weight(name, take):
        quantizer = re.fullmatch(r"quantizers\.(\d)\.(.+)", name)
        if quantizer:
            tensor = take(f"quantize_{GRIDS[int(quantizer[1])]}.{EMA[quantizer[2]]}")
            return tensor.T if tensor.ndim == 2 else tensor
        return take(_original_name(name, convolutions))

    return Plan(as_before(VQVAE2, arguments), weight)


def _original_name(name, convolutions):
    stem, _, kind = name.rpartition(".")
    names = {"upsamplers.0.0": "upsample_t", "to_latents.0": "quantize_conv_t", "to_latents.1": "quantize_conv_b"}
    if stem in names:
        return f"{names[stem]}.{kind}"
    part, rest = re.fullmatch(r"(encoders\.0|encoders\.1|conditioners\.0|decoder)\.(.+)", stem).groups()
    theirs = {"encoders.0": "enc_t", "encoders.1": "enc_b", "conditioners.0": "dec_t", "decoder": "dec"}[part]
    places, encodes = convolutions[theirs], part.startswith("encoders")
    layer = re.fullmatch(r"residual\.layers\.(\d+)\.conv(\d)", rest)
    if layer:  # after the encoder's last convolution, or the decoder's first
        place = (places[-1] if encodes else places[0]) + 1 + int(layer[1])
        return f"{theirs}.blocks.{place}.conv.{2 * int(layer[2]) - 1}.{kind}"
    if rest == "middle":
        place = places[-1] if encodes else places[0]
    else:
        index = int(rest.rpartition(".")[2])
        place = places[index] if encodes else places[index + 1]
    return f"{theirs}.blocks.{place}.{kind}"

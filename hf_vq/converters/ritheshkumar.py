"""ritheshkumar95's VQ-VAE with batch norms and its gated PixelCNN."""

import re
from typing import Any

from hf_vq.autoencoders import VQVAE
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.priors import PixelCNN, PixelCNNConfig

ORIGIN = "https://github.com/ritheshkumar95/pytorch-vqvae"
PLACES = {
    "downsample.0.conv": "encoder.0",
    "downsample.0.norm": "encoder.1",
    "downsample.1.conv": "encoder.3",
    "quantizer.embedding": "codebook.embedding",
    "upsample.0.conv": "decoder.3",
    "upsample.0.norm": "decoder.4",
    "upsample.1.conv": "decoder.6",
}
BLOCK = {"conv1": 1, "norm1": 2, "conv2": 4, "norm2": 5}
STACK = {
    "class_embedding": "class_cond_embedding",
    "vertical": "vert_stack",
    "vertical_to_horizontal": "vert_to_horiz",
    "horizontal": "horiz_stack",
    "output": "horiz_resid",
}


def _recognises_vqvae(source):
    return source.has("codebook.embedding.weight", "encoder.4.block.1.weight", "decoder.6.weight")


@add_format("ritheshkumar-vqvae", ORIGIN, _recognises_vqvae)
def plan_vqvae(source: Source) -> Plan:
    told = source.config.get("vqvae", source.config)
    width, in_channels, *_ = shape_of(source.tensors, "encoder.0.weight", 4)
    size, dim = shape_of(source.tensors, "codebook.embedding.weight", 2)
    check_agrees(told, "", num_channels=in_channels, hidden_size=width, k=size)
    if dim != width:
        raise ValueError(
            f"codebook.embedding.weight has codes of {dim} values, encoder.0.weight makes {width} channels"
        )
    arguments = {
        "in_channels": in_channels,
        "hidden_channels": width,
        "stage_channels": (width, width),
        "residual_channels": width,
        "codebook_size": size,
        "codebook_dim": None,
        "middle_kernel_size": None,
        "norm": "batch",
        "residual_form": "rectified",
        "output_activation": "tanh",
        "quantizer_type": "vector",
        "quantizer_config": {"beta": told.get("beta", 0.25), "restart_threshold": 0.0},
    }

    def weight(name, take):
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"(en|de)coder_residual\.layers\.(\d)\.(\w+)", stem)
        if layer:
            place = int(layer[2]) + (4 if layer[1] == "en" else 0)
            return take(f"{layer[1]}coder.{place}.block.{BLOCK[layer[3]]}.{kind}")
        return take(f"{PLACES[stem]}.{kind}")

    return Plan(as_before(VQVAE, arguments), weight)


def _recognises_prior(source):
    return source.has("embedding.weight", "layers.0.vert_stack.weight", "layers.0.class_cond_embedding.weight")


@add_format("ritheshkumar-pixelcnn", ORIGIN, _recognises_prior)
def plan_prior(source: Source) -> Plan:
    tensors, told = source.tensors, source.config.get("prior", source.config)
    size, width = shape_of(tensors, "embedding.weight", 2)
    classes, layers = shape_of(tensors, "layers.0.class_cond_embedding.weight", 2)[0], count(tensors, "layers")
    check_agrees(told, "", k=size, hidden_size_prior=width, num_layers=layers, n_classes=classes)
    later: dict[str, Any] = {}
    if layers > 1:
        later["kernel_size"] = shape_of(tensors, "layers.1.vert_stack.weight", 4)[3]
    config = PixelCNNConfig(
        codebook_size=size,
        hidden_channels=width,
        num_layers=layers,
        num_classes=classes,
        first_kernel_size=shape_of(tensors, "layers.0.vert_stack.weight", 4)[3],
        **later,
        head_channels=[shape_of(tensors, "output_conv.0.weight", 4)[0]],
    )

    def weight(name, take):
        layer = re.fullmatch(r"stack\.layers\.(\d+)\.(\w+)\.(\w+)", name)
        if layer is None:
            return take(name.replace("head.", "output_conv."))
        tensor = take(f"layers.{layer[1]}.{STACK[layer[2]]}.{layer[3]}")
        if layer[1] == "0" and layer[3] == "weight":  # mask A: the row and the column of the position itself
            if layer[2] == "vertical":
                return tensor[:, :, :-1]
            if layer[2] == "horizontal":
                return tensor[..., :-1]
        return tensor

    return Plan(lambda: PixelCNN(config), weight)

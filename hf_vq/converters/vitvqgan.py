"""ViT-VQGAN (thuanz123/enhancing-transformers): names and sizes of its tensors."""

import math
import re
from typing import Any

import torch

from hf_vq.autoencoders import ViTVQModel
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.taming import model_config

_PARTS = (
    (r"encoder\.position_embedding$", "encoder.en_pos_embedding"),
    (r"decoder\.position_embedding$", "decoder.de_pos_embedding"),
    (r"from_pixels\.", "encoder.to_patch_embedding.0."),
    (r"to_pixels\.", "decoder.to_pixel.1."),
    (r"to_latents\.", "pre_quant."),
    (r"from_latents\.", "post_quant."),
    (r"(en|de)coder\.norm\.", r"\1coder.transformer.norm."),
    (r"(en|de)coder\.blocks\.(\d+)\.attention_norm\.", r"\1coder.transformer.layers.\2.0.norm."),
    (r"(en|de)coder\.blocks\.(\d+)\.attention\.", r"\1coder.transformer.layers.\2.0.fn."),
    (r"(en|de)coder\.blocks\.(\d+)\.mlp_norm\.", r"\1coder.transformer.layers.\2.1.norm."),
    (r"(en|de)coder\.blocks\.(\d+)\.mlp_in\.", r"\1coder.transformer.layers.\2.1.fn.net.0."),
    (r"(en|de)coder\.blocks\.(\d+)\.mlp_out\.", r"\1coder.transformer.layers.\2.1.fn.net.2."),
)


def original_name(name: str) -> str:
    """The name in enhancing-transformers of a tensor of `ViTVQModel`."""
    for ours, theirs in _PARTS:
        name = re.sub("^" + ours, theirs, name)
    return name


def _recognises(source):
    return source.has("encoder.en_pos_embedding", "decoder.to_pixel.1.weight", "quantizer.embedding.weight")


@add_format("vitvqgan", "https://github.com/thuanz123/enhancing-transformers", _recognises)
def plan_vitvqgan(source: Source) -> Plan:
    arguments = vitvqgan_config(source.tensors, model_config(source.config).get("params") or {})
    return Plan(as_before(ViTVQModel, arguments), lambda name, take: take(original_name(name)), ("loss.",))


def vitvqgan_config(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ViTVQModel`.

    Args:
        tensors: the original state dict.
        config: `params` of the original's config, or {}: it gives the heads (64 channels each by default), the sides
            of an image that is not square, and the loss's weight; the rest is checked against the weights.

    Raises:
        ValueError: a tensor that is missing, or a config that disagrees with the weights, naming the key.
    """
    in_channels, *patch = shape_of(tensors, "encoder.to_patch_embedding.0.weight", 4)[1:]
    codebook_size, codebook_dim = shape_of(tensors, "quantizer.embedding.weight", 2)
    quantizer = config.get("quantizer", {})
    check_agrees(quantizer, "quantizer.", embed_dim=codebook_dim, n_embed=codebook_size, use_residual=False)
    told_patch = _pair(config.get("patch_size", patch))
    check_agrees({"patch_size": told_patch}, "", patch_size=patch)
    normalize = quantizer.get("use_norm", True)
    return {
        "in_channels": in_channels,
        "image_size": _image_size(tensors, config, patch),
        "patch_size": tuple(patch),
        **_transformer(tensors, "encoder", config.get("encoder", {}), in_channels),
        **_transformer(tensors, "decoder", config.get("decoder", {}), in_channels),
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "quantizer_type": "vector",
        "quantizer_config": {
            "beta": quantizer.get("beta", 0.25),
            "normalize": normalize,
            "gradient": "bypass" if normalize else "straight_through",
            "restart_threshold": 0.0,
        },
        "input_scale": 0.5,
        "input_shift": 0.5,
    }


def _image_size(tensors, config, patch):
    """Sides of a sample, which both tables of places must have a row for each patch of."""
    names = ("encoder.en_pos_embedding", "decoder.de_pos_embedding")
    lengths = {name: shape_of(tensors, name, 3)[1] for name in names}
    length = lengths[names[0]]
    side = math.isqrt(length)
    if "image_size" not in config and side**2 != length:
        raise ValueError(f"image_size must be given: {length} patches are no square")
    image = _pair(config.get("image_size", [side * patch[0], side * patch[1]]))
    for name, rows in lengths.items():
        if rows * patch[0] * patch[1] != image[0] * image[1] or image[0] % patch[0] or image[1] % patch[1]:
            raise ValueError(f"image_size is {image}, but {name} has {rows} patches of {patch}")
    return tuple(image)


def _transformer(tensors, side, config, in_channels):
    first = f"{side}.transformer.layers.0"
    width, dim = shape_of(tensors, f"{first}.0.fn.to_qkv.weight", 2)
    depth, inner = count(tensors, f"{side}.transformer.layers"), width // 3
    mlp_dim = shape_of(tensors, f"{first}.1.fn.net.0.weight", 2)[0]
    check_agrees(config, f"{side}.", dim=dim, depth=depth, mlp_dim=mlp_dim, channels=in_channels)
    head_dim = config.get("dim_head", 64)
    heads = config.get("heads", inner // head_dim)
    if heads * head_dim != inner:
        raise ValueError(f"{side}.heads x {side}.dim_head is {heads} x {head_dim}, but the weights say {inner}")
    sizes = {"dim": dim, "depth": depth, "heads": heads, "head_dim": head_dim, "mlp_dim": mlp_dim}
    return {f"{side}_{name}": size for name, size in sizes.items()}


def _pair(size):
    return [size, size] if isinstance(size, int) else list(size)

"""ViT-VQGAN (thuanz123/enhancing-transformers): names and sizes of its tensors."""

import math
import re

from hf_vq.converters.shapes import check_agrees, count, shape_of

_PARTS = (
    (r"encoder\.en_pos_embedding$", "encoder.position_embedding"),
    (r"decoder\.de_pos_embedding$", "decoder.position_embedding"),
    (r"encoder\.to_patch_embedding\.0\.", "from_pixels."),
    (r"decoder\.to_pixel\.1\.", "to_pixels."),
    (r"pre_quant\.", "to_latents."),
    (r"post_quant\.", "from_latents."),
    (r"quantizer\.embedding\.", "quantizer.embedding."),
    (r"(en|de)coder\.transformer\.norm\.", r"\1coder.norm."),
    (r"(en|de)coder\.transformer\.layers\.(\d+)\.0\.norm\.", r"\1coder.blocks.\2.attention_norm."),
    (r"(en|de)coder\.transformer\.layers\.(\d+)\.0\.fn\.", r"\1coder.blocks.\2.attention."),
    (r"(en|de)coder\.transformer\.layers\.(\d+)\.1\.norm\.", r"\1coder.blocks.\2.mlp_norm."),
    (r"(en|de)coder\.transformer\.layers\.(\d+)\.1\.fn\.net\.0\.", r"\1coder.blocks.\2.mlp_in."),
    (r"(en|de)coder\.transformer\.layers\.(\d+)\.1\.fn\.net\.2\.", r"\1coder.blocks.\2.mlp_out."),
)


def rename_vitvqgan(name):
    """The name in `ViTVQModel` of a tensor of the original; None for losses.

    Raises:
        ValueError: a name that the original does not have.
    """
    if name.startswith("loss."):
        return None
    for theirs, ours in _PARTS:
        renamed, found = re.subn("^" + theirs, ours, name)
        if found:
            return renamed
    raise ValueError(f"{name} is no tensor of ViT-VQGAN")


def vitvqgan_config(tensors, config):
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

"""diffusers' discrete Transformer2DModel, the network of its VQ-Diffusion."""

import inspect
import warnings
from typing import Any

import torch
from diffusers import Transformer2DModel

from hf_vq.converters.base import Config, Plan, Source, add_format
from hf_vq.converters.conditioned_blocks import take_block
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.priors import DiscreteDiffusionPrior, DiscreteDiffusionPriorConfig

ORIGIN = "https://github.com/huggingface/diffusers"
ACTIVATIONS = {
    "gelu": "gelu", "gelu-approximate": "gelu_tanh", "geglu": "geglu", "geglu-approximate": "quick_gelu"
}  # fmt: skip
SUPPORTED = {  # values of options that change what is computed
    "in_channels": (None,),
    "patch_size": (None,),
    "norm_type": ("ada_norm", "layer_norm"),  # the second of files older than the option, which mean the first
    "norm_eps": (1e-5,),
    "only_cross_attention": (False,),
    "double_self_attention": (False,),
    "attention_type": ("default",),
    "activation_fn": tuple(ACTIVATIONS),
}
PLACES = {
    "embedding.codes.weight": "latent_image_embedding.emb.weight",
    "embedding.places.0.weight": "latent_image_embedding.height_emb.weight",
    "embedding.places.1.weight": "latent_image_embedding.width_emb.weight",
    "norm.weight": "norm_out.weight",
    "norm.bias": "norm_out.bias",
    "head.weight": "out.weight",
    "head.bias": "out.bias",
}
BLOCK = {
    "norm.embedding": ("norm1.emb",),
    "norm.linear": ("norm1.linear",),
    "attention.query": ("attn1.to_q",),
    "attention.key_value": ("attn1.to_k", "attn1.to_v"),
    "attention.output": ("attn1.to_out.0",),
    "cross_norm.embedding": ("norm2.emb",),
    "cross_norm.linear": ("norm2.linear",),
    "cross_attention.query": ("attn2.to_q",),
    "cross_attention.key_value": ("attn2.to_k", "attn2.to_v"),
    "cross_attention.output": ("attn2.to_out.0",),
    "mlp_norm": ("norm3",),
    "mlp.expand": ("ff.net.0.proj",),
    "mlp.contract": ("ff.net.2",),
}
AXES = ("height", "width")
PLAIN_NORM = {"weight": torch.ones, "bias": torch.zeros}


def is_transformer(source: Source) -> bool:
    """Whether the tensors are those of a discrete Transformer2DModel."""
    return source.has("latent_image_embedding.emb.weight", "transformer_blocks.0.attn1.to_q.weight", "norm_out.weight")


@add_format("diffusers-vqdiffusion-transformer", ORIGIN, is_transformer)
def plan_transformer(source: Source, **options: Any) -> Plan:
    """The Plan of a `DiscreteDiffusionPrior`; options of its config are what a transformer alone does not say."""
    told = _read_config(source)
    classes, width = shape_of(source.tensors, "latent_image_embedding.emb.weight", 2)
    grid = tuple(shape_of(source.tensors, f"latent_image_embedding.{axis}_emb.weight", 2)[0] for axis in AXES)
    block = "transformer_blocks.0."
    if f"{block}norm1.emb.weight" not in source.tensors:
        raise ValueError(
            f"{block}norm1.emb.weight is missing: only transformers with norm_type 'ada_norm' are supported"
        )
    timesteps = shape_of(source.tensors, f"{block}norm1.emb.weight", 2)[0]
    looks_at_text = source.has(f"{block}attn2.to_k.weight")
    text_width = shape_of(source.tensors, f"{block}attn2.to_k.weight", 2)[1] if looks_at_text else 0
    layers = count(source.tensors, "transformer_blocks")
    check_agrees(
        told, "", num_vector_embeds=classes, num_embeds_ada_norm=timesteps, num_layers=layers,
        cross_attention_dim=text_width or None, attention_bias=f"{block}attn1.to_q.bias" in source.tensors,
    )  # fmt: skip
    if grid != (told["sample_size"],) * 2:
        raise ValueError(
            f"sample_size is {told['sample_size']} in the config, but the weights have positions for {grid}"
        )
    if told["num_attention_heads"] * told["attention_head_dim"] != width:
        heads = f"num_attention_heads={told['num_attention_heads']} x attention_head_dim={told['attention_head_dim']}"
        raise ValueError(f"{heads} in the config is not {width}, the width of the weights")
    config = DiscreteDiffusionPriorConfig(
        codebook_size=classes - 1,
        code_shape=grid,
        num_timesteps=timesteps,
        hidden_size=width,
        num_layers=layers,
        num_heads=told["num_attention_heads"],
        intermediate_size=shape_of(source.tensors, f"{block}ff.net.2.weight", 2)[1],
        activation=ACTIVATIONS[told["activation_fn"]],
        attention_bias=told["attention_bias"],
        cross_attention_dim=text_width,
        dropout=told["dropout"],
        **options,
    )

    def weight(name, take):
        if name.startswith("timesteps."):  # what training remembers of its loss
            return torch.zeros(timesteps)
        if name in PLACES:
            return take(PLACES[name])
        _, _, kind = name.rpartition(".")
        if ".mlp_norm." in name and not told["norm_elementwise_affine"]:
            return PLAIN_NORM[kind](width)
        return take_block(name, take, "transformer_blocks.", BLOCK)

    return Plan(lambda: DiscreteDiffusionPrior(config), weight)


def _read_config(source):
    """The config, with diffusers' own defaults; ValueError where it asks for another network than ours."""
    if not source.config:
        raise ValueError(f"{source.path} needs its config.json beside it")
    parameters = inspect.signature(Transformer2DModel.__init__).parameters
    unknown = [key for key in source.config if key not in parameters and not key.startswith("_")]
    if unknown:
        warnings.warn(
            f"{source.config_path}: unknown to Transformer2DModel and left out: {', '.join(unknown)}", stacklevel=2
        )
    defaults = {name: one.default for name, one in parameters.items()}
    told = Config({**defaults, **source.config}, last=source.config.last)
    for name, values in SUPPORTED.items():
        if told[name] not in values:
            raise ValueError(f"{name} is {told[name]!r}: only {' and '.join(map(repr, values))} is supported")
    return told

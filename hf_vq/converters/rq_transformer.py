"""kakaobrain's RQ-Transformer."""

from typing import Any

import torch

from hf_vq.converters.base import Plan, Source, add_format
from hf_vq.converters.mingpt import count_blocks, get_told, take_block
from hf_vq.converters.shapes import check_agrees, shape_of
from hf_vq.priors import RQTransformer, RQTransformerConfig

ORIGIN = "https://github.com/kakaobrain/rq-vae-transformer"
PLACES = {
    "condition_embedding": "cond_emb",
    "spatial_projection": "input_mlp",
    "depth_projection": "head_mlp",
    "embedding": "tok_emb",
    "norm": "classifier.layer_norm",
    "head": "classifier.linear",
    "prompt_norm": "cond_classifier.layer_norm",
    "prompt_head": "cond_classifier.linear",
}
POSITIONS = {
    "condition_position_embedding": "pos_emb_cond",
    "position_embedding": "pos_emb_hw",
    "level_embedding": "pos_emb_d",
}
STACKS = {"spatial": "body_transformer.", "depth": "head_transformer."}
ACTIVATIONS = {"v1": "gelu", "v2": "quick_gelu"}
OFFSETS = "tok_emb.offsets"  # where the embeddings of each level begin


def _recognises(source):
    return source.has("pos_emb_hw", "pos_emb_d", "body_transformer.blocks.0.ln1.weight", "classifier.linear.weight")


@add_format("rq-transformer", ORIGIN, _recognises, takes_first_stage=True)
def plan_rq_transformer(source: Source) -> Plan:
    tensors, told = source.tensors, source.config.get("arch", source.config)
    positions, levels = (shape_of(tensors, f"pos_emb_{axes}", 3)[1] for axes in ("hw", "d"))
    shared_head = tensors["classifier.linear.weight"].ndim == 2
    size = shape_of(tensors, "classifier.linear.bias", 1 if shared_head else 2)[-1]
    width = shape_of(tensors, "pos_emb_hw", 3)[2]
    grid = told.get("block_size")
    if grid is not None and [grid[0] * grid[1], grid[2]] != [positions, levels]:
        raise ValueError(f"block_size is {grid} in the config, but the weights have {positions} positions x {levels}")
    for section in (told, source.config.get("dataset") or {}):
        sizes = section.get("vocab_size", size)  # one, or one for each level
        if any(told_size != size for told_size in (sizes if isinstance(sizes, list) else [sizes])):
            raise ValueError(f"vocab_size is {sizes} in the config, but the weights say {size}")
    check_agrees(told, "", embed_dim=width)
    config = RQTransformerConfig(
        codebook_size=size,
        num_levels=levels,
        block_size=positions,
        code_shape=None if grid is None else (levels, *grid[:2]),
        hidden_size=width,
        shared_head=shared_head,
        embedding_dropout=told.get("embd_pdrop", 0.0),
        **_read_stacks(tensors, told),
        **_read_inputs(source, told, size, levels),
        **_read_condition(source, told),
    )
    vectors = get_code_vectors(source, config) if config.uses_vectors else None

    def weight(name, take):
        if name == "code_vectors":
            return vectors
        beginning, _, end = name.partition(".")
        kind = beginning.removesuffix("_transformer")
        if kind in STACKS:
            return take_block(end, lambda theirs: take(STACKS[kind] + theirs))
        return take(POSITIONS[beginning])[0] if beginning in POSITIONS else take(f"{PLACES[beginning]}.{end}")

    return Plan(lambda: RQTransformer(config), weight, (OFFSETS,))


def get_code_vectors(source: Source, config: Any) -> torch.Tensor:
    """Code vectors (tables, codebook_size, dim) of the source's first stage.

    Raises:
        ValueError: a first stage that the prior was not trained on.
    """
    model = source.first_stage
    sizes = (model.codebook_size, model.num_levels, model.config.get("codebook_dim"))
    if sizes != (config.codebook_size, config.num_levels, config.code_vector_dim):
        raise ValueError(
            f"first_stage has codebook_size={sizes[0]}, num_levels={sizes[1]} and codebook_dim={sizes[2]}, but the "
            f"transformer needs {config.codebook_size}, {config.num_levels} and {config.code_vector_dim}"
        )
    return model.quantizer.code_vectors()


def _read_stacks(tensors, told):
    """Fields of the config about the two stacks of blocks."""
    fields, shared = {}, {}
    for kind, prefix in STACKS.items():
        name = prefix.partition("_")[0]
        section = told.get(name) or {}
        block = section.get("block") or {}
        fields[f"num_{kind}_layers"] = count_blocks(tensors, prefix)
        fields[f"num_{kind}_heads"] = get_told(block, f"{name}.block.", "n_head")
        check_agrees(section, f"{name}.", n_layer=fields[f"num_{kind}_layers"])
        shared[kind] = {
            "attention_bias": f"{prefix}blocks.0.attn.query.bias" in tensors,
            "mlp_bias": f"{prefix}blocks.0.mlp.0.bias" in tensors,
            "activation": ACTIVATIONS[block.get("gelu", "v1")],
            "dropout": block.get("resid_pdrop", 0.1),
            "attention_dropout": block.get("attn_pdrop", 0.0),
        }
    for name, value in shared["spatial"].items():
        if shared["depth"][name] != value:
            raise ValueError(f"body and head must agree in {name}, got {value!r} and {shared['depth'][name]!r}")
    return fields | shared["spatial"]


def _read_inputs(source, told, size, levels):
    """Fields of the config about how codes enter; ValueError where that needs a first stage and there is none."""
    tensors, fields = source.tensors, {}
    spatial, depth = (f"{name}.weight" in tensors for name in ("input_mlp", "head_mlp"))
    check_agrees(told, "", input_emb_vqvae=spatial, head_emb_vqvae=depth)
    depth_vectors = "cumulative_vectors" if told.get("cumsum_depth_ctx", False) else "vectors"
    fields["spatial_inputs"] = "vectors" if spatial else "embeddings"
    fields["depth_inputs"] = depth_vectors if depth else "embeddings"
    if spatial or depth:
        if source.first_stage is None:
            raise ValueError(
                "first_stage is missing: this transformer reads the code vectors of its RQ-VAE, which its own "
                "checkpoint does not hold. Give the path of the RQ-VAE (--first-stage)"
            )
        if not hasattr(getattr(source.first_stage, "quantizer", None), "levels"):
            raise ValueError(f"first_stage is a {type(source.first_stage).__name__} without residual codes")
        fields["shared_code_vectors"] = len(source.first_stage.quantizer.levels) == 1
        fields["code_vector_dim"] = shape_of(tensors, "input_mlp.weight" if spatial else "head_mlp.weight", 2)[1]
        check_agrees(told, "", input_embed_dim=fields["code_vector_dim"])
    if not (spatial and depth):
        fields["shared_embeddings"] = shape_of(tensors, "tok_emb.weight", 2)[0] == size
        check_agrees(told, "", shared_tok_emb=fields["shared_embeddings"])
        if OFFSETS in tensors and not torch.equal(tensors[OFFSETS], torch.arange(levels) * size):
            raise ValueError(f"{OFFSETS} is {tensors[OFFSETS].tolist()}: levels of different sizes are not supported")
    return fields


def _read_condition(source, told):
    """Fields of the config about the condition: a prompt where it is longer than one token."""
    rows = shape_of(source.tensors, "cond_emb.weight", 2)[0]
    length = shape_of(source.tensors, "pos_emb_cond", 3)[1]
    for key, value in (("vocab_size_cond", rows), ("block_size_cond", length)):
        if max(1, told.get(key, value)) != value:  # 0 is one token too
            raise ValueError(f"{key} is {told[key]} in the config, but the weights say {value}")
    if length > 1:
        return {"prompt_vocab_size": rows, "prompt_length": length}
    return {"num_classes": rows} if rows > 1 else {}

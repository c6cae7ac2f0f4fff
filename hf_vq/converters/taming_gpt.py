"""taming-transformers' Net2NetTransformer: a first stage and the GPT over its codes in one checkpoint."""

import math

import torch

from hf_vq.converters.base import PipelinePlan, Plan, Source, add_format
from hf_vq.converters.mingpt import count_blocks, get_told, take_block
from hf_vq.converters.shapes import check_agrees, shape_of
from hf_vq.converters.taming import (
    FIRST_STAGE,
    first_stage,
    has_transformer,
    model_config,
    named_class,
    plan_gumbel,
    plan_ibq,
    plan_vqgan,
)
from hf_vq.pipelines import VQPipeline
from hf_vq.priors import GPTPrior, GPTPriorConfig

PREFIX = "transformer."
PLACES = {
    "embedding.weight": "tok_emb.weight",
    "position_embedding.weight": "pos_emb",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
    "head.weight": "head.weight",
}
ORDER, INVERSE = "permuter.forward_shuffle_idx", "permuter.backward_shuffle_idx"


@add_format("taming-gpt", "https://github.com/CompVis/taming-transformers", has_transformer)
def plan_pipeline(source: Source) -> PipelinePlan:
    autoencoder = _plan_first_stage(source)
    with torch.device("meta"):
        model = autoencoder.build()
    prior, masks = _plan_prior(source, model)
    ignored = tuple(name for name in autoencoder.ignored if name.startswith(FIRST_STAGE))
    return PipelinePlan(VQPipeline, {"autoencoder": autoencoder, "prior": prior}, (*ignored, *masks, ORDER, INVERSE))


def _plan_first_stage(source):
    inner, config = first_stage(source)
    if inner.has("quantize.embed.weight"):
        return plan_gumbel(source)
    return (plan_ibq if named_class(config) == "IBQ" else plan_vqgan)(source)


def _plan_prior(source, autoencoder):
    """The Plan of the prior over an autoencoder's codes, and the names of its masks."""
    tensors, told = source.tensors, model_config(source.config).get("params") or {}
    network = (told.get("transformer_config") or {}).get("params") or {}
    section = "transformer_config.params."
    vocab_size, width = shape_of(tensors, f"{PREFIX}tok_emb.weight", 2)
    block_size = shape_of(tensors, f"{PREFIX}pos_emb", 3)[1]
    layers = count_blocks(tensors, PREFIX)
    check_agrees(network, section, vocab_size=vocab_size, block_size=block_size, n_layer=layers, n_embd=width)
    if vocab_size < autoencoder.codebook_size:
        raise ValueError(
            f"{PREFIX}tok_emb.weight has {vocab_size} tokens, fewer than the {autoencoder.codebook_size} codes of the "
            "first stage"
        )
    permutation = _read_permutation(source, told)
    config = GPTPriorConfig(
        codebook_size=autoencoder.codebook_size,
        block_size=block_size,
        hidden_size=width,
        num_layers=layers,
        num_heads=get_told(network, section, "n_head"),
        shared_start=True,
        permutation=permutation,
        code_shape=_find_grid(told, autoencoder, block_size, permutation),
        embedding_dropout=network.get("embd_pdrop", 0.0),
        dropout=network.get("resid_pdrop", 0.0),
        attention_dropout=network.get("attn_pdrop", 0.0),
        **_read_condition(source, told, vocab_size),
    )

    def weight(name, take):
        if name.startswith("transformer."):
            return take_block(name.removeprefix("transformer."), lambda theirs: take(PREFIX + theirs))
        tensor = take(PREFIX + PLACES[name])
        if name == "position_embedding.weight":
            return tensor[0]
        if name == "embedding.weight":
            return tensor[: config.num_embeddings]  # tokens that are neither codes nor classes are never met
        return tensor[: config.codebook_size] if name == "head.weight" else tensor

    masks = [f"{PREFIX}blocks.{layer}.attn.mask" for layer in range(layers)]
    for name in masks:
        if name in tensors and not _is_causal(tensors[name], block_size):
            raise ValueError(f"{name} is not causal (n_unmasked): such a transformer is no prior over codes alone")
    return Plan(lambda: GPTPrior(config), weight), masks


def _read_condition(source, told, vocab_size):
    """What the first token stands for, as fields of the config; ValueError where it is neither class nor start."""
    if source.starts("cond_stage_model."):
        raise ValueError(
            "cond_stage_model.* are weights: a transformer conditioned on codes of another image is not supported, "
            "only on a class or on nothing"
        )
    stage = get_told(told, "", "cond_stage_config")
    if told.get("unconditional") or stage == "__is_unconditional__":
        start = told.get("sos_token", 0)
        if not 0 <= start < vocab_size:
            raise ValueError(f"sos_token must be in [0, {vocab_size}), the tokens of the transformer, got {start}")
        return {"start_token": start}
    target = stage if isinstance(stage, str) else stage.get("target", "")
    if not target.endswith(".Labelator"):
        raise ValueError(f"cond_stage_config is {target!r}: only classes (Labelator) and no condition are supported")
    classes = get_told(stage.get("params") or {}, "cond_stage_config.params.", "n_classes")
    if not 1 <= classes <= vocab_size:
        raise ValueError(f"n_classes must be in [1, {vocab_size}], the tokens of the transformer, got {classes}")
    return {"num_classes": classes}


def _read_permutation(source, told):
    """The order of the codes as a list, None for raster order; ValueError where it is none or lacks."""
    target = (told.get("permuter_config") or {}).get("target", "Identity")
    if ORDER not in source.tensors:
        if not target.endswith("Identity"):
            raise ValueError(f"{source.path} lacks the tensor {ORDER!r} of permuter_config {target!r}")
        return None
    order = source.tensors[ORDER]
    shape_of(source.tensors, ORDER, 1)
    if order.is_floating_point() or not torch.equal(order.sort().values, torch.arange(len(order))):
        raise ValueError(f"{ORDER} must have every place of the grid once")
    if INVERSE in source.tensors and not torch.equal(source.tensors[INVERSE], order.argsort()):
        raise ValueError(f"{INVERSE} is not the inverse of {ORDER}")
    return None if torch.equal(order, torch.arange(len(order))) else order.tolist()


def _find_grid(told, autoencoder, block_size, permutation):
    """(height, width) of the grids that the transformer was trained on, as far as config and sizes say; or None."""
    permuter = (told.get("permuter_config") or {}).get("params") or {}
    stage = (told.get("first_stage_config") or {}).get("params") or {}
    most = block_size if permutation is None else len(permutation)
    candidates = []
    if "H" in permuter and "W" in permuter:
        candidates.append((permuter["H"], permuter["W"]))
    if "resolution" in (stage.get("ddconfig") or {}):
        candidates.append((stage["ddconfig"]["resolution"] // autoencoder.downsample_factor,) * 2)
    candidates.append((math.isqrt(most),) * 2)
    for height, width in candidates:
        codes = height * width
        if 1 <= codes <= most and (permutation is None or codes == most):
            return height, width
    return None


def _is_causal(mask, block_size):
    return mask.numel() == block_size**2 and torch.equal(
        mask.reshape(block_size, block_size) != 0, torch.ones(block_size, block_size).tril() != 0
    )

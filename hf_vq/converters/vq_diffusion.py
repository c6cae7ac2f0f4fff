"""microsoft/VQ-Diffusion's priors over codes, of texts, classes or nothing, alone or beside an image codec."""

import functools
import warnings
from math import isqrt, prod
from typing import Any

import torch

from hf_vq.converters.base import PipelinePlan, Plan, Source, add_format
from hf_vq.converters.conditioned_blocks import take_block
from hf_vq.converters.mingpt import get_told
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.converters.taming import model_config
from hf_vq.converters.vq_diffusion_codec import CODEC, ORIGIN, QUANTIZERS, find_codec, plan_codec
from hf_vq.converters.vq_diffusion_schedule import SCHEDULE, check_schedule
from hf_vq.networks.conditioned_layers import SinusoidalEmbedding
from hf_vq.pipelines import VQPipeline, VQTextToImagePipeline
from hf_vq.priors import DiscreteDiffusionPrior, DiscreteDiffusionPriorConfig

OUTER = "transformer."  # what diffuses, in a whole model
CODES, BLOCKS, HEAD = (f"transformer.{part}" for part in ("content_emb.", "blocks.", "to_logits."))
CONDITION, NULL_TEXT = "condition_emb.", "empty_text_embed"
SECTION = "transformer_config.params."
ACTIVATIONS = {"GELU": "gelu", "GELU2": "quick_gelu"}
ATTENTION = {"query": ("query",), "key_value": ("key", "value"), "output": ("proj",)}
NULL_CHANCE = 0.1  # how often the authors leave a condition out, where they do
NULL_CLASS = 1000  # its number, however many classes there are
PLACES = {
    "embedding.codes.weight": f"{CODES}emb.weight",
    "norm.weight": f"{HEAD}0.weight",
    "norm.bias": f"{HEAD}0.bias",
    "head.weight": f"{HEAD}1.weight",
    "head.bias": f"{HEAD}1.bias",
    "null_text": NULL_TEXT,
}
HISTORY = {"timesteps.loss_history": "Lt_history", "timesteps.loss_count": "Lt_count"}


def _prefix(source):
    return OUTER if source.starts(OUTER + CODES) else ""


def _is_prior(source):
    names = (f"{CODES}emb.weight", f"{BLOCKS}0.ln1.linear.weight", f"{HEAD}1.weight")
    return source.has(*(_prefix(source) + name for name in names))


@add_format("vqdiffusion", ORIGIN, _is_prior)
def plan_vq_diffusion(source: Source) -> Plan | PipelinePlan:
    prefix = _prefix(source)
    prior = _plan_prior(source, prefix)
    if source.starts(prefix + CONDITION):
        warnings.warn(
            f"{source.path}: left out is {prefix}{CONDITION}*, the encoder of texts or classes, whose output a prior "
            "takes as encoder_hidden_states (of CLIP's: states of length 1, of texts padded with token 0)",
            stacklevel=2,
        )
    if not (prefix and source.starts(CODEC)):
        return prior
    size = shape_of(source.tensors, f"{prefix}{HEAD}1.weight", 2)[0]
    codec, problem = find_codec(source), "is of no known kind"
    if any(name in codec.source.tensors for name in QUANTIZERS):
        autoencoder = plan_codec(source)
        with torch.device("meta"):
            codes = autoencoder.build().codebook_size
        if codes == size:
            ours = [name for name in autoencoder.ignored if name.startswith(CODEC)]
            parts = {"autoencoder": autoencoder, "prior": prior}
            return PipelinePlan(_choose_pipeline(source, prefix), parts, (*ours, *prior.ignored))
        problem = f"has {codes} codes, and no tensor says which {size} of them the prior knows"
    warnings.warn(f"{source.path}: left out is {CODEC}*, the image codec: it {problem}", stacklevel=2)
    return Plan(prior.build, prior.weight, (*prior.ignored, CODEC))


def _choose_pipeline(source, prefix):
    """What makes a pipeline of autoencoder and prior; one of texts has no text encoder yet."""
    if f"{prefix}{BLOCKS}0.attn2.key.weight" in source.tensors:
        return functools.partial(VQTextToImagePipeline, normalize_text_embeddings=True)
    return VQPipeline


def _plan_prior(source, prefix):
    """The Plan of the prior whose names begin with a prefix."""
    inner = source.part(prefix)
    tensors, told = inner.tensors, _read_told(source)
    network = told["transformer_config"]
    states, width = shape_of(tensors, f"{CODES}emb.weight", 2)
    activation = get_told(network, SECTION, "block_activate")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{SECTION}block_activate is {activation!r}: only {' and '.join(ACTIVATIONS)} are supported")
    block, layers = f"{BLOCKS}0.", count(tensors, BLOCKS[:-1])
    convolutional = inner.has(f"{block}mlp.conv1.weight")
    expand = f"{block}mlp.{'conv1' if convolutional else '0'}.weight"
    intermediate = shape_of(tensors, expand, 4 if convolutional else 2)[0]
    grid, per_axis = _find_grid(tensors, network, convolutional)
    condition, class_rows = _read_condition(tensors, told)
    learned = inner.has(f"{block}ln1.emb.weight")
    config = DiscreteDiffusionPriorConfig(
        codebook_size=states - 1,
        code_shape=grid,
        positions_per_axis=per_axis,
        num_timesteps=_count_timesteps(tensors, told),
        hidden_size=width,
        num_layers=layers,
        num_heads=get_told(network, SECTION, "n_head"),
        intermediate_size=intermediate,
        mlp="conv" if convolutional else "linear",
        activation=ACTIVATIONS[activation],
        timestep_embedding="learned" if learned else "sinusoidal",
        dropout=network.get("resid_pdrop", 0.0),
        attention_dropout=network.get("attn_pdrop", 0.0),
        auxiliary_loss_weight=told["diffusion_config"].get("auxiliary_loss_weight", 0.0),
        adaptive_auxiliary_loss=told["diffusion_config"].get("adaptive_auxiliary_loss", False),
        mask_weight=told["diffusion_config"].get("mask_weight", (1.0, 1.0)),
        **condition,
    )
    _check_config(told, config)
    check_schedule(inner, config)
    averaged = _read_averages(source, tensors)
    parts = _block_parts("cross_attention_dim" in condition, convolutional)

    def weight(name, take):
        def take_latest(theirs):
            return averaged.get(theirs, take(prefix + theirs))

        if name in HISTORY:  # of the training that went before, if it is told
            return take(prefix + HISTORY[name]) if HISTORY[name] in tensors else torch.zeros(config.num_timesteps)
        if name in PLACES:
            return take_latest(PLACES[name])
        if name.startswith("embedding.places."):
            tables = [take_latest(_position_name(tensors, axis)).reshape(-1, width) for axis in ("height", "width")]
            if per_axis:
                return tables[int(name.split(".")[2])]
            return (tables[0][:, None] + tables[1]).flatten(0, 1)[: prod(grid)]
        if name.endswith(".mlp_norm.embedding.weight"):
            return class_rows(lambda: take_block(name, take_latest, BLOCKS, parts))
        return take_block(name, take_latest, BLOCKS, parts)

    ignored = [*SCHEDULE, *(f"{BLOCKS}{layer}.attn2.mask" for layer in range(layers)), CONDITION]
    return Plan(lambda: DiscreteDiffusionPrior(config), weight, tuple(prefix + name for name in ignored))


def _read_told(source):
    """Sections of the original's config by name, as dicts; {} where there is none."""
    outer = model_config(source.config).get("params") or {}
    diffusion = outer if "transformer_config" in outer else _section(outer, "diffusion_config")
    inner = ("transformer_config", "content_emb_config", "condition_emb_config")
    return {"diffusion_config": diffusion, **{name: _section(diffusion, name) for name in inner}}


def _section(config, name):
    return (config.get(name) or {}).get("params") or {}


def _count_timesteps(tensors, told):
    if "log_at" in tensors:
        return shape_of(tensors, "log_at", 1)[0]
    return get_told(told["diffusion_config"], "diffusion_config.params.", "diffusion_step")


def _position_name(tensors, axis):
    """The name of an axis's positions, which are an embedding or a parameter."""
    name = f"{CODES}{axis}_emb"
    return name if name in tensors else f"{name}.weight"


def _find_grid(tensors, network, convolutional):
    """The grid of the codes, and whether positions are theirs, or the first ones of a larger grid."""
    sides = tuple(tensors[_position_name(tensors, axis)].shape[-2] for axis in ("height", "width"))
    mask = tensors.get(f"{BLOCKS}0.attn2.mask")
    length = network.get("content_seq_len", prod(sides)) if mask is None else mask.shape[-1]
    check_agrees(network, SECTION, content_seq_len=length)
    grid = sides
    if length != prod(sides):
        told = tuple(network.get("content_spatial_size") or ())
        grid = told if len(told) == 2 and prod(told) == length else (isqrt(length),) * 2
    if prod(grid) != length or length > prod(sides):
        raise ValueError(f"{SECTION}content_seq_len={length} is no grid of the {sides[0]} x {sides[1]} positions")
    if convolutional and grid[0] != isqrt(length):
        raise ValueError(
            f"mlp_type is conv_mlp, which sees {length} codes in {isqrt(length)} rows, but they are a grid of {grid}"
        )
    return grid, grid == sides


def _read_condition(tensors, told):
    """Fields of the config about text or classes, and what makes the rows of a block's classes of its tensor."""
    block = f"{BLOCKS}0."
    if f"{block}attn2.key.weight" in tensors:
        fields: dict[str, Any] = {"cross_attention_dim": shape_of(tensors, f"{block}attn2.key.weight", 2)[1]}
        if NULL_TEXT in tensors:
            length = shape_of(tensors, NULL_TEXT, 2)[0]
            fields |= {"null_text": "learned", "text_length": length, "text_dropout_prob": NULL_CHANCE}
        return fields, None
    if f"{block}ln2.linear.weight" not in tensors:
        return {}, None
    network = told["transformer_config"]
    kind = network.get("class_type", "adalayernorm")
    if "adalayernorm" not in kind:
        raise ValueError(f"{SECTION}class_type is {kind!r}: only adalayernorm and adalayernorm_abs are supported")
    width = shape_of(tensors, f"{block}ln2.linear.weight", 2)[1]
    if f"{block}ln2.emb.weight" not in tensors:  # no class is left out there
        classes = get_told(network, SECTION, "class_number")
        fixed = SinusoidalEmbedding(classes, width)(torch.arange(classes))
        return {"num_classes": classes}, lambda take: fixed
    rows = shape_of(tensors, f"{block}ln2.emb.weight", 2)[0]
    classes = told["condition_emb_config"].get("num_embed", min(rows, NULL_CLASS))
    if rows not in (classes, classes + 1):
        raise ValueError(
            f"{block}ln2.emb.weight has {rows} rows, for condition_emb_config.params.num_embed={classes} classes"
        )
    fields = {"num_classes": classes, "class_dropout_prob": NULL_CHANCE}
    if rows == classes + 1:
        return fields, lambda take: take()
    # the original takes the mean of all classes for a class that it does not know
    return fields, lambda take: torch.cat([take(), take().mean(dim=0, keepdim=True)])


def _check_config(told, config):
    """A ValueError where the config says another network or other noise than the weights."""
    diffusion, network, codes = (told[f"{name}_config"] for name in ("diffusion", "transformer", "content_emb"))
    check_agrees(diffusion, "diffusion_config.params.", diffusion_step=config.num_timesteps, alpha_init_type="alpha1")
    check_agrees(network, SECTION, n_layer=config.num_layers, n_embd=config.hidden_size)
    if config.cross_attention_dim:
        check_agrees(network, SECTION, condition_dim=config.cross_attention_dim)
    check_agrees(codes, "content_emb_config.params.", num_embed=config.codebook_size, embed_dim=config.hidden_size)
    times = network.get("mlp_hidden_times", config.intermediate_size / config.hidden_size)
    if int(times * config.hidden_size) != config.intermediate_size:
        raise ValueError(
            f"{SECTION}mlp_hidden_times is {times}, but the MLPs in the weights are {config.intermediate_size} wide"
        )
    absolute = "abs" in network.get("timestep_type", "abs" if config.timestep_embedding == "sinusoidal" else "")
    if absolute != (config.timestep_embedding == "sinusoidal"):
        raise ValueError(
            f"{SECTION}timestep_type is {network['timestep_type']!r}, but the timesteps in the weights are "
            f"{config.timestep_embedding}"
        )


def _read_averages(source, tensors):
    """The averaged weights, which the authors sample with, by name; {} where there are none."""
    averaged = source.rest.get("ema")
    averaged = averaged if isinstance(averaged, dict) else {}
    missing = [name for name in tensors if averaged and name not in averaged and not name.startswith(CONDITION)]
    if missing:
        raise ValueError(f"ema lacks {missing[0]!r}, of which the model has a tensor")
    return averaged


def _block_parts(with_text, convolutional):
    """Names of the modules of a block, for `take_block`."""
    parts: dict[str, tuple[str, ...]] = {
        "mlp_norm": ("ln2",),
        "mlp_norm.embedding": ("ln2.emb",),
        "mlp_norm.linear": ("ln2.linear",),
        "mlp.expand": ("mlp.conv1" if convolutional else "mlp.0",),
        "mlp.contract": ("mlp.conv2" if convolutional else "mlp.2",),
    }
    for ours, norm, attention in (
        ("", "ln1", "attn1" if with_text else "attn"),
        ("cross_", "ln1_1", "attn2"),
    ):
        parts |= {f"{ours}norm.{mine}": (f"{norm}.{one}",) for mine, one in (("embedding", "emb"), ("linear",) * 2)}
        parts |= {
            f"{ours}attention.{mine}": tuple(f"{attention}.{one}" for one in several)
            for mine, several in ATTENTION.items()
        }
    return parts

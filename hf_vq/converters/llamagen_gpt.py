"""LlamaGen's class-conditional GPT."""

import math
import re

from hf_vq.arguments import check_argument
from hf_vq.converters.base import Plan, Source, add_format
from hf_vq.converters.llamagen import ORIGIN
from hf_vq.converters.shapes import check_agrees, count, shape_of
from hf_vq.priors import LlamaGenPrior, LlamaGenPriorConfig

HEADS = {  # (layers, width) of the sizes that the originals' code names, whose files carry no config
    (12, 768): 12,
    (24, 1024): 16,
    (36, 1280): 20,
    (48, 1536): 24,
    (48, 2560): 40,
    (22, 2048): 32,
    (24, 3200): 32,
    (32, 4096): 32,
}
PLACES = {
    "class_embedding.weight": "cls_embedding.embedding_table.weight",
    "embedding.weight": "tok_embeddings.weight",
    "norm.weight": "norm.weight",
    "head.weight": "output.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
}


def _recognises(source):
    return source.has("tok_embeddings.weight", "layers.0.attention.wqkv.weight", PLACES["class_embedding.weight"])


@add_format("llamagen-gpt", ORIGIN, _recognises)
def plan_llamagen_gpt(source: Source) -> Plan:
    tensors = source.tensors
    told = source.config.get("model_args", source.config)
    size, width = shape_of(tensors, "tok_embeddings.weight", 2)
    layers = count(tensors, "layers")
    check_agrees(told, "", vocab_size=size, dim=width, n_layer=layers, cls_token_num=1, model_type="c2i")
    heads, key_heads = _heads(told, layers, width, shape_of(tensors, "layers.0.attention.wqkv.weight", 2)[0])
    classes, dropped = _classes(told, shape_of(tensors, PLACES["class_embedding.weight"], 2)[0])
    config = LlamaGenPriorConfig(
        codebook_size=size,
        num_classes=classes,
        class_dropout_prob=dropped,
        code_shape=_grid(told),
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=key_heads,
        intermediate_size=shape_of(tensors, "layers.0.feed_forward.w1.weight", 2)[0],
        token_dropout=told.get("token_dropout_p", 0.1),
        attention_dropout=told.get("attn_dropout_p", 0.0),
        rms_norm_eps=told.get("norm_eps", 1e-5),
        rope_theta=float(told.get("rope_base", 10000)),
        initializer_range=told.get("initializer_range", 0.02),
    )
    head_dim, queries, keys = width // heads, width, key_heads * (width // heads)
    parts = {"q": slice(0, queries), "k": slice(queries, queries + keys), "v": slice(queries + keys, None)}

    def weight(name, take):
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        prefix, inner = (f"layers.{layer[1]}.", layer[2]) if layer else ("", name)
        if inner in PLACES:
            return take(prefix + PLACES[inner])
        part = re.fullmatch(r"self_attn\.([qkv])_proj\.weight", inner)[1]
        tensor = take(f"{prefix}attention.wqkv.weight")[parts[part]]
        if part == "v":
            return tensor
        # from neighbours that rotate together to Llama's halves
        return tensor.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)

    return Plan(lambda: LlamaGenPrior(config), weight)


def _heads(told, layers, width, rows):
    """Heads of queries, and of keys and values."""
    heads = told.get("n_head", HEADS.get((layers, width)))
    if heads is None:
        raise ValueError(
            f"n_head is not in the weights, and {layers} layers of {width} is none of LlamaGen's own sizes "
            f"{sorted(HEADS)}: give a config with model_args.n_head"
        )
    if type(heads) is not int or heads < 1 or width % (4 * heads):
        raise ValueError(f"n_head must divide dim={width} into heads of a multiple of 4 values, got {heads!r}")
    head_dim = width // heads
    keys, rest = divmod(rows - width, 2 * head_dim)
    if rest or keys < 1 or heads % keys:
        raise ValueError(
            f"layers.0.attention.wqkv.weight has {rows} rows, which n_head={heads} heads of {head_dim} do not explain"
        )
    if told.get("n_kv_head") is not None:
        check_agrees(told, "", n_kv_head=keys)
    return heads, keys


def _classes(told, rows):
    """Number of classes and their dropout; without a config the last row is the null class, as in all public files."""
    dropped = told.get("class_dropout_prob", 0.1)
    check_argument("class_dropout_prob", dropped, float)
    if not 0 <= dropped < 1:
        raise ValueError(f"class_dropout_prob must be in [0, 1), got {dropped!r}")
    classes = rows - (dropped > 0)
    check_agrees(told, "", num_classes=classes)
    return classes, dropped


def _grid(told):
    """The square grid of `block_size` codes; None without a config: `sample` must be told then."""
    if "block_size" not in told:
        return None
    codes = told["block_size"]
    side = math.isqrt(codes) if type(codes) is int and codes > 0 else 0
    if side * side != codes or not side:
        raise ValueError(f"block_size must be the number of codes of a square grid, got {codes!r}")
    return side, side

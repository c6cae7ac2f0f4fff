"""taming-transformers' VQGAN and GumbelVQ, latent-diffusion's first stages, and SEED-Voken's IBQ."""

from typing import Any

from hf_vq.autoencoders import VQModel
from hf_vq.converters.base import Plan, Source, add_format, as_before
from hf_vq.converters.convolutional import network_arguments, original_name, vq_model_arguments
from hf_vq.converters.shapes import check_agrees, count, shape_of

FIRST_STAGE = "first_stage_model."
IGNORED = ("loss.", "model_ema.", "colorize")  # colorize paints label maps
CLASSES = {  # formats by the class that a config names; of any other class the tensors decide
    "IBQ": "ibq", "GumbelVQ": "taming-gumbel",
    **dict.fromkeys(("VQModel", "VQNoDiscModel", "VQSegmentationModel", "VQModelInterface"), "taming-vqgan"),
}  # fmt: skip


def first_stage(source: Source) -> tuple[Source, dict[str, Any]]:
    """The source without what surrounds a first stage in a latent-diffusion or Net2Net checkpoint."""
    if not source.starts(FIRST_STAGE):
        return source, model_config(source.config)
    outer = model_config(source.config)
    config = (outer.get("params") or {}).get("first_stage_config") or {}
    return source.part(FIRST_STAGE), config


def model_config(config: dict[str, Any]) -> dict[str, Any]:
    """The section that says class and arguments: `target` and `params`, or `class_path` and `init_args`."""
    config = config.get("model", config)
    if not isinstance(config, dict):
        return {}
    if "class_path" in config:
        config = {"target": config["class_path"], "params": config.get("init_args") or {}}
    if not isinstance(config.get("target", ""), str):
        raise ValueError(f"the config's target or class_path must be the name of a class, got {config['target']!r}")
    return config if "target" in config else {}


def has_transformer(source: Source) -> bool:
    """Whether the checkpoint holds taming's GPT beside a first stage."""
    return source.starts(FIRST_STAGE) and source.has("transformer.tok_emb.weight", "transformer.pos_emb")


def named_class(config: dict[str, Any]) -> str:
    """The class, without its module, that a config of `model_config` names; "" where it names none."""
    return config.get("target", "").rpartition(".")[2]


def _is_like_vqgan(source, name, *tensors):
    """Whether it has these tensors beside a network of taming's, and no config that names another format."""
    if source.starts("transformer."):  # such a file is a whole pipeline
        return False
    inner, config = first_stage(source)
    return (
        CLASSES.get(named_class(config), name) == name
        and inner.starts("encoder.down.0.block.0.")
        and inner.has("encoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight", *tensors)
    )


def _is_vqgan(source):
    return _is_like_vqgan(source, "taming-vqgan", "quantize.embedding.weight")


def _is_ibq(source):
    inner, config = first_stage(source)
    return (
        "quantize.used" not in inner.tensors
        and named_class(config)
        in (("IBQ",) if source.starts(FIRST_STAGE) else ("IBQ", ""))  # others have only taming's
        and _is_like_vqgan(source, "ibq", "quantize.embedding.weight")
    )


def _is_gumbel(source):
    return _is_like_vqgan(source, "taming-gumbel", "quantize.proj.weight", "quantize.embed.weight")


@add_format("taming-vqgan", "https://github.com/CompVis/taming-transformers", _is_vqgan, within=("taming-gpt",))
def plan_vqgan(source: Source) -> Plan:
    inner, config = _checked_first_stage(source, "taming-vqgan")
    params = config.get("params") or {}
    size, dim = shape_of(inner.tensors, "quantize.embedding.weight", 2)
    options, quantizer_type = None, "vector"
    names = {"embedding.weight": "quantize.embedding.weight"}
    if "quantize.used" in inner.tensors:
        used = inner.tensors["quantize.used"]
        if used.is_floating_point() or not (used.numel() and used.min() >= 0 and used.max() < size):
            raise ValueError(f"quantize.used must be integers in [0, {size}), the codes of quantize.embedding.weight")
        unknown = params.get("unknown_index", "random")
        quantizer_type, names = (
            "remapped",
            {"base.embedding.weight": "quantize.embedding.weight", "used": "quantize.used"},
        )
        options = {
            "num_used": shape_of(inner.tensors, "quantize.used", 1)[0],
            "unknown_code": "nearest" if unknown == "random" else unknown,
            "base_config": {"legacy": True, "restart_threshold": 0.0},
        }
    return _plan(source, inner, params, (size, dim), quantizer_type, options, names)


@add_format("ibq", "https://github.com/TencentARC/SEED-Voken", _is_ibq)
def plan_ibq(source: Source) -> Plan:
    inner, config = _checked_first_stage(source, "ibq")
    params = config.get("params") or {}
    sizes = shape_of(inner.tensors, "quantize.embedding.weight", 2)
    loss = (params.get("lossconfig") or {}).get("params") or {}
    options = {"beta": params.get("beta", 0.25)}
    if params.get("use_entropy_loss"):
        sample, batch = (params.get(f"{term}_weight", 1.0) for term in ("sample_minimization", "batch_maximization"))
        options |= {
            "entropy_weight": loss.get("entropy_loss_weight", 0.05) * sample,
            "entropy_temperature": params.get("entropy_temperature", 0.01),
            "diversity": batch / sample,
            "entropy_offset": 1e-5,
        }
    names = {"embedding.weight": "quantize.embedding.weight"}
    return _plan(source, inner, params, sizes, "index_backpropagation", options, names)


@add_format("taming-gumbel", "https://github.com/CompVis/taming-transformers", _is_gumbel)
def plan_gumbel(source: Source) -> Plan:
    inner, config = _checked_first_stage(source, "taming-gumbel")
    params = config.get("params") or {}
    sizes = shape_of(inner.tensors, "quantize.embed.weight", 2)
    schedule = (params.get("temperature_scheduler_config") or {}).get("params") or {}
    options = {
        "temperature": schedule.get("lr_max", 1.0),
        "final_temperature": schedule.get("lr_min"),
        "temperature_steps": schedule.get("max_decay_steps", 150_000),
        "kl_weight": params.get("kl_weight", 1e-8),
    }
    names = {part: f"quantize.{part}" for part in ("proj.weight", "proj.bias")}
    names["embedding.weight"] = "quantize.embed.weight"
    return _plan(source, inner, params, sizes, "gumbel", options, names)


def _checked_first_stage(source, name):
    inner, config = first_stage(source)
    told = CLASSES.get(named_class(config), name)
    if told != name:
        raise ValueError(f"the config names the class {config['target']}, which is {told}, not {name}")
    return inner, config


def _plan(source, inner, params, sizes, quantizer_type, options, quantizer_names):
    check_agrees(params, "", n_embed=sizes[0], embed_dim=sizes[1])
    network_config = params.get("ddconfig") or {}
    arguments = {
        **vq_model_arguments(network_arguments(inner.tensors, network_config)),
        "sample_size": network_config.get("resolution", 32),
        "num_vq_embeddings": sizes[0],
        "vq_embed_dim": sizes[1],
        "quantizer_type": quantizer_type,
        "quantizer_config": options,
    }
    prefix, stages = FIRST_STAGE if inner is not source else "", count(inner.tensors, "encoder.down")
    averaged = inner.starts("model_ema.") and params.get("use_ema", True)  # what the authors of SEED-Voken evaluate

    def weight(name, take):
        beginning, _, end = name.partition(".")
        quantizer = beginning in ("quantize", "quantizer")
        theirs = quantizer_names.get(end) if quantizer else original_name(name, stages)
        if theirs is None:
            return None
        tensor = take(prefix + theirs)
        average = f"{prefix}model_ema.{theirs.replace('.', '')}"
        return take(average) if averaged and average in source.tensors else tensor

    ignored = tuple(prefix + beginning for beginning in IGNORED)
    if prefix:  # the diffusion model or the transformer around the first stage
        ignored += tuple(name for name in source.tensors if not name.startswith(FIRST_STAGE))
    return Plan(as_before(VQModel, arguments), weight, ignored)

"""`hf-vq inspect`: tells what a folder is from its config and file headers; no weights are loaded."""

import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open

from hf_vq.autoencoders import AUTOENCODERS
from hf_vq.cli.checks import check_weights, local_folder_of_any, pipeline_folders
from hf_vq.cli.data_options import size_options, sizes_of_samples
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import nearest, parse_options
from hf_vq.data.codes import load_codes
from hf_vq.data.folders import check_shards
from hf_vq.data.shards import code_splits, count_grids
from hf_vq.hub import PRIOR_SECTION
from hf_vq.registry import MODALITIES, modality_of
from hf_vq.saved import CONFIG, config_kind, read_index, read_json, weight_files
from hf_vq.training.checkpoints import MANIFEST

MANUAL = Manual(
    "inspect",
    "Tell what a folder is, without loading its weights.",
    """
hf-vq inspect tokenizer
""",
    ("folder",),
    sizes_of_samples(),
)


@dataclass
class InspectOptions:
    """What to inspect."""

    folder: str = field(metadata={"help": "folder or repo id of an autoencoder, a prior, a pipeline or codes"})
    modality: str | None = field(
        default=None,
        metadata={
            "help": f"of a prior alone, whose codes do not tell it: {', '.join(MODALITIES)}; default: that of a size "
            "given, else its bits are those of a sample"
        },
    )
    json: bool = field(default=False, metadata={"help": "print JSON"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, sizes, _ = parse_options(
        [InspectOptions, size_options()],
        argv,
        MANUAL,
    )
    facts = describe(options.folder, sizes, options.modality)
    print(json.dumps(facts, indent=2) if options.json else _as_text(facts))


def describe(name: str, sizes: Any = None, modality: str | None = None) -> dict[str, Any]:
    """Facts about a folder or repo, as a dict that JSON can hold.

    Args:
        name: folder or repo id.
        sizes: options of `size_options`, to count codes and bits of an autoencoder; else those of its processor.
        modality: name of that of a prior alone; None: the one whose size is among `sizes`.

    Raises:
        ValueError: no such folder, nothing of ours in it, a config without weights, or no such modality.
    """
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"modality={modality!r}: unknown{nearest(modality, MODALITIES)}")
    folder = local_folder_of_any(name)
    kind = check_weights(folder, "autoencoder", "prior", "pipeline", "codes")
    facts: dict[str, Any] = {"kind": kind, "folder": str(folder)}
    if kind == "codes":
        return {**facts, **_describe_codes(folder)}
    if kind == "pipeline":
        parts = pipeline_folders(folder)
        known = modality_of(read_json(parts["autoencoder"] / CONFIG).get("_class_name"))
        described = {part: _describe_model(path, sizes, known) for part, path in parts.items()}
        return {**facts, **described, **_describe_others(folder, parts)}
    if (folder / MANIFEST).is_file():
        facts["step"] = read_json(folder / MANIFEST)["step"]  # of the training whose checkpoint it is
    sized = [each for each in MODALITIES.values() if sizes is not None and each.space_of(sizes) is not None]
    known = MODALITIES.get(modality or "", sized[0] if len(sized) == 1 else None)
    return {**facts, **_describe_model(folder, sizes, known)}


def _describe_others(folder, models):
    """Classes of a pipeline's components that are no models of ours, and the weights of those that have any."""
    facts = {}
    for part, value in read_index(folder).items():
        if part not in models and part[0] != "_" and isinstance(value, list) and value[0] is not None:
            weights = _describe_weights(folder / part)
            numbers = {"parameters": _count(folder / part), **weights} if weights["weights"] else {}
            facts[part] = {"class": value[1], **numbers}
    return facts


def _describe_model(folder, sizes, modality):
    config = read_json(folder / CONFIG)
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    if config_kind(config) == "autoencoder":
        facts = _describe_autoencoder(folder, config, sizes)
    else:
        facts = _describe_prior(folder, config, modality)
    return {**facts, **_describe_weights(folder), "config": public}


def _describe_autoencoder(folder, config, sizes):
    name = config["_class_name"]
    if name not in AUTOENCODERS:
        raise ValueError(f"{folder} holds {name!r}, which is none of {', '.join(sorted(AUTOENCODERS))}")
    with torch.device("meta"):
        model = AUTOENCODERS[name].from_config(config)
    modality = modality_of(name)
    bits = [quantizer.bits_per_token for quantizer in model.quantizers]
    rate = sum(one / math.prod(strides) for one, strides in zip(bits, model.grid_strides, strict=True))
    facts = {
        "class": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "codebook_size": model.codebook_size,
        "quantizer": type(model.quantizers[0]).__name__,
        "num_levels": model.num_levels,
        "codebook_dim": model.quantizers[0].dim,
        "downsample_factor": model.downsample_factor,
        "bits_per_token": round(bits[0], 4) if len(bits) == 1 else [round(one, 4) for one in bits],
        f"bits_per_{modality.unit if modality else 'position'}": round(rate, 4),
    }
    if hasattr(model, "frame_rate"):  # codecs of sounds
        facts["frame_rate"] = round(model.frame_rate, 4)
        facts["kbit_per_second"] = round(model.bandwidth, 4)
        facts["kbit_per_second_of_levels"] = [round(each, 4) for each in model.level_bandwidths]
    space = _space(folder, modality, sizes)
    if space is not None:
        code_shape = model.code_shape((model.in_channels, *space))
        facts.update(code_shape=list(code_shape), **_bits(modality, rate * math.prod(space)))
    return {**facts, **_describe_usage(folder)}


def _space(folder, modality, sizes):
    """Space of the samples that options ask for, or else of the model's processor; None where neither tells."""
    if modality is None:
        return None
    processor = modality.processor.from_pretrained(folder)
    return (sizes and modality.space_of(sizes)) or (processor and processor.size)


def _bits(modality, bits):
    return {f"bits_per_{modality.name if modality else 'sample'}": bits if bits is None else round(bits, 2)}


def _describe_prior(folder, config, modality):
    name = config.get("auto_map", {}).get("AutoConfig", config["model_type"])  # a Llama's architecture is Llama
    config = config | config.get(PRIOR_SECTION, {})
    bits, shape = math.log2(config["codebook_size"]), config.get("code_shape")
    return {
        "class": name.rpartition(".")[2].removesuffix("Config"),
        "parameters": _count(folder),
        "codebook_size": config["codebook_size"],
        "num_classes": config.get("num_classes") or 0,
        **({"num_speakers": config["num_speakers"]} if config.get("num_speakers") else {}),
        "code_shape": shape,
        **_bits(modality, bits * math.prod(shape) if shape else None),
    }


def _describe_weights(folder):
    """Files, bytes and number types of the weights."""
    files = weight_files(folder, ".safetensors", ".bin")
    return {
        "weights": [path.name for path in files],
        "weights_bytes": sum(path.stat().st_size for path in files),
        "weights_dtypes": sorted({dtype for dtype, _ in _tensors(folder).values()}),
    }


def _count(folder):
    """Numbers in the weights of a folder."""
    return sum(math.prod(shape) for _, shape in _tensors(folder).values())


def _tensors(folder):
    """{name: (dtype, shape)} from the headers of the safetensors files of a folder."""
    found = {}
    for path in weight_files(folder, ".safetensors"):
        with open(path, "rb") as file:
            try:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > path.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            except (struct.error, ValueError) as error:
                raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        header.pop("__metadata__", None)
        found.update({name: (entry["dtype"], entry["shape"]) for name, entry in header.items()})
    return found


def _describe_usage(folder):
    """How the codebook is used: by the quantizer's own running counts, and on validation by the training report."""
    facts: dict[str, Any] = {}
    for path in weight_files(folder, ".safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.endswith("cluster_size"):  # one number per code, the only tensor that is read
                    shares = file.get_tensor(name).double()
                    shares = shares / shares.sum().clamp(min=1e-12)
                    facts["running_perplexity"] = round(torch.special.entr(shares).sum().exp().item(), 2)
    if (folder / "report.json").is_file():
        metrics = read_json(folder / "report.json").get("metrics", {})
        names = ("eval_usage", "eval_perplexity", "eval_dead_codes")
        facts.update({name: metrics[name] for name in names if name in metrics})
    return facts


def _describe_codes(folder):
    facts: dict[str, Any] = {"splits": {}}
    for split in code_splits(folder):
        facts["splits"][split] = len(load_codes(folder, split, grid=0))
    shards = [shard for split in code_splits(folder) for shard in check_shards(folder, split)]
    facts["sealed"] = all(shard.facts is not None for shard in shards)
    facts["rewritten"] = any("rewritten" in shard.plan for shard in shards)  # by datasets, since they were tokenized
    grids = [load_codes(folder, split, grid=grid) for grid in range(count_grids(folder))]
    codes = grids[0]
    return {
        **facts,
        "codebook_size": codes.codebook_size if len(grids) == 1 else [grid.codebook_size for grid in grids],
        "code_shape": list(codes.code_shape) if len(grids) == 1 else [list(grid.code_shape) for grid in grids],
        "sample_shape": list(codes.sample_shape),
        "num_classes": codes.num_classes,
        **({"num_speakers": codes.num_speakers} if codes.num_speakers else {}),
        **_bits(
            modality_of(codes.tokenizer["class"]),
            sum(math.log2(grid.codebook_size) * math.prod(grid.code_shape) for grid in grids),
        ),
        "tokenizer": codes.tokenizer,
    }


def _as_text(facts, indent=""):
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", _as_text(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: {', '.join(map(str, value))}")
        else:
            lines.append(f"{indent}{name}: {f'{value:,}' if type(value) is int else value}")
    return "\n".join(lines)

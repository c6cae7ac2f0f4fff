"""`hf-vq inspect`: tells what a folder is from its config and file headers; no weights are loaded."""

import json
import math
import struct
from dataclasses import dataclass, field

import torch
from safetensors import safe_open

from hf_vq.autoencoders import AUTOENCODERS
from hf_vq.cli.checks import check_weights, local_folder, pipeline_folders, read_json
from hf_vq.cli.options import parse_options
from hf_vq.data.codes import load_codes
from hf_vq.data.shards import code_splits, count_grids
from hf_vq.hub import PRIOR_SECTION


@dataclass
class InspectOptions:
    """What to inspect."""

    folder: str = field(metadata={"help": "folder or repo id of an autoencoder, a prior, a pipeline or codes"})
    image_size: int | None = field(default=None, metadata={"help": "side in pixels, to count codes and bits"})
    json: bool = field(default=False, metadata={"help": "print JSON"})


def main(argv):
    """Run the verb."""
    options, _ = parse_options(
        [InspectOptions],
        argv,
        verb="inspect",
        description="Tell what a folder is, without loading its weights.",
        positional="folder",
    )
    facts = describe(options.folder, options.image_size)
    print(json.dumps(facts, indent=2) if options.json else _as_text(facts))


def describe(name, image_size=None):
    """Facts about a folder or repo, as a dict that JSON can hold.

    Args:
        name: folder or repo id.
        image_size: side in pixels, to count codes and bits of an autoencoder.

    Raises:
        ValueError: no such folder, nothing of ours in it, or a config without weights.
    """
    folder = local_folder(name)
    kind = check_weights(folder, "autoencoder", "prior", "pipeline", "codes")
    if kind == "pipeline":
        components = {part: _describe_model(path, image_size) for part, path in pipeline_folders(folder).items()}
        return {"kind": kind, "folder": str(folder), **components}
    if kind == "codes":
        return {"kind": kind, "folder": str(folder), **_describe_codes(folder)}
    return {"kind": kind, "folder": str(folder), **_describe_model(folder, image_size)}


def _describe_model(folder, image_size):
    config = read_json(folder / "config.json")
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    facts = _describe_autoencoder if "_class_name" in config else _describe_prior
    return {**facts(folder, config, image_size), **_describe_weights(folder), "config": public}


def _describe_autoencoder(folder, config, image_size):
    name = config["_class_name"]
    if name not in AUTOENCODERS:
        raise ValueError(f"{folder} holds {name!r}, which is none of {', '.join(sorted(AUTOENCODERS))}")
    with torch.device("meta"):
        model = AUTOENCODERS[name].from_config(config)
    bits = [quantizer.bits_per_token for quantizer in model.quantizers]
    per_pixel = sum(one / _area(factor) for one, factor in zip(bits, model.downsample_factors, strict=True))
    facts = {
        "class": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "codebook_size": model.codebook_size,
        "quantizer": type(model.quantizers[0]).__name__,
        "num_levels": model.num_levels,
        "codebook_dim": model.quantizers[0].dim,
        "downsample_factor": model.downsample_factor,
        "bits_per_token": round(bits[0], 4) if len(bits) == 1 else [round(one, 4) for one in bits],
        "bits_per_pixel": round(per_pixel, 4),
    }
    if image_size is not None:
        code_shape = model.code_shape((model.config.in_channels, image_size, image_size))
        facts.update(code_shape=list(code_shape), bits_per_image=round(per_pixel * image_size**2, 2))
    return {**facts, **_describe_usage(folder)}


def _area(factor):
    """Pixels behind a position of the grid."""
    return math.prod(factor) if isinstance(factor, tuple) else factor**2


def _describe_prior(folder, config, image_size):
    name = config.get("auto_map", {}).get("AutoConfig", config["model_type"])  # a Llama's architecture is Llama
    config = config | config.get(PRIOR_SECTION, {})
    bits, shape = math.log2(config["codebook_size"]), config.get("code_shape")
    return {
        "class": name.rpartition(".")[2].removesuffix("Config"),
        "parameters": sum(math.prod(shape) for _, shape in _tensors(folder).values()),
        "codebook_size": config["codebook_size"],
        "num_classes": config.get("num_classes") or 0,
        "code_shape": shape,
        "bits_per_image": round(bits * math.prod(shape), 2) if shape else None,
    }


def _describe_weights(folder):
    """Files, bytes and number types of the weights."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    return {
        "weights": [path.name for path in files],
        "weights_bytes": sum(path.stat().st_size for path in files),
        "weights_dtypes": sorted({dtype for dtype, _ in _tensors(folder).values()}),
    }


def _tensors(folder):
    """{name: (dtype, shape)} from the headers of the safetensors files of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
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
    facts = {}
    for path in sorted(folder.glob("*.safetensors")):
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
    facts = {"splits": {}}
    for split in code_splits(folder):
        facts["splits"][split] = len(load_codes(folder, split, grid=0))
    levels = [load_codes(folder, split, grid=grid) for grid in range(count_grids(folder))]
    codes = levels[0]
    return {
        **facts,
        "codebook_size": codes.codebook_size if len(levels) == 1 else [level.codebook_size for level in levels],
        "code_shape": list(codes.code_shape) if len(levels) == 1 else [list(level.code_shape) for level in levels],
        "sample_shape": list(codes.sample_shape),
        "num_classes": codes.num_classes,
        "bits_per_image": round(
            sum(math.log2(level.codebook_size) * math.prod(level.code_shape) for level in levels), 2
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

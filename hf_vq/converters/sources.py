"""From what a user names, a file or a folder, to a Source: weights read safely, and the original's config."""

import json
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

from hf_vq.converters.base import FORMATS, Config, Source
from hf_vq.converters.files import find_tensors, read_file
from hf_vq.registry import AUTOENCODERS
from hf_vq.saved import INDEX

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".tar", ".npz", ".h5", ".hdf5", ".keras")
LARGEST_CONFIG = 2**24  # bytes
HALVES = ("encoder", "decoder")  # DALL-E's files
PIPELINES = {  # of diffusers that are read, by class: the folders of their weights, beside the scheduler's
    "VQDiffusionPipeline": ("vqvae", "transformer", "learned_classifier_free_sampling_embeddings"),
}


def read_source(path: str | Path, config: str | Path | None = None) -> Source:
    """Reads a checkpoint.

    Args:
        path: a file of weights, or a folder with one; or with encoder and decoder (DALL-E).
        config: the original's config file (YAML or JSON); None: the one beside the weights, where there is one.

    Returns:
        Source.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no weights in a folder, or several; a file that is broken or not safe.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, config)
    return _read_files(path, _with_its_half(path), config)


def read_config(path: Path) -> dict[str, Any]:
    """A YAML or JSON file as a dict.

    Raises:
        ValueError: it cannot be read, or is no mapping; names the file.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and of what Python writes it knows tuples, which are lists here."""

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", yaml.SafeLoader.construct_yaml_seq)
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the config {path}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the config {path} must be a mapping, got {type(content).__name__}")
    return content


def _read_files(path, files, config):
    """The source of one file, or of an encoder's and a decoder's."""
    config_path = Path(config) if config is not None else _find_config(files[0])
    told = read_config(config_path) if config_path else {}
    if len(files) == 1:
        loaded = read_file(files[0])
        tensors, rest = find_tensors(loaded.content, files[0])
    else:
        tensors, rest = {}, {}
        for file, part in zip(files, HALVES, strict=True):
            half, _ = find_tensors(read_file(file).content, file)
            tensors |= {f"{part}.{name}": tensor for name, tensor in half.items()}
    return Source(path, tensors, rest, Config(told), config_path)


def _read_folder(folder, config):
    """The one checkpoint of a known format in a folder, or a pipeline of one."""
    if (folder / INDEX).is_file():
        return _read_pipeline(folder, config)
    found = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS and file.is_file())
    if not found:
        raise ValueError(f"{folder} holds no file of weights ({', '.join(WEIGHTS)}); folders in it are not searched")
    safe = {file.stem for file in found if file.suffix == ".safetensors"}
    found = [
        file for file in found if file.suffix == ".safetensors" or file.stem not in safe
    ]  # the same weights twice
    if len(found) == 1:
        return _read_files(folder, _with_its_half(found[0]), config)
    halves = {tuple(_with_its_half(file)) for file in found}
    sources = [_read_files(files[0], list(files), config) for files in sorted(halves)]
    known = [source for source in sources if any(kind.recognises(source) for kind in FORMATS.values())]
    if len(known) == 1:
        known[0].path = folder
        return known[0]
    names = ", ".join(source.path.name for source in known or sources)
    raise ValueError(f"{folder} holds several files of weights, name one of them: {names}")


def _read_pipeline(folder, config):
    """The source of a known pipeline of diffusers: tensors and configs of its parts, under their names and a dot."""
    index = read_config(folder / INDEX)
    if index.get("_class_name") not in [*PIPELINES]:  # which may be anything, hashable or not
        _refuse_pipeline(folder, index)
    if config is not None:
        raise ValueError(f"config={str(config)!r} given, but {folder} is the folder of a pipeline, which has its own")
    parts = PIPELINES[index["_class_name"]]
    for name in (*parts, "scheduler"):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder} lacks the folder {name!r} of its {index['_class_name']}")
    sources = {name: _read_folder(folder / name, None) for name in parts}
    told = {name: source.config for name, source in sources.items()}
    told |= {"model_index": index, "scheduler": read_config(folder / "scheduler" / SCHEDULER_CONFIG_NAME)}
    tensors = {f"{name}.{key}": one for name, source in sources.items() for key, one in source.tensors.items()}
    return Source(folder, tensors, {}, Config(told), folder / INDEX)


def _refuse_pipeline(folder, index):
    """A ValueError for the folder of a pipeline, which names the autoencoder in it."""
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    found = [name for name, class_name in parts.items() if class_name in [*AUTOENCODERS]] or [
        name for name in ("vqvae", "vqgan", "autoencoder", "movq") if name in parts
    ]
    give = f": give its {found[0]}, {folder / found[0]}" if found else f", of {', '.join(parts) or 'nothing'}"
    raise ValueError(f"{folder} is the folder of a pipeline, {index.get('_class_name')!r}{give}")


def _with_its_half(file):
    """A file; an encoder's beside its decoder's, either way round."""
    if file.stem not in HALVES:
        return [file]
    halves = [file.with_name(f"{part}{file.suffix}") for part in HALVES]
    missing = [half.name for half in halves if not half.is_file()]
    if missing and file.is_file():
        raise ValueError(f"{file} is one half of a model: {missing[0]} must be beside it")
    return [file] if missing else halves


def _find_config(weights):
    """The config file of a file of weights: beside it, or where taming's logs have it."""
    beside = [*weights.parent.glob("*.yaml"), *weights.parent.glob("*.yml"), *weights.parent.glob("config.json")]
    logged = [*weights.parent.parent.glob("configs/*.yaml")] if weights.parent.name == "checkpoints" else []
    for group in (beside, logged):
        named = [file for file in group if file.stem in ("config", "model", weights.stem)]
        project = [file for file in group if file.stem.endswith("project")]
        for candidates in (named, project, group):
            if len(candidates) == 1:
                return candidates[0]
    return None

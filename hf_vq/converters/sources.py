"""From what a user names, a file or a folder, to a Source: weights read safely, and the original's config."""

import json
import re
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

from hf_vq.converters.base import Config, Source
from hf_vq.converters.files import read_file
from hf_vq.converters.prefixes import is_known, peel, peel_torchs
from hf_vq.converters.wrappers import find_tensors
from hf_vq.registry import AUTOENCODERS
from hf_vq.saved import INDEX

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".tar", ".npz", ".h5", ".hdf5", ".keras")
LARGEST_CONFIG = 2**24  # bytes
RUN = "checkpoints"  # folder of weights in that of a run of taming's or Lightning's, whose configs are beside it
STEPS = ("epoch", "global_step", "step", "steps", "iteration", "iter")  # names in files
HALVES = ("encoder", "decoder")  # DALL-E's files
PIPELINES = {  # of diffusers that are read, by class: the folders of their weights, beside the scheduler's
    "VQDiffusionPipeline": ("vqvae", "transformer", "learned_classifier_free_sampling_embeddings"),
}


def read_source(path: str | Path, config: str | Path | None = None, weights: str | None = None) -> Source:
    """Reads a checkpoint.

    Args:
        path: a file of weights, or a folder with one; or with encoder and decoder (DALL-E); or that of a run, with
            weights in `checkpoints`; or of a pipeline.
        config: the original's config file (YAML or JSON); None: the one beside the weights, where there is one.
        weights: of several state dicts or models in a file, the name of the one to take.

    Returns:
        Source.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: no weights in a folder, or several; a file that is broken or not safe.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, config, weights)
    return _read_files(path, _with_its_half(path), config, weights)


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


def _read_files(path, files, config, weights):
    """The source of one file, or of an encoder's and a decoder's."""
    config_path = Path(config) if config is not None else _find_config(files[0])
    told = Config(read_config(config_path) if config_path else {})
    if len(files) == 1:
        content = read_file(files[0]).content

        def fits(tensors):
            return is_known(peel(Source(path, tensors, config=told, config_path=config_path)))

        tensors, rest, said = find_tensors(content, files[0], weights, fits)
        return peel(Source(path, tensors, rest, told, config_path, told=said), weights)
    if weights is not None:
        raise ValueError(f"weights={weights!r} given, but {path} is of two files, {' and '.join(HALVES)}")
    tensors = {}
    for file, part in zip(files, HALVES, strict=True):
        half, _ = peel_torchs(find_tensors(read_file(file).content, file)[0])
        tensors |= {f"{part}.{name}": tensor for name, tensor in half.items()}
    return Source(path, tensors, {}, told, config_path)


def _read_folder(folder, config, weights=None):
    """The one checkpoint of a known format in a folder, or a pipeline of one."""
    if (folder / INDEX).is_file():
        return _read_pipeline(folder, config, weights)
    found = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS and file.is_file())
    if not found and (folder / RUN).is_dir():
        return _read_folder(folder / RUN, config, weights)
    if not found:
        raise ValueError(
            f"{folder} holds no file of weights ({', '.join(WEIGHTS)}); folders in it are not searched, but for {RUN}"
        )
    safe = {file.stem for file in found if file.suffix == ".safetensors"}
    found = [
        file for file in found if file.suffix == ".safetensors" or file.stem not in safe
    ]  # the same weights twice
    if len(found) == 1:
        return _read_files(folder, _with_its_half(found[0]), config, weights)
    files = sorted({tuple(_with_its_half(file)) for file in found})
    steps = {halves[0]: _steps_in_name(halves[0]) for halves in files}
    if all(steps.values()) and len({re.sub(r"\d+", "", file.stem) for file in steps}) == 1:  # of one training
        raise ValueError(_which(folder, steps))
    known, first = [], None
    for halves in files:
        source = _read_files(halves[0], list(halves), config, weights)
        if is_known(source):
            known.append(halves[0])
            steps[halves[0]] = steps[halves[0]] or _steps_in_file(source.rest)
            first = first or source
    if len(known) == 1:
        first.path = folder
        return first
    raise ValueError(_which(folder, {file: steps[file] for file in known or steps}))


def _steps_in_name(file):
    """Epoch and step in the name of a file, as `epoch=3-step=12`, `model_00012` and their like; () without any."""
    named = [re.search(rf"{word}[=_-]?(\d+)", file.stem) for word in ("epoch", "step")]
    numbers = [int(match[1]) for match in named if match] or [int(one) for one in re.findall(r"\d+$", file.stem)]
    return tuple(numbers)


def _steps_in_file(rest):
    """Epoch and step that a file tells beside its weights."""
    return tuple(rest[name] for name in STEPS if isinstance(rest.get(name), int))


def _which(folder, steps):
    """The question which of several checkpoints is meant, in the order of their steps."""
    order = sorted(steps, key=lambda file: (steps[file], file.name))
    names = ", ".join(
        f"{file.name}{f' (step {steps[file][-1]})' if steps[file] and not _steps_in_name(file) else ''}"
        for file in order
    )
    return f"{folder} holds several files of weights, name one of them as source: {names}"


def _read_pipeline(folder, config, weights):
    """The source of a known pipeline of diffusers: tensors and configs of its parts, under their names and a dot."""
    index = read_config(folder / INDEX)
    if index.get("_class_name") not in [*PIPELINES]:  # which may be anything, hashable or not
        return _read_part(folder, index, config, weights)
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


def _read_part(folder, index, config, weights):
    """The source of the one autoencoder of ours in the folder of another pipeline."""
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    found = [name for name, class_name in parts.items() if class_name in [*AUTOENCODERS] and name.isidentifier()]
    if len(found) != 1 or not isinstance(index.get("_class_name"), str):
        raise ValueError(
            f"{folder} is the folder of a pipeline, {index.get('_class_name')!r}, {len(found)} autoencoders in "
            f"{', '.join(f'{name} ({one})' for name, one in parts.items()) or 'no parts'}: give the folder of one"
        )
    if not (folder / found[0]).is_dir():
        raise ValueError(f"{folder} lacks the folder {found[0]!r} of its {index.get('_class_name')}")
    source = _read_folder(folder / found[0], config, weights)
    source.told.append(f"Of the pipeline {index.get('_class_name')} its {found[0]} was taken.")
    return source


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
        for candidates in (named, sorted(project)[-1:], group):  # a run that was resumed has dated ones
            if len(candidates) == 1:
                return candidates[0]
    return None

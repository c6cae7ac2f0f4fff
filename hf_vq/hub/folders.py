"""What a saved folder is, and which of its files travel to the Hub."""

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from hf_vq.data.folders import check_shards
from hf_vq.data.shards import code_splits
from hf_vq.hub.shims import PIPELINE, SHIM, needed_modules, needed_packages
from hf_vq.registry import PIPELINES, modality_of
from hf_vq.saved import (
    CONFIG,
    DISCRIMINATOR,
    INDEX,
    PRIOR_SECTION,
    check_files,
    check_links,
    config_kind,
    folder_kind,
    read_config,
    read_index,
    read_mapping,
    shard_names,
    weight_files,
)

PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp")
PROCESSOR = "preprocessor_config.json"  # how samples are prepared for the model
SCHEDULER = "scheduler_config.json"  # how a pipeline's prior takes its steps
MODEL_FILES = (
    CONFIG, "generation_config.json", PROCESSOR, SCHEDULER, "*.safetensors", "*.safetensors.index*.json", f"{SHIM}.py"
)  # fmt: skip
CONVERSION = "conversion.json"  # where converted weights come from
EVALUATION = "evaluation.json"  # what `hf-vq evaluate` found
RUN_FILES = ("report.json", EVALUATION, CONVERSION, "*.yaml", *PICTURES)


@dataclass
class ModelFolder:
    """A saved autoencoder, prior or pipeline, or codes.

    Attributes:
        path: where it is.
        kind: "autoencoder", "prior", "pipeline" or "codes".
        class_name: of hf_vq; of codes that of their tokenizer.
        config: of the model, or the index of the pipeline; of codes what is true of all rows, and `splits`, the number
            of rows by name.
        components: of a pipeline, our models only: ModelFolder by name.
        others: of a pipeline, the classes of its other components by name.
        files: what travels to the Hub, path by path in the repository; README.md aside.
    """

    path: Path
    kind: str
    class_name: str
    config: dict
    components: dict[str, "ModelFolder"] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def packages(self) -> list[str]:
        """What must be installed beside hf_vq: packages of a user's classes."""
        return self._ask_shims(needed_packages)

    @property
    def modules(self) -> list[str]:
        """Modules that must be imported, so that a user's classes are registered."""
        return self._ask_shims(needed_modules)

    def _ask_shims(self, question: Callable[[str], list[str]]) -> list[str]:
        shims = [path for name, path in self.files.items() if Path(name).name in (f"{SHIM}.py", f"{PIPELINE}.py")]
        return list(dict.fromkeys(found for path in shims for found in question(path.read_text(encoding="utf-8"))))

    @property
    def modality(self) -> Any:
        """That of the autoencoder in it; None of a prior, and of an autoencoder without one."""
        return modality_of(self.components.get("autoencoder", self).class_name)


def read_folder(path: str | Path) -> ModelFolder:
    """Recognise a folder that hf_vq wrote, and check that its weights, or shards of codes, are there and whole.

    Checkpoints, optimizer states and logs of a training in the same folder do not travel; the discriminator that an
    autoencoder was trained against does.

    Returns:
        ModelFolder.

    Raises:
        ValueError: nothing of ours in it; a component, its config or its weights, or shards that are missing; weights
            or shards that are cut; what is no file under a file's name; or names and links that leave the folder.
    """
    path = Path(path)
    check_links(path)
    check_files(path)
    kind = folder_kind(path)
    if kind == "codes":
        return _read_codes(path)
    if kind not in ("pipeline", "autoencoder", "prior"):
        raise ValueError(f"{path} holds no model: neither a {INDEX} nor a {CONFIG} nor codes in data/ are there")
    folder = _read_pipeline(path) if kind == "pipeline" else _read_model(path)
    folder.files.update(_find(path, RUN_FILES))
    if folder.modality:
        folder.files.update(_find(path, (f"*{folder.modality.suffix}",)))
    return folder


def takes(class_name: str, argument: str) -> bool:
    """Whether calls of a registered pipeline of this name have an argument."""
    known = PIPELINES.get(class_name)
    return known is not None and argument in inspect.signature(known.__call__).parameters


def takes_prompts(class_name: str) -> bool:
    """Whether a registered pipeline of this name draws what a text says."""
    return takes(class_name, "prompt")


def is_model_file(name: str) -> bool:
    """Whether a file of this name is part of the folder of a model."""
    return name == "README.md" or any(fnmatch(name, pattern) for pattern in (*MODEL_FILES, *RUN_FILES))


def _read_codes(path: Path) -> ModelFolder:
    splits = {split: check_shards(path, split) for split in code_splits(path)}
    shards = [shard for found in splits.values() for shard in found]
    rewritten = {"rewritten": True} if any("rewritten" in shard.plan for shard in shards) else {}
    plan = {**shards[0].plan, **rewritten, "splits": {name: sum(one.rows for one in splits[name]) for name in splits}}
    files = {f"data/{shard.path.name}": shard.path for shard in shards}
    return ModelFolder(path, "codes", plan["tokenizer"]["class"], plan, files=files)


def _read_pipeline(path: Path) -> ModelFolder:
    index = read_index(path)
    name = index.get("_class_name")
    if not isinstance(name, list) or name[:1] != [PIPELINE] or not (path / f"{PIPELINE}.py").is_file():
        raise ValueError(f"{path} holds {name!r}, no pipeline that hf_vq saved: call its own push_to_hub")
    folder = ModelFolder(path, "pipeline", name[1], index)
    folder.files = _find(path, (INDEX, f"{PIPELINE}.py"))
    for component, (library, class_name) in _components(path, index).items():
        if not (path / component).is_dir():
            raise ValueError(f"{path}: {INDEX} names {component}, a {class_name}, but there is no folder {component}")
        scheduler = (path / component / SCHEDULER).is_file()
        if library == SHIM and not scheduler:
            folder.components[component] = _read_model(path / component)
            files = folder.components[component].files
        else:
            folder.others[component] = class_name
            ours = library == SHIM
            files = (
                _find(path / component, MODEL_FILES) if ours else _read_stock(path / component, library, class_name)
            )
        folder.files.update({f"{component}/{file}": found for file, found in files.items()})
    return folder


def _components(path: Path, index: dict) -> dict[str, list[str]]:
    """Library and class of the components that an index names, but for optional ones that are left out."""
    owner = index["_class_name"][1]
    known = PIPELINES.get(owner)
    parameters = [] if known is None else [*inspect.signature(known).parameters.values()]
    options = {each.name for each in parameters if each.default is not each.empty}
    options -= set(getattr(known, "_optional_components", ()))
    found = {
        name: value
        for name, value in index.items()
        if name[0] != "_" and name not in options
        if isinstance(value, list) and [*map(type, value)] == [str, str]
    }
    for name in (each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD):
        if name not in found:
            raise ValueError(f"{path}: {INDEX} names no {name}, which a {owner} needs; got {index.get(name)!r}")
    return found


def _read_stock(path: Path, library: str, class_name: str) -> dict[str, Path]:
    """The files of a component of another library; a ValueError where it could not be loaded from them."""
    check_files(path)
    files = _find(path, ("*",))
    if not files:
        raise ValueError(f"{path} is empty, but {INDEX} names a {class_name} of {library} there")
    found: Any = getattr(sys.modules.get(library), class_name, None)  # nothing is imported because a file names it
    is_model = isinstance(found, type) and issubclass(found, nn.Module)
    config = CONFIG if is_model else getattr(found, "config_name", None)
    if config is None and library == "transformers":
        config = "*.json"
    if config is not None and not _find(path, (config,)):
        raise ValueError(f"{path} has no {config}, from which {class_name} of {library} is loaded")
    if is_model or (found is None and CONFIG in files):
        _check_weights(path, ("*.safetensors", "*.bin"))
    return files


def _read_model(path: Path) -> ModelFolder:
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} has no config.json")
    check_files(path)
    config = read_config(path)
    reference = config.get("auto_map", {}).get("AutoConfig", "")
    if not isinstance(reference, str) or not reference.startswith(f"{SHIM}.") or not (path / f"{SHIM}.py").is_file():
        raise ValueError(
            f"{path} was not saved by hf_vq: load it with AutoVQModel or AutoVQPrior and call save_pretrained first"
        )
    kind = config_kind(config)
    config |= config.get(PRIOR_SECTION, {})
    folder = ModelFolder(path, kind, reference.removeprefix(f"{SHIM}.").removesuffix("Config"), config)
    others = {*path.glob("*.safetensors")} - {*weight_files(path, ".safetensors")}  # of a training's checkpoint
    folder.files = {name: file for name, file in _find(path, MODEL_FILES).items() if file not in others}
    _check_weights(path, ("*.safetensors",))
    judge = path / DISCRIMINATOR
    if kind == "autoencoder" and (judge / CONFIG).is_file():
        check_files(judge)
        _check_weights(judge, ("*.safetensors",))
        folder.files |= {f"{DISCRIMINATOR}/{name}": file for name, file in _find(judge, MODEL_FILES).items()}
    return folder


def _check_weights(path: Path, patterns: Iterable[str]) -> None:
    weights = _find(path, patterns)
    for index in path.glob("*.index*.json"):
        for name in shard_names(index, read_mapping(index)):
            if name not in weights:
                raise ValueError(f"{path} lacks {name}, which {index.name} names")
    if not weights:
        raise ValueError(f"{path} has a config.json but no weights (no {' or '.join(patterns)})")
    for name in sorted(name for name in weights if name.endswith(".safetensors")):
        try:
            with safe_open(path / name, framework="np"):
                pass  # reads the header, and compares it with the size of the file
        except SafetensorError as error:
            raise ValueError(f"{path / name} is no whole safetensors file: {error}") from error


def _find(path: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Files by name, but for hidden ones."""
    found = (file for pattern in patterns for file in sorted(path.glob(pattern)) if file.is_file())
    return {file.name: file for file in found if file.name[0] != "."}

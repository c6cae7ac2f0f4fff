"""What a saved folder is, and which of its files travel to the Hub."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_vq.data.folders import check_shards
from hf_vq.data.shards import code_splits
from hf_vq.hub.shims import PIPELINE, SHIM, needed_modules, needed_packages
from hf_vq.registry import modality_of
from hf_vq.saved import CONFIG, INDEX, PRIOR_SECTION, check_links, config_kind, folder_kind, read_index, read_json

PICTURES = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.webp")
PROCESSOR = "preprocessor_config.json"  # how samples are prepared for the model
MODEL_FILES = (
    CONFIG, "generation_config.json", PROCESSOR, "*.safetensors", "*.safetensors.index*.json", f"{SHIM}.py"
)  # fmt: skip
CONVERSION = "conversion.json"  # where converted weights come from
RUN_FILES = ("report.json", "evaluation.json", CONVERSION, "*.yaml", *PICTURES)


@dataclass
class ModelFolder:
    """A saved autoencoder, prior or pipeline, or codes.

    Attributes:
        path: where it is.
        kind: "autoencoder", "prior", "pipeline" or "codes".
        class_name: of hf_vq; of codes that of their tokenizer.
        config: of the model, or the index of the pipeline; of codes what is true of all rows, and `splits`, the number
            of rows by name.
        components: of a pipeline, ours only: ModelFolder by name.
        files: what travels to the Hub, path by path in the repository; README.md aside.
    """

    path: Path
    kind: str
    class_name: str
    config: dict
    components: dict[str, "ModelFolder"] = field(default_factory=dict)
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

    Checkpoints, optimizer states and logs of a training in the same folder do not travel.

    Returns:
        ModelFolder.

    Raises:
        ValueError: nothing of ours in it, weights or shards that are missing or cut, or names and links that leave the
            folder.
    """
    path = Path(path)
    check_links(path)
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
    for component, value in index.items():
        if component.startswith("_") or not isinstance(value, list) or not value or not value[0]:
            continue
        if value[:1] == [SHIM]:
            folder.components[component] = _read_model(path / component)
            files = folder.components[component].files
        else:
            files = _find(path / component, ("*",))
        folder.files.update({f"{component}/{file}": found for file, found in files.items()})
    return folder


def _read_model(path: Path) -> ModelFolder:
    if not (path / CONFIG).is_file():
        raise ValueError(f"{path} has no config.json")
    config = read_json(path / CONFIG)
    reference = config.get("auto_map", {}).get("AutoConfig", "")
    if not reference.startswith(f"{SHIM}.") or not (path / f"{SHIM}.py").is_file():
        raise ValueError(
            f"{path} was not saved by hf_vq: load it with AutoVQModel or AutoVQPrior and call save_pretrained first"
        )
    kind = config_kind(config)
    config |= config.get(PRIOR_SECTION, {})
    folder = ModelFolder(path, kind, reference.removeprefix(f"{SHIM}.").removesuffix("Config"), config)
    folder.files = _find(path, MODEL_FILES)
    _check_weights(path)
    return folder


def _check_weights(path: Path) -> None:
    weights = {file.name for file in path.glob("*.safetensors")}
    for index in path.glob("*.safetensors.index*.json"):
        for name in sorted(set(read_json(index)["weight_map"].values()) - weights):
            raise ValueError(f"{path} lacks {name}, which {index.name} names")
    if not weights:
        raise ValueError(f"{path} has a config.json but no weights (no *.safetensors)")
    for name in sorted(weights):
        try:
            with safe_open(path / name, framework="np"):
                pass  # reads the header, and compares it with the size of the file
        except SafetensorError as error:
            raise ValueError(f"{path / name} is no whole safetensors file: {error}") from error


def _find(path: Path, patterns: Iterable[str]) -> dict[str, Path]:
    found = (file for pattern in patterns for file in sorted(path.glob(pattern)) if file.is_file())
    return {file.name: file for file in found if file.name[0] != "."}

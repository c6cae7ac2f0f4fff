"""What a saved folder is, told by its files, and whether it is what a class loads."""

import json
import os
import re
from pathlib import Path
from typing import Any

from hf_vq.registry import AUTOENCODERS, PIPELINES, PRIORS

INDEX, CONFIG = "model_index.json", "config.json"  # of a pipeline, of a model
PRIOR_SECTION = "vq_prior"  # of a stock model's config.json: what makes it a prior over codes
SAVED_TO_DISK = ("dataset_dict.json", "dataset_info.json")  # one of them, of a data set that datasets saved
LOADERS = {"autoencoder": "AutoVQModel", "prior": "AutoVQPrior"}
AUTOENCODER_WEIGHTS = "diffusion_pytorch_model*"
WEIGHTS = ((AUTOENCODER_WEIGHTS,), ("model*", "pytorch_model*"), ("*",))  # names of weights, the first that are there
DISCRIMINATOR = "discriminator"  # folder beside an autoencoder, of the network that judged it in training
HUB_ARGUMENTS = (  # of from_pretrained, that find a config
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip
FILES = ("*.json", "*.safetensors", "*.bin", "*.py", "*.md", "*.yaml")  # names of a model's files


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a ValueError names it when that fails."""
    check_file(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping; a ValueError names it when it cannot be read or holds something else."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a mapping, got {found!r:.60}")
    return found


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of the folder of a model, see `check_config`."""
    config = read_mapping(Path(folder) / CONFIG)
    check_config(Path(folder) / CONFIG, config)
    return config


def check_config(path: Any, config: Any) -> None:
    """Raise a ValueError where a config says whose it is by something else than names.

    Args:
        path: where the config was found, for the message.
        config: what it holds.
    """
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping, got {config!r:.60}")
    for key in ("_class_name", "model_type"):
        name = config.get(key)
        if name is not None and not (isinstance(name, str) and name):
            raise ValueError(f"{path}: {key} must be a name, got {name!r:.60}")
    for key in ("auto_map", PRIOR_SECTION):
        section = config.get(key)
        if section is not None and not isinstance(section, dict):
            raise ValueError(f"{path}: {key} must be a mapping, got {section!r:.60}")


def check_file(path: str | Path) -> None:
    """Raise a ValueError for what is there but no file: it would not open, or reading it would never end."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but must be a file")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a pipe, a socket or a device, but must be a file")


def check_files(folder: str | Path) -> None:
    """Raise a ValueError for what is no file under a file's name, and for shards outside the folder of a model.

    It is called before any of its files is read. Shards may be links within the folder and, of a snapshot in the
    Hub's cache, into the cache of the repository.
    """
    folder = Path(folder)
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        check_file(path)
    for index in sorted(folder.glob("*.index*.json")):
        for name in shard_names(index, read_mapping(index)):
            _check_link(folder / name, _reach(folder))


def shard_names(path: Any, index: dict[str, Any]) -> list[str]:
    """The files that an index of shards names.

    Args:
        path: where the index was found, for the message.
        index: what it holds.

    Raises:
        ValueError: a name that is none, or is outside the folder.
    """
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{path} must have a weight_map, from tensors to names of files; got {shards!r:.60}")
    for name in shards.values():
        if not re.fullmatch(r"[^/\\:\0]+", name) or name in (".", ".."):
            raise ValueError(f"{path} names {name!r}, which is outside the folder: shards have plain names within it")
    return sorted(set(shards.values()))


def read_index(folder: str | Path) -> dict[str, Any]:
    """The model_index.json of the folder of a pipeline, see `check_index`."""
    index = read_json(Path(folder) / INDEX)
    check_index(folder, index)
    return index


def check_index(path: Any, index: Any) -> None:
    """Raise a ValueError where an index of a pipeline names no class, or what is outside its folder.

    Args:
        path: where the index was found, for the message.
        index: what model_index.json holds; the names in it are names of Python.
    """
    if not isinstance(index, dict):
        raise ValueError(f"{path}: {INDEX} must hold a mapping, got {index!r:.60}")
    owner = index.get("_class_name")
    names = owner if isinstance(owner, list) and len(owner) == 2 else [owner]  # a file and the class in it
    for name in names:
        check_config(f"{path}: {INDEX}", {"_class_name": name})
    for name in index:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"{path}: {INDEX} names {name!r}, which is outside the folder: components have plain names within it"
            )


def weight_files(folder: str | Path, *endings: str) -> list[Path]:
    """The weights of the model of a folder: not those that a checkpoint of a training has beside them.

    Args:
        folder: of an autoencoder or a prior.
        endings: of the files that count, such as ".safetensors".
    """
    for names in WEIGHTS:
        found = {path for name in names for ending in endings for path in Path(folder).glob(name + ending)}
        if found:
            return sorted(found)
    return []


def check_links(folder: str | Path) -> None:
    """Raise a ValueError for the first symbolic link below a folder that leaves it, to a file or to a folder."""
    inside = Path(os.path.realpath(folder))
    for path in sorted(Path(folder).rglob("*")):
        _check_link(path, inside)


def _check_link(path, inside):
    target = Path(os.path.realpath(path))
    if path.is_symlink() and not target.is_relative_to(inside):
        raise ValueError(
            f"{path} is a link to {target}, which is outside the folder. Of a folder that should hold what it "
            "links to, such as a snapshot in the Hub's cache, make a copy that follows links (cp -rL) or load it "
            "and call push_to_hub"
        )


def _reach(folder):
    """Where the links of a folder may lead: into itself, or the cache of the repository that it is a snapshot of."""
    inside = Path(os.path.realpath(folder))
    snapshots = next((parent for parent in inside.parents if parent.name == "snapshots"), None)
    return snapshots.parent if snapshots is not None and (snapshots.parent / "blobs").is_dir() else inside


def config_kind(config: dict) -> str:
    """Tell whose config this is: "autoencoder", whose class diffusers names, or "prior"."""
    return "autoencoder" if "_class_name" in config else "prior"


def folder_kind(folder: str | Path) -> str | None:
    """Tell what a folder holds: "pipeline", "autoencoder", "prior" or "codes"; None: none of them.

    Codes may also be what `save_to_disk` of datasets wrote; who reads them says how they are read.

    Raises:
        ValueError: a config.json that cannot be read, or holds no config.
    """
    folder = Path(folder)
    for name in (INDEX, CONFIG):
        check_file(folder / name)
    if (folder / INDEX).is_file():
        return "pipeline"
    if (folder / CONFIG).is_file():
        return config_kind(read_config(folder))
    saved = any((folder / name).is_file() for name in SAVED_TO_DISK)
    return "codes" if saved or any(folder.glob("data/*.parquet")) else None


def check_class(path: Any, config: dict, owner: type) -> None:
    """Raise a ValueError where a config is that of another class than the one that is to load it.

    Args:
        path: where the config was found, for the message.
        config: of a model, or the index of a pipeline.
        owner: an autoencoder, a pipeline, or the config class of a prior. It may also be a subclass of what was saved,
            and a config that names nothing is taken as it is.
    """
    check_config(path, config)
    name, found = _saved_class(config)
    if name is None or (found is not None and issubclass(owner, found)):
        return
    if found is None and name in (owner.__name__, getattr(owner, "model_type", None)):
        return
    wanted = owner.__name__.removesuffix("Config") if hasattr(owner, "model_type") else owner.__name__
    raise ValueError(f"{path} holds {_article(name)} {name}, not {_article(wanted)} {wanted}: {how_to_load(config)}")


def check_folder(path: Any, subfolder: str | None, owner: type) -> None:
    """Raise a ValueError where a local folder has no config of a model but something else, and as `check_files`."""
    folder = Path(str(path), subfolder or "")
    if not folder.is_dir():
        return
    check_files(folder)
    if (folder / CONFIG).is_file():
        read_config(folder)
    elif (folder / INDEX).is_file():
        index = read_index(folder)
        check_class(folder, {**index, "_class_name": saved_name(index)}, owner)
    elif folder_kind(folder) == "codes":
        raise ValueError(f"{folder} holds codes, not a model")


def below(path: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A local folder and its `subfolder` as one path: diffusers reads the config there, and the weights above it.

    Args:
        path: what is loaded.
        options: of `from_pretrained`.

    Returns:
        Both, without a `subfolder` where the path holds it.

    Raises:
        FileNotFoundError: a local folder without that subfolder, in whose place diffusers loads the folder.
    """
    subfolder = options.get("subfolder")
    if not subfolder or not Path(str(path)).is_dir():
        return path, options
    folder = Path(str(path), subfolder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{path} has no folder {str(subfolder)!r}")
    return folder, {name: value for name, value in options.items() if name != "subfolder"}


def how_to_load(config: dict) -> str:
    """Words on what loads a folder with this config, or this index."""
    name, found = _saved_class(config)
    for kind, table in (("autoencoder", AUTOENCODERS), ("prior", PRIORS)):
        if found is not None and name in table:
            return f"{LOADERS[kind]} loads it"
    if found is not None:
        return f"{name}.from_pretrained or DiffusionPipeline loads it; its parts are in its subfolders"
    if _is_index(config):
        return "it is a pipeline, whose parts are in its subfolders"
    words = "AutoVQModel" if "_class_name" in config else "AutoVQPrior"
    return f"hf_vq knows no such class ({words} loads it where the package that registers it was imported)"


def saved_name(config: dict) -> str | None:
    """Name of the class, or else the `model_type`, of a config or an index; None where it names neither."""
    return _saved_class(config)[0]


def _saved_class(config: dict) -> tuple[str | None, Any]:
    """The name of what was saved, and what of ours has it: the class, of a prior the class of its config."""
    name = config.get("_class_name")
    if isinstance(name, list | tuple):
        name = name[-1]
    if name is not None:
        return name, {**PIPELINES, **AUTOENCODERS}.get(name)
    stock = "TransformerPrior"  # on disk a Llama, by that section one of ours
    classes = {prior.config_class.model_type: prior for name, prior in PRIORS.items() if name != stock}
    prior = PRIORS[stock] if PRIOR_SECTION in config else classes.get(config.get("model_type"))
    return (config.get("model_type"), None) if prior is None else (prior.__name__, prior.config_class)


def _is_index(config: dict) -> bool:
    return any(isinstance(value, list) and len(value) == 2 for name, value in config.items() if name[0] != "_")


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOaeio" or name.startswith(("MA", "RQ")) else "a"

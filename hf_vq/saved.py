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


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a ValueError names it when that fails."""
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


def read_index(folder: str | Path) -> dict[str, Any]:
    """The model_index.json of the folder of a pipeline, see `check_index`."""
    index = read_json(Path(folder) / INDEX)
    check_index(folder, index)
    return index


def check_index(path: Any, index: Any) -> None:
    """Raise a ValueError where an index of a pipeline names what is outside its folder.

    Args:
        path: where the index was found, for the message.
        index: what model_index.json holds; the names in it are names of Python.
    """
    if not isinstance(index, dict):
        raise ValueError(f"{path}: {INDEX} must hold a mapping, got {index!r:.60}")
    for name in index:
        if not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"{path}: {INDEX} names {name!r}, which is outside the folder: components have plain names within it"
            )


def check_links(folder: str | Path) -> None:
    """Raise a ValueError for the first symbolic link below a folder that leaves it, to a file or to a folder."""
    inside = Path(os.path.realpath(folder))
    for path in sorted(Path(folder).rglob("*")):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not target.is_relative_to(inside):
            raise ValueError(
                f"{path} is a link to {target}, which is outside the folder. Of a folder that should hold what it "
                "links to, such as a snapshot in the Hub's cache, make a copy that follows links (cp -rL) or load it "
                "and call push_to_hub"
            )


def config_kind(config: dict) -> str:
    """Tell whose config this is: "autoencoder", whose class diffusers names, or "prior"."""
    return "autoencoder" if "_class_name" in config else "prior"


def folder_kind(folder: str | Path) -> str | None:
    """Tell what a folder holds: "pipeline", "autoencoder", "prior" or "codes"; None: none of them.

    Codes may also be what `save_to_disk` of datasets wrote; who reads them says how they are read.

    Raises:
        ValueError: a config.json that cannot be read.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return "pipeline"
    if (folder / CONFIG).is_file():
        return config_kind(read_json(folder / CONFIG))
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
    name, found = _saved_class(config)
    if name is None or (found is not None and issubclass(owner, found)):
        return
    if found is None and name in (owner.__name__, getattr(owner, "model_type", None)):
        return
    wanted = owner.__name__.removesuffix("Config") if hasattr(owner, "model_type") else owner.__name__
    raise ValueError(f"{path} holds {_article(name)} {name}, not {_article(wanted)} {wanted}: {how_to_load(config)}")


def check_folder(path: Any, subfolder: str | None, owner: type) -> None:
    """Raise a ValueError where a local folder holds no config of a model, but something else of ours."""
    folder = Path(str(path), subfolder or "")
    if not folder.is_dir() or (folder / CONFIG).is_file():
        return
    if (folder / INDEX).is_file():
        check_class(folder, read_index(folder), owner)
    elif folder_kind(folder) == "codes":
        raise ValueError(f"{folder} holds codes, not a model")


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

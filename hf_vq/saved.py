"""What a saved folder is, told by its files."""

import json
from pathlib import Path
from typing import Any

INDEX, CONFIG = "model_index.json", "config.json"  # of a pipeline, of a model


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a ValueError names it when that fails."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def config_kind(config: dict) -> str:
    """Tell whose config this is: "autoencoder", whose class diffusers names, or "prior"."""
    return "autoencoder" if "_class_name" in config else "prior"


def folder_kind(folder: str | Path) -> str | None:
    """Tell what a folder holds: "pipeline", "autoencoder", "prior" or "codes"; None: none of them.

    Raises:
        ValueError: a config.json that cannot be read.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file():
        return "pipeline"
    if (folder / CONFIG).is_file():
        return config_kind(read_json(folder / CONFIG))
    return "codes" if any(folder.glob("data/*.parquet")) else None

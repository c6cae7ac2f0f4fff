"""The file of a processor in a folder or repository: found, read and written alike for all modalities."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from hf_vq.hub import PROCESSOR
from hf_vq.renaming import warn_user


def read_processor(owner: Any, path_or_repo: str | Path, what_then: str, subfolder: str | None, **hub: Any) -> Any:
    """The processor of a folder or repository.

    Args:
        owner: its class, with `from_dict`, which gives None for what it cannot do.
        path_or_repo: the folder or repository.
        what_then: what a warning says of samples where the file is broken, or asks for what no such processor does.
        subfolder: within it.
        hub: further arguments of huggingface_hub.

    Returns:
        The processor; None where there is no `preprocessor_config.json`, and with a warning where it is of no use.
    """
    if Path(path_or_repo).is_dir():
        path = Path(path_or_repo, subfolder or "", PROCESSOR)
    else:
        try:
            path = Path(str(hf_hub_download(str(path_or_repo), PROCESSOR, subfolder=subfolder, **hub)))
        except EntryNotFoundError:  # not there, or offline and not in the cache
            return None
    if not path.is_file():
        return None
    try:
        found = owner.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError:  # no JSON, or not text
        found = None
    if found is None:
        warn_user(f"{path} says nothing that an {owner.__name__} can do: {what_then}")
    return found


def write_processor(folder: str | Path, config: dict[str, Any]) -> None:
    """Write `preprocessor_config.json`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True)
    (Path(folder) / PROCESSOR).write_text(text + "\n", encoding="utf-8")

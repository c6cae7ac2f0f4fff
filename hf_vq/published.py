"""Weights that others published, in files that are known by the hash of their content."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from safetensors.torch import load_file

from hf_vq.saved import check_file

TORCH_URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Published:
    """Published weights, and how to know them.

    Attributes:
        name: of what they are, in messages.
        sha256: of the files that hold them.
    """

    name: str
    sha256: tuple[str, ...]

    def checked(self, source: str) -> Path:
        """The path of a file that holds these weights, or others that are wanted, named by their hash.

        Args:
            source: the path, and perhaps "@" and at least 8 hexadecimal digits of the sha256 of the file.

        Raises:
            ValueError: no such file, or one with another content; names both hashes.
        """
        path, wanted = with_hash(source)
        found = file_sha256(path)
        if wanted is not None and not found.startswith(wanted):
            raise ValueError(f"{path} has the sha256 {found}, not {wanted}")
        if wanted is None and found not in self.sha256:
            raise ValueError(
                f"{path} has the sha256 {found}, not {' or '.join(self.sha256)} of the published weights of "
                f"{self.name}; if it is wanted all the same, name it by its hash: {path}@{found[:8]}"
            )
        return Path(path)


@dataclass(frozen=True)
class PublishedOnline(Published):
    """Published weights that can be downloaded.

    Attributes:
        torch_file: name of the file at download.pytorch.org, and in torch's cache, where torchvision has it too.
        hub: repository, revision and name of a file on the Hub, which is preferred; None: there is none.
    """

    torch_file: str
    hub: tuple[str, str, str] | None = None

    def fetch(self) -> Path:
        """The file: from torch's cache, else from the Hub or download.pytorch.org.

        Raises:
            OSError: it cannot be had, in the words of the library that tried.
            ValueError: it is there, with another content.
        """
        path = Path(torch.hub.get_dir(), "checkpoints", self.torch_file)
        if not path.exists() and self.hub is not None:
            repo_id, revision, name = self.hub
            path = Path(hf_hub_download(repo_id, name, revision=revision))
        elif not path.exists():
            if constants.HF_HUB_OFFLINE:
                raise FileNotFoundError(f"there is no {path}, and HF_HUB_OFFLINE says not to download it")
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(TORCH_URL + self.torch_file, str(path), self.sha256[0])
        return self.checked(str(path))


def with_hash(source: str) -> tuple[str, str | None]:
    """A source without "@" and a hash, of at least 8 hexadecimal digits, at its end; and that hash, or None."""
    found = re.fullmatch(r"(.+)@([0-9a-fA-F]{8,64})", source, re.DOTALL)
    return (found[1], found[2].lower()) if found and not Path(source).exists() else (source, None)


def file_sha256(path: str | Path) -> str:
    """Hash of a file's content; a ValueError where there is no file."""
    check_file(path)
    if not Path(path).exists():
        raise ValueError(f"there is no file {path}")
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: str | Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Tensors of a file, .safetensors or of `torch.save`, on the CPU; nothing in it can run code.

    Raises:
        ValueError: a file that holds none, or lacks one of these names.
    """
    check_file(path)
    try:
        if str(path).endswith(".safetensors"):
            stored = load_file(path)
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser meets in a broken file; torch's words advise to run its code
        raise ValueError(
            f"cannot read {path}: it is no whole file of safetensors or torch with tensors alone"
        ) from error
    if not isinstance(stored, dict) or not all(isinstance(one, torch.Tensor) for one in stored.values()):
        raise ValueError(f"{path} must hold tensors by name, and holds something else")
    missing = [name for name in names if name not in stored]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}; it holds {', '.join([*map(str, stored)][:6]) or 'nothing'}")
    return {name: stored[name] for name in names}

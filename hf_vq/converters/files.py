"""Model files of others: what a file holds, told by its bytes, read without running anything in it."""

from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hf_vq.converters.archives import check_directory, open_archive, read_json, read_npz
from hf_vq.converters.hdf5 import SIGNATURE as HDF5
from hf_vq.converters.hdf5 import read_hdf5
from hf_vq.converters.unpickling import read_legacy_torch, read_zipped_torch

LONGEST_HEADER = 100_000_000  # bytes; safetensors takes no longer one
OTHER_KINDS = {
    b"version https://git-lfs": "a git-lfs pointer, not the weights: run `git lfs pull`, or download the file itself",
    b"<": "a page of HTML or XML, not weights: what answered the download?",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
}
TAR, TAR_OFFSET = b"ustar", 257
TENSORFLOW_TABLE = bytes.fromhex("57fb808b247547db")  # ends the .index file of a TensorFlow checkpoint


@dataclass
class Loaded:
    """What a file holds.

    Attributes:
        path: of the file.
        format: "safetensors", "torch", "npz", "hdf5" or "keras".
        content: nested dict with tensors; of plain values and tensors only. A pickled module is a dict of its
            `class`, its `state_dict` and its `attributes`.
        attributes: what the file says beside: the metadata of safetensors; of HDF5 a dict of each group or dataset
            by path ("" is the root), such as the order of layers; of .keras also `config` and `metadata`, with the
            attributes of its weights under `weights`.
    """

    path: Path
    format: str
    content: dict
    attributes: dict = field(default_factory=dict)


def read_file(path: str | Path) -> "Loaded":
    """Read a file of weights, recognised by its content: its name does not matter.

    Formats are safetensors, files of `torch.save` (zip and legacy), .npz, HDF5 and .keras. No file can run code here,
    and none takes more memory than 20 times its size (or 64 MiB).

    Args:
        path: of the file.

    Returns:
        Loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: HDF5 without h5py.
        ValueError: anything else, naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"cannot load {path}: it is a folder, not a file")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        head = file.read(512)
    try:
        kind, reader = _recognise(path, head)
        content, attributes = reader(path)
    except ImportError:
        raise
    except Exception as error:  # whatever a parser meets in a broken file
        raise ValueError(f"cannot load {path}: {str(error) or type(error).__name__}") from error
    return Loaded(path, kind, content, attributes)


def _recognise(path, head):
    size = path.stat().st_size
    if not head:
        raise ValueError("it is empty")
    if head.startswith(HDF5):
        return "hdf5", lambda path: read_hdf5(path, size)
    if head.startswith(b"PK"):
        return _recognise_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER:  # before pickles: may start as one
        return "safetensors", _read_safetensors
    for start, what in OTHER_KINDS.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(start):
            raise ValueError(f"it is {what}")
    if head[TAR_OFFSET:].startswith(TAR):
        raise ValueError("it is a tar archive: unpack it first")
    with path.open("rb") as file:
        file.seek(-min(size, len(TENSORFLOW_TABLE)), 2)
        if file.read() == TENSORFLOW_TABLE:
            raise ValueError("it is the index of a TensorFlow checkpoint: write the variables to .npz with TensorFlow")
    return "torch", lambda path: (read_legacy_torch(path), {})


def _recognise_zip(path):
    with open_archive(path) as archive:
        names = [member.filename for member in archive.infolist()]
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError("it is a TorchScript program: save the state dict of the module that it holds")
    if any(name.endswith("/data.pkl") for name in names):
        return "torch", lambda path: (read_zipped_torch(path), {})
    if {"config.json", "model.weights.h5"} <= set(names):
        return "keras", _read_keras
    if names and all(name.endswith(".npy") for name in names):
        return "npz", lambda path: (read_npz(path), {})
    raise ValueError(f"it is a zip archive, of no format known here: it holds {', '.join(names[:8]) or 'nothing'}")


def _read_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"it is a safetensors file cut short or damaged: {error}") from error


def _read_keras(path):
    with open_archive(path) as archive:
        check_directory(archive)
        config = read_json(archive, "config.json")
        metadata = read_json(archive, "metadata.json") if "metadata.json" in archive.namelist() else {}
        member = archive.getinfo("model.weights.h5")
        with archive.open(member) as file:
            content, attributes = read_hdf5(file, member.file_size)
    return content, {"config": config, "metadata": metadata, "weights": attributes}

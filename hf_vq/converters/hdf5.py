"""HDF5 files of Keras: every dataset as a tensor, once it is clear that all of it lies inside the file."""

import math
from typing import Any

import torch

from hf_vq.converters.archives import check_unpacked, to_tensor

SIGNATURE = b"\x89HDF\r\n\x1a\n"
FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32000: "lzf"}  # others would load plugins
DEEPEST_GROUP = 64


def read_hdf5(file: Any, size: int) -> tuple[dict[str, torch.Tensor], dict]:
    """Read an HDF5 file.

    Args:
        file: path, or an open binary file.
        size: bytes of it.

    Returns:
        Tensors by path ("group/sub/name"), and attributes of every object that has some by path ("" is the root):
        text, numbers and lists of them.

    Raises:
        ImportError: h5py is not installed.
        ValueError: naming the object: links and storage outside the file, or more content than the file can hold.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Keras files (.h5, .keras) need h5py: pip install h5py") from error
    with _open(h5py, file) as root:
        objects = dict(_walk(h5py, root, "", set()))
        datasets = {path: node for path, node in objects.items() if isinstance(node, h5py.Dataset)}
        for path, dataset in datasets.items():
            _check_storage(path, dataset)
        attributes = [node.attrs.get_id(name) for node in objects.values() for name in node.attrs]
        check_unpacked(sum(map(_declared_bytes, [*attributes, *datasets.values()])), size)
        tensors = {path: _read_tensor(path, dataset) for path, dataset in datasets.items()}
        return tensors, {path: _attributes(h5py, node) for path, node in objects.items() if len(node.attrs)}


def _open(h5py, file):
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"it is an HDF5 file cut short or damaged: {error}") from error


def _walk(h5py, group, path, parents):
    """Every object under a group with its path, depth first."""
    address = h5py.h5o.get_info(group.id).addr
    if address in parents or len(parents) > DEEPEST_GROUP:
        raise ValueError(f"its group {path!r} holds itself, or lies too deep")
    yield path, group
    for name in group:
        below = f"{path}/{name}".lstrip("/")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"its {below!r} is a {type(link).__name__} to {link.path!r}: links are not followed")
        node = group[name]
        if isinstance(node, h5py.Group):
            yield from _walk(h5py, node, below, parents | {address})
        elif isinstance(node, h5py.Dataset):
            yield below, node
        else:
            raise ValueError(f"its {below!r} is neither a group nor a dataset")


def _check_storage(path, dataset):
    layout = dataset.id.get_create_plist()
    if dataset.is_virtual or layout.get_external_count():
        raise ValueError(f"its dataset {path!r} lies in another file: those are not followed")
    for index in range(layout.get_nfilters()):
        if layout.get_filter(index)[0] not in FILTERS:
            raise ValueError(
                f"its dataset {path!r} is packed by filter {layout.get_filter(index)[0]}, not one of {FILTERS}"
            )
    if dataset.dtype.kind not in "fiub" or dataset.shape is None:
        raise ValueError(f"its dataset {path!r} is of dtype {dataset.dtype} and shape {dataset.shape}: no tensor")


def _read_tensor(path, dataset):
    try:
        return to_tensor(dataset[()])
    except OSError as error:
        raise ValueError(f"its dataset {path!r} cannot be read: {error}") from error


def _declared_bytes(array):
    return math.prod(array.shape or ()) * array.dtype.itemsize


def _attributes(h5py, node):
    found = {}
    for name in node.attrs:
        kind, shape = node.attrs.get_id(name).dtype, node.attrs.get_id(name).shape
        if shape is not None and (kind.kind in "SUfiub" or h5py.check_string_dtype(kind)):
            found[name] = _plain(node.attrs[name])
    return found


def _plain(value):
    """Bytes, numpy scalars and arrays as str, numbers and lists."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(entry) for entry in value] if isinstance(value, list) else value

"""Files of `torch.save`: loaded with weights_only=True, and only when all that they call is in a short list.

Classes of other projects whose objects lie beside the weights are never looked up: stand-ins have their names.
"""

import io
import pickle
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import MAGIC_NUMBER

from hf_vq.converters.archives import check_directory, check_unpacked, open_archive
from hf_vq.converters.pickle_scan import scan_pickle
from hf_vq.converters.stand_ins import STAND_INS, Plain, can_stand_in, module_class, stand_in_of

PICKLES_IN_LEGACY = 5  # magic number, version, system, content, keys of the storages; then the numbers
DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
TENSOR_NAMES = {  # fewer than torch allows: the others are not needed, and some take any memory they are told to
    "_codecs.encode",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{name}" for name in DTYPES),
    *(f"torch.{name}Storage" for name in STORAGES),
}
LISTED = TENSOR_NAMES | {name for _, name in STAND_INS}
MODULE_CLASS = "hf_vq.module_class"  # no file may name it: legacy files are given it here
lock = threading.Lock()


def read_zipped_torch(path: Path) -> Any:
    """Content of a zip that `torch.save` wrote.

    Returns:
        Nested plain values and tensors; see `hf_vq.converters.files.Loaded`.

    Raises:
        ValueError: a name outside the list, a zip that torch did not write, or a damaged one.
    """
    scans = []
    with open_archive(path) as archive:
        check_directory(archive, stored=True)
        for member in archive.infolist():
            if member.filename.lower().endswith("/data.pkl"):
                with archive.open(member) as file:
                    scans.append(scan_pickle(file))
    stand_ins = _check(scans)
    with path.open("rb") as file:
        return _load(file, path.stat().st_size, stand_ins)


def read_legacy_torch(path: Path) -> Any:
    """Content of a file that `torch.save` wrote before it wrote zips (torch 1.5 and older).

    Returns:
        As `read_zipped_torch`.

    Raises:
        ValueError: a name outside the list, no such file, or a damaged one.
    """
    with path.open("rb") as file:
        scans = [scan_pickle(file)]
        _check(scans)
        if MAGIC_NUMBER not in scans[0].numbers:
            raise ValueError("it is a pickle that torch.save did not write")
        scans += [scan_pickle(file) for _ in range(PICKLES_IN_LEGACY - 1)]
        stand_ins = _check(scans)
        file.seek(0)
        modules = scans[3].modules
        content = _with_module_classes(file.read(), modules) if modules else file
        return _load(content, path.stat().st_size, stand_ins)


def _check(scans):
    """Refuses what is called or may not be named; stand-ins for the other names that are in no list."""
    unlisted, called = set().union(*(scan.names - LISTED for scan in scans)), set().union(*(s.called for s in scans))
    refused = {name for name in unlisted if name in called or name == MODULE_CLASS or not can_stand_in(name)}
    if refused:
        raise ValueError(
            f"it names {', '.join(sorted(refused))}, which no file of weights has to: refused, and nothing was run"
        )
    for scan in scans:
        if not scan.complete:
            raise ValueError("it is cut short, or none of: safetensors, torch.save, .npz, HDF5, .keras")
        if scan.protocol != 2:
            raise ValueError(f"it is pickled by protocol {scan.protocol}: torch.save writes protocol 2")
    mapped, listed = set().union(*(scan.mapped for scan in scans)), set().union(*(scan.listed for scan in scans))
    return [(stand_in_of(name, name in mapped, name in listed), name) for name in unlisted]


def _load(file, size, stand_ins):
    try:
        with _only([*STAND_INS, *stand_ins, (module_class, MODULE_CLASS)]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = Plain()(torch.load(file, map_location="cpu", weights_only=True, mmap=False))
    except pickle.UnpicklingError as error:  # torch's message advises to load without safety
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()[0]
        raise ValueError(f"it is damaged: {reason}") from None
    check_unpacked(sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content)), size)
    return content


@contextmanager
def _only(stand_ins):
    """For the time of one load, torch allows these beside its own names, and nothing that was added before."""
    with lock:
        before = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            torch.serialization.add_safe_globals(stand_ins)
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _with_module_classes(data, modules):
    """A legacy file that calls `module_class` where it had persistent ids, which torch takes for storages only."""
    call = b"c%b\n%b\n" % tuple(MODULE_CLASS.encode().split(b"."))
    pieces, done = [], 0
    for mark, persistent_id in modules:
        pieces += [data[done:mark], call, data[mark:persistent_id], pickle.REDUCE]
        done = persistent_id + 1
    return io.BytesIO(b"".join([*pieces, data[done:]]))


def _tensors(tree):
    seen, stack = set(), [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, torch.Tensor):
            yield node
        elif isinstance(node, (dict, list, tuple, set)) and id(node) not in seen:
            seen.add(id(node))
            stack.extend(node.values() if isinstance(node, dict) else node)

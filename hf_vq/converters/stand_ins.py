"""Stand-ins for the classes that model files of others name: they keep what the file says, and do nothing."""

import argparse
import re
import sys
from collections import OrderedDict
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

INERT = (
    "builtins.bool", "builtins.dict", "builtins.float", "builtins.int", "builtins.list", "builtins.str", "typing.Any",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode",
    "dall_e.encoder.Encoder", "dall_e.encoder.EncoderBlock", "dall_e.decoder.Decoder", "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d", "torch.nn.modules.container.Sequential", "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.upsampling.Upsample", "torch.nn.modules.linear.Identity",
    "builtins.object", "builtins.tuple", "builtins.bytes", "builtins.complex", "builtins.frozenset", "builtins.range",
    "builtins.slice", "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta", "datetime.timezone",
    "decimal.Decimal", "fractions.Fraction", "functools.partial", "logging.Logger", "logging.getLogger",
    "random.Random", "re._compile", "time.struct_time", "uuid.UUID",
    "numpy.random._pickle.__bit_generator_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
)  # fmt: skip
FOREIGN_TORCH = (  # modules of classes and functions that torch does not look up itself when it loads
    "torch.optim.", "torch.nn.modules.", "torch.nn.functional.", "torch.amp.", "torch.cuda.amp.",
    "torch.torch_version.",
)  # fmt: skip


class Recorded:
    """An object of a class that a file names: what the file gave it, and nothing of what the class does.

    Attributes:
        source: full name of the class.
        arguments: tuple that the object was made with.
        state: what it was filled with; a dict for nearly every class.
    """

    source: str | None = None
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments):
        recorded = super().__new__(cls)
        recorded.arguments, recorded.state = arguments, {}
        return recorded

    def __init__(self, *arguments: Any):
        """Nothing: `__new__` keeps the arguments."""

    def __setstate__(self, state):
        self.state = state


class RecordedDtype(Recorded):
    """A dtype of numpy: its code is the first argument, its byte order in the state."""

    source = "numpy.dtype"


class RecordedArray(Recorded):
    """An array of numpy: version, shape, dtype, whether columns come first, and bytes are its state."""

    source = "numpy.ndarray"

    def to_numpy(self) -> np.ndarray | None:
        """The array, which nobody can write to; None where it holds objects."""
        state: Any = self.state if isinstance(self.state, tuple) and len(self.state) == 5 else (None,) * 5
        dtype = _numpy_dtype(state[2])
        if dtype is None:
            return None
        data = b"" if isinstance(state[4], Recorded) else state[4]  # no bytes at all are an object of protocol 2
        return np.ndarray(state[1], dtype, data, order="F" if state[3] else "C")


def can_stand_in(name: str) -> bool:
    """Whether a name that is in no list may be that of a class that a file mentions, and of which it holds objects.

    Not one of Python's own library, nor one that torch would look up itself: they are in a list, or refused.
    """
    package = name.partition(".")[0]
    if package == "torch":
        return name.startswith(FOREIGN_TORCH)
    return package not in sys.stdlib_module_names and all(part.isidentifier() for part in name.split("."))


def stand_in_of(name: str, mapped: bool, listed: bool) -> type:
    """A class in place of the one of a name.

    Args:
        name: full name.
        mapped: its objects get items: a plain dict is made in place of each.
        listed: its objects are appended to: a plain list is made in place of each.
    """
    made = OrderedDict if mapped else list if listed else None  # OrderedDict: its attributes may be set
    members: dict[str, Any] = {"source": name}
    if made is not None:
        members["__new__"] = lambda cls, *arguments: made()
    return type(name.rpartition(".")[2], (Recorded,), members)


def module_class(kind: Any, recorded_class: type, source_file: str, source_code: str) -> type:
    """Class of a module that a legacy file of torch announces, with its source code, which is dropped."""
    if not (isinstance(recorded_class, type) and issubclass(recorded_class, Recorded)):
        raise ValueError(f"it announces {recorded_class!r} as the class of a module")
    return recorded_class


def numpy_scalar(dtype: Any, data: Any) -> Any:
    """The number or the text of a numpy scalar; of another, such as a date, its bytes."""
    known = _numpy_dtype(dtype)
    return data if known is None else np.frombuffer(data, known, count=1)[0].item()


def numpy_array(*arguments: Any) -> RecordedArray:
    """What numpy makes before it is told shape and numbers."""
    return RecordedArray(*arguments)


def posix_path(*parts: str) -> str:
    """The text of a path."""
    return str(PurePosixPath(*parts))


def windows_path(*parts: str) -> str:
    """The text of a path."""
    return str(PureWindowsPath(*parts))


def new_list(*items: Any) -> list:
    """A list in place of a deque."""
    return list(items[0]) if items else []


def new_dict(*default: Any) -> dict:
    """A dict in place of a defaultdict."""
    return {}


STAND_INS = [
    *((type(name.rpartition(".")[2], (Recorded,), {"source": name}), name) for name in INERT),
    (argparse.Namespace, "argparse.Namespace"),
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "lightning.pytorch.utilities.parsing.AttributeDict"),
    (new_dict, "collections.defaultdict"),
    (RecordedDtype, "numpy.dtype"),
    (RecordedArray, "numpy.ndarray"),
    (argparse.Namespace, "types.SimpleNamespace"),
    (new_list, "collections.deque"),
    *((numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((numpy_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((posix_path, f"pathlib.{name}") for name in ("PosixPath", "PurePosixPath", "_local.PosixPath")),
    *((windows_path, f"pathlib.{name}") for name in ("WindowsPath", "PureWindowsPath", "_local.WindowsPath")),
]


def _numpy_dtype(dtype):
    """The dtype of numbers, truths or text that a file tells; None for another."""
    code = dtype.arguments[0] if isinstance(dtype, RecordedDtype) and dtype.arguments else None
    if not isinstance(code, str) or not re.fullmatch(r"[fiubc]\d{1,2}|[US]\d{1,6}", code):
        return None
    order: Any = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "="
    return np.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


class Plain:
    """Turns what torch loaded into dicts, lists, numbers, text and tensors; what is shared stays shared."""

    def __init__(self):
        self.done, self.under_way, self.objects = {}, set(), 0

    def __call__(self, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, Recorded):
            return value.source
        if not isinstance(value, (dict, list, tuple, set, argparse.Namespace, Recorded)):
            return value
        if id(value) not in self.done:
            if id(value) in self.under_way:
                if self.objects:
                    return None  # objects may point up
                raise ValueError(f"its {type(value).__name__} holds itself")
            self.under_way.add(id(value))
            self.objects += isinstance(value, Recorded)
            self.done[id(value)] = self.convert(value)
            self.objects -= isinstance(value, Recorded)
        return self.done[id(value)]

    def convert(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self(key): self(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple, set)):
            return type(value)([self(entry) for entry in value])
        if isinstance(value, argparse.Namespace):
            return self(vars(value))
        told = {"class": value.source, **({"arguments": self(value.arguments)} if value.arguments else {})}
        array = value.to_numpy() if isinstance(value, RecordedArray) else None
        if array is not None:
            return array
        if not isinstance(value.state, dict):
            return {**told, "state": self(value.state)}
        if "_parameters" in value.state:
            return self.module(value)
        for name in ("_content", "_val"):  # of omegaconf; what else its nodes hold points up
            if name in value.state:
                return self(value.state[name])
        return told | self(value.state)

    def module(self, module: Any) -> Any:
        attributes = {name: self(entry) for name, entry in module.state.items() if not name.startswith("_")}
        return {"class": module.source, "state_dict": dict(_named_tensors(module)), "attributes": attributes}


def _named_tensors(module, prefix="", depth=0):
    """Parameters and buffers of a recorded module, named as in its state dict."""
    if depth > 32:
        raise ValueError(f"its module {prefix[:80]!r} lies too deep")
    own = {**module.state["_parameters"], **module.state.get("_buffers", {})}
    for name, tensor in own.items():
        if isinstance(tensor, torch.Tensor) and name not in module.state.get("_non_persistent_buffers_set", ()):
            yield f"{prefix}{name}", tensor.detach()
    for name, child in module.state.get("_modules", {}).items():
        if child is not None:
            yield from _named_tensors(child, f"{prefix}{name}.", depth + 1)

"""Stand-ins for the classes that model files of others name: they keep what the file says, and do nothing."""

import argparse
import re
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
)  # fmt: skip


class Recorded:
    """An object of a class that a file names: what the file gave it, and nothing of what the class does.

    Attributes:
        source: full name of the class.
        arguments: tuple that the object was made with.
        state: what it was filled with; a dict for nearly every class.
    """

    source = None

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


def module_class(kind: Any, recorded_class: type, source_file: str, source_code: str) -> type:
    """Class of a module that a legacy file of torch announces, with its source code, which is dropped."""
    if not (isinstance(recorded_class, type) and issubclass(recorded_class, Recorded)):
        raise ValueError(f"it announces {recorded_class!r} as the class of a module")
    return recorded_class


def numpy_scalar(dtype: Any, data: Any) -> Any:
    """The number or the text of a numpy scalar."""
    code = dtype.arguments[0] if isinstance(dtype, RecordedDtype) else repr(dtype)
    if not re.fullmatch(r"[fiub][1248]|[US]\d{1,6}", code):
        raise ValueError(f"it holds a numpy scalar of dtype {code}")
    order = dtype.state[1]
    return np.frombuffer(data, np.dtype(code).newbyteorder(order if order in "<>" else "="), count=1)[0].item()


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
    (numpy_scalar, "numpy.core.multiarray.scalar"),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
]


class Plain:
    """Turns what torch loaded into dicts, lists, numbers, text and tensors; what is shared stays shared."""

    def __init__(self):
        self.done, self.under_way = {}, set()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, Recorded):
            return value.source
        if not isinstance(value, (dict, list, tuple, set, argparse.Namespace, Recorded)):
            return value
        if id(value) not in self.done:
            if id(value) in self.under_way:
                raise ValueError(f"its {type(value).__name__} holds itself")
            self.under_way.add(id(value))
            self.done[id(value)] = self.convert(value)
        return self.done[id(value)]

    def convert(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self(key): self(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple, set)):
            return type(value)([self(entry) for entry in value])
        if isinstance(value, argparse.Namespace):
            return self(vars(value))
        if not isinstance(value.state, dict):
            return {"class": value.source, "state": self(value.state)}
        if "_parameters" in value.state:
            return self.module(value)
        for name in ("_content", "_val"):  # of omegaconf; what else its nodes hold points up
            if name in value.state:
                return self(value.state[name])
        return {"class": value.source, **self(value.state)}

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

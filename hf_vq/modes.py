"""A model in another state for a while: in evaluation mode, with all its weights in place."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn

_lock = threading.Lock()
_held: dict[int, list] = {}  # by id of a module: how many hold it in evaluation mode, and the mode that it had before


@contextmanager
def fetched(model: nn.Module) -> Iterator[None]:
    """Fetch the weights that accelerate keeps elsewhere: some are read without their module being called."""
    if torch.compiler.is_compiling() or not hasattr(model, "_hf_hook"):  # accelerate hooks the model itself, too
        yield
        return
    with ExitStack() as stack:
        for module in filter(has_offloaded_params, model.modules()):
            stack.enter_context(align_module_device(module))
        yield


@contextmanager
def in_eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode, and afterwards each of their modules back in the mode that it had.

    Each for itself: its owner may have frozen a part, say the batch norm of a finished autoencoder, in eval mode.
    Where several hold a module, in calls within calls or in threads, the last one gives it back.
    """
    modules = _hold(models)
    try:
        yield
    finally:
        _release(modules)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`in_eval_mode`, with all weights in place."""
    with in_eval_mode(model), fetched(model):
        yield


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute as float32 is written, on a GPU too: neither autocast nor TF32."""
    cudnn: Any = torch.backends.cudnn  # a module that torch gives further names
    parts = (torch.backends.cuda.matmul, cudnn.conv)
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


@torch.compiler.disable
def _hold(models: Iterable[nn.Module]) -> list[nn.Module]:
    modules = list(dict.fromkeys(module for model in models for module in model.modules()))
    with _lock:
        held = [module for module in modules if module.training or id(module) in _held]
        for module in held:
            _held.setdefault(id(module), [0, module.training])[0] += 1
            module.training = False
    return held


@torch.compiler.disable
def _release(modules: Iterable[nn.Module]) -> None:
    with _lock:
        for module in modules:
            held = _held[id(module)]
            held[0] -= 1
            if not held[0]:
                module.training = _held.pop(id(module))[1]


class InferenceVerbs:
    """Base of whatever infers: the verbs of all subclasses, however they define them, run in evaluation mode.

    Class attributes:
        inference_verbs: names of methods.
    """

    inference_verbs: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in cls.inference_verbs:
            verb = inspect.getattr_static(cls, name, None)
            if inspect.isfunction(verb) and not hasattr(verb, "runs_in_eval_mode"):
                setattr(cls, name, _in_eval_mode(verb))

    def inference_modules(self) -> Iterable[nn.Module]:
        """What is put in evaluation mode: this module, or those that it holds where it is none."""
        return (self,) if isinstance(self, nn.Module) else ()


def _in_eval_mode(verb: Callable) -> Callable:
    """A method that runs in evaluation mode."""

    @functools.wraps(verb)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        modules = list(self.inference_modules())
        if not any(part.training for module in modules for part in module.modules()):
            return verb(self, *args, **kwargs)
        with in_eval_mode(*modules):
            return verb(self, *args, **kwargs)

    vars(run)["runs_in_eval_mode"] = True
    return run

"""Weights that enter a model: all there, floating-point, finite; what a file lacks is derived or refused by name."""

import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_vq.saved import check_files, shard_names

PUSH_OPTIONS = ("commit_message", "private", "create_pr", "token", "repo_id", "license")
SHOWN = 6  # names in a message
LONG_NAMES = {"bf": "bfloat", "f": "float", "i": "int", "u": "uint", "c": "complex"}


def check_loaded(
    model: nn.Module, missing: Iterable[str], path: str | Path, build: Callable[[], nn.Module], unsaved: bool = False
) -> None:
    """Complete a model that was loaded, and check what it got.

    Args:
        model: as loaded.
        missing: names of the parameters and persistent buffers that the file lacked.
        path: what it was loaded from, for messages.
        build: makes the model anew, of the same config and on the CPU.
        unsaved: buffers that are not saved came without values, as transformers leaves them.

    Raises:
        ValueError: names a parameter or buffer that is missing and that nothing derives, or one with NaN or infinity.
    """
    open_buffers = set(_unsaved_buffers(model)) if unsaved else set()
    left = derive(model, {*missing, *open_buffers})
    open_buffers &= left
    if open_buffers:
        with torch.random.fork_rng(devices=[]):
            fresh = dict(build().named_buffers())
        for name in open_buffers:
            _place_buffer(model, name, fresh[name])
    left -= open_buffers
    if left:
        raise ValueError(f"{path} lacks {listed(left)} of {type(model).__name__}, which nothing derives")
    check_finite(model, path, build)


def expect_keys(model: nn.Module, stored: Iterable[str]) -> None:
    """Tell the modules of a model which tensors a file has, before it is loaded.

    A module whose keys are not always the same has a method `expect_keys(stored: set[str])`, which gets the names
    relative to itself.
    """
    for prefix, module in model.named_modules():
        if hasattr(module, "expect_keys"):
            start = f"{prefix}." if prefix else ""
            module.expect_keys({name.removeprefix(start) for name in stored if name.startswith(start)})


@torch.no_grad()
def derive(model: nn.Module, missing: Iterable[str]) -> set[str]:
    """Let the modules of a model give buffers that a file lacks the values that follow from the rest.

    A module that can has a method `derive_buffers(missing: set[str]) -> set[str]`. It gets the names, relative to
    itself, of what is missing in it and below, after all else was loaded; it fills what it can, in place, and returns
    the names of that.

    Returns:
        The names that are left: nothing derives them.
    """
    left = set(missing)
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        own = {name.removeprefix(start) for name in left if name.startswith(start)}
        if own and hasattr(module, "derive_buffers"):
            left -= {start + name for name in module.derive_buffers(own)}
        elif "num_batches_tracked" in own and isinstance(module, _NormBase):  # torch, too, does without it
            module.num_batches_tracked.zero_()  # type: ignore[union-attr, operator]
            left.discard(start + "num_batches_tracked")
    return left


def check_finite(model: nn.Module, path: str | Path, build: Callable[[], nn.Module]) -> None:
    """Raise a ValueError that names a weight with NaN or infinity; arguments as of `check_loaded`.

    A buffer that has the same values in a new model, such as a mask with -inf, is as it should be.
    """
    wrong = [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if not wrong:
        return
    buffers = dict(model.named_buffers())
    if all(name in buffers for name in wrong):
        with torch.random.fork_rng(devices=[]):
            fresh = dict(build().named_buffers())
        wrong = [name for name in wrong if not _same(buffers[name], fresh[name])]
    if wrong:
        dtype = str(model.state_dict()[wrong[0]].dtype).removeprefix("torch.")
        raise ValueError(f"{path}: {listed(wrong)} of {type(model).__name__} holds NaN or infinity (in {dtype})")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; one without values, on the meta device, does not."""
    if tensor.device.type == "meta" or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor).all())


def weights_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of tensors, each with its name, type and shape: it does not depend on their order or on a file's format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hash_tensor(digest, name, tensor)
    return digest.hexdigest()


def hash_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """Update a digest of hashlib with a tensor under a name."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor_bytes(tensor))


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor as they lie in memory, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def check_dtype(name: str, dtype: str | torch.dtype, expected: torch.Tensor, path: str | Path) -> None:
    """Raise a ValueError unless a stored tensor is of a type that may become this weight.

    Args:
        name: of the tensor.
        dtype: as stored, torch's or safetensors' name for it.
        expected: the weight.
        path: of the file.
    """
    text = str(dtype).removeprefix("torch.").lower()
    if found := re.fullmatch(r"(bf|f|i|u|c)(\d+.*)", text):  # safetensors' name
        text = LONG_NAMES[found[1]] + found[2]
    if expected.is_floating_point() and "float" not in text:
        raise ValueError(f"{path}: {name} is stored as {text}, but weights must be floating-point numbers")
    if not expected.is_floating_point() and expected.dtype != torch.bool and text.startswith(("bool", "complex")):
        raise ValueError(f"{path}: {name} is stored as {text}, but must hold integers")


class CheckedWeights:
    """For a model of diffusers or transformers, before its base: stored weights must be of types that fit its own."""

    base_model_prefix: str

    @classmethod
    def _load_pretrained_model(cls, model: Any, state_dict: Any, files: Any, *args: Any, **options: Any) -> Any:
        sharded = getattr(args[0], "sharded_metadata", None) if args else None  # of transformers
        if sharded:
            shard_names(args[0].pretrained_model_name_or_path, sharded)
        found = list(_stored_dtypes(state_dict, files))
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        expect_keys(model, {each for _, name, _ in found for each in (name, prefix + name)})
        quantizers = (getattr(args[0], "hf_quantizer", None) if args else None, options.get("hf_quantizer"))
        if all(quantizer is None for quantizer in quantizers):  # that of a library stores what it likes
            expected = {**model.state_dict()}
            expected |= {name.removeprefix(prefix): tensor for name, tensor in expected.items()}
            for path, name, dtype in found:
                if name in expected:
                    check_dtype(name, dtype, expected[name], path)
        return super()._load_pretrained_model(model, state_dict, files, *args, **options)  # type: ignore[misc]


@contextmanager
def checked_files(path: Any, subfolder: str | None = None) -> Iterator[None]:
    """Within the `with` block transformers loads a folder whose files were looked at, see `check_files`.

    Its error on a type that it does not know names tensor and file.
    """
    check_files(Path(str(path), subfolder or ""))
    try:
        yield
    except ValueError as error:
        files = sorted(Path(str(path), subfolder or "").glob("*.safetensors")) if "unknown dtype" in str(error) else []
        for file, name, dtype in _stored_dtypes(None, files):
            check_dtype(name, dtype, torch.zeros(()), file)
        raise


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_save_options(save_directory: Any, options: dict[str, Any], stock: Callable) -> None:
    """Raise an error for what `save_pretrained` cannot do, before it writes anything.

    Args:
        save_directory: a folder, which need not exist.
        options: keywords; `safe_serialization` is taken out.
        stock: the library's own `save_pretrained`, whose options are known, and those of a push.
    """
    known = {*inspect.signature(stock).parameters, *PUSH_OPTIONS, "safe_serialization"} - {
        "self",
        "save_directory",
        "kwargs",
    }
    variant = options.get("variant")
    if os.path.isfile(save_directory):
        raise NotADirectoryError(f"save_directory must be a folder, but {save_directory} is a file")
    safe = options.pop("safe_serialization", True)
    if safe is not True and safe is not None:
        raise ValueError(f"safe_serialization={safe!r}: weights are saved as safetensors, never as a pickle")
    if options.get("use_flashpack"):
        raise ValueError("use_flashpack=True: weights are saved as safetensors")
    if variant is not None and (not isinstance(variant, str) or not re.fullmatch(r"[\w-]+", variant)):
        raise ValueError(f"variant must be a word for a file name, such as 'fp16', got {variant!r}")
    size = options.get("max_shard_size", "10GB")
    if size is not None:
        if not isinstance(size, str) and (type(size) is not int or size < 1):
            raise ValueError(
                f"max_shard_size must be a number of bytes above 0, or a text such as '5GB', got {size!r}"
            )
        split_torch_state_dict_into_shards({}, max_shard_size=size)  # a ValueError for a text that is no size
    for name in sorted(options.keys() - known):
        raise TypeError(f"save_pretrained has no option {name!r}; it has {', '.join(sorted(known))}")


def buffer_names(model: nn.Module) -> set[str]:
    """Names of the buffers that are saved."""
    return {name for name, _ in model.named_buffers()} & model.state_dict().keys()


def missing_names(info: Mapping[str, Any]) -> set[str]:
    """What a file lacked, by the `output_loading_info` of either library; not what the caller let differ in size."""
    mismatched = {one if isinstance(one, str) else one[0] for one in info.get("mismatched_keys", ())}
    return set(info["missing_keys"]) - mismatched


def _stored_dtypes(state_dict: Any, files: Any) -> Iterator[tuple[str, str, Any]]:
    """File, name and dtype of what is about to be loaded."""
    paths = [file for file in files or () if isinstance(file, str | Path)]
    if state_dict is not None:
        yield from ((str(paths[0] if paths else "state_dict"), name, part.dtype) for name, part in state_dict.items())
        return
    for path in paths:
        if str(path).endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                yield from ((str(path), name, file.get_slice(name).get_dtype()) for name in file.keys())  # noqa: SIM118
        elif not str(path).endswith(".gguf"):
            tensors = torch.load(path, map_location="meta", weights_only=True)
            yield from ((str(path), name, part.dtype) for name, part in tensors.items())


def _unsaved_buffers(model: nn.Module) -> Iterator[str]:
    """Names of the buffers that are not saved; those of transformers' own modules it takes care of itself."""
    for prefix, module in model.named_modules():
        if not type(module).__module__.startswith("transformers."):
            yield from (f"{prefix}.{name}" if prefix else name for name in module._non_persistent_buffers_set)


def _place_buffer(model: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    buffer = model.get_submodule(owner)._buffers[leaf]
    if buffer is not None and buffer.device.type != "meta":
        buffer.copy_(value)


def _same(buffer: torch.Tensor, fresh: torch.Tensor | None) -> bool:
    if fresh is None or fresh.shape != buffer.shape:
        return False
    return bool(torch.isclose(buffer.cpu().float(), fresh.float(), rtol=1e-2, equal_nan=True).all())

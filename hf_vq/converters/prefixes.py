"""What stands before the names of a model's tensors in a file: peeled before formats look at them."""

import dataclasses
import re
from typing import Any

import torch

from hf_vq.converters.base import FORMATS, Source, nearly_recognised

WITHIN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # torch puts them before any module's
DISTRIBUTED = "module."  # what DataParallel, DistributedDataParallel and AveragedModel put before all names
AVERAGED_STEPS = "n_averaged"  # what AveragedModel counts beside them
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|averages|shadow)(?![a-z])", re.IGNORECASE)  # of steps
DEEPEST = 4  # names of modules around a model
FEWEST = 4  # tensors of a model


def is_known(source: Source) -> bool:
    """Whether a format recognises a source; also where a broken config keeps all from looking, which is told later."""
    try:
        return any(one.recognises(source) for one in FORMATS.values())
    except ValueError:
        return True


def peel_torchs(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Names without what torch's wrappers put into them, and sentences on that."""
    named = tensors
    told: list[str] = []
    for word in WITHIN:
        if any(word in name for name in named):
            shorter = {name.replace(word, ""): one for name, one in named.items()}
            if len(shorter) == len(named):
                named, told = shorter, [*told, f"{word!r} was left out of the names of tensors."]
    own = {name: one for name, one in named.items() if name != AVERAGED_STEPS}
    while own and all(name.startswith(DISTRIBUTED) for name in own):
        own = named = {name.removeprefix(DISTRIBUTED): one for name, one in own.items()}
        told.append(f"{DISTRIBUTED!r} was left out before the names of all tensors.")
    return named, told


def peel(source: Source, weights: str | None = None) -> Source:
    """The source under the names that a format knows, where it does not know the whole names.

    Whole names come first, then what stands before all of them, then what stands before a part of them.

    Args:
        source: as it was read; nothing in it changes.
        weights: beginning of the names of the part to take; None: it is found.

    Raises:
        ValueError: several parts are of a known format, and none of them is an average.
    """
    tensors, told = peel_torchs(source.tensors)
    rest = {key: peel_torchs(one)[0] if _is_state_dict(one) else one for key, one in source.rest.items()}
    source = dataclasses.replace(source, tensors=tensors, rest=rest, told=[*source.told, *told])
    if weights is not None and source.starts(f"{weights}."):
        return _part(source, f"{weights}.")
    if is_known(source):
        return source
    for prefix in _shared(tensors):
        part = _part(source, prefix)
        if is_known(part):
            return part
    if nearly_recognised(source):  # broken, and not a part of another
        return source
    for depth in range(1, DEEPEST + 1):
        parts = {prefix: _part(source, prefix) for prefix in _prefixes(tensors, depth)}
        found = [prefix for prefix, part in parts.items() if is_known(part)]
        averages = [prefix for prefix in found if AVERAGED.search(prefix)]
        if len(averages) == 1:
            found = averages
        if len(found) > 1:
            names = ", ".join(repr(prefix.removesuffix(".")) for prefix in found)
            raise ValueError(f"{source.path} holds several models, {names}: give weights, the name of one")
        if found:
            return parts[found[0]]
    return source


def _prefixes(tensors: dict[str, Any], depth: int) -> list[str]:
    """What stands before the names of enough tensors, of so many names of modules, in order."""
    counted: dict[str, int] = {}
    for name in tensors:
        modules = name.split(".")[:-1]
        if len(modules) >= depth:
            prefix = ".".join(modules[:depth]) + "."
            counted[prefix] = counted.get(prefix, 0) + 1
    return [prefix for prefix, number in counted.items() if number >= FEWEST]


def _shared(tensors):
    """What stands before all names, the shortest first."""
    prefixes = [_prefixes(tensors, depth) for depth in range(1, DEEPEST + 1)]
    return [one for found in prefixes for one in found if all(name.startswith(one) for name in tensors)]


def _part(source, prefix):
    """The tensors under a prefix, as `Source.part`, with what is to be said of it."""
    part, outside = source.part(prefix), {name for name in source.tensors if not name.startswith(prefix)}
    rest = {}
    for key, one in source.rest.items():
        peeled = _is_state_dict(one) and all(name.startswith(prefix) for name in one)
        rest[key] = {name.removeprefix(prefix): tensor for name, tensor in one.items()} if peeled else one
    told = f"{prefix!r} was left out before the names of tensors"
    if outside:
        heads = ", ".join(sorted({name.partition(".")[0] for name in outside}))
        told += f", and with it {len(outside)} tensors that are not under it, of {heads}"
    return dataclasses.replace(part, rest=rest, told=[*source.told, f"{told}."])


def _is_state_dict(value):
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(one, torch.Tensor) for one in value.values())
    )

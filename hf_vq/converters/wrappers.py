"""The state dict in what a file holds: bare, or in dicts around it, whatever their names."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_vq.converters.prefixes import AVERAGED, peel_torchs

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "ema", "state_dict_ema")  # the usual names
NO_MODEL = re.compile(
    r"(?<![a-z])(optim\w*|opt|\w*sched\w*|discriminator|disc|loss|rng\w*|scaler)(?![a-z])", re.IGNORECASE
)
DEEPEST = 8  # dicts around a state dict
Fits = Callable[[dict[str, torch.Tensor]], bool]


@dataclass(frozen=True)
class StateDict:
    """A dict with tensors in a file.

    Attributes:
        path: names of the dicts around it, from outside; none of a bare one.
        content: the dict.
    """

    path: tuple[str, ...]
    content: dict

    @property
    def name(self) -> str:
        """The names of the dicts around it, with dots between them."""
        return ".".join(self.path)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By name."""
        return {
            name: one for name, one in self.content.items() if isinstance(name, str) and isinstance(one, torch.Tensor)
        }

    @property
    def is_averaged(self) -> bool:
        """Whether its name says that it is an average over steps."""
        return any(AVERAGED.search(part) for part in self.path)


def find_tensors(
    content: Any, path: str | Path, weights: str | None = None, fits: Fits = lambda tensors: True
) -> tuple[dict[str, torch.Tensor], dict, list[str]]:
    """The state dict in what a file holds: bare, or in any dicts around it.

    Of several the one that fits is taken; of several such the average, where it has all tensors of the others. A bare
    state dict may be empty, as that of finite scalar quantization is.

    Args:
        content: nested dict, as `read_file` gives it.
        path: of the file, for messages.
        weights: name of the one to take, with dots between the names of dicts around it, or the beginning of names
            of tensors in it; None: it is found.
        fits: from tensors by name to whether they may be what is sought; asked where there are several.

    Returns:
        The tensors by name, detached; the rest: dict of everything around and among them; and sentences on what was
        chosen.

    Raises:
        ValueError: no tensors there, names that are not strings, or several of which none can be preferred.
    """
    if isinstance(content, dict) and not content:
        return {}, {}, []
    found = list(_state_dicts(content))
    if not found:
        if isinstance(content, dict) and any(isinstance(one, torch.Tensor) for one in content.values()):
            found = [StateDict((), content)]
        else:
            seen = ", ".join(map(repr, content)) if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} holds no state dict: no tensors by name, alone or in dicts, but {seen}")
    chosen, told = _choose(found, path, weights, fits)
    rest: dict = {}
    for wrapper in chosen.path:
        rest.update({key: value for key, value in content.items() if key != wrapper})
        content = content[wrapper]
    tensors = {}
    for key, value in chosen.content.items():
        if not isinstance(value, torch.Tensor):
            rest[key] = value
        elif isinstance(key, str):
            tensors[key] = value.detach()
        else:
            raise ValueError(f"{path} names a tensor {key!r}, not with a string")
    return tensors, rest, told


def _state_dicts(content: Any) -> Iterator[StateDict]:
    """All dicts with tensors of numbers, outer ones first; what an optimizer keeps is none."""
    waiting, seen = [StateDict((), content)], set()
    for one in waiting:
        if (
            not isinstance(one.content, dict)
            or id(one.content) in seen
            or {"state", "param_groups"} <= set(one.content)
        ):
            continue
        seen.add(id(one.content))
        if any(tensor.is_floating_point() and tensor.ndim for tensor in one.tensors.values()):
            yield one
        if len(one.path) < DEEPEST:
            waiting += [
                StateDict((*one.path, key), inner) for key, inner in one.content.items() if isinstance(key, str)
            ]


def _choose(found, path, weights, fits):
    """One of several state dicts, and what is to be said of it."""
    if weights is not None:
        named = [one for one in found if one.name == weights]
        within = [one for one in found if any(name.startswith(f"{weights}.") for name in one.tensors)]
        if not named and len(within) != 1:
            raise ValueError(f"weights={weights!r} is not in {path}, which has {_names(found)}")
        return (named or within)[0], [f"The weights under {weights!r} were taken."]
    if len(found) == 1:
        return found[0], [f"The weights were under {found[0].name!r}."] if found[0].path else []
    asked = [one for one in found if not NO_MODEL.search(one.name)] or found
    usual = [one for one in asked if set(one.path) & {*WRAPPERS}]
    asked = [one for one in asked if fits(one.tensors)] or usual or asked
    asked = [one for one in asked if not any(outer is not one and _is_within(one, outer) for outer in asked)]
    averages, plain = ([one for one in asked if one.is_averaged is averaged] for averaged in (True, False))
    whole = [one for one in averages if all(_holds(one, other) for other in plain)]
    others = [one.name for one in asked]
    if len(averages) == len(whole) == 1 and plain:
        return whole[0], [f"Of {', '.join(sorted(others))} the average was taken, {whole[0].name!r}."]
    if len(plain) == 1 and averages and not whole:
        return plain[0], [
            f"{plain[0].name!r} was taken: {_names(averages)} has not all of its tensors, and is no whole average."
        ]
    if len(asked) > 1:
        raise ValueError(f"{path} holds several state dicts, {_names(asked)}: give weights, the name of one")
    return asked[0], [f"Of {_names(found)} the weights under {asked[0].name!r} were taken."]


def _holds(one, other):
    """Whether one has all tensors of another, whatever torch wrapped them in."""
    return peel_torchs(other.tensors)[0].keys() <= peel_torchs(one.tensors)[0].keys()


def _is_within(one, outer):
    return one.path[: len(outer.path)] == outer.path


def _names(found):
    return ", ".join(repr(one.name) if one.path else "those in none" for one in found)

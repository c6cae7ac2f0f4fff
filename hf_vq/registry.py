"""One door for classes of ours and of others: `register` puts them into tables by name, which all rooms read."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, overload

AUTOENCODERS: dict[str, Any] = {}  # class
PRIORS: dict[str, Any] = {}  # class, which has its config_class
QUANTIZERS: dict[str, Any] = {}  # class, by its quantizer_type
PIPELINES: dict[str, Any] = {}  # class
MODALITIES: dict[str, Any] = {}  # Modality
TABLES = {
    "autoencoder": AUTOENCODERS,
    "modality": MODALITIES,
    "pipeline": PIPELINES,
    "prior": PRIORS,
    "quantizer": QUANTIZERS,
}
NAMED_BY = {"modality": "name", "quantizer": "quantizer_type"}  # attribute with the name; others by that of the class
BASES = "a subclass of AutoencoderMixin, Prior, Quantizer or CodesPipeline, or a Modality"

Found = TypeVar("Found")
_subscribers: dict[str, list[Callable[[Any], object]]] = {kind: [] for kind in TABLES}


@overload
def register(found: str, name: None = None) -> Callable[[Found], Found]: ...


@overload
def register(found: Found, name: str | None = None) -> Found: ...


def register(found: Any, name: str | None = None) -> Any:
    """Make a class known to configs, commands, `Auto...` classes, saved folders and the Hub.

    Also a decorator, with or without a name: `@register`, `@register("my_type")`.

    Args:
        found: a subclass of `AutoencoderMixin`, `Prior`, `Quantizer` or `CodesPipeline`, or a `Modality`.
        name: of a quantizer, its `quantizer_type`, where the class does not say it; all others have a name of their
            own, under which saved folders look for them.

    Returns:
        `found`.

    Raises:
        TypeError: something else, or a class that lacks what its base asks for, which is named.
        ValueError: a name, or a `model_type`, that another class has. A class defined anew under the same name in the
            same module takes the place of the old one, as when a notebook's cell is run again.
    """
    if isinstance(found, str):
        return partial(register, name=found)
    kind: str = getattr(found, "registry_kind", "")
    if kind not in TABLES or isinstance(found, type) == (kind == "modality"):
        raise TypeError(f"register takes {BASES}; got {found!r}")
    own_name, table = _name(found, kind, name), TABLES[kind]
    taken = table.get(own_name, found)
    if taken is not found and (kind == "modality" or _place(taken) != _place(found)):
        raise ValueError(f"{_place(found)} cannot be the {kind} {own_name!r}: {_place(taken)} is registered under it")
    if kind not in NAMED_BY:
        _check_free(found, own_name, kind)
    if kind != "modality":
        found.check_contract()
    for act in _subscribers[kind]:
        act(found)
    if kind == "quantizer":
        found.quantizer_type = own_name
    table[own_name] = found
    return found


def subscribe(kind: str, act: Callable[[Any], object]) -> None:
    """Call `act` with everything of a kind: with what is registered now, and later with what is about to be.

    What `act` raises keeps that from being registered.
    """
    for found in TABLES[kind].values():
        act(found)
    _subscribers[kind].append(act)


def modality_of(class_name: str) -> Any:
    """The modality of an autoencoder, by the name of its class; None for a class without one, or of others."""
    return MODALITIES.get(getattr(AUTOENCODERS.get(class_name), "modality", ""))


def find_class(name: str) -> type | None:
    """The registered autoencoder, prior, prior's config or pipeline of a class name; None where there is none."""
    for table in (AUTOENCODERS, PRIORS, PIPELINES):
        if name in table:
            return table[name]
    configs = [prior_class.config_class for prior_class in PRIORS.values()]
    return next((config_class for config_class in configs if config_class.__name__ == name), None)


def _name(found: Any, kind: str, given: str | None) -> str:
    """The name under which something is registered; a ValueError where it has none, or another one."""
    attribute = NAMED_BY.get(kind, "__name__")
    own = vars(found).get(attribute, given) if kind == "quantizer" else getattr(found, attribute)  # not its base's
    if own is None:
        raise ValueError(f"{_place(found)} has no {attribute}: give it one by @register('my_type')")
    if given not in (None, own):
        raise ValueError(f"name={given!r}, but the {attribute} of this {kind} is {own!r}, which saved folders hold")
    return own


def _check_free(found: Any, name: str, kind: str) -> None:
    """Raise a ValueError where saved folders would find something else under the name of a class."""
    for other, table in TABLES.items():
        if other not in (kind, *NAMED_BY) and name in table:
            raise ValueError(f"{_place(found)} cannot be the {kind} {name!r}: {_place(table[name])} has this name")
    ours = vars(sys.modules["hf_vq"]).get(name, found)
    if ours is not found and ours is not TABLES[kind].get(name):
        raise ValueError(f"{_place(found)} cannot be the {kind} {name!r}: hf_vq.{name} is something else")


def _place(found: Any) -> str:
    """Module and name of a class."""
    return f"{found.__module__}.{found.__qualname__}" if isinstance(found, type) else repr(found)

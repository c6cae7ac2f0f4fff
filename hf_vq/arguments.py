"""Arguments against their annotations: a number is finite, True is no number and "3" neither, for all rooms alike.

One rule for constructors, configs, options and calls, also of classes that users register: what a signature says of an
argument is looked at before any work, types and the ranges and choices of `hf_vq.ranges` in them. What it does not say
is not guessed; but no number anywhere may be NaN or infinite.
"""

import difflib
import functools
import inspect
import itertools
import math
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

WORDS = {int: "an integer", float: "a finite number", bool: "True or False", str: "a string", type(None): "None"}
SEQUENCES = (tuple, list, set, Sequence, Collection, Iterable)
MAPPINGS = (dict, Mapping)
INTEGERS = (int, np.integer)  # fractions and other numbers of Python compute with neither tensors nor JSON
NUMBERS = (*INTEGERS, float, np.floating)
UNIONS = (Union, types.UnionType)
PLAIN = {int, float, bool, str, dict, list, type(None), Ellipsis}  # leaves of what JSON holds
CONFIG = dict | list | float  # what may be in a mapping of options

Function = TypeVar("Function", bound=Callable)


def check_argument(name: str, value: Any, annotation: Any) -> None:
    """Raise a `ValueError` that names argument and value where a value is not what an annotation says.

    Args:
        name: of the argument.
        value: anything.
        annotation: a type, a union of types, or a tuple, list, sequence or mapping of them; of others only numbers
            that are not finite are refused, and scalars where a class of something else is annotated.
    """
    problem = _problem(name, value, annotation)
    if problem:
        raise ValueError(problem)


def as_plain(value: Any, annotation: Any = Any) -> Any:
    """A value as Python's own numbers, lists and dicts, as an annotation wants them; all else as it is.

    Numbers of NumPy are taken like others, but no JSON holds them; paths, where a string is wanted, as well.

    Args:
        value: anything.
        annotation: where it wants numbers and no tensors, arrays become numbers and lists; where it wants a mapping or
            a sequence, others than dicts, lists and tuples (such as OmegaConf's) become those.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike) and str in _kinds(annotation) and type(value) not in _leaves(annotation):
        return os.fspath(value)
    leaves, kinds = _leaves(annotation), _kinds(annotation)
    if isinstance(value, Mapping) and kinds & set(MAPPINGS) and leaves <= PLAIN | {Any}:
        found = {name: as_plain(item, CONFIG) for name, item in value.items()}
        return value if type(value) is dict and _same(value.values(), found.values()) else found
    if not leaves <= PLAIN or not leaves & {int, float, bool}:  # there may be tensors, or data
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and kinds & {list, tuple, Sequence}:
        items = [as_plain(item, CONFIG) for item in value]
        if isinstance(value, list | tuple):
            return value if _same(value, items) else type(value)(items)
        return items
    return value


def check_arguments(function: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """`check_argument` of everything that a function is called with, but for values that are its own defaults.

    Args:
        function: with a signature that tells the types.
        values: by name of the parameter.

    Returns:
        The values `as_plain`.
    """
    kinds, defaults = _signature(function)
    plain = dict(values)
    for name, value in values.items():
        if name in kinds and value is not defaults[name]:
            plain[name] = as_plain(value, kinds[name])
            check_argument(name, plain[name], kinds[name])
    return plain


def check_fields(instance: Any, other_kinds: Mapping[str, Any] | None = None) -> None:
    """`check_argument` of the fields of a dataclass that are numbers, truth values, sequences of them, or have ranges.

    They are then `as_plain`.

    Args:
        instance: of the dataclass.
        other_kinds: what counts in place of the annotations of some fields, by name.
    """
    kinds = class_hints(type(instance))  # type: ignore[arg-type]
    kinds = {**kinds, **(other_kinds or {})}
    for entry in fields(instance):
        value = getattr(instance, entry.name)
        kind = kinds.get(entry.name, Any)
        if value is not entry.default and ({int, float, bool, Any} & _leaves(kind) or _has_range(kind)):
            plain = as_plain(value, kind)
            check_argument(entry.name, plain, kind)
            if plain is not value:
                object.__setattr__(instance, entry.name, plain)


def check_field(owner: type, name: str, value: Any) -> Any:
    """`check_argument` of one annotated attribute of a class, unless the value is its default there.

    Returns:
        The value `as_plain`.
    """
    if value is getattr(owner, name, inspect.Parameter.empty):
        return value
    kind = class_hints(owner).get(name, Any)
    value = as_plain(value, kind)
    check_argument(name, value, kind)
    return value


def checked(function: Function) -> Function:
    """Decorator: the arguments of a call are checked first, see `check_arguments`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says what is wrong
        plain = check_arguments(function, bound.arguments)
        # by place or by name, as it was called: diffusers takes what comes by place for a default
        placed = zip(signature.parameters.values(), args, strict=False)
        first = [plain[each.name] for each, _ in itertools.takewhile(_has_place, placed)]
        return function(*first, *args[len(first) :], **{name: plain.get(name, one) for name, one in kwargs.items()})

    return call  # type: ignore[return-value]


def _has_place(pair):
    return pair[0].kind is not pair[0].VAR_POSITIONAL


def build(owner: Callable, where: str, options: Mapping[str, Any]) -> Any:
    """What a class makes of options by name, such as a config or a recipe has them.

    Args:
        owner: the class.
        where: name of the option that holds them, for the message.
        options: arguments of its constructor.

    Raises:
        ValueError: an option that it does not have, with the nearest that it has; and what the constructor refuses.
    """
    known = list(inspect.signature(owner).parameters)
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"it takes {', '.join(known)}"
            raise ValueError(f"{where}: {getattr(owner, '__name__', owner)} has no option {name!r}; {hint}")
    return owner(**options)


def check_own(owner: type, *methods: str) -> None:
    """Makes `checked` of the named methods that a class itself defines; `__init_subclass__` of a base calls it."""
    for name in methods:
        if name in vars(owner):
            setattr(owner, name, checked(vars(owner)[name]))


@functools.cache
def _signature(function):
    """Annotation and default of every named parameter."""
    named = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    try:
        hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError):  # of a module that imports its types for type checkers alone
        hints = {}
    return {each.name: hints.get(each.name, Any) for each in named}, {each.name: each.default for each in named}


@functools.cache
def class_hints(owner: type) -> dict[str, Any]:
    """Annotations of the attributes of a class and its bases, with their ranges; Any for those that do not resolve."""
    found: dict[str, Any] = {}
    for base in reversed(owner.__mro__):
        for name, hint in vars(base).get("__annotations__", {}).items():
            try:
                found[name] = eval(hint, vars(sys.modules[base.__module__])) if isinstance(hint, str) else hint
            except (NameError, TypeError):
                found[name] = Any
    return found


def _leaves(kind):
    """The types that a union and what it holds are made of."""
    kind = _plain(kind)
    parts = [part for part in get_args(kind) if not isinstance(part, list)]
    return {leaf for part in parts for leaf in _leaves(part)} if parts else {kind}


def _kinds(kind):
    """A type without what it holds, or those of a union."""
    kind = _plain(kind)
    origin = get_origin(kind) or kind
    return {each for part in get_args(kind) for each in _kinds(part)} if origin in UNIONS else {origin}


def _plain(kind):
    """A type without its range."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _has_range(kind):
    return get_origin(kind) is Annotated or any(map(_has_range, get_args(kind)))


def _same(before, after):
    return all(one is other for one, other in zip(before, after, strict=True))


def _problem(name, value, kind):
    """What is wrong with a value, a sentence; None where nothing is."""
    if get_origin(kind) is Annotated:
        kind, *limits = get_args(kind)
        outside = (
            f"{name} must be {_range_words(kind, limit)}, got {_shown(value)}"
            for limit in limits
            if value not in limit
        )
        return _problem(name, value, kind) or next(outside, None)
    origin = get_origin(kind) or kind
    if origin in UNIONS:
        return _union_problem(name, value, get_args(kind))
    fits = _fits(value, origin)
    if not fits:
        return f"{name} must be {_describe(kind)}, got {_shown(value)}"
    if origin in SEQUENCES:
        return _items_problem(name, value, get_args(kind))
    return None


def _range_words(kind, limit):
    if kind not in (int, float) or getattr(limit, "adjective", False):
        return str(limit)
    return f"{WORDS[kind]} {limit}".replace("finite number", "number")


def _union_problem(name, value, kinds):
    problems = [_problem(name, value, kind) for kind in kinds]
    if None in problems:
        return None
    limited = [
        found for kind, found in zip(kinds, problems, strict=True) if _problem(name, value, _plain(kind)) is None
    ]
    if limited:  # of a type that fits, out of its range
        return limited[0]
    inside = [found for found in problems if not found.startswith(f"{name} must be ")]
    described = " or ".join(dict.fromkeys(map(_describe, kinds)))
    return inside[0] if inside else f"{name} must be {described}, got {_shown(value)}"


def _items_problem(name, value, kinds):
    kinds = kinds or (Any,)
    if (len(kinds) == 2 and kinds[1] is Ellipsis) or len(kinds) == 1:
        kinds = [kinds[0]] * len(value) if hasattr(value, "__len__") else ()
    pairs = zip(value, kinds, strict=False)
    found = (_problem(f"{name}[{index}]", item, kind) for index, (item, kind) in enumerate(pairs))
    return next((problem for problem in found if problem), None)


def _fits(value, kind):
    """Whether a value is of a kind, the items of a sequence left aside."""
    truth = isinstance(value, bool) or type(value).__name__ == "bool"  # NumPy's
    if kind is int:
        return isinstance(value, INTEGERS) and not truth
    if kind is float:
        return isinstance(value, NUMBERS) and not truth and is_finite(value)
    if kind is bool:
        return truth or (isinstance(value, int) and value in (0, 1))
    if kind in (str, type(None)):
        return isinstance(value, kind)
    if kind in MAPPINGS:
        return isinstance(value, Mapping)
    if kind in SEQUENCES:
        return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    if isinstance(value, Real) and not truth and not is_finite(value):
        return False
    scalar = truth or value is None or isinstance(value, Real | str | list | tuple | set | dict)
    if scalar and isinstance(kind, type) and kind not in (Any, object):  # what is more may quack like the kind
        return isinstance(value, kind)
    return True


def is_finite(value: Any) -> bool:
    """Whether a real number is one that a float can hold."""
    if isinstance(value, Integral):
        return abs(int(value)) <= sys.float_info.max
    return math.isfinite(value)


def _describe(kind):
    kind = _plain(kind)
    origin = get_origin(kind) or kind
    if origin in UNIONS:
        return " or ".join(dict.fromkeys(map(_describe, get_args(kind))))
    if origin in MAPPINGS:
        return "a mapping"
    if origin in SEQUENCES:
        return "a sequence"
    return WORDS.get(origin) or ("finite" if origin is Any else f"a {getattr(origin, '__name__', origin)}")


def _shown(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

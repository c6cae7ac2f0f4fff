"""Old names of arguments and options: they keep working, and each says so once."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

_said = set()


def warn_renamed(owner: str, old: str, new: str, stacklevel: int = 3) -> None:
    """Say once that an old name is now another.

    Args:
        owner: what has it, such as "VQVAE2".
        old, new: the names.
        stacklevel: as of `warnings.warn`, counted from the caller.
    """
    if (owner, old) not in _said:
        _said.add((owner, old))
        warnings.warn(f"{owner}: {old} is now called {new}", FutureWarning, stacklevel=stacklevel)


def with_new_names(values: dict[str, Any], renamed: dict[str, str], owner: str, stacklevel: int = 3) -> dict[str, Any]:
    """Options by name, old names replaced.

    Args:
        values: a dict.
        renamed: new names by old ones.
        owner: what has them.
        stacklevel: as of `warnings.warn`, counted from the caller.

    Raises:
        ValueError: an option under both names.
    """
    for old in renamed.keys() & values.keys():
        if renamed[old] in values:
            raise ValueError(f"{owner}: {old} and {renamed[old]} are one option, got both")
        warn_renamed(owner, old, renamed[old], stacklevel + 1)
    return {renamed.get(name, name): value for name, value in values.items()}


def renamed_options(**renamed: str) -> Callable[[Callable], Callable]:
    """Decorator of a constructor: old names of keyword arguments keep working, `renamed_options` of it lists them."""

    def decorate(init):
        @functools.wraps(init)
        def renaming_init(self, *args, **kwargs):
            used = {renamed[old]: old for old in renamed.keys() & kwargs.keys()}
            try:
                init(self, *args, **with_new_names(kwargs, renamed, type(self).__name__))
            except ValueError as error:
                if not used:
                    raise
                text = str(error)
                for new, old in used.items():  # the name that the caller knows
                    text = text.replace(new, f"{new} ({old})")
                raise ValueError(text) from error

        renaming_init.renamed_options = renamed
        return renaming_init

    return decorate

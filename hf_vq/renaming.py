"""Old names of arguments and options, which keep working and say so once; and where a warning points."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

BETWEEN = ("hf_vq", "diffusers", "transformers", "huggingface_hub")  # packages through which a user's call comes
_said: set[tuple[str, str]] = set()


def warn_renamed(owner: str, old: str, new: str) -> None:
    """Say once that an old name is now another; the warning points at the user's line, however deep it is called.

    Args:
        owner: what has it, such as "VQVAE2".
        old, new: the names.
    """
    if (owner, old) in _said:
        return
    _said.add((owner, old))
    warn_user(f"{owner}: {old} is now called {new}", FutureWarning)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning that points at the user's line, however deep it is called."""
    frame, stacklevel = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in BETWEEN:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(message, category, stacklevel=stacklevel)


def with_new_names(values: dict[str, Any], renamed: dict[str, str], owner: str) -> dict[str, Any]:
    """Options by name, old names replaced.

    Args:
        values: a dict.
        renamed: new names by old ones.
        owner: what has them.

    Raises:
        ValueError: an option under both names.
    """
    for old in renamed.keys() & values.keys():
        if renamed[old] in values:
            raise ValueError(f"{owner}: {old} and {renamed[old]} are one option, got both")
        warn_renamed(owner, old, renamed[old])
    return {renamed.get(name, name): value for name, value in values.items()}


def renamed_options(**renamed: str) -> Callable[[Callable], Callable]:
    """Decorator of a constructor: old names of keyword arguments keep working, `renamed_options` of it lists them."""

    def decorate(init):
        @functools.wraps(init)
        def renaming_init(self, *args, **kwargs):
            used = {renamed[old]: old for old in renamed.keys() & kwargs.keys()}
            kwargs = with_new_names(kwargs, renamed, type(self).__name__)
            try:
                init(self, *args, **kwargs)
            except ValueError as error:
                if not used:
                    raise
                text = str(error)
                for new, old in used.items():  # the name that the caller knows
                    text = text.replace(new, f"{new} ({old})")
                raise ValueError(text) from error

        vars(renaming_init)["renamed_options"] = renamed
        return renaming_init

    return decorate

"""Quiet: no progress bars of any library, and nothing said but errors, warnings and what came out."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

QUIET = "HF_VQ_QUIET"  # in the environment, for worker processes as well
LIBRARIES = {  # with progress bars: module of the switches, and their names
    "transformers": ("transformers.utils.logging", "progress_bar"),
    "diffusers": ("diffusers.utils.logging", "progress_bar"),
    "datasets": ("datasets.utils", "progress_bars"),
    "huggingface_hub": ("huggingface_hub.utils", "progress_bars"),
}
BEFORE_IMPORT = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "WANDB_SILENT": "true",
}


def is_quiet() -> bool:
    """Whether `hf-vq --quiet` was asked for."""
    return os.environ.get(QUIET, "") not in ("", "0")


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Within the `with` block the libraries that are imported show no progress bars."""
    stopped = []
    for library, (path, name) in LIBRARIES.items():
        switches: Any = sys.modules.get(path)
        if switches is not None and _shows(library, switches):
            getattr(switches, f"disable_{name}")()
            stopped.append(getattr(switches, f"enable_{name}"))
    try:
        yield
    finally:
        for enable in stopped:
            enable()


def _shows(library, switches):
    if library in ("transformers", "diffusers"):
        return switches.is_progress_bar_enabled()
    return not switches.are_progress_bars_disabled()


@contextlib.contextmanager
def quiet(everything: bool = True) -> Iterator[None]:
    """Within the `with` block no library shows a bar, those neither that are imported there.

    Args:
        everything: nothing else is said either, see `is_quiet`.
    """
    settings = {**BEFORE_IMPORT, **({QUIET: "1"} if everything else {})}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        with without_bars():
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})

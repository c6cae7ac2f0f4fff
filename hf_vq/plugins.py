"""Plug-ins: installed distributions with an entry point of the group `hf_vq`, whose modules register their classes."""

import importlib
import warnings
from importlib import metadata

GROUP = "hf_vq"


def import_plugins() -> None:
    """Import the module of every entry point; one that fails is told in a warning, and nothing else breaks."""
    for entry_point in metadata.entry_points(group=GROUP):
        try:
            importlib.import_module(entry_point.module)
        except (Exception, SystemExit) as error:
            owner = entry_point.dist.name if entry_point.dist else entry_point.name
            warnings.warn(
                f"the plug-in {owner!r} of hf_vq cannot be imported, its classes are missing: {entry_point.module}: "
                f"{type(error).__name__}: {error}",
                stacklevel=3,
            )

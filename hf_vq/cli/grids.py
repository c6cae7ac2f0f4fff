"""Grids of a hierarchy of codes, as options name them, and the trained priors of the coarser ones."""

from pathlib import Path
from typing import Any

import hf_vq
from hf_vq.cli.checks import check_weights, local_folder
from hf_vq.data.codes import CodesDataset, load_codes
from hf_vq.data.shards import count_grids
from hf_vq.grids import GRID_NAMES


def pick_grid(options: Any) -> int | None:
    """Number of the grid to train on, 0 the coarsest; None where the codes have one grid.

    Raises:
        ValueError: a grid that is missing, not wanted or unknown.
    """
    count = count_grids(options.codes)
    names = GRID_NAMES.get(count, ())
    if count == 1:
        if options.grid is not None:
            raise ValueError(f"grid={options.grid!r}: {options.codes} holds codes of one grid")
        return None
    if options.grid in names:
        return names.index(options.grid)
    if options.grid is None or not options.grid.isdecimal() or int(options.grid) >= count:
        raise ValueError(
            f"grid={options.grid!r}: {options.codes} holds {count} grids, say which: "
            f"{', '.join((*names, *map(str, range(count))))}"
        )
    return int(options.grid)


def load_coarser(options: Any, grid: int | None, codes: CodesDataset) -> list[Any]:
    """The trained priors of all coarser grids, coarse to fine, for the pipeline; empty where none are given.

    Args:
        options: of the verb.
        grid: that is trained.
        codes: its codes, with what is known of the coarser ones.

    Raises:
        ValueError: a prior too few or too many, or one of other codes.
    """
    given = [name for name in ("top_prior", "middle_prior") if getattr(options, name) is not None]
    if not given:
        return []
    expected = ["top_prior", "middle_prior"][: count_grids(options.codes) - 1]
    if given != expected or grid != len(expected) or options.autoencoder is None:
        raise ValueError(
            f"{' and '.join(given)} given: the pipeline needs {', '.join(expected) or 'no coarser prior'} and "
            "autoencoder, while the finest grid is trained"
        )
    priors = []
    for name, size in zip(expected, codes.context_codebook_sizes, strict=True):
        folder = local_folder(getattr(options, name))
        check_weights(folder, "prior")
        priors.append(hf_vq.AutoVQPrior.from_pretrained(folder))
        if priors[-1].config.codebook_size != size:
            raise ValueError(
                f"{name}={getattr(options, name)} has codebook_size={priors[-1].config.codebook_size}, but its grid "
                f"in {options.codes} has {size}"
            )
    return priors


def load_grid_of(prior: Any, folder: str | Path, split: str) -> CodesDataset:
    """The codes that a prior models, with those of the coarser grids that it is conditioned on."""
    coarser = len(getattr(prior.config, "context_codebook_sizes", ()))
    grid = coarser if coarser or count_grids(folder) > 1 else None
    return load_codes(folder, split, grid=grid, context=True)

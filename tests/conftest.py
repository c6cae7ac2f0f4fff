"""What several tests need."""

import gc
import json
import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True, scope="module")
def _what_is_imported_stays():
    """Collections of garbage, which every training of transformers forces, need not look at what was there before."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def compile_whole(module, backend="inductor"):
    """A module compiled in one graph, as the first of its process.

    torch counts the compilations of code that many models run, such as a wrapper of transformers, over all tests.
    """
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, backend=backend)


def fixture(name):
    """Tensors ("in.x", "out.y") and meta data of a fixture folder."""
    folder = FIXTURES / name
    return load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())


def sonnet_variables(case):
    arrays = np.load(FIXTURES / "sonnet_vqvae" / case / "variables.npz")
    return {name.removeprefix("module/"): torch.from_numpy(arrays[name]) for name in arrays.files}


def channels_first(tensor):
    return tensor.movedim(-1, 1)


@contextmanager
def no_complaints():
    """Neither Python nor diffusers, transformers or huggingface_hub warns within."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "huggingface_hub")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    assert not records, [record.getMessage() for record in records]

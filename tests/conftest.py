"""What several tests need."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

os.environ.setdefault("HF_HUB_OFFLINE", "1")
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fixture(name):
    """Tensors ("in.x", "out.y") and meta data of a fixture folder."""
    folder = FIXTURES / name
    return load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())


def sonnet_variables(case):
    arrays = np.load(FIXTURES / "sonnet_vqvae" / case / "variables.npz")
    return {name.removeprefix("module/"): torch.from_numpy(arrays[name]) for name in arrays.files}


def channels_first(tensor):
    return tensor.movedim(-1, 1)

#!/usr/bin/env bash
# torch 2.13.0: `copy.deepcopy` of a layer with `torch.nn.utils.parametrizations.weight_norm` shares the class that the
# parametrization made for that one layer. `remove_parametrizations` on the copy takes the property `weight` from this
# class, and the original, untouched, no longer computes. Met when a codec's weight norm is folded in a copy for
# inference, while the model goes on training.
#
# Seen:
#   before: the layer computes
#   after remove_parametrizations(copy): the copy computes, the layer raises AttributeError
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PY'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

layer, sound = weight_norm(nn.Conv1d(2, 3, 5)), torch.randn(1, 2, 9)
twin = copy.deepcopy(layer)
expected = layer(sound)
parametrize.remove_parametrizations(twin, "weight")
assert torch.allclose(twin(sound), expected)
try:
    layer(sound)
    outcome = "computes"
except AttributeError as error:
    outcome = f"AttributeError: {error}"
print("the layer whose copy was folded:", outcome)
assert outcome.startswith("AttributeError") and "no attribute 'weight'" in outcome, outcome
print("as described, torch", torch.__version__)
PY

#!/usr/bin/env bash
# torch 2.13.0: `torch.optim.AdamW(fused=True)`, what transformers' Trainer takes by default, changes parameters in
# place without raising their version counters. A backward pass through weights that a step has changed since the
# forward then gives wrong gradients without a word, where the plain optimizer's step makes it an error. Seen while
# caching a check "once for each state of the weights" by the counters; it also matters where a generator's graph is
# kept across a discriminator's step.
#
# Seen, on a CPU:
#   plain: version 0 -> 2, backward after the step raises
#   fused: version 0 -> 0, backward after the step gives 1.798 instead of 2
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PY'
import torch

seen = {}
for fused in (False, True):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    loss = weight.square().sum()  # its gradient is 2 at the weights of this forward
    weight.grad = torch.ones(3)
    before = weight._version
    optimizer.step()
    moved = weight._version - before
    weight.grad = None
    try:
        loss.backward()
        outcome = f"gradient {weight.grad[0].item():.3f}"
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error), error
        outcome = "error"
    seen[fused] = (moved > 0, outcome)
    print("fused" if fused else "plain", "version moved by", moved, "backward after the step:", outcome)
assert seen == {False: (True, "error"), True: (False, "gradient 1.798")}, seen
print("as described, torch", torch.__version__)
PY

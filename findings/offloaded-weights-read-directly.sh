#!/usr/bin/env bash
# torch 2.13.0 and accelerate 1.15.0: a module whose forward reads a submodule's weight itself (a tied head: `linear(x,
# embedding.weight)`) gives wrong numbers without a word under `accelerate.cpu_offload`. The hooks fetch a weight when
# its own module is called; read directly it is still on the meta device. Adding a meta tensor to one on the CPU raises
# and an embedding of one gives a meta tensor, but `linear`, `matmul` and `conv1d` of a CPU input and a meta weight
# return an ordinary CPU tensor that nothing was written into. Codebooks and tied heads are read this way everywhere.
#
# Seen, on a CPU:
#   linear, matmul, conv1d: a CPU tensor; add: RuntimeError; embedding: a meta tensor
#   tied head, offloaded: a CPU tensor of other numbers than before
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "accelerate==1.15.0" "numpy==2.4.6"
"$work/venv/bin/python" - <<'PY'
import accelerate
import torch
import torch.nn.functional as F

x, signal, meta = torch.ones(2, 3), torch.ones(1, 3, 5), torch.ones(4, 3, device="meta")
operations = {
    "linear": lambda: F.linear(x, meta),
    "matmul": lambda: x @ meta.T,
    "conv1d": lambda: F.conv1d(signal, meta[..., None]),
    "add": lambda: x + meta[:2],
    "embedding": lambda: F.embedding(torch.tensor([0]), meta),
}
seen = {}
for name, operation in operations.items():
    try:
        seen[name] = operation().device.type
    except RuntimeError as error:
        assert "expected device" in str(error), error
        seen[name] = "error"
print(seen)
assert seen == {"linear": "cpu", "matmul": "cpu", "conv1d": "cpu", "add": "error", "embedding": "meta"}, seen


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(4, 3)

    def forward(self, codes):
        return F.linear(self.embedding(codes), self.embedding.weight)


torch.manual_seed(0)
model, codes = Tied().eval(), torch.tensor([0, 1, 2])
with torch.no_grad():
    before = model(codes)
    accelerate.cpu_offload(model, torch.device("cpu"))
    after = model(codes)
assert after.device.type == "cpu" and not torch.allclose(before, after, equal_nan=True), (before, after)
print("tied head, offloaded: a CPU tensor of other numbers; torch", torch.__version__, "accelerate", accelerate.__version__)
PY

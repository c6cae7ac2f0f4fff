#!/usr/bin/env bash
# diffusers 0.42.1: `ModelMixin.from_pretrained(folder, subfolder="ema")` on a local folder reads the config of the
# subfolder but the weights of the folder itself, where a model was saved there too, as training scripts do that keep an
# averaged copy beside the model. With the same architecture in both nothing is said.
#
# Seen:
#   saved in the folder 1.0, saved in folder/ema 2.0
#   from_pretrained(folder, subfolder="ema") gives 1.0, from_pretrained(folder/ema) gives 2.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" "diffusers==0.42.1" "accelerate==1.15.0" "numpy==2.4.6"
cat > "$work/script.py" <<'PY'
import torch
from diffusers import VQModel

model = VQModel(block_out_channels=(32,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",))
for folder, value in (("run", 1.0), ("run/ema", 2.0)):
    with torch.no_grad():
        model.quant_conv.bias.fill_(value)
    model.save_pretrained(folder)
one = VQModel.from_pretrained("run", subfolder="ema").quant_conv.bias[0].item()
other = VQModel.from_pretrained("run/ema").quant_conv.bias[0].item()
print(f"subfolder gives {one}, its path gives {other}")
PY
cd "$work"
seen=$(venv/bin/python script.py)
echo "$seen"
[ "$seen" = "subfolder gives 1.0, its path gives 2.0" ]

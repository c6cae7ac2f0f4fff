#!/usr/bin/env bash
# A newcomer's hour, from own pictures to a pipeline on the Hub that stock diffusers loads:
#
#   examples/own_pictures.sh FOLDER user/name [PICTURES] [STEPS]
#
# FOLDER/pictures is an image folder, a folder for each class; where it is not there, PICTURES (200) are drawn: of three
# shapes, in six modes and many sizes, with files between them that are no pictures. STEPS (300) of each training.
# HF_ENDPOINT and HF_TOKEN say which Hub.
set -euo pipefail
mkdir -p "$1" && cd "$1"
repository=$2 pictures=${3:-200} steps=${4:-300}

if [ ! -d pictures ]; then
  python - "$pictures" <<'PY'
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

random.seed(0)
shapes, modes = ("circle", "square", "triangle"), ("RGB", "L", "RGBA", "P", "CMYK", "I;16")
for number in range(int(sys.argv[1])):
    shape, mode = shapes[number % 3], modes[number // 3 % 6]
    width, height = random.randint(40, 120), random.randint(40, 120)
    picture = Image.new("RGB", (width, height), "white")
    colour = tuple(random.randint(0, 200) for _ in range(3))
    x, y, radius = width / 2, height / 2, min(width, height) * random.uniform(0.25, 0.4)
    place = ImageDraw.Draw(picture)
    if shape == "circle":
        place.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    else:
        place.regular_polygon((x, y, radius), 4 if shape == "square" else 3, fill=colour)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L"), dtype=np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    folder = Path("pictures", shape)
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{number:04d}.{'jpg' if mode == 'CMYK' else 'png'}")
Path("pictures", "circle", "notes.txt").write_text("circles, drawn by a computer\n")
Path("pictures", "README.md").write_text("three shapes\n")
PY
fi

hf-vq train autoencoder pictures tokenizer --image_size 32 --model_config.codebook_size 64 \
  --model_config.hidden_channels 32 --max_steps "$steps" --batch_size 16 --lr 1e-3 --overwrite
hf-vq reconstruct tokenizer reconstructions.png --data pictures --overwrite
hf-vq tokenize tokenizer codes --data pictures --overwrite
hf-vq train prior codes prior --autoencoder tokenizer --max_steps "$steps" --batch_size 16 --overwrite
hf-vq sample prior/pipeline samples.png --temperature 0.9 --overwrite
hf-vq evaluate prior/pipeline --data pictures
hf-vq push prior/pipeline "$repository" --license cc0-1.0

python - "$repository" <<'PY'
import sys

from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipe(class_labels=["circle"]).images[0].save("circle.png")
print(f"Stock diffusers loaded {sys.argv[1]} and drew a circle.")
PY

"""Memory and time of tokenizing and detokenizing one large image: whole, in tiles, in exact tiles.

    OMP_NUM_THREADS=1 python benchmarks/tiling.py       # about 3 minutes

Every row is a process of its own: `peak` is its highest resident memory beyond what it held before (code, weights,
image). Weights are random, codebooks start by k-means on the image's own latents. `codes equal` and `difference` (mean
absolute, of reconstructions from the same codes, over their standard deviation) compare with the whole image. What
"exact tiles" differ by is the rounding of float32 GroupNorms over the whole image: those of tiles sum in float64.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from hf_vq import VQVAE, VQModel

WIDTHS = (32, 64, 64, 128)
MODELS = {
    "VQVAE, width 128, f4": lambda: VQVAE(quantizer_type="vector"),
    "VQModel, width 32-128, f8": lambda: VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS), up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS, latent_channels=4, num_vq_embeddings=512,
    ),
}  # fmt: skip
MODES = {"whole": None, "tiles": {"exact": False}, "exact tiles": {"exact": True}}


def make_image(side):
    """Soft shapes, whose contrast grows from left to right, and a little noise."""
    along = torch.linspace(0, 1, side)
    noise = torch.Generator().manual_seed(1)
    waves = [torch.sin(40 * (1 + i) * along[:, None] ** 2) * torch.cos(30 * along * (2 + i)) for i in range(3)]
    image = torch.stack(waves) * along + 0.5 * (along[:, None] - 0.5)
    return (image + 0.03 * torch.randn(3, side, side, generator=noise)).clamp(-1, 1)[None]


def resident_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def prepare(model_name, side, folder):
    """Random weights, and a codebook that fits them, for all rows of a model."""
    torch.manual_seed(0)
    model = MODELS[model_name]().eval()
    model.initialize_codebook(make_image(side)[:, :, -256:, -256:])
    torch.save(model.state_dict(), Path(folder) / f"{model_name}.weights.pt")


@torch.no_grad()
def measure(model_name, mode, side, tile, folder):
    """One row; the first mode leaves its codes and reconstruction in the folder, where the others compare."""
    model, kept = MODELS[model_name]().eval(), Path(folder) / f"{model_name}.pt"
    model.load_state_dict(torch.load(Path(folder) / f"{model_name}.weights.pt", mmap=True))
    image = make_image(side)
    if MODES[mode] is not None:
        model.enable_tiling(tile, **MODES[mode])
    before, start = resident_kib(), time.perf_counter()
    codes = model.tokenize(image)
    middle = time.perf_counter()
    sample = model.detokenize(torch.load(kept)[0] if kept.exists() else codes)
    row = {"tokenize": middle - start, "detokenize": time.perf_counter() - middle}
    row["peak"] = (resident_kib() - before) / 1024
    if not kept.exists():
        torch.save((codes, sample), kept)
    whole_codes, whole_sample = torch.load(kept)
    row["equal"] = (codes == whole_codes).float().mean().item()
    row["difference"] = ((sample - whole_sample).abs().mean() / whole_sample.std()).item()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)  # model, mode, folder: a child process
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(*args.row[:2], args.side, args.tile, args.row[2])))
        return
    print("| model | mode | tokenize s | detokenize s | peak MiB | codes equal | difference |")
    print("|" + " --- |" * 7)
    with tempfile.TemporaryDirectory() as folder:
        for model_name in MODELS:
            prepare(model_name, args.side, folder)
            for mode in MODES:
                command = [sys.executable, __file__, "--side", str(args.side), "--tile", str(args.tile)]
                command += ["--row", model_name, mode, folder]
                row = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                times = f"{row['tokenize']:.1f} | {row['detokenize']:.1f} | {row['peak']:.0f}"
                same = f"{row['equal']:.2%} | {row['difference']:.1e}"
                print(f"| {model_name} | {mode} | {times} | {same} |", flush=True)


if __name__ == "__main__":
    main()

"""Time of sampling a grid of codes with `PixelCNN`: cached, against one full forward per code as the originals do.

    python benchmarks/pixelcnn_sampling.py

Both run on the same codes and the same randomness, alternating within one run, and their draws are compared. The first
line measures every recompute; the second, a network of ordinary size, measures the share it names and scales it up
(each recompute is the same work, wherever it is), which the line says. About three minutes on two CPU cores.
"""

import argparse

import torch
from timing import recompute, timed

from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.sampling import draw_uniforms


def measure(name, options, args, num_recomputed):
    torch.manual_seed(0)
    prior = PixelCNN(PixelCNNConfig(codebook_size=args.codebook_size, code_shape=args.grid, **options)).eval()
    num_codes = args.grid[0] * args.grid[1]
    positions = torch.linspace(0, num_codes - 1, num_recomputed).long().tolist()
    prior.sample(args.batch_size, (1, args.grid[1]))  # warm-up
    cached_seconds, full_seconds, equal = [], 0.0, 0

    def draw(generator):
        return prior.sample(args.batch_size, generator=generator)

    for turn in range(args.turns):
        seconds, codes = timed(draw, torch.Generator().manual_seed(turn))
        cached_seconds.append(seconds)
        uniforms = draw_uniforms(num_codes, args.batch_size, torch.Generator().manual_seed(turn), prior.device)
        seconds, same = timed(recompute, prior, codes, uniforms, positions[turn :: args.turns])
        full_seconds, equal = full_seconds + seconds, equal + same
    cached, full = sum(cached_seconds) / args.turns, full_seconds * num_codes / num_recomputed
    how = "measured whole" if num_recomputed == num_codes else f"scaled up from {num_recomputed} of {num_codes} codes"
    print(
        f"{name}: cached {cached:.2f} s ({min(cached_seconds):.2f} to {max(cached_seconds):.2f}), "
        f"full recompute {full:.1f} s ({how}), ratio {full / cached:.0f}; "
        f"equal draws {equal} of {num_recomputed * args.batch_size}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=[32, 32], help="rows and columns of codes")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--recomputed", type=int, default=24, help="codes recomputed with the networks of usual size")
    parser.add_argument("--turns", type=int, default=3, help="alternations of the two ways")
    args = parser.parse_args()
    num_codes = args.grid[0] * args.grid[1]
    print(
        f"grid {args.grid[0]}x{args.grid[1]}, batch {args.batch_size}, {torch.get_num_threads()} threads", flush=True
    )
    small = {"hidden_channels": 16, "num_layers": 10, "head_channels": [16]}
    usual = {"hidden_channels": 64, "num_layers": 12}
    measure("gated, 10 layers of 16", small, args, num_codes)
    measure("gated, 12 layers of 64", usual, args, min(args.recomputed, num_codes))
    measure("plain, 12 blocks of 64", {"gated": False, **usual}, args, min(args.recomputed, num_codes))


if __name__ == "__main__":
    main()

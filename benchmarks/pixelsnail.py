"""Time and work of sampling a grid of codes with `PixelSNAIL`: cached, against one full forward per code.

    python benchmarks/pixelsnail.py
    python benchmarks/pixelsnail.py --device cuda --batch-sizes 1 8 64

Both run on the same codes and the same randomness within one run, and their draws are compared. The full forwards are
measured at some positions, spread over the grid, and scaled up: each is the same work, wherever it is. Floating-point
operations are counted per image (two per multiplication with addition); attention counts as matrix products over what
each way computes, masked or not. Under three minutes on one CPU core.
"""

import argparse

import torch
from timing import recompute, timed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_vq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig
from hf_vq.priors.sampling import draw_uniforms


@torch.no_grad()
def count_flops(prior):
    """Floating-point operations per image: cached, and with one full forward per code."""
    height, width = prior.config.code_shape
    codes, totals = torch.zeros(1, height, width, dtype=torch.int64), []
    for run in (lambda: prior.sample(1), lambda: prior(codes, return_loss=False)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # counts no fused one of the CPU
            run()
        totals.append(counter.get_total_flops())
    return totals[0], totals[1] * height * width


def measure(name, prior, batch_size, num_recomputed):
    height, width = prior.config.code_shape
    num_codes = height * width
    positions = torch.linspace(0, num_codes - 1, num_recomputed).long().tolist()
    prior.sample(batch_size, (1, width))  # warm-up
    cached, codes = timed(lambda: prior.sample(batch_size, generator=torch.Generator().manual_seed(0)))
    uniforms = draw_uniforms(num_codes, batch_size, torch.Generator().manual_seed(0), prior.device)
    taken, equal = timed(lambda: recompute(prior, codes, uniforms, positions))
    full = taken * num_codes / num_recomputed
    print(
        f"{name}, batch {batch_size}: cached {cached:.2f} s ({codes.numel() / cached:,.0f} codes/s), full recompute "
        f"{full:.0f} s (scaled up from {num_recomputed} of {num_codes} codes), ratio {full / cached:.0f}; "
        f"equal draws {equal} of {num_recomputed * batch_size}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=[32, 32], help="rows and columns of codes")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--residual-layers", type=int, default=4, help="in each block")
    parser.add_argument("--recomputed", type=int, default=16, help="codes of each grid that are recomputed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_default_device(args.device)
    torch.set_num_threads(args.threads)
    print(f"grid {args.grid[0]}x{args.grid[1]}, {args.device}, {args.threads} threads", flush=True)
    for attention in (True, False):
        torch.manual_seed(0)
        config = PixelSNAILConfig(
            codebook_size=args.codebook_size,
            code_shape=args.grid,
            hidden_channels=args.channels,
            residual_channels=args.channels,
            num_blocks=args.blocks,
            num_residual_layers=args.residual_layers,
            attention=attention,
        )
        prior = PixelSNAIL(config).eval()
        name = f"{args.blocks} blocks of {args.residual_layers} layers of {args.channels}"
        name += ", attention" if attention else ", no attention"
        cached, full = count_flops(prior)
        print(f"{name}: {cached / 1e9:.2f} GFLOP per image cached, {full / 1e9:.0f} full, ratio {full / cached:.0f}")
        for batch_size in args.batch_sizes:
            measure(name, prior, batch_size, args.recomputed)


if __name__ == "__main__":
    main()

"""Time of sampling a sequence of codes with `WaveNet`: cached, against one full forward per code.

    python benchmarks/wavenet.py

Both run on the same codes and the same randomness, alternating within one run, and their draws are compared. The
uncached loop runs a forward over what came before each code, as a loop without a cache must; the share of codes that
it computes is spread evenly over the sequence, and the time is scaled up from it, which the line says. Under a minute
on one CPU core.
"""

import argparse
import time

import torch

from hf_vq.priors.sampling import draw_uniforms, sample_codes
from hf_vq.priors.wavenet import WaveNet, WaveNetConfig


@torch.no_grad()
def recompute(prior, codes, uniforms, places):
    """Draw the codes at some places of a finished sequence again, from full forwards; how many come out equal."""
    equal = 0
    for place in places:
        logits = prior(codes[:, : place + 1], return_loss=False).logits[:, place]
        equal += int((sample_codes(logits, uniforms[place]) == codes[:, place]).sum())
    return equal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4000, help="codes in the sequence")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--channels", type=int, default=32, help="residual channels; twice as many in gates and skips")
    parser.add_argument("--layers", type=int, default=20, help="layers, in two cycles")
    parser.add_argument("--recomputed", type=int, default=120, help="codes computed without the cache")
    parser.add_argument("--turns", type=int, default=3, help="alternations of the two ways")
    args = parser.parse_args()
    torch.manual_seed(0)
    widths = {"residual_channels": args.channels, "gate_channels": 2 * args.channels, "skip_channels": args.channels}
    prior = WaveNet(WaveNetConfig(codebook_size=256, num_layers=args.layers, num_cycles=2, **widths)).eval()
    places = torch.linspace(0, args.length - 1, min(args.recomputed, args.length)).long().tolist()
    prior.sample(args.batch_size, (16,))  # warm-up
    cached, full, equal = [], 0.0, 0
    for turn in range(args.turns):
        start = time.perf_counter()
        codes = prior.sample(args.batch_size, (args.length,), generator=torch.Generator().manual_seed(turn))
        cached.append(time.perf_counter() - start)
        uniforms = draw_uniforms(args.length, args.batch_size, torch.Generator().manual_seed(turn), prior.device)
        start = time.perf_counter()
        equal += recompute(prior, codes, uniforms, places[turn :: args.turns])
        full += time.perf_counter() - start
    full *= args.length / len(places)
    mean = sum(cached) / args.turns
    print(
        f"{args.layers} layers of {args.channels}, batch {args.batch_size}, {torch.get_num_threads()} threads, "
        f"{args.length} codes: cached {mean:.2f} s ({min(cached):.2f} to {max(cached):.2f}), "
        f"full recompute {full:.0f} s (scaled up from {len(places)} codes), ratio {full / mean:.0f}; "
        f"equal draws {equal} of {len(places) * args.batch_size}"
    )


if __name__ == "__main__":
    main()

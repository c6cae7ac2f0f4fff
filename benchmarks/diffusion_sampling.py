"""Time of drawing grids in a few passes, against code by code: `DiscreteDiffusionPrior` and `TransformerPrior`.

    OMP_NUM_THREADS=1 python benchmarks/diffusion_sampling.py --batch-sizes 1 16
    python benchmarks/diffusion_sampling.py --device cuda --dtype bfloat16 --compile --batch-sizes 1 16 --layers 12

Both have as many blocks of the same width and the same codes, random weights, classes, no guidance. The contenders
alternate within one run, and times are medians of the turns; ratios are to the cached transformer. A step is compared
with one bare forward of the diffusion network on the same states. The floor is counted: the multiplications of the
passes at the rate of a product of ordinary size, which is measured in the run.
"""

import argparse
import statistics

import torch
from timing import timed

from hf_vq import DiscreteDiffusionPrior, DiscreteDiffusionPriorConfig, TransformerPrior, TransformerPriorConfig


def make_priors(args):
    shared = {
        "codebook_size": args.codebook_size,
        "num_classes": 10,
        "code_shape": (args.grid, args.grid),
        "hidden_size": args.hidden_size,
        "num_layers": args.layers,
        "num_heads": args.hidden_size // 64,
    }
    torch.manual_seed(0)
    transformer = TransformerPrior(TransformerPriorConfig(**shared)).eval().to(args.dtype)
    diffusion = DiscreteDiffusionPrior(DiscreteDiffusionPriorConfig(**shared)).eval().to(args.dtype)
    if args.compile:
        transformer.compile_sampling()
    return transformer, diffusion


def multiply_rate(dtype, size=1024):
    """Multiply-adds a second of a product of ordinary size."""
    one, other = torch.randn(2, size, size, dtype=dtype).unbind()
    timed(torch.mm, one, other)
    return size**3 / min(timed(torch.mm, one, other)[0] for _ in range(10))


def multiply_adds(prior, num_grids, num_codes):
    """Of one forward: the linear layers at every position, and the attention of all to all."""
    layers = [module for module in prior.modules() if isinstance(module, torch.nn.Linear)]
    modulation = [block.norm.linear for block in prior.transformer.blocks]
    modulation += [block.mlp_norm.linear for block in prior.transformer.blocks]  # once an item
    each = sum(layer.weight.numel() for layer in layers) - sum(layer.weight.numel() for layer in modulation)
    attention = 2 * prior.config.num_layers * num_codes * prior.config.hidden_size
    return num_grids * num_codes * (each + attention)


@torch.no_grad()
def compare(args, batch_size):
    transformer, diffusion = make_priors(args)
    labels = torch.arange(batch_size) % 10
    states = torch.randint(args.codebook_size + 1, (batch_size, args.grid, args.grid))
    times = torch.full((batch_size,), 50)
    contenders = {"TransformerPrior, cached": lambda: transformer.sample(class_labels=labels)}
    for steps in args.steps:
        contenders[f"DiscreteDiffusionPrior, {steps} steps"] = lambda steps=steps: diffusion.sample(
            class_labels=labels, num_inference_steps=steps
        )
    contenders["bare forwards"] = lambda: [
        diffusion.run_network(states, times, class_labels=labels) for _ in range(args.steps[0])
    ]  # as many as steps: one alone would be luck
    turns = {name: [] for name in contenders}
    for turn in range(args.turns + args.warm_up):
        for name, contender in contenders.items():
            seconds, _ = timed(contender)
            if turn >= args.warm_up:
                turns[name].append(seconds)
    seconds = {name: statistics.median(values) for name, values in turns.items()}
    floor = multiply_adds(diffusion, batch_size, args.grid**2) / multiply_rate(args.dtype)
    cached, bare = seconds.pop("TransformerPrior, cached"), seconds.pop("bare forwards") / args.steps[0]
    print(
        f"batch {batch_size}: cached transformer {cached:.3f} s, one bare forward {bare:.4f} s (floor {floor:.4f} s)"
    )
    for name, value in seconds.items():
        steps = int(name.split()[1])
        print(
            f"  {name}: {value:.3f} s, {cached / value:.2f} times as fast; a step is {value / steps / bare:.3f} bare "
            f"forwards; floor of all passes {steps * floor:.3f} s, {value / steps / floor:.2f} above it"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50])
    parser.add_argument("--grid", type=int, default=32)
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.set_default_device(args.device)
    print(
        f"{args.layers} blocks of {args.hidden_size}, {args.grid}x{args.grid} codes of {args.codebook_size}, "
        f"{args.dtype}, {args.device}, {torch.get_num_threads()} threads, medians of {args.turns} turns"
    )
    for batch_size in args.batch_sizes:
        compare(args, batch_size)


if __name__ == "__main__":
    main()

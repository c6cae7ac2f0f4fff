"""Time of drawing grids of codes: each family's cached loop against the loops of others, on the same weights.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py
    OMP_NUM_THREADS=1 python benchmarks/sampling.py --families pixelcnn --grid 16
    python benchmarks/sampling.py --families llama --device cuda --dtype bfloat16 --compile --batch-sizes 1 8 64 \
        --grid 16 --codebook-size 16384 --layers 12 --hidden-size 768 --heads 12

Every family is one function from the arguments to the contenders of a batch size; the first contender is ours. All
but two of ours draw greedily, so that their codes can be compared; they alternate within one run, and times are the
medians of the turns. What would take too long is measured at some positions and scaled up, which its line says: a full
forward at the middle of each of equal stretches of the grid stands for its stretch.

The floor is counted: weights and the filled part of the cache once per step at the bandwidth of a copy, or the
multiplications at the rate of a product of ordinary size, whichever takes longer; both rates are measured in the run.
Weights that fit a processor's own cache can be faster than the copy.

Guidance, where a family has it, is written out: ours is one pass over twice the rows. "generate" is transformers' own
with `guidance_scale`, a second pass of the same number of rows; "generate, batched guidance" is one pass over twice
the rows with a logits processor of five lines, the best that `generate` can do.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timing import timed
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from hf_vq.priors import PixelCNN, PixelCNNConfig, TransformerPrior, TransformerPriorConfig

GUIDANCE = 2.0


@dataclass
class Contender:
    """One way to draw.

    Attributes:
        name: for its line.
        draw: the codes (batch, codes), or None where only some positions are measured.
        scale: how many of its runs a whole grid is.
    """

    name: str
    draw: Callable[[], torch.Tensor | None]
    scale: float = 1.0


@dataclass
class Floor:
    """What any loop must do for a grid: bytes to move and multiply-adds to make."""

    num_bytes: float
    multiply_adds: float


def stretches(num_codes, count):
    """Middles of `count` equal stretches of the positions."""
    return [int((index + 0.5) * num_codes / count) for index in range(count)]


# Families


def llama(args, batch_size):
    """`TransformerPrior` with classes and guidance."""
    torch.manual_seed(0)
    num_codes = args.grid**2
    config = TransformerPriorConfig(
        codebook_size=args.codebook_size,
        num_classes=10,
        class_dropout_prob=0.1,
        code_shape=(args.grid, args.grid),
        hidden_size=args.hidden_size,
        num_layers=args.layers,
        num_heads=args.heads or args.hidden_size // 32,
    )
    prior = TransformerPrior(config).eval().to(args.dtype)
    class_labels = torch.arange(batch_size) % 10
    prompt = prior.make_prompt(class_labels=class_labels)
    null = torch.full_like(prompt, config.null_token)

    def sample(**options):
        return prior.sample(class_labels=class_labels, guidance_scale=GUIDANCE, **options).flatten(1)

    known = torch.zeros(batch_size, args.grid, args.grid, dtype=torch.int64)
    upper = (torch.arange(args.grid) < args.grid // 2)[:, None].expand_as(known)

    def generate(cache):
        return prior.generate(
            prompt, do_sample=False, guidance_scale=GUIDANCE, negative_prompt_ids=null, cache_implementation=cache
        )[:, 1:]

    def generate_batched(cache):
        tokens = prior.generate(
            torch.cat([prompt, null]),
            do_sample=False,
            suppress_tokens=None,
            logits_processor=LogitsProcessorList([BatchedGuidance(args.codebook_size)]),
            cache_implementation=cache,
        )
        return tokens[:batch_size, 1:]

    @torch.no_grad()
    def without_cache():
        codes = torch.zeros(batch_size, num_codes, dtype=torch.int64)
        for position in stretches(num_codes, args.recomputed):
            tokens = torch.cat(
                [torch.cat([prompt, codes[:, :position]], 1), torch.cat([null, codes[:, :position]], 1)]
            )
            logits = prior(input_ids=tokens, use_cache=False).logits[:, -1, : args.codebook_size]
            conditional, unconditional = logits.chunk(2)
            codes[:, position] = (unconditional + GUIDANCE * (conditional - unconditional)).argmax(-1)

    weights = sum(p.numel() for p in prior.model.layers.parameters()) + args.codebook_size * args.hidden_size
    rows = 2 * batch_size  # guided
    cached = 2 * rows * args.layers * args.hidden_size * sum(range(1, num_codes + 1))
    floor = Floor(args.dtype.itemsize * (weights * num_codes + cached), rows * weights * num_codes + cached)
    contenders = [
        Contender("ours", lambda: sample(temperature=0)),
        Contender("ours, drawing by chance", lambda: sample() * 0 - 1),
        Contender("ours, upper half known", lambda: sample(known_codes=known, known_mask=upper) * 0 - 1),
        Contender("generate, dynamic cache", lambda: generate(None)),
        Contender("generate, static cache", lambda: generate("static")),
        Contender("generate, dynamic cache, batched guidance", lambda: generate_batched(None)),
        Contender("generate, static cache, batched guidance", lambda: generate_batched("static")),
        Contender("no cache, as minGPT", without_cache, num_codes / args.recomputed),
    ]
    if args.compile:
        compiled = copy.deepcopy(prior)
        compiled.compile_sampling()
        contenders.insert(
            1,
            Contender(
                "ours, compiled",
                lambda: compiled.sample(class_labels=class_labels, guidance_scale=GUIDANCE, temperature=0).flatten(1),
            ),
        )
    return f"llama, {args.layers} layers of {args.hidden_size}, guidance {GUIDANCE}", contenders, floor


class BatchedGuidance(LogitsProcessor):
    """Guidance of rows whose second half is without the condition; both halves get the same logits, of codes only."""

    def __init__(self, codebook_size):
        self.codebook_size = codebook_size

    def __call__(self, input_ids, scores):
        conditional, unconditional = scores.chunk(2)
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        guided[:, self.codebook_size :] = -torch.inf
        return guided.repeat(2, 1)


def pixelcnn(args, batch_size):
    """Gated `PixelCNN` without classes."""
    torch.manual_seed(0)
    shape, num_codes = (args.grid, args.grid), args.grid**2
    prior = PixelCNN(PixelCNNConfig(codebook_size=args.codebook_size, code_shape=shape, num_layers=12)).eval()
    prior.to(args.dtype)
    codes = torch.zeros(batch_size, *shape, dtype=torch.int64)

    @torch.no_grad()
    def recompute():
        for position in stretches(num_codes, args.recomputed):
            row, column = divmod(position, args.grid)
            prior(codes, return_loss=False).logits[:, row, column].argmax(-1)

    weights = sum(p.numel() for name, p in prior.named_parameters() if not name.startswith("embedding"))
    contenders = [
        Contender("ours", lambda: prior.sample(batch_size, temperature=0).flatten(1)),
        Contender("full forward per code, as the originals", recompute, num_codes / args.recomputed),
    ]
    return (
        "pixelcnn, 12 gated layers of 64",
        contenders,
        Floor(args.dtype.itemsize * weights * num_codes, batch_size * weights * num_codes),
    )


FAMILIES = {"llama": llama, "pixelcnn": pixelcnn}


# Measuring


def rates(dtype):
    """Bytes per second of a copy (read and written), and multiply-adds per second of a product."""
    source, target = torch.randn(2**25), torch.empty(2**25)
    rows, width = (32, 1024) if torch.get_default_device().type == "cpu" else (256, 8192)  # past what launches cost
    left, right = torch.randn(rows, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
    copy = min(timed(lambda: target.copy_(source))[0] for _ in range(5))
    product = min(timed(lambda: [left @ right for _ in range(50)])[0] for _ in range(5)) / 50
    return 2 * source.nbytes / copy, rows * width**2 / product


def measure(name, contenders, floor, batch_size, turns, bandwidth, multiply_rate):
    seconds, codes = {one.name: [] for one in contenders}, {}
    for turn in range(turns):
        for one in contenders if turn % 2 == 0 else contenders[::-1]:
            taken, codes[one.name] = timed(one.draw)
            seconds[one.name].append(taken * one.scale)
    ours = statistics.median(seconds[contenders[0].name])
    lowest = max(floor.num_bytes / bandwidth, floor.multiply_adds / multiply_rate)
    kind = "bytes" if floor.num_bytes / bandwidth == lowest else "multiplications"
    print(
        f"\n{name}, batch {batch_size}; floor {lowest:.3f} s ({kind}), ours is {ours / lowest:.1f} times that: "
        f"{codes[contenders[0].name].numel() / ours:,.0f} codes/s"
    )
    for one in contenders:
        median, fastest, slowest = (f(seconds[one.name]) for f in (statistics.median, min, max))
        drawn, agree = codes[one.name], ""
        if drawn is not None and drawn.min() >= 0:
            agree = f"; equal codes {(drawn == codes[contenders[0].name]).double().mean():.1%}"
        agree += "" if one.scale == 1 else f"; scaled up {one.scale:.0f} times"
        spread = f"{median:8.3f} s ({fastest:.3f} to {slowest:.3f})"
        print(f"  {one.name:45s} {spread}, ratio {median / ours:6.2f}{agree}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--grid", type=int, default=12, help="rows and columns of codes")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--heads", type=int, help="default: of 32 channels each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--recomputed", type=int, default=4, help="positions measured of what has no cache")
    parser.add_argument("--compile", action="store_true", help="our loop with compiled steps too")
    parser.add_argument("--turns", type=int, default=3, help="alternations of the contenders")
    args = parser.parse_args()
    logging.set_verbosity_error()
    args.dtype = getattr(torch, args.dtype)
    torch.set_default_device(args.device)
    bandwidth, multiply_rate = rates(args.dtype)
    print(
        f"grid {args.grid}x{args.grid}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads; a copy moves "
        f"{bandwidth / 1e9:.1f} GB/s, a product makes {multiply_rate / 1e9:.1f} G multiply-adds/s"
    )
    for family in args.families:
        for batch_size in args.batch_sizes:
            name, contenders, floor = FAMILIES[family](args, batch_size)
            for one in contenders:
                one.draw()  # warm-up
            measure(name, contenders, floor, batch_size, args.turns, bandwidth, multiply_rate)


if __name__ == "__main__":
    main()

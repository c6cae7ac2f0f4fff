"""Time and memory of our quantizers beside those of the libraries people use today.

    pip install "hf_vq[bench]"
    python benchmarks/quantizers.py --threads 2 --output quantizers.json     # CPU: about 15 minutes on 2 cores
    python benchmarks/quantizers.py --device cuda                            # adds 1,048,576 rows

Each cell is (rows, width, codes). Every measurement is a process of its own, forked after the imports; the rounds go
through all quantizers in turn, and the best time of all rounds counts. `eval` is codes and quantized latents without
gradients; `train` is forward and backward of loss and latents, with the EMA update where the quantizer has one. All
start from the same random codebook, without k-means, restart of dead codes or expiry. The floor is 2 x rows x codes x
width FLOP at the rate at which this machine multiplies large matrices, or the bytes read and written, whichever is
longer. A ratio is the other's time or memory over ours; "memory" and "time" say which limit a quantizer ran into.
"""

import argparse
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as DiffusersQuantizer
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecEuclideanCodebook
from vector_quantize_pytorch import VectorQuantize

from hf_vq.quantizers import make_quantizer

CELLS = [(8, 16384), (16, 128), (64, 512), (256, 1024), (256, 16384), (8, 262144)]  # (width, codes)
MEMORY_CAP, TIME_CAP = 12 << 30, 60  # bytes and seconds for one measurement
SECONDS = 1.0  # a measurement repeats for so long, at least twice


def ours(quantizer_type):
    def build(width, codes):
        return make_quantizer(quantizer_type, codes, width, {"kmeans_init": False, "restart_threshold": 0.0})

    return build, lambda quantizer, rows: (lambda out: (out.latents, out.loss))(quantizer(rows))


def lucidrains():
    def build(width, codes):
        return VectorQuantize(dim=width, codebook_size=codes, threshold_ema_dead_code=0)

    def run(quantizer, rows):
        latents, _, loss = quantizer(rows[None])
        return latents, loss.sum()

    return build, run


def diffusers():
    def build(width, codes):
        return DiffusersQuantizer(codes, width, beta=0.25, legacy=False)

    return build, lambda quantizer, rows: quantizer(rows.T[None, :, :, None])[:2]


def encodec():
    def build(width, codes):
        quantizer = EncodecEuclideanCodebook(EncodecConfig(codebook_size=codes, codebook_dim=width))
        quantizer.embed.normal_()
        return quantizer

    return build, lambda quantizer, rows: (quantizer.decode(quantizer.encode(rows)), None)


QUANTIZERS = {  # name -> (how to make it, whether it trains)
    "ours, vector": (ours("vector"), True),
    "ours, ema": (ours("ema"), True),
    "lucidrains": (lucidrains(), True),
    "diffusers": (diffusers(), True),
    "encodec": (encodec(), False),
}
OURS = ["ours, vector", "ours, ema"]


def measure(name, mode, rows, width, codes, device):
    """Best seconds of a pass, and the peak of the memory it added, in MiB."""
    (build, run), _ = QUANTIZERS[name]
    torch.manual_seed(0)
    quantizer = build(width, codes).to(device).train(mode == "train")
    latents = torch.randn(rows, width, device=device, requires_grad=mode == "train")

    def step():
        with torch.set_grad_enabled(mode == "train"):
            quantized, loss = run(quantizer, latents)
            if mode == "train":
                (quantized.sum() + loss).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    reset_peak(device)
    before, times = memory(device)[0], []
    while len(times) < 2 or sum(times) < SECONDS:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return {"seconds": min(times), "mib": (memory(device)[1] - before) / 2**20}


def reset_peak(device):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def memory(device):
    """Bytes in use now and at the peak."""
    if device == "cuda":
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(status[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))


def in_a_process(function, *arguments, device):
    """The result of a function in a forked process, or {"failed": "memory" or "time"}."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        if device == "cpu":
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_CAP, size + MEMORY_CAP))
        try:
            result = function(*arguments)
        except (MemoryError, torch.OutOfMemoryError):
            result = {"failed": "memory"}
        except RuntimeError as error:
            if "allocate" not in str(error):
                raise
            result = {"failed": "memory"}
        with os.fdopen(write, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        ready, _, _ = select.select([pipe], [], [], TIME_CAP)
        if not ready:
            os.kill(child, signal.SIGKILL)
        text = pipe.read() if ready else '{"failed": "time"}'
    os.waitpid(child, 0)
    return json.loads(text or '{"failed": "memory"}')  # the kernel kills what takes too much


def machine_rates(device):
    """FLOP per second of a large matrix product and bytes per second of a large copy."""
    size = 8192 if device == "cuda" else 2048
    square, out = torch.randn(size, size, device=device), torch.empty(size, size, device=device)
    memory = torch.randn(1 << 26, device=device)
    work = {"flops": lambda: torch.mm(square, square, out=out), "bytes": lambda: memory.clone()}
    amounts, rates = {"flops": 2 * size**3, "bytes": 8 * memory.numel()}, {}
    for name, step in work.items():
        times = []
        for _ in range(5):
            started = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        rates[name] = amounts[name] / min(times)
    return rates


def run_cell(mode, rows, width, codes, rates, args):
    flops, moved = 2 * rows * width * codes, 4 * (2 * rows * width + codes * width) + 8 * rows
    passes = 1 if mode == "eval" else 2  # training reads and writes latents and codebook once more
    floor = max(flops / rates["flops"], passes * moved / rates["bytes"])
    cell = {"mode": mode, "rows": rows, "width": width, "codes": codes, "floor_seconds": floor, "quantizers": {}}
    for _ in range(args.rounds):
        for name, (_, trains) in QUANTIZERS.items():
            best = cell["quantizers"].get(name, {})
            if (mode == "train" and not trains) or "failed" in best:
                continue
            found = in_a_process(measure, name, mode, rows, width, codes, args.device, device=args.device)
            if "failed" not in found and best:
                found = {key: min(found[key], best[key]) for key in found}
            cell["quantizers"][name] = found
    return cell


def table(cells):
    """Markdown: our times, then every peer's time and memory over the better of ours."""
    peers = [name for name in QUANTIZERS if name not in OURS]
    titles = ["mode, rows, width, codes", "floor ms", *(f"{name} ms" for name in OURS), "ours MiB"]
    titles += [f"{name}: time, memory" for name in peers]
    lines = ["| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    for cell in cells:
        found = cell["quantizers"]
        own = [found[name] for name in OURS]
        where = f"{cell['mode']}, {cell['rows']:,}, {cell['width']}, {cell['codes']:,}"
        row = [where, f"{cell['floor_seconds'] * 1e3:.3g}"]
        row += [run["failed"] if "failed" in run else f"{run['seconds'] * 1e3:.3g}" for run in own]
        own = [run for run in own if "failed" not in run]
        row.append(f"{min(run['mib'] for run in own):.0f}" if own else "-")
        for name in peers:
            run = found.get(name)
            if run is None or not own:
                row.append("-")
            elif "failed" in run:
                row.append(run["failed"])
            else:
                times = run["seconds"] / min(ours["seconds"] for ours in own)
                row.append(f"{times:.2f}x, {run['mib'] / max(1, min(ours['mib'] for ours in own)):.1f}x")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--cells", nargs="+", help="such as 8x16384; default: all", metavar="WIDTHxCODES")
    parser.add_argument("--modes", nargs="+", choices=["eval", "train"], default=["eval", "train"])
    parser.add_argument("--output", type=Path, default=Path("quantizers.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = args.rows or [4096, 65536, *([1048576] if args.device == "cuda" else [])]
    wanted = [tuple(map(int, cell.split("x"))) for cell in args.cells] if args.cells else CELLS
    rates = in_a_process(machine_rates, args.device, device="any")
    report = {"threads": args.threads, "device": args.device, "torch": torch.__version__, **rates, "cells": []}
    for count in rows:
        for width, codes in wanted:
            for mode in args.modes:
                report["cells"].append(run_cell(mode, count, width, codes, rates, args))
                print(table(report["cells"][-1:]).splitlines()[-1], file=sys.stderr, flush=True)
                partial = args.output.with_suffix(".part")
                partial.write_text(json.dumps(report, indent=2) + "\n")
                os.replace(partial, args.output)
    print(table(report["cells"]))


if __name__ == "__main__":
    main()

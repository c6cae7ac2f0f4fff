"""CPU seconds until something can be done, over those of importing the stock libraries.

    python benchmarks/startup.py [--repeats 3]

The reference is `import torch, transformers, diffusers` with DiffusionPipeline and PreTrainedModel; medians of
processes that take turns.
"""

import argparse
import resource
import statistics
import subprocess
import sys

STOCK = (
    "import torch, transformers, diffusers; from diffusers import DiffusionPipeline; "
    "from transformers import PreTrainedModel"
)
MEASURED = {
    "stock": ["-c", STOCK],
    "import hf_vq": ["-c", "import hf_vq"],
    "hf-vq --help": ["-m", "hf_vq_cli", "--help"],
    "hf-vq train prior --help": ["-m", "hf_vq_cli", "train", "prior", "--help"],
}


def cpu_seconds(arguments):
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    times = {name: [] for name in MEASURED}
    for _ in range(repeats):
        for name, arguments in MEASURED.items():
            times[name].append(cpu_seconds(arguments))
    stock = statistics.median(times["stock"])
    for name, seconds in times.items():
        print(f"{name:28}{statistics.median(seconds):8.2f} s{statistics.median(seconds) / stock:8.3f}")


if __name__ == "__main__":
    main()

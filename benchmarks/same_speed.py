"""Is this checkout as fast as another one on the quickstart's models?

    python benchmarks/same_speed.py --before PATH

200 training steps of the quickstart's autoencoder and of its prior by the real trainers, without evaluation, and 100
samples of its pipeline; scaled to that from turns of fewer steps, set-up included. Each checkout has a process of one
thread; the two take turns of a second or two on the same core, the first of a round alternating, so that what else the
machine does meets both, and new pairs follow, since where a process happens to lie in memory makes it faster or
slower. Seconds are those of the processor. The ratio to believe is that of the rounds: the median of after / before,
with its quartiles. Four minutes.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from checkouts import HERE, add_arguments, check_origin, start

RECIPES = HERE.parent / "hf_vq/cli/recipes"
AUTOENCODER_STEPS, PRIOR_STEPS, SAMPLES, REPEATS = 50, 24, 100, 40  # of a turn
TURNS = {
    "200 steps of the autoencoder": AUTOENCODER_STEPS / 200,
    "200 steps of the prior": PRIOR_STEPS / 200,
    "100 samples": REPEATS,
}  # and how much of that a turn is


class Quickstart:
    """The worker's side: the quickstart's models, and the turns by name."""

    def __init__(self, folder):
        import torch
        import yaml

        import hf_vq
        from hf_vq.data.codes import load_codes
        from hf_vq.data.images import load_images
        from hf_vq.data.tokenizing import tokenize_dataset

        self.folder = folder
        self.recipes = {
            part: yaml.safe_load((RECIPES / f"quickstart-{part}.yaml").read_text())
            for part in ("autoencoder", "prior")
        }
        self.images = load_images(self.recipes["autoencoder"].pop("data"))
        self.make_autoencoder = getattr(hf_vq, self.recipes["autoencoder"].pop("model"))
        self.autoencoder_config = {"in_channels": 1, **self.recipes["autoencoder"].pop("model_config")}
        torch.manual_seed(0)
        autoencoder = self.autoencoder_turn()
        tokenize_dataset(autoencoder, self.images, f"{folder}/codes")
        self.codes = load_codes(f"{folder}/codes")
        self.make_prior = getattr(hf_vq, self.recipes["prior"].pop("prior"))
        self.prior_config = {
            "codebook_size": self.codes.codebook_size, "num_classes": self.codes.num_classes,
            "code_shape": self.codes.code_shape, **self.recipes["prior"].pop("prior_config"),
        }  # fmt: skip
        self.pipeline = hf_vq.VQPipeline(autoencoder, self.prior_turn())
        self.pipeline.set_progress_bar_config(disable=True)
        self.turns = dict(zip(TURNS, (self.autoencoder_turn, self.prior_turn, self.sampling_turn), strict=True))

    def autoencoder_turn(self):
        from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder

        model = self.make_autoencoder(**self.autoencoder_config)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            arguments = {"max_steps": AUTOENCODER_STEPS, "disable_tqdm": True, **self.recipes["autoencoder"]}
            train_autoencoder(model, self.images, AutoencoderTrainingArguments(folder, **arguments))
        return model

    def prior_turn(self):
        from hf_vq.training.prior import PriorTrainingArguments, train_prior

        prior = self.make_prior(self.make_prior.config_class(**self.prior_config))
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            options = {"max_steps": PRIOR_STEPS, "disable_tqdm": True, "report_to": "none", **self.recipes["prior"]}
            train_prior(prior, self.codes, PriorTrainingArguments(folder, **options))
        return prior

    def sampling_turn(self):
        import torch

        labels = [label for label in range(10) for _ in range(SAMPLES // 10)]
        for seed in range(REPEATS):
            self.pipeline(class_labels=labels, generator=torch.Generator().manual_seed(seed), output_type="pt")


def work(checkout):
    """Take turns: a name a line comes in, its seconds of processor go out."""
    check_origin(checkout)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    out = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        quickstart = Quickstart(folder)
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            begun = time.process_time()
            quickstart.turns[line.strip()]()
            print(time.process_time() - begun, file=out, flush=True)


@contextlib.contextmanager
def pair_of_workers(options, core):
    """A process of each checkout, ready, on one core: a core that others use would slow one of them alone."""
    workers = {}
    try:
        for side, checkout in (("before", options.before), ("after", options.after)):
            worker = start(checkout, Path(__file__).name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            workers[side] = worker
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(worker.pid, {core})
            if worker.stdout.readline() != "ready\n":
                raise SystemExit(f"the worker of {checkout} failed")
        yield workers
    finally:
        for worker in workers.values():
            worker.stdin.close()
            worker.wait()


def measure(options):
    """Seconds of every round, {turn: [(before, after)]}."""
    seconds = {name: [] for name in TURNS}
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    for number in range(options.pairs):
        with pair_of_workers(options, cores[number % len(cores)]) as workers:
            for index in range(options.rounds):
                for name, share in TURNS.items():
                    found = {}
                    for side in ("before", "after")[:: 1 if index % 2 else -1]:
                        workers[side].stdin.write(name + "\n")
                        workers[side].stdin.flush()
                        found[side] = float(workers[side].stdout.readline()) / share
                    seconds[name].append((found["before"], found["after"]))
    return seconds


def report(seconds):
    """Print medians, least ones, their ratios, and the ratios of the rounds."""
    heads = ("median before", "after", "ratio", "least before", "after", "ratio", "of rounds", "quartiles")
    print("seconds".ljust(30) + "".join(f"{head:>14}" for head in heads))
    for name, rounds in seconds.items():
        figures = []
        for summary in (statistics.median, min):
            one, other = map(summary, zip(*rounds, strict=True))
            figures += [one, other, other / one]
        low, middle, high = statistics.quantiles([after / before for before, after in rounds], n=4)
        print(name.ljust(30) + "".join(f"{f:14.4f}" for f in [*figures, middle]) + f"   {low:.3f} to {high:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--pairs", type=int, default=4, help="of processes, one after another")
    parser.add_argument("--rounds", type=int, default=4, help="of every pair")
    report(measure(parser.parse_args()))


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        work(sys.argv[1])
    else:
        main()

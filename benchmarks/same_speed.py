"""Is this checkout as fast as another one on the quickstart's models?

    python benchmarks/same_speed.py --before PATH

200 training steps of the quickstart's autoencoder and of its prior by the real trainers, without evaluation, and 100
samples of its pipeline; scaled to that from turns of fewer steps, set-up included. Each checkout has one process of
one thread that lives through all rounds and takes turns with the other, a few seconds each and the first of a round
alternating, so that what else the machine does meets both. Seconds are those of the processor, which other programs
that come in between do not lengthen. Three minutes.
"""

import argparse
import contextlib
import io
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from checkouts import HERE, add_arguments, check_origin, start

RECIPES = HERE.parent / "hf_vq/cli/recipes"
AUTOENCODER_STEPS, PRIOR_STEPS, SAMPLES, REPEATS = 100, 50, 100, 60  # of a turn: two or three seconds each
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
    """Take turns: a name a line comes in, its seconds of processor and of clock go out."""
    check_origin(checkout)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    out = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        quickstart = Quickstart(folder)
        print("ready", file=out, flush=True)
        for line in sys.stdin:
            run = quickstart.turns[line.strip()]
            begun = time.process_time(), time.perf_counter()
            run()
            seconds = time.process_time() - begun[0], time.perf_counter() - begun[1]
            print(json.dumps(seconds), file=out, flush=True)


def compare(options):
    """Play the rounds and print a table."""
    workers = {
        side: start(checkout, Path(__file__).name, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for side, checkout in (("before", options.before), ("after", options.after))
    }
    for side, worker in workers.items():
        if worker.stdout.readline() != "ready\n":
            raise SystemExit(f"the worker of {side} failed")

    def turn(side, name):
        workers[side].stdin.write(name + "\n")
        workers[side].stdin.flush()
        return [seconds / TURNS[name] for seconds in json.loads(workers[side].stdout.readline())]

    seconds = {name: {side: [] for side in workers} for name in TURNS}
    for number in range(options.rounds + 1):
        for name in TURNS:
            for side in list(workers)[:: 1 if number % 2 else -1]:
                measured = turn(side, name)
                if number:  # the first warms up
                    seconds[name][side].append(measured)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    heads = ("median before", "after", "ratio", "least before", "after", "ratio", "paired", "clock")
    print(f"{options.rounds} rounds, seconds".ljust(30) + "".join(f"{head:>15}" for head in heads))
    for name, sides in seconds.items():
        before, after = ([cpu for cpu, _ in sides[side]] for side in workers)
        clocks = [statistics.median(clock for _, clock in sides[side]) for side in workers]
        figures = []
        for summary in (statistics.median, min):
            one, other = summary(before), summary(after)
            figures += [one, other, other / one]
        figures += [statistics.median(b / a for a, b in zip(before, after, strict=True)), clocks[1] / clocks[0]]
        print(name.ljust(30) + "".join(f"{figure:15.4f}" for figure in figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=12)
    compare(parser.parse_args())


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        work(sys.argv[1])
    else:
        main()

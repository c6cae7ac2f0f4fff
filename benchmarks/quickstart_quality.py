"""Quality of the quickstart: are its digits digits, and are they new?

    python benchmarks/quickstart_quality.py --folder quickstart       # one that `hf-vq quickstart` wrote
    python benchmarks/quickstart_quality.py --seeds 0 1 2             # trains one per seed

For each: how often a scikit-learn classifier of real digits agrees with the asked class of 200 samples (temperature 1
and 0.7, no guidance, no top-k), how many distinct code grids are among the 200 at temperature 1, what share of these
equals a training grid, and held-out nats per code against the unigram entropy. Prints JSON: each run, mean and worst.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import hf_vq
import hf_vq_cli
from hf_vq.data.codes import load_codes
from hf_vq.training.evaluation import evaluate_prior

SAMPLES_PER_CLASS = 20
WORST = {"agreement_1.0": min, "agreement_0.7": min, "distinct_grids": min}  # of the others the largest is the worst


def measure(folder, seed=0):
    """Figures of one quickstart folder, as a dict."""
    digits = load_digits()
    classifier = SVC(gamma=0.001).fit(digits.data, digits.target)
    pipeline = hf_vq.VQPipeline.from_pretrained(Path(folder) / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    train, validation = (load_codes(Path(folder) / "codes", split) for split in ("train", "validation"))
    known = {grid.tobytes() for grid in train.codes.astype("int64")}
    labels = torch.arange(10).repeat_interleave(SAMPLES_PER_CLASS)
    figures = {}
    for temperature in (1.0, 0.7):
        generator = torch.Generator().manual_seed(seed)
        codes = pipeline.prior.sample(class_labels=labels, temperature=temperature, generator=generator)
        with torch.no_grad():
            images = pipeline.autoencoder.detokenize(codes).clamp(-1, 1)  # (200, 1, 8, 8)
        predicted = classifier.predict((images.flatten(1).numpy() + 1) * 8)
        figures[f"agreement_{temperature}"] = float((predicted == labels.numpy()).mean())
        if temperature == 1.0:
            grids = [grid.tobytes() for grid in codes.numpy()]
            figures["distinct_grids"] = len(set(grids))
            figures["copied_share_of_distinct"] = len(set(grids) & known) / len(set(grids))
    likelihood = evaluate_prior(pipeline.prior, validation)
    return {**figures, **{name: likelihood[name] for name in ("nats_per_code", "unigram_entropy", "ratio")}}


def main():
    """Measure a folder, or train and measure one per seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="a quickstart folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--autoencoder-recipe", help="recipe instead of the built-in one")
    parser.add_argument("--prior-recipe", help="recipe instead of the built-in one")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measure(options.folder), indent=2))
        return
    runs, flags = [], []
    for name in ("autoencoder_recipe", "prior_recipe"):
        if getattr(options, name):
            flags += [f"--{name}", getattr(options, name)]
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            started = time.monotonic()
            if hf_vq_cli.main(["quickstart", "--output", folder, "--seed", str(seed), *flags]) != 0:
                sys.exit(f"the quickstart of seed {seed} failed")
            runs.append({"seed": seed, "seconds": round(time.monotonic() - started, 1), **measure(folder, seed)})
    names = [name for name in runs[0] if name != "seed"]
    mean = {name: statistics.mean(run[name] for run in runs) for name in names}
    worst = {name: WORST.get(name, max)(run[name] for run in runs) for name in names}
    print(json.dumps({"runs": runs, "mean": mean, "worst": worst}, indent=2))


if __name__ == "__main__":
    main()

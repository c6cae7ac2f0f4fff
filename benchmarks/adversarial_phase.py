"""What an adversarial phase gives: python benchmarks/adversarial_phase.py BASE --without P0 P1 --adversarial G0 G1 ...

BASE is where all runs start from; the runs with and without a discriminator have the same steps and, place by place,
the same seeds. Of each pair: error over variance and the distance of features of a network that is in no loss, on a
split that nothing was trained on; and of the adversarial run by how much the error of its evaluations in the first
500 steps is above that of BASE, at most. A picture has the same images before, without and with (the first pair's).

    python benchmarks/adversarial_phase.py base --without plain0 plain1 plain2 --adversarial gan0 gan1 gan2 \\
        --data FLOWERS --image_size 128 --features CLASSIFIER --output before_after.png
"""

import argparse
import json
from pathlib import Path

import torch

from hf_vq import AutoVQModel
from hf_vq.data.images import load_images
from hf_vq.features import load_features
from hf_vq.modalities.image_pictures import save_comparison
from hf_vq.training.evaluation import evaluate_autoencoder
from hf_vq.training.scores import reconstruction_metrics

EARLY = 500  # steps after the start


def rise(run, start):
    """By how much of `start` the worst evaluation of the first steps of a run is above it."""
    history = json.loads(Path(run, "report.json").read_text())["history"]
    name = "eval_error_over_variance"
    return max(entry[name] for entry in history if name in entry and entry["step"] <= EARLY) / start - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("--without", nargs="+", required=True)
    parser.add_argument("--adversarial", nargs="+", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--features", required=True, help="a classifier, see benchmarks/train_classifier.py")
    parser.add_argument("--output", default="before_after.png")
    options = parser.parse_args()
    images = load_images(options.data, split=options.split, image_size=options.image_size)
    samples = torch.stack([images[index]["sample"] for index in range(12)])
    features = load_features(options.features)

    def measure(folder):
        model = AutoVQModel.from_pretrained(folder).eval()
        figures = evaluate_autoencoder(model, images, 32, reconstruction_metrics(model, extractor=features))
        with torch.no_grad():
            return figures["error_over_variance"], figures["feature_distance"], model(samples).sample

    start, distance, before = measure(options.base)
    print(f"base: error {start:.4f}, feature distance {distance:.4f}", flush=True)
    rows = {"original": samples, "before": before}
    for without, adversarial in zip(options.without, options.adversarial, strict=True):
        (error, distance, one), (own_error, own, other) = measure(without), measure(adversarial)
        print(
            f"{adversarial} beside {without}: error {own_error:.4f} and {error:.4f}, feature distance {own:.4f} and "
            f"{distance:.4f} ({own / distance:.3f} x), error in the first {EARLY} steps at most "
            f"{rise(adversarial, start):+.1%} of the start's",
            flush=True,
        )
        rows.setdefault("without", one)
        rows.setdefault("adversarial", other)
    save_comparison(
        options.output, rows, "Held-out pictures, and reconstructions before and after an adversarial phase"
    )
    print(f"Wrote {options.output}.")


if __name__ == "__main__":
    main()

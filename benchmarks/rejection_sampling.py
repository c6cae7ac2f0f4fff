"""What rejection sampling trades: samples come closer to their class, and cover less of the data.

    python benchmarks/train_classifier.py ylecun/mnist judge --epochs 1 --image_size 32
    python benchmarks/train_classifier.py ylecun/mnist yardstick --epochs 1 --image_size 32 --seed 1
    python benchmarks/rejection_sampling.py prior/pipeline --judge judge --yardstick yardstick --data ylecun/mnist

At each acceptance rate as many samples of every class are drawn as there are real images, and stand beside them:
improved precision and recall, density and coverage over the last features of the yardstick (3 neighbours), and the
share of samples in which the judge and the yardstick see the asked class. The yardstick is another classifier, as what
the judge likes is no measure of the judge. The first line is of other real images, the most that samples can reach.
"""

import argparse
import time

import torch

from hf_vq.cli.checks import load_pipeline
from hf_vq.data.images import load_images
from hf_vq.metrics.precision_recall import PrecisionRecall
from hf_vq.pipelines.judging import Judge, load_judge
from hf_vq.training.evaluation import batches


def read(dataset, per_class):
    """The first samples of each class, those of the first class first."""
    found = [(batch["sample"], batch["class_labels"]) for batch in batches(dataset, 500, torch.device("cpu"))]
    samples, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return torch.cat([samples[labels == label][:per_class] for label in labels.unique()])


@torch.no_grad()
def describe(classifier, processor, samples, labels):
    """Features (n, dim) of samples in [-1, 1], and the share in which a classifier sees the asked class."""
    judge = Judge(classifier, processor, samples.shape[1], classifier.config.num_labels)
    features, right = [], []
    hook = classifier.base_model.register_forward_hook(
        lambda module, inputs, output: features.append(output.pooler_output.flatten(1))
    )
    for part, wanted in zip(samples.split(250), labels.split(250), strict=True):
        right.append(judge.log_probs(part, "cpu").argmax(dim=1) == wanted)
    hook.remove()
    return torch.cat(features), torch.cat(right).double().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a pipeline with classes")
    parser.add_argument("--judge", required=True, help="folder of a classifier of these classes")
    parser.add_argument("--yardstick", required=True, help="folder of another one")
    parser.add_argument("--data", required=True, help="images with the same classes")
    parser.add_argument("--split", default="test")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--per_class", type=int, default=200)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pipeline = load_pipeline(args.pipeline)
    judge, yardstick = load_judge(args.judge), load_judge(args.yardstick)
    pipeline.register_modules(judge=judge[0], judge_processor=judge[1])
    pipeline.set_progress_bar_config(disable=True)
    both = read(load_images(args.data, split=args.split), 2 * args.per_class)
    real, others = (half.flatten(0, 1) for half in both.unflatten(0, (-1, 2, args.per_class)).unbind(1))
    labels = torch.arange(pipeline.num_classes).repeat_interleave(args.per_class)
    real_features, _ = describe(*yardstick, real, labels)
    print("| acceptance rate | precision | recall | density | coverage | judge | yardstick | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for rate in ("real", *args.rates):
        start, samples = time.monotonic(), others
        if rate != "real":
            (drawn,) = pipeline(
                class_labels=labels, generator=torch.Generator().manual_seed(args.seed), acceptance_rate=rate,
                temperature=args.temperature, candidate_batch_size=250, output_type="pt", return_dict=False,
            )  # fmt: skip
            samples = drawn * 2 - 1
        seconds = time.monotonic() - start
        features, seen = describe(*yardstick, samples, labels)
        _, liked = describe(*judge, samples, labels)
        metric = PrecisionRecall()
        metric.update(real_features, real=True)
        metric.update(features, real=False)
        found = metric.compute()
        print(f"| {rate} | {found.precision:.3f} | {found.recall:.3f} | {found.density:.3f} | {found.coverage:.3f} | "
              f"{liked:.3f} | {seen:.3f} | {seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

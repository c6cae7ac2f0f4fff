"""Do samples show the class that they were asked for? A classifier of the real images says so.

    python benchmarks/class_agreement.py prior/pipeline --data ylecun/mnist
    python benchmarks/class_agreement.py prior/pipeline --data ylecun/mnist --steps 25 --guidance 1 2 4 --per-class 100

A scikit-learn network of one hidden layer is fitted on the training images, pixels in [0, 1]. Its accuracy on the
held-out images, and on what the autoencoder makes of them, stands beside the share of samples in which it sees the
asked class. Pictures of codes and images at several steps of one drawing go to `--pictures`.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.neural_network import MLPClassifier

import hf_vq
from hf_vq.data.images import load_images
from hf_vq.modalities.image_pictures import save_sample_rows
from hf_vq.training.evaluation import batches


def pixels(samples):
    """Samples in [-1, 1] as rows of pixels in [0, 1], NumPy."""
    return ((samples.clamp(-1, 1) + 1) / 2).flatten(1).numpy()


def read(dataset):
    """All samples of a data set and their labels."""
    found = [(batch["sample"], batch["class_labels"]) for batch in batches(dataset, 500, torch.device("cpu"))]
    samples, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return samples, labels.numpy()


@torch.no_grad()
def draw(pipeline, labels, steps, guidance, seed):
    """Samples (n, channels, height, width) of labels, drawn in batches of 100."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for part in labels.split(100):
        codes = pipeline.prior.sample(
            class_labels=part, num_inference_steps=steps, guidance_scale=guidance, generator=generator
        )
        parts.append(pipeline.autoencoder.detokenize(codes))
    return torch.cat(parts)


@torch.no_grad()
def show_steps(pipeline, path, steps, guidance, shown=8):
    """One drawing of each class at several steps: the states, where white is the mask, over what is predicted then."""
    prior, seen = pipeline.prior, []
    predict = prior.predict_guided

    def watched(states, time, *rest):
        log_codes = predict(states, time, *rest)
        seen.append((time, states, pipeline.autoencoder.detokenize(log_codes.argmax(-1))))
        return log_codes

    prior.predict_guided = watched
    labels = torch.arange(prior.config.num_classes)
    generator = torch.Generator().manual_seed(0)
    codes = prior.sample(class_labels=labels, num_inference_steps=steps, guidance_scale=guidance, generator=generator)
    del prior.predict_guided
    seen.append((-1, codes, pipeline.autoencoder.detokenize(codes)))
    colours = np.random.default_rng(0).random((prior.config.codebook_size + 1, 3)) * 0.8
    colours[-1] = 1
    chosen = [seen[index] for index in np.linspace(0, len(seen) - 1, shown).round().astype(int)]
    figure, axes = plt.subplots(2 * len(labels), shown, figsize=(0.7 * shown, 1.4 * len(labels)), squeeze=False)
    for column, (time, states, images) in enumerate(chosen):
        axes[0, column].set_title("end" if time < 0 else f"t = {time}", fontsize=7)
        for label in range(len(labels)):
            axes[2 * label, column].imshow(colours[states[label].numpy()])
            picture = ((images[label].clamp(-1, 1) + 1) / 2).movedim(0, -1).numpy()
            axes[2 * label + 1, column].imshow(picture, cmap="gray", vmin=0, vmax=1)
    for axis in axes.flat:
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 0.97, 0.05, 0.05)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder of a VQPipeline with classes")
    parser.add_argument("--data", required=True, help="images with the same classes")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 25, 50, 100])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--pictures", type=Path, help="folder for samples.png and steps.png")
    args = parser.parse_args()
    pipeline = hf_vq.VQPipeline.from_pretrained(args.pipeline)
    train, labels = read(load_images(args.data, split="train"))
    held_out, wanted = read(load_images(args.data, split="test"))
    classifier = MLPClassifier((256,), early_stopping=True, random_state=0).fit(pixels(train), labels)
    with torch.no_grad():
        decoded = [pipeline.autoencoder.detokenize(pipeline.autoencoder.tokenize(one)) for one in held_out.split(500)]
    print(f"classifier: {classifier.score(pixels(held_out), wanted):.4f} of {len(wanted)} held-out images right, "
          f"{classifier.score(pixels(torch.cat(decoded)), wanted):.4f} of their reconstructions")  # fmt: skip
    asked = torch.arange(pipeline.prior.config.num_classes).repeat_interleave(args.per_class)
    for steps in args.steps:
        for guidance in args.guidance:
            shares = []
            for seed in args.seeds:
                samples = draw(pipeline, asked, steps, guidance, seed)
                shares.append(float((classifier.predict(pixels(samples)) == asked.numpy()).mean()))
            each = ", ".join(f"{share:.3f}" for share in shares)
            print(f"{steps} steps, guidance {guidance:g}: {statistics.mean(shares):.3f} ({each})", flush=True)
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        columns = torch.arange(pipeline.prior.config.num_classes).repeat_interleave(8)
        best = args.guidance[len(args.guidance) // 2]
        save_sample_rows(args.pictures / "samples.png", draw(pipeline, columns, 25, best, 0), columns=8)
        show_steps(pipeline, args.pictures / "steps.png", 25, best)


if __name__ == "__main__":
    main()

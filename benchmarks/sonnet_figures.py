"""The two figures that Sonnet's CIFAR-10 example prints: python benchmarks/sonnet_figures.py MODEL --data cifar10

Means over 100 batches of 32 training images: squared error on [-0.5, 0.5] over 0.0632, the variance of the data there,
and perplexity of the codes of a batch.
"""

import argparse

import torch

from hf_vq import AutoVQModel
from hf_vq.data.images import load_images
from hf_vq.metrics.codebook import CodebookUsage

BATCHES, BATCH, VARIANCE, TRAINED_ON = 100, 32, 0.0632, 45_000


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="folder or repo id")
    parser.add_argument("--data", default="uoft-cs/cifar10")
    options = parser.parse_args()
    model, images = AutoVQModel.from_pretrained(options.model).eval(), load_images(options.data, split="train")
    order = torch.randperm(TRAINED_ON, generator=torch.Generator().manual_seed(0))[: BATCHES * BATCH]
    errors, perplexities = [], []
    for batch in order.split(BATCH):
        sample = torch.stack([images[index]["sample"] for index in batch.tolist()])
        with torch.no_grad():
            output = model(sample)
        usage = CodebookUsage(model.codebook_size)
        usage.update(output.codes)
        perplexities.append(usage.compute().perplexity)
        errors.append((output.sample - sample).square().mean().item() / 4 / VARIANCE)
    print(f"error over variance {sum(errors) / BATCHES:.4f}, perplexity {sum(perplexities) / BATCHES:.1f}")


if __name__ == "__main__":
    main()

"""Trains a small ResNet of transformers on labelled images: a judge of samples and a yardstick of reconstructions.

    python benchmarks/train_classifier.py path/to/cifar10 classifier --epochs 6 --image_size 64

The folder is one of transformers (`AutoModelForImageClassification`, `AutoImageProcessor`). Images are taken as they
are stored, stretched to `--image_size`, mirrored and shifted at random; the learning rate rises and falls once.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_vq.data.images import load_images
from hf_vq.training.evaluation import batches


def read(dataset):
    """All samples (n, channels, height, width) of a data set as bytes, and their labels."""
    found = [
        (((batch["sample"] + 1) * 127.5).round().byte(), batch["class_labels"])
        for batch in batches(dataset, 500, torch.device("cpu"))
    ]
    samples, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return samples, labels


def as_pixels(samples, size):
    """Bytes to [-1, 1], stretched to (size, size)."""
    return F.interpolate(samples.float() / 127.5 - 1, (size, size), mode="bilinear", antialias=True)


def changed(samples, reach):
    """Images mirrored and shifted by up to `reach` pixels at random, one shift for a batch."""
    mirrored = torch.rand(len(samples)) < 0.5
    samples = torch.where(mirrored[:, None, None, None], samples.flip(-1), samples)
    padded = F.pad(samples, (reach,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * reach + 1, (2,)).tolist()
    return padded[..., top : top + samples.shape[-2], left : left + samples.shape[-1]]


@torch.no_grad()
def accuracy(model, samples, labels, size):
    model.eval()
    right = [
        (model(as_pixels(part, size)).logits.argmax(1) == wanted).float()
        for part, wanted in zip(samples.split(500), labels.split(500), strict=True)
    ]
    return torch.cat(right).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or repo id of labelled images")
    parser.add_argument("output_dir")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--hidden_sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    data = load_images(args.data, split=args.train_split)
    samples, labels = read(data)
    held_out, wanted = read(load_images(args.data, split=args.test_split))
    config = ResNetConfig(
        num_channels=samples.shape[1],
        embedding_size=args.hidden_sizes[0],
        hidden_sizes=args.hidden_sizes,
        depths=[1] * len(args.hidden_sizes),
        layer_type="basic",
        num_labels=data.num_classes,
    )
    model = ResNetForImageClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05)
    steps = args.epochs * (len(samples) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, steps)
    start = time.monotonic()
    for epoch in range(args.epochs):
        model.train()
        for rows in torch.randperm(len(samples)).split(args.batch_size):
            if len(rows) < args.batch_size:
                continue
            batch = as_pixels(changed(samples[rows], samples.shape[-1] // 8), args.image_size)
            loss = F.cross_entropy(model(batch).logits, labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        right = accuracy(model, held_out, wanted, args.image_size)
        print(f"epoch {epoch + 1}: accuracy {right:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    model.save_pretrained(args.output_dir)
    size = {"height": args.image_size, "width": args.image_size}
    ViTImageProcessor(
        size=size, image_mean=[0.5] * samples.shape[1], image_std=[0.5] * samples.shape[1]
    ).save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()

"""How much of a large codebook is used, and what that does to the error: CIFAR-10, 16,384 codes.

    python benchmarks/codebook_usage.py --data ylecun/cifar10 --output usage.json     # about 30 minutes on one core

The same small VQ-VAE (8x8 codes) is trained with each quantizer from the same seed on the same batches. Dead codes
restart until 500 steps before the end, so that what is counted is what the codebook keeps by itself. Usage, perplexity
and error over variance are those of the held-out images. Finished quantizers are kept in the output file: run again
to go on.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from hf_vq import VQVAE
from hf_vq.data.images import load_images
from hf_vq.training.evaluation import evaluate_autoencoder

PLAIN = {"kmeans_init": False, "restart_threshold": 0.0}
QUANTIZERS = {  # name -> (code dim, quantizer_type, quantizer_config)
    "plain, 256": (256, "vector", PLAIN),
    "plain, 8": (8, "vector", PLAIN),
    "cosine, 8": (8, "vector", {**PLAIN, "normalize": True}),
    "k-means + restart, 8": (8, "vector", {}),
    "EMA + k-means + restart, 8": (8, "ema", {}),
    "SimVQ, 8": (8, "vector", {"code_transform": True}),
}
STEPS_WITHOUT_RESTART = 500


def train(name, images, validation, steps, batch_size, codebook_size, learning_rate):
    """Figures of one quantizer, as a dict."""
    dim, quantizer_type, config = QUANTIZERS[name]
    torch.manual_seed(0)
    model = VQVAE(
        hidden_channels=64,
        stage_channels=(32, 64),
        num_residual_layers=1,
        codebook_size=codebook_size,
        codebook_dim=dim,
        quantizer_type=quantizer_type,
        quantizer_config=config,
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draw = torch.Generator().manual_seed(1)
    started, losses = time.perf_counter(), []
    model.initialize_codebook(images[torch.randint(len(images), (codebook_size // 8,), generator=draw)])
    for step in tqdm(range(steps), desc=name, disable=None):
        if step == steps - STEPS_WITHOUT_RESTART:
            model.quantizer.restart_threshold = 0.0
        output = model(images[torch.randint(len(images), (batch_size,), generator=draw)])
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(output.reconstruction_loss.item())
    seconds = time.perf_counter() - started
    wanted = ("usage", "perplexity", "dead_codes", "error_over_variance", "num_codes", "num_samples")
    figures = evaluate_autoencoder(model, validation, batch_size=100)
    return {
        **{key: figures[key] for key in wanted},
        "train_mse_last_100": sum(losses[-100:]) / 100,
        "seconds": round(seconds, 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder of Parquet files or a Hub data set id")
    parser.add_argument("--output", type=Path, default=Path("codebook_usage.json"))
    parser.add_argument("--quantizers", nargs="+", choices=QUANTIZERS, default=list(QUANTIZERS))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--codebook-size", type=int, default=16384)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = {name: getattr(args, name) for name in ("steps", "batch_size", "codebook_size", "learning_rate")}
    results = json.loads(args.output.read_text()) if args.output.exists() else {"settings": settings, "runs": {}}
    if results["settings"] != settings:
        parser.error(f"{args.output} holds runs with other settings: {results['settings']}")
    train_images, validation = (load_images(args.data, split=split) for split in ("train", "test"))
    images = torch.stack([train_images[index]["sample"] for index in range(len(train_images))])
    for name in args.quantizers:
        if name not in results["runs"]:
            results["runs"][name] = train(name, images, validation, **settings)
            partial = args.output.with_suffix(".part")
            partial.write_text(json.dumps(results, indent=2) + "\n")
            os.replace(partial, args.output)
    print("| quantizer, code dim | usage | perplexity | error over variance | train MSE | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, run in results["runs"].items():
        figures = f"{run['usage']:.2%} | {run['perplexity']:,.0f} | {run['error_over_variance']:.4f}"
        print(f"| {name} | {figures} | {run['train_mse_last_100']:.5f} | {run['seconds']:.0f} |")


if __name__ == "__main__":
    main()

"""PixelCNN, PixelSNAIL and TransformerPrior on the same codes: equal parameters, steps and schedule.

    hf-vq tokenize AUTOENCODER --data DATA --output codes
    OMP_NUM_THREADS=1 PYTHONPATH=. python benchmarks/priors.py codes --autoencoder AUTOENCODER --output priors

Prints for each: parameters, held-out nats per code, seconds of training, and of sampling 16 grids of codes; writes a
picture of samples of each, a row of every class. The sizes below are for 7x7 codes out of 128: 400,000 parameters.
"""

import argparse
import time
from pathlib import Path

import torch
import transformers

import hf_vq
from hf_vq.cli.sample import draw
from hf_vq.data.codes import load_codes
from hf_vq.modalities.image_pictures import save_sample_rows
from hf_vq.training.prior import PriorTrainingArguments, train_prior

SIZES = {
    "PixelCNN": {"hidden_channels": 48, "num_layers": 6, "head_channels": [128]},
    "PixelSNAIL": {
        "hidden_channels": 32, "residual_channels": 32, "num_blocks": 2, "num_residual_layers": 2,
        "num_output_layers": 4, "num_attention_heads": 1, "kernel_size": 5, "dropout": 0.0,
    },
    "TransformerPrior": {"hidden_size": 96, "num_layers": 4, "num_heads": 4, "intermediate_size": 192},
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codes", help="folder that `hf-vq tokenize` wrote")
    parser.add_argument("--autoencoder", required=True, help="folder or repo id of the tokenizer")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--priors", nargs="*", default=list(SIZES), choices=list(SIZES))
    args = parser.parse_args()
    autoencoder = hf_vq.AutoVQModel.from_pretrained(args.autoencoder)
    train, held_out = load_codes(args.codes, "train", autoencoder), load_codes(args.codes, "validation", autoencoder)
    print("| prior | parameters | held-out nats per code | of the unigram entropy | training | 16 grids of codes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.priors:
        print(measure(name, args, autoencoder, train, held_out), flush=True)


def measure(name, args, autoencoder, train, held_out):
    """Train one prior and sample from it; return its row of the table."""
    transformers.set_seed(0)
    prior_class = getattr(hf_vq, name)
    config = prior_class.config_class(
        codebook_size=train.codebook_size, code_shape=train.code_shape, num_classes=train.num_classes,
        class_dropout_prob=0.1, **SIZES[name],
    )  # fmt: skip
    prior = prior_class(config)
    options = PriorTrainingArguments(
        output_dir=str(args.output / name), max_steps=args.steps, per_device_train_batch_size=64, learning_rate=1e-3,
        warmup_steps=100, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    report = train_prior(prior, train, options, held_out)
    pipeline = hf_vq.VQPipeline(autoencoder, prior.eval(), train.class_names)
    pipeline.set_progress_bar_config(disable=True)
    labels = [label for label in range(train.num_classes) for _ in range(8)]
    samples = draw(pipeline, {"class_labels": labels}, 0, 80, torch.Generator().manual_seed(0))
    save_sample_rows(args.output / f"{name}.png", samples, columns=8)
    seconds = min(time_sampling(prior, labels[:16]) for _ in range(3))
    metrics = report["metrics"]
    return (
        f"| {name} | {prior.num_parameters():,} | {metrics['eval_nats_per_code']:.4f} | {metrics['eval_ratio']:.3f} | "
        f"{report['wall_time_seconds']:.0f} s | {seconds:.3f} s |"
    )


def time_sampling(prior, labels):
    start = time.perf_counter()
    prior.sample(class_labels=labels, generator=torch.Generator().manual_seed(0))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

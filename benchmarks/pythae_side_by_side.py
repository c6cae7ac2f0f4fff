"""Ours beside pythae 0.1.2, the one peer with VQ-VAE, PixelCNN and Hub together: same digits, network and epochs.

    pip install -e ".[bench]" && python benchmarks/pythae_side_by_side.py

Both train the same encoder and decoder (drawn from one seed) on scikit-learn's digits with 16 codes, Adam at 1e-3,
batches of 64, 30 epochs, each with its own quantizer and loss; then both draw 16 images from a PixelCNN of 10 layers,
64 channels and kernel 5. Prints JSON: codes used and error over variance on held-out digits, milliseconds for the 16
images (median of interleaved runs) and their ratio.
"""

import argparse
import json
import platform
import statistics
import time

import torch
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VQVAE as PythaeVQVAE
from pythae.models import VQVAEConfig as PythaeVQVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.samplers import PixelCNNSampler, PixelCNNSamplerConfig
from sklearn.datasets import load_digits

from hf_vq import VQVAE, PixelCNN, PixelCNNConfig

CODES, IMAGES = 16, 16


def network(seed, quantizer_type):
    torch.manual_seed(seed)
    return VQVAE(
        in_channels=1, hidden_channels=64, stage_channels=(64,), num_residual_layers=2, codebook_size=CODES,
        codebook_dim=8, quantizer_type=quantizer_type,
    )  # fmt: skip


class Encoder(BaseEncoder):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return ModelOutput(embedding=self.model.encode(x * 2 - 1).latents)  # pythae's images are in [0, 1]


class Decoder(BaseDecoder):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z):
        return ModelOutput(reconstruction=(self.model.decode(z).sample + 1) / 2)


def fit(model, loss, samples, epochs):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(samples)).split(64):
            optimizer.zero_grad(set_to_none=True)
            value = loss(samples[batch])
            if value.requires_grad:
                value.backward()
                optimizer.step()
    model.eval()


def train_ours(quantizer_type, seed, train, held_out, epochs):
    model = network(seed, quantizer_type)
    fit(model, lambda x: model(x * 2 - 1).loss, train, epochs)
    with torch.no_grad():
        output = model(held_out * 2 - 1)
    return model, output.codes, (output.sample + 1) / 2


def train_pythae(use_ema, seed, train, held_out, epochs):
    parts = network(seed, "vector")
    config = PythaeVQVAEConfig(input_dim=(1, 8, 8), latent_dim=8, num_embeddings=CODES, use_ema=use_ema)
    model = PythaeVQVAE(config, Encoder(parts), Decoder(parts))
    parts.quantizer.requires_grad_(False)
    fit(model, lambda x: model(BaseDataset(x, torch.zeros(len(x)))[:]).loss, train, epochs)
    with torch.no_grad():
        output = model(DatasetOutput(data=held_out))
    return model, output.quantized_indices, output.recon_x


def draw_ours(autoencoder):
    config = PixelCNNConfig(
        codebook_size=CODES, code_shape=(4, 4), gated=False, hidden_channels=64, num_layers=10, kernel_size=5
    )
    prior = PixelCNN(config).eval()
    return lambda: autoencoder.detokenize(prior.sample(IMAGES))


def draw_pythae(model):
    sampler = PixelCNNSampler(model, PixelCNNSamplerConfig(n_layers=10, kernel_size=5))
    sampler.is_fitted = True  # speed does not depend on the weights; its PixelCNN keeps those of its constructor
    sampler.pixelcnn_model.eval()

    def draw():
        with torch.no_grad():
            return sampler.sample(num_samples=IMAGES, batch_size=IMAGES)

    return draw


def figures(codes, reconstruction, held_out, variance):
    error = (reconstruction - held_out).square().mean().item()
    return {"codes_used": codes.unique().numel(), "error_over_variance": round(error / variance, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out, train = images[order[:180]], images[order[180:]]
    variance = train.var().item()

    runs = {"ours ema": (train_ours, "ema"), "ours vector": (train_ours, "vector"),
            "pythae gradient": (train_pythae, False), "pythae ema": (train_pythae, True)}  # fmt: skip
    results, models = {name: [] for name in runs}, {}
    for seed in range(options.seeds):
        for name, (trainer, choice) in runs.items():
            models[name], codes, reconstruction = trainer(choice, seed, train, held_out, options.epochs)
            results[name].append(figures(codes, reconstruction, held_out, variance))

    draws = {"ours": draw_ours(models["ours ema"]), "pythae": draw_pythae(models["pythae gradient"])}
    times = {name: [] for name in draws}
    for repeat in range(options.repeats + 1):
        for name, draw in draws.items():
            start = time.perf_counter()
            draw()
            if repeat:  # the first one warms up
                times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    try:
        draw_pythae(models["pythae ema"])()
        ema_sampling = "works"
    except Exception as error:  # its defect is the finding
        ema_sampling = f"{type(error).__name__}: {error}"
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "held-out digits, per seed": results,
        "milliseconds for 16 images": {name: round(value, 1) for name, value in medians.items()},
        "pythae / ours": round(medians["pythae"] / medians["ours"], 2),
        "pythae sampling with use_ema=True": ema_sampling,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

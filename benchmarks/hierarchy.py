"""A VQ-VAE-2 beside a one-grid VQ-VAE: python benchmarks/hierarchy.py HIERARCHY ONE_GRID --data FLOWERS

Parameters without and with codebooks, bits per image and error over variance of both on a split that neither was
trained on; of how many of its images the hierarchy's reconstruction is the nearer one; and two pictures: grids.png
(originals, both reconstructions, what the coarsest grid decodes to alone) and code_maps.png.
"""

import argparse
import math
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from hf_vq import AutoVQModel
from hf_vq.data.images import load_images
from hf_vq.modalities.image_pictures import save_code_maps, save_comparison
from hf_vq.training.evaluation import evaluate_autoencoder


def describe(model, images):
    shapes = model.code_shapes(images.sample_shape)
    bits = sum(math.prod(s) * math.log2(size) for s, size in zip(shapes, model.codebook_sizes, strict=True))
    figures = evaluate_autoencoder(model, images, 32)
    codebooks = sum(quantizer.codebook_size * quantizer.dim for quantizer in model.quantizers)
    names = ("error_over_variance", "psnr", "usage", "perplexity")
    print(
        f"{type(model).__name__}: {model.num_parameters():,} parameters, with codebooks "
        f"{model.num_parameters() + codebooks:,}, {bits:,.0f} bits an image, "
        + ", ".join(f"{name} {figures[name]:.4f}" for name in names)
    )


def mean_squares(model, images):
    """Mean squared error of each image."""
    batches = DataLoader(images, 32)
    return torch.cat(
        [(model.detokenize(model.tokenize(x)) - x).square().flatten(1).mean(1) for x in (b["sample"] for b in batches)]
    )


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("hierarchy", help="folder or repo id of a VQVAE2")
    parser.add_argument("one_grid", help="folder or repo id of a VQVAE")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--output", default=".", help="folder of the pictures")
    options = parser.parse_args()
    images = load_images(options.data, split=options.split, image_size=options.image_size)
    hierarchy, one_grid = (AutoVQModel.from_pretrained(p).eval() for p in (options.hierarchy, options.one_grid))
    for model in (hierarchy, one_grid):
        describe(model, images)
    errors, others = (mean_squares(model, images) for model in (hierarchy, one_grid))
    print(f"the hierarchy is nearer to {(errors < others).sum()} of {len(images)} images")
    samples = torch.stack([images[index]["sample"] for index in range(12)])
    codes = hierarchy.tokenize(samples)
    rows = {
        "original": samples,
        "all grids": hierarchy.detokenize(codes),
        "top alone": hierarchy.detokenize((codes[0], *[None] * (len(codes) - 1))),
        "one-grid": one_grid.detokenize(one_grid.tokenize(samples)),
    }
    folder = Path(options.output)
    save_comparison(folder / "grids.png", rows, "Held-out pictures, their reconstructions, and the top grid alone")
    save_code_maps(folder / "code_maps.png", samples, codes, hierarchy.codebook_size)


if __name__ == "__main__":
    main()

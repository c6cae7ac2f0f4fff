"""Whether every quantizer starts in every family: the error after a short training, beside that of "ema".

    python benchmarks/starts.py                                            # all pairs, an hour on one core
    python benchmarks/starts.py --families VQVAE --quantizers ema,finite_scalar --steps 300 --seeds 0,1,2
    python benchmarks/starts.py --quantizers lookup_free --bits 8,10,12,16  # how many bits reach EMA's 256 codes

Each pair trains on the digits of scikit-learn with the quantizer's own defaults, Adam at 1e-3 and batches of 64. A
line has the bits of a token, the error over the variance of the pictures at the end, its ratio to EMA's of the same
family and seed, and the gradient of the encoder at the first step; means over seeds. Ratios above 1.2 are marked.
Networks of a seed start with the same weights, whatever numbers their quantizers draw: EMA's own error in a ViTVQModel
differs between seeds by more than twice.
"""

import argparse
import itertools
from statistics import mean

import torch

from hf_vq.data.images import load_images
from hf_vq.quantizers import make_quantizer
from hf_vq.registry import AUTOENCODERS

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
STAGES = {"block_out_channels": (16, 16), "norm_num_groups": 4}
FAMILIES = {
    "VQVAE": {"hidden_channels": 32, "num_residual_layers": 1, "stage_channels": (32,)},
    "VQVAE2": {"hidden_channels": 32, "residual_channels": 16, "strides": (2, 2)},
    "VQModel": {**STAGES, **BLOCKS},
    "RQVAE": {**STAGES, "attention_stages": None, "latent_channels": 16, "layers_per_block": 1},
    "DVAE": {"block_out_channels": (16, 16), "layers_per_block": 1},
    "MAGVIT2Model": {**STAGES, "layers_per_block": 1},
    "ViTVQModel": {"image_size": 8, "patch_size": 2, "encoder_dim": 32, "encoder_depth": 1, "encoder_heads": 2,
                   "encoder_head_dim": 16, "encoder_mlp_dim": 64, "decoder_dim": 32, "decoder_depth": 1,
                   "decoder_heads": 2, "decoder_head_dim": 16, "decoder_mlp_dim": 64},
}  # fmt: skip
QUANTIZERS = {
    "ema": ("ema", 256, {}),
    "vector": ("vector", 256, {}),
    "simvq": ("vector", 256, {"code_transform": True}),
    "residual": ("residual", 16, {"num_levels": 2}),
    "residual shared": ("residual", 16, {"num_levels": 2, "shared_codebook": True}),
    "residual maps": ("residual", 16, {"num_levels": 2, "level_config": {"code_dim": 4}}),
    "product": ("product", 16, {"groups": 2}),
    "finite_scalar": ("finite_scalar", 256, {"levels_per_dim": [4] * 4}),
    "finite_scalar bits": ("finite_scalar", 256, {"levels_per_dim": [2] * 8}),
    "finite_scalar odd": ("finite_scalar", 240, {"levels_per_dim": [8, 6, 5]}),
    "finite_scalar clamp": (
        "finite_scalar", 256, {"levels_per_dim": [4] * 4, "preserve_symmetry": True, "bound": "clamp"},
    ),
    "lookup_free": ("lookup_free", 256, {}),
    "gumbel": ("gumbel", 256, {}),
    "index_backpropagation": ("index_backpropagation", 256, {}),
    "remapped": ("remapped", 256, {"num_used": 256}),
}  # fmt: skip


def with_bits(quantizer, bits):
    """Type, size and options of a quantizer with 2^bits codes, where they do not follow from its options."""
    quantizer_type, size, config = QUANTIZERS[quantizer]
    return quantizer_type, 2**bits if bits else size, config


def make(family, choice):
    """A small model of a family and a quantizer's type, size and options."""
    quantizer_type, size, config = choice
    names = ("num_vq_embeddings", "latent_channels") if family == "VQModel" else ("codebook_size", "codebook_dim")
    choice = {"quantizer_type": quantizer_type, "quantizer_config": config, names[0]: size, names[1]: 16}
    if family == "VQModel":
        choice["out_channels"] = 1
    return AUTOENCODERS[family](in_channels=1, **FAMILIES[family], **choice)


def make_alike(family, choice):
    """The same, its network with the weights that it has beside "ema"."""
    state = torch.get_rng_state()
    model = make(family, choice)
    torch.set_rng_state(state)
    own, reference = model.state_dict(), make(family, QUANTIZERS["ema"]).state_dict()
    alike = {name for name in own.keys() & reference.keys() if own[name].shape == reference[name].shape}
    network = {name: reference[name] for name in alike if not name.startswith("quantize")}
    model.load_state_dict(own | network)
    return model


def train(family, choice, data, steps, seed):
    """Error over variance after `steps`, and the encoder's gradient at the first."""
    torch.manual_seed(seed)
    model, first = make_alike(family, choice).train(), None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        model(data[torch.randint(len(data), (64,))]).loss.backward()
        if first is None:
            coding = [item for name, item in model.named_parameters() if not model.only_decodes(name)]
            first = sum(float(item.grad.square().sum()) for item in coding if item.grad is not None) ** 0.5
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        sample = data[:512]
        error = (model.eval()(sample).sample - sample).square().mean()
    return (error / (sample - sample.mean(0)).square().mean()).item(), first


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--quantizers", default=",".join(QUANTIZERS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--bits", default="", help="bits of a token, for quantizers of any size; default: 8")
    options = parser.parse_args()
    images = load_images("digits", split="train")
    data = torch.stack([images[index]["sample"] for index in range(len(images))])
    seeds = [int(seed) for seed in options.seeds.split(",")]
    sizes = [int(bits) for bits in options.bits.split(",") if bits] or [None]
    for family in options.families.split(","):
        references = [train(family, QUANTIZERS["ema"], data, options.steps, seed)[0] for seed in seeds]
        for quantizer, bits in itertools.product(options.quantizers.split(","), sizes):
            choice = with_bits(quantizer, bits)
            errors, firsts = zip(*(train(family, choice, data, options.steps, seed) for seed in seeds), strict=True)
            ratio = mean(error / reference for error, reference in zip(errors, references, strict=True))
            size = make_quantizer(choice[0], choice[1], 16, choice[2]).bits_per_token
            print(
                f"{family:14}{quantizer:24}{size:4.0f} bits{mean(errors):8.3f}{ratio:8.2f}   "
                f"gradient {mean(firsts):.1e}{'  above 1.2' if ratio > 1.2 else ''}",
                flush=True,
            )


if __name__ == "__main__":
    main()

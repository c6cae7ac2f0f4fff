"""What `silent_faults.py` draws from: small models of every family with any quantizer and any of its options."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from behaviour_models import PRIORS, RQVAE, TRANSFORMER, VQMODEL, make_conditions
from checkouts import HERE

import hf_vq
from hf_vq.quantizers import make_quantizer
from hf_vq.registry import AUTOENCODERS, QUANTIZERS
from hf_vq.registry import PRIORS as REGISTERED_PRIORS

FIXTURES = Path(HERE).parent / "tests/fixtures"
VIT = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in TRANSFORMER.items()}
SAMPLE = (1, 16, 16)

FAMILIES = {  # class: its own name of the codebook's size, other arguments
    "VQVAE": ("codebook_size", {"in_channels": 1, "hidden_channels": 16, "residual_channels": 8, "codebook_dim": 6}),
    "VQVAE2": ("codebook_size", {
        "in_channels": 1, "hidden_channels": 16, "num_residual_layers": 1, "residual_channels": 8, "codebook_dim": 6,
    }),
    "VQModel": ("num_vq_embeddings", {**VQMODEL, "latent_channels": 6}),
    "RQVAE": ("codebook_size", {**RQVAE, "attention_stages": (False, True)}),
    "DVAE": ("codebook_size", {
        "in_channels": 1, "block_out_channels": (8, 8, 12), "layers_per_block": 1, "codebook_dim": 6,
    }),
    "MAGVIT2Model": ("codebook_size", {
        "in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "codebook_dim": 6,
    }),
    "ViTVQModel": ("codebook_size", {"in_channels": 1, "image_size": 16, "patch_size": 4, **VIT, "codebook_dim": 6}),
}  # fmt: skip

CODEBOOK = {
    "beta": (0.1, 1.0), "decay": (0.9, 0.999), "restart_threshold": (0.0, 0.3), "normalize": (True,),
    "kmeans_init": (False,), "entropy_weight": (0.05,),
}  # fmt: skip
OPTIONS = {  # of every quantizer: sizes, options that must be there, options that may
    "ema": ((9, 16, 33), {}, {**CODEBOOK, "gradient": ("rotation",), "code_dim": (2, 4)}),
    "vector": ((9, 16, 33), {}, {**CODEBOOK, "legacy": (True,), "gradient": ("rotation",), "code_dim": (2, 4)}),
    "index_backpropagation": ((9, 33), {}, {
        "beta": (0.5,), "code_dim": (3,), "entropy_weight": (0.05,), "metric": ("dot",), "kmeans_init": (False,),
        "restart_threshold": (0.0,),
    }),
    "gumbel": ((9, 33), {}, {
        "hard": (False,), "temperature": (0.5, 2.0), "kl_weight": (0.0, 0.01), "logits": ("projection",),
    }),
    "remapped": ((16,), {"num_used": (5, 11)}, {"unknown_code": ("extra", 2)}),
    "finite_scalar": (None, {}, {"preserve_symmetry": (True,)}),
    "lookup_free": ((16, 64, 256), {}, {"spherical": (True,), "entropy_weight": (0.0,), "first_bit": ("least",)}),
    "residual": ((9, 16), {"num_levels": (2, 3, 5)}, {
        "shared_codebook": (True,), "level_type": ("vector",), "gradient": ("rotation",), "code_dim": (4,),
    }),
    "product": ((9, 16), {"groups": (2, 3)}, {"group_type": ("vector",)}),
}  # fmt: skip


def check_covered():
    """Raise where a registered class is in none of these tables: its cases would be missing."""
    priors = {type(make()).__name__ for _, make in PRIORS}
    for table, drawn in ((AUTOENCODERS, FAMILIES), (QUANTIZERS, OPTIONS), (REGISTERED_PRIORS, priors)):
        missing = table.keys() - set(drawn)
        if missing:
            raise SystemExit(f"no cases are drawn of {', '.join(sorted(missing))}: add them to fault_models.py")


def draw_levels(random, most=1500):
    """Levels of a finite scalar quantizer: two to seven channels of 2 to 9 levels, equal ones as often as not."""
    while True:
        count = random.randint(2, 7)
        levels = [random.randint(2, 9)] * count if random.random() < 0.5 else random.choices(range(2, 10), k=count)
        if math.prod(levels) <= most and levels not in ([4] * 4, [5] * 4, [2] * 8, [8, 6, 5]):
            return levels


def draw_quantizer(random, name):
    """(type, codebook_size, options) with about a third of the options that there are."""
    sizes, needed, possible = OPTIONS[name]
    config = {key: random.choice(values) for key, values in needed.items()}
    config |= {key: random.choice(values) for key, values in possible.items() if random.random() < 0.3}
    if name == "finite_scalar":
        config["levels_per_dim"] = draw_levels(random)
    size = math.prod(config["levels_per_dim"]) if sizes is None else random.choice(sizes)
    return name, size, config


def described(name, size, config):
    return f"{name} {size}" + "".join(f" {key}={value}" for key, value in config.items())


def make_autoencoder(family, quantizer, **more):
    """A small model of a family, seeded; `quantizer` is what `draw_quantizer` gives."""
    torch.manual_seed(0)
    quantizer_type, size, config = quantizer
    name, options = FAMILIES[family]
    options = {**options, name: size, "quantizer_type": quantizer_type, "quantizer_config": config, **more}
    return AUTOENCODERS[family](**options)


def make_rows(quantizer, dim=6):
    """A quantizer alone."""
    torch.manual_seed(0)
    return make_quantizer(quantizer[0], quantizer[1], dim, quantizer[2])


def make_prior(name, **changes):
    """A small prior by its name in `behaviour_models.PRIORS`, in eval mode, with options changed."""
    torch.manual_seed(0)
    prior = dict(PRIORS)[name]()
    if changes:
        prior = type(prior)(type(prior.config)(**{**prior.config.to_diff_dict(), **changes}))
    return prior.eval()


def prior_batch(prior, batch_size, seed=0, codes=None):
    """Codes for a prior, and its conditions."""
    torch.manual_seed(seed)
    config = prior.config
    if codes is None:
        codes = torch.randint(config.codebook_size, (batch_size, *config.code_shape))
    if isinstance(prior, hf_vq.MixtureWaveNet):
        codes = codes * 2 / (config.codebook_size - 1) - 1
    return codes, make_conditions(prior, batch_size)


def pictures(count, channels=1, side=16, seed=0):
    """(count, channels, side, side) smooth, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, channels, 4, 4, generator=generator) * 2 - 1
    return F.interpolate(corners, size=(side, side), mode="bilinear", align_corners=True)


def train(model, steps, batch=16, learning_rate=3e-3):
    """A few steps of AdamW on smooth pictures; the last losses by name."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for step in range(steps):
        output = model.train()(pictures(batch, model.config.in_channels, seed=step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return {name: float(value.detach()) for name, value in output.losses.items()}

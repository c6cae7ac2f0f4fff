"""Every quantizer with the options that change what it computes."""

import pytest
import torch

from hf_vq.quantizers import make_quantizer

from .tiny_quantizers import SIGNS

# every type, and the options that change what it computes
VARIANTS = {
    "vector": ("vector", 12, {}),
    "vector cosine, rotation": ("vector", 12, {"normalize": True, "gradient": "rotation"}),
    "vector cosine, bypass": ("vector", 12, {"normalize": True, "gradient": "bypass"}),
    "vector projected": ("vector", 12, {"code_dim": 3}),
    "vector entropy": ("vector", 12, {"entropy_weight": 0.1, "entropy_temperature": 1.0}),
    "vector transform": ("vector", 12, {"code_transform": True}),
    "vector transform of wider": ("vector", 12, {"code_transform": True, "frozen_codebook_dim": 16}),
    "vector transform projected": ("vector", 12, {"code_transform": True, "frozen_codebook_dim": 2, "code_dim": 4}),
    "ema": ("ema", 12, {}),
    "ema cosine": ("ema", 12, {"normalize": True}),
    "ema entropy": ("ema", 12, {"entropy_weight": 0.1, "entropy_temperature": 1.0}),
    "index_backpropagation": ("index_backpropagation", 12, {}),
    "index_backpropagation dot": (
        "index_backpropagation", 12, {"metric": "dot", "kmeans_init": False, "restart_threshold": 0.0},
    ),
    "remapped": ("remapped", 12, {"num_used": 12}),
    "finite_scalar": ("finite_scalar", 192, {"levels_per_dim": [4, 3, 2, 2, 2, 2]}),
    "finite_scalar projected": ("finite_scalar", 40, {"levels_per_dim": [8, 5]}),
    "finite_scalar symmetric": ("finite_scalar", 40, {"levels_per_dim": [8, 5], "preserve_symmetry": True}),
    "lookup_free": ("lookup_free", 64, {"entropy_temperature": 1.0}),
    "lookup_free unfitted": ("lookup_free", 64, {"entropy_temperature": 1.0, "fit_latents": False}),
    "lookup_free spherical": ("lookup_free", 16, {"spherical": True, "first_bit": "least"}),
    "gumbel": ("gumbel", 12, {"final_temperature": 0.2, "temperature_steps": 9}),
    "gumbel projection": (
        "gumbel", 12, {"logits": "projection", "final_temperature": 0.2, "temperature_steps": 9},
    ),
    "residual": ("residual", 12, {"num_levels": 3}),
    "residual shared": ("residual", 12, {"num_levels": 3, "shared_codebook": True}),
    "residual rotation": ("residual", 12, {"num_levels": 2, "level_type": "vector", "gradient": "rotation"}),
    "residual finite_scalar": (
        "residual", 192, {"num_levels": 2, "level_type": "finite_scalar",
                          "level_config": {"levels_per_dim": [4, 3, 2, 2, 2, 2]}},
    ),
    "product": ("product", 12, {"groups": 2}),
    "grouped residual": ("product", 12, {"groups": 2, "group_type": "residual", "group_config": {"num_levels": 2}}),
}  # fmt: skip
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def make(variant, **options):
    quantizer_type, codebook_size, config = {**VARIANTS, **SIGNS}[variant]
    return make_quantizer(quantizer_type, codebook_size, 6, {**config, **options})


def trained(variant, **options):
    quantizer = make(variant, **options)
    quantizer.train()(torch.randn(4, 6, 5, 5))
    return quantizer


def same_draws(function, *arguments, **options):
    torch.manual_seed(1)
    return function(*arguments, **options)

"""Every family of priors and its variants: a prior in eval mode, its input and conditions, made when asked for."""

from collections.abc import Mapping
from functools import partial

import torch

from hf_vq.priors import AutoregressivePrior, PixelCNN, PixelCNNConfig, PixelSNAIL, PixelSNAILConfig

from . import (
    test_discrete_diffusion,
    test_gpt,
    test_masked_prior,
    test_pixelsnail,
    test_priors,
    test_rq_transformer,
    test_transformer_prior,
    test_wavenet,
)
from .tiny_priors import RasterConvPrior, RasterConvPriorConfig


class Made(Mapping):
    """A table of functions that shows what they return."""

    def __init__(self, functions):
        self.functions = functions

    def __getitem__(self, name):
        return self.functions[name]()

    def __iter__(self):
        return iter(self.functions)

    def __len__(self):
        return len(self.functions)


def pixelcnn(variant, num_classes=0, grid=(5, 7), batch_size=4):
    classes = {"num_classes": 3, "class_dropout_prob": 0.1} if num_classes else {}
    prior, codes = test_priors.make_prior(variant, dropout=0.1, **classes), torch.randint(11, (batch_size, *grid))
    return prior, codes, {"class_labels": torch.tensor([2, 0, 3, 1])[:batch_size]} if classes else {}  # 3: no class


def gpt(variant, grid=(3, 4), batch_size=4):
    prior = test_gpt.make_prior(variant)
    return prior, torch.randint(11, (batch_size, *grid)), test_gpt.condition(prior, batch_size)


def pixelsnail(variant, grid=(5, 7), batch_size=4):
    prior, codes = test_pixelsnail.make_prior(variant, dropout=0.1), torch.randint(11, (batch_size, *grid))
    return prior, codes, test_pixelsnail.make_conditions(prior, batch_size, grid)


def rq(variant, grid=test_rq_transformer.GRID, batch_size=4):
    prior = test_rq_transformer.make_prior(variant)
    return prior, torch.randint(11, (batch_size, *grid)), test_rq_transformer.condition(prior, batch_size)


def decoder(variant, batch_size=4):
    prior = test_transformer_prior.make_prior(variant)
    return prior, *test_transformer_prior.make_codes(prior, batch_size)


def wavenet(variant, kind="codes", batch_size=4):
    prior = test_wavenet.make_prior(variant, kind)
    return prior, test_wavenet.make_input(kind, batch_size), test_wavenet.make_conditions(prior, batch_size)


def raster(num_levels, own_state=True, batch_size=4):
    """A user's prior, and the same without a state of its own for sampling."""
    torch.manual_seed(0)
    prior_class = RasterConvPrior if own_state else Forgetful
    shape = (3, 2, 4) if num_levels > 1 else (3, 4)
    facts = {"codebook_size": 11, "num_classes": 3, "code_shape": shape, "num_levels": num_levels}
    prior = prior_class(prior_class.config_class(**facts)).eval()
    return prior, torch.randint(11, (batch_size, *shape)), {"class_labels": torch.arange(batch_size) % 3}


class ForgetfulConfig(RasterConvPriorConfig):
    model_type = "test_forgetful"


class Forgetful(RasterConvPrior):
    config_class = ForgetfulConfig
    start_sampling = AutoregressivePrior.start_sampling


def diffusion(variant, batch_size=4):
    prior = test_discrete_diffusion.make_prior(variant)
    return prior, *test_discrete_diffusion.make_codes(prior, batch_size)


def masked(variant, batch_size=4):
    prior = test_masked_prior.make_prior(variant)
    return prior, *test_masked_prior.make_inputs(prior, batch_size)


def of_original_size(prior_class, config, batch_size):
    torch.manual_seed(0)
    prior = prior_class(config).eval()
    labels = torch.arange(batch_size) * 9 % 10
    return prior, torch.randint(64, (batch_size, 8, 8)), {"class_labels": labels}


VARIANTS = {
    **{f"pixelcnn {name}": partial(pixelcnn, name) for name in test_priors.VARIANTS},
    **{f"pixelcnn {name}, classes": partial(pixelcnn, name, 3) for name in test_priors.VARIANTS},
    **{f"gpt {name}": partial(gpt, name) for name in test_gpt.VARIANTS},
    **{f"pixelsnail {name}": partial(pixelsnail, name) for name in test_pixelsnail.VARIANTS},
    **{f"rq {name}": partial(rq, name) for name in test_rq_transformer.VARIANTS},
    **{f"decoder {name}": partial(decoder, name) for name in test_transformer_prior.VARIANTS},
    **{f"wavenet {name}": partial(wavenet, name) for name in test_wavenet.VARIANTS},
    **{f"waveforms {name}": partial(wavenet, name, "waveforms") for name in test_wavenet.VARIANTS},
}
USERS = {
    "raster": partial(raster, 1),
    "raster residual": partial(raster, 2),
    "raster without a state": partial(raster, 1, own_state=False),
    "raster residual without a state": partial(raster, 2, own_state=False),
}
OTHER_GRIDS = {"pixelcnn": test_priors.GRIDS[1:], "gpt": [(1, 12), (5, 3), (1, 1)],
               "pixelsnail": test_pixelsnail.GRIDS[1:], "rq": [(3, 1, 1), (3, 8, 1)]}  # fmt: skip
LARGE = {
    "pixelcnn of the original size": partial(
        of_original_size, PixelCNN, PixelCNNConfig(codebook_size=64, num_classes=10), 2
    ),
    **{
        f"pixelsnail of an ordinary size, {size}": partial(
            of_original_size,
            PixelSNAIL,
            PixelSNAILConfig(codebook_size=64, hidden_channels=32, residual_channels=32, num_classes=10),
            size,
        )
        for size in (1, 16)
    },
}
GRIDS = {  # every variant in every shape
    **VARIANTS,
    **{
        f"{name} {grid}": partial(make, grid=grid)
        for name, make in VARIANTS.items()
        for grid in OTHER_GRIDS.get(name.split()[0], ())
        if name != "gpt permuted"  # a permutation fixes the number of codes
    },
}
# one or two of every family, under the names that other tests call them by
FAMILIES = Made(
    {
        **{name: VARIANTS[f"decoder {name}"] for name in ("class and text", "delayed", "residual", "llamagen")},
        "gpt": VARIANTS["gpt classes"],
        **{name: VARIANTS[name] for name in ("rq classes", "rq prompts", "pixelsnail top with classes")},
        **{name: VARIANTS[name] for name in ("pixelsnail bottom with classes", "pixelcnn gated", "pixelcnn plain")},
        **{f"diffusion {name}": partial(diffusion, name) for name in ("classes", "text, levels", "context")},
        **{f"masked {name}": partial(masked, name) for name in ("classes", "text, levels", "context")},
        "wavenet codes": VARIANTS["wavenet upsampled"],
        "wavenet waveforms": VARIANTS["waveforms upsampled"],
    }
)
AUTOREGRESSIVE = [name for name in FAMILIES if not name.startswith(("diffusion", "masked"))]

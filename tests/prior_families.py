"""Every family of priors with a batch of four."""

import torch

from . import test_gpt, test_pixelsnail, test_priors, test_rq_transformer, test_transformer_prior, test_wavenet


def batches():
    """Name to (prior in eval mode, its input, conditions)."""
    made = {}
    for name in ("class and text", "delayed", "residual", "llamagen"):
        prior = test_transformer_prior.make_prior(name)
        made[name] = (prior, *test_transformer_prior.make_codes(prior, 4))
    prior = test_gpt.make_prior("classes")
    made["gpt"] = prior, torch.randint(11, (4, 3, 4)), test_gpt.condition(prior, 4)
    for name in ("classes", "prompts"):
        prior = test_rq_transformer.make_prior(name)
        codes = torch.randint(11, (4, *test_rq_transformer.GRID))
        made[f"rq {name}"] = prior, codes, test_rq_transformer.condition(prior, 4)
    for name in ("top with classes", "bottom with classes"):
        prior = test_pixelsnail.make_prior(name)
        made[f"pixelsnail {name}"] = prior, torch.randint(11, (4, 5, 7)), test_pixelsnail.make_conditions(prior, 4)
    for name in ("gated", "plain"):
        made[f"pixelcnn {name}"] = test_priors.make_prior(name), torch.randint(11, (4, 5, 7)), {}
    for kind in ("codes", "waveforms"):
        prior = test_wavenet.make_prior("upsampled", kind)
        made[f"wavenet {kind}"] = prior, test_wavenet.make_input(kind, 4), test_wavenet.make_conditions(prior, 4)
    return made

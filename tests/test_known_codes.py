"""Known codes: what all grids know from the first position on is taken at once, other known codes where they stand."""

import pytest
import torch

from hf_vq.priors.sampling import guide

from .prior_families import AUTOREGRESSIVE, FAMILIES
from .sampling_checks import code_order

OF_CODES = [name for name in AUTOREGRESSIVE if name != "wavenet waveforms"]  # whose values are not codes


@pytest.mark.parametrize("name", OF_CODES)
@torch.no_grad()
def test_codes_follow_those_that_are_known(name):
    prior, codes, conditions = FAMILIES[name]
    order, scale = code_order(prior, codes), 2.5 if prior.can_guide else 1.0
    mask = torch.zeros(len(codes), len(order), dtype=torch.bool)
    mask[:, order[: len(order) // 2]] = True  # in a residual prior it ends within a position
    mask[0, order[-2]] = True
    mask = mask.view_as(codes)
    options = {"temperature": 0, "guidance_scale": scale, "known_codes": codes, **conditions}
    if not conditions:
        options["batch_size"] = len(codes)
    drawn = prior.sample(**options, known_mask=mask)
    assert torch.equal(drawn[mask], codes[mask])

    checked = prior.check_conditions(conditions, len(codes), tuple(codes.shape[1:]))
    logits = prior.predict(drawn, **checked)
    if prior.can_guide:
        logits = guide(logits, prior.predict(drawn, **prior.null_conditions(checked)), scale)
    assert torch.equal(logits.argmax(-1)[~mask], drawn[~mask])
    assert torch.equal(prior.sample(**options, known_mask=torch.ones_like(mask)), codes)

"""What every registered quantizer answers, a user's too, on grids of any number of axes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vq.registry import QUANTIZERS

from .. import quantizer_variants
from ..quantizer_variants import make, same_draws, trained
from ..registering import register_for_now
from ..tiny_quantizers import SIGNS, SignQuantizer

VARIANTS = [*quantizer_variants.VARIANTS, *SIGNS]
EVERY = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True, scope="module")
def a_quantizer_of_the_users():
    with pytest.MonkeyPatch.context() as monkeypatch:
        register_for_now(monkeypatch, SignQuantizer)
        yield


def test_every_registered_quantizer_is_tried():
    assert {type(make(variant)) for variant in VARIANTS} == set(QUANTIZERS.values())


@EVERY
@settings(max_examples=5, deadline=None)
@given(batch=st.integers(0, 3), grid=st.lists(st.integers(1, 4), max_size=3), seed=st.integers(0, 99))
def test_codes_decode_to_the_quantized_latents(variant, batch, grid, seed):
    torch.manual_seed(seed)
    quantizer, latents = trained(variant).eval(), torch.randn(batch, 6, *grid)
    output, again = quantizer(latents), quantizer(latents)
    levels = () if quantizer.num_levels == 1 else (quantizer.num_levels,)
    assert output.codes.shape == (batch, *levels, *grid)
    assert output.codes.dtype == torch.int64
    assert output.latents.shape == latents.shape
    assert torch.equal(quantizer.tokenize(latents), output.codes)
    assert torch.equal(again.codes, output.codes)
    torch.testing.assert_close(quantizer.detokenize(output.codes), output.latents, rtol=1e-6, atol=1e-6)
    assert output.loss.isfinite()
    assert output.loss.ndim == 0


@EVERY
def test_a_code_does_not_depend_on_the_batch(variant):
    quantizer, latents = trained(variant).eval(), torch.randn(7, 6, 9, 9)
    codes = quantizer.tokenize(latents)
    for item, expected in zip(latents, codes, strict=True):
        assert torch.equal(quantizer.tokenize(item[None])[0], expected)
    columns = torch.cat([quantizer.tokenize(latents[..., i : i + 1]) for i in range(9)], dim=-1)
    assert torch.equal(columns, codes)


@EVERY
def test_padding_changes_neither_codes_nor_losses_nor_statistics(variant):
    short = torch.randn(3, 6, 8)
    padded = torch.cat([short, torch.full((3, 6, 5), 1e6)], dim=2)
    mask = torch.arange(13).expand(3, 13) < 8
    gumbel = variant.startswith("gumbel")
    a = trained(variant, **({"hard": True, "kl_weight": 1.0} if gumbel else {}))
    if gumbel:
        a.eval()  # training draws noise for padding too
    b = copy.deepcopy(a)
    plain, masked = same_draws(a, short), same_draws(b, padded, mask)
    assert torch.equal(masked.codes[..., :8], plain.codes)
    torch.testing.assert_close(masked.loss, plain.loss)
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, msg=key)


@EVERY
def test_nothing_but_padding_leaves_the_codebook_alone(variant):
    quantizer, latents = trained(variant), torch.randn(2, 6, 5)
    before = copy.deepcopy(quantizer.state_dict())
    output = quantizer(latents, torch.zeros(2, 5, dtype=torch.bool))
    assert output.loss.abs() < 1e-3 or "entropy" in variant or "lookup" in variant
    assert output.loss.isfinite()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@EVERY
def test_save_and_load_keeps_every_code_and_never_runs_kmeans_again(variant):
    source, target, latents = trained(variant), make(variant), torch.randn(8, 6, 4, 4)
    target.load_state_dict(source.state_dict())
    assert not target.initialize(latents)
    expected = same_draws(source, latents)
    assert torch.equal(same_draws(target.train(), latents).codes, expected.codes)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_stays_float32_and_autocast_does_not_change_codes(variant, dtype):
    quantizer, latents = trained(variant), torch.randn(8, 6, 16, 16)
    codes = quantizer.tokenize(latents)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(quantizer.tokenize(latents), codes)
        assert torch.equal(quantizer.eval()(latents).codes, codes)
    assert all(v.dtype not in (torch.float16, torch.bfloat16) for v in quantizer.to(dtype).state_dict().values())
    output = quantizer.eval()(latents.to(dtype))
    assert output.latents.dtype == dtype
    assert torch.equal(output.codes, quantizer.tokenize(latents.to(dtype).float()))

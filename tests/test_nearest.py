"""The search for the nearest code: exact in float64's eyes, whatever the batch, the layout and the device's kernel."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_vq.quantizers import nearest, nearest_codes


def exact(latents, codebook, metric="euclidean"):
    """Brute force in float64; torch's argmin and argmax do not promise the lowest of equal ones, min of ties does."""
    latents, codebook = latents.double(), codebook.double()
    scores = -torch.cdist(latents, codebook, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "dot":
        scores = (latents[:, None] * codebook).sum(dim=2)
    best = scores.amax(dim=1, keepdim=True)
    return torch.where(scores == best, torch.arange(len(codebook)), len(codebook)).amin(dim=1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 300), codes=st.sampled_from([1, 2, 5, 255, 256, 700, 4095, 4100]), dim=st.integers(1, 20),
    offset=st.sampled_from([0.0, 50.0]), metric=st.sampled_from(["euclidean", "dot"]), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_equals_float64(rows, codes, dim, offset, metric, seed):
    draw = torch.Generator().manual_seed(seed)
    latents, codebook = (offset + torch.randn(n, dim, generator=draw) for n in (rows, codes))
    assert torch.equal(nearest_codes(latents, codebook, metric), exact(latents, codebook, metric))


@pytest.mark.parametrize("codes", [40, 300, 5000])
def test_near_ties_are_decided_exactly(codes):
    codebook = torch.randn(codes, 16)
    codebook[1::2] = codebook[::2] * (1 + 1e-7)  # pairs that differ in the last bit or not at all
    latents = codebook[torch.randint(codes, (500,))] + 1e-3 * torch.randn(500, 16)
    assert torch.equal(nearest_codes(latents, codebook), exact(latents, codebook))


@pytest.mark.parametrize("codes", [300, 5000])
def test_it_does_not_depend_on_what_else_is_in_the_batch(codes):
    codebook = 50 + torch.randn(codes, 16)  # the matmul form alone errs here
    latents = 50 + torch.randn(400, 16)
    together = nearest_codes(latents, codebook)
    assert torch.equal(together, exact(latents, codebook))
    assert torch.equal(torch.cat([nearest_codes(row[None], codebook) for row in latents]), together)


@pytest.mark.parametrize("codes", [40, 512, 8192])
def test_equal_distances_take_the_lowest_index(codes):
    codebook = torch.randn(codes, 8)
    codebook[codes // 2 :] = codebook[: codes // 2]
    assert nearest_codes(torch.randn(500, 8), codebook).max() < codes // 2
    assert (nearest_codes(torch.randn(500, 8), torch.zeros(codes, 8)) == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_latents_raise_and_say_how_many(bad):
    latents = torch.randn(10, 4)
    latents[[2, 7], 1] = bad
    with pytest.raises(RuntimeError, match="2 of 10 vectors hold NaN or infinity"):
        nearest_codes(latents, torch.randn(6, 4))


def test_codes_beyond_one_tile_are_searched(monkeypatch):
    monkeypatch.setattr(nearest, "_CODES_PER_TILE", 4096)
    monkeypatch.setattr(nearest, "_SCORES_PER_TILE", 4096 * 7)
    codebook, latents = torch.randn(20000, 3), torch.randn(100, 3)
    codebook[9000:9100] = codebook[:100]  # ties across tiles
    assert torch.equal(nearest_codes(latents, codebook), exact(latents, codebook))


def test_huge_finite_latents_do_not_raise():
    latents = torch.full((3, 4), 1e30)
    assert nearest_codes(latents, torch.eye(4)).shape == (3,)


KERNEL = """
import torch
from hf_vq.quantizers import nearest
from tests.test_nearest import exact
torch.manual_seed(0)
for rows, codes, dim, metric in [(65, 129, 8, "euclidean"), (1, 1, 1, "euclidean"), (3, 17, 100, "dot"),
                                 (33, 17, 64, "euclidean")]:
    latents, codebook = torch.randn(rows, dim), torch.randn(codes, dim)
    codebook[codes // 2 :] = codebook[: codes - codes // 2].clone()  # ties
    fused = nearest.fused_search().best_two
    found = nearest.search(latents, codebook, latents.norm(dim=1), metric == "dot", fused)
    assert torch.equal(found, exact(latents, codebook, metric)), (rows, codes, dim, metric)
    biases = torch.randn(codes)
    for ours, theirs in zip(fused(latents, codebook, biases), nearest.best_two(latents, codebook, biases)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
latents[3] = float("nan")
found = fused(latents, codebook, biases)[1]
assert 0 <= found.min() <= found.max() < codes
print("the kernel agrees")
"""


def test_the_gpu_kernel_agrees_in_the_interpreter():
    pytest.importorskip("triton", reason="triton is not installed: the GPU kernel cannot be interpreted")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True)
    assert "the kernel agrees" in run.stdout, run.stderr

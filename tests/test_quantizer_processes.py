"""Quantizers on several processes: statistics and counts summed, sharded codebooks."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from hf_vq import VQVAE
from hf_vq.metrics.codebook import CodebookUsage
from hf_vq.processes import sum_over_processes
from hf_vq.quantizers import make_quantizer

from .processes import in_two_processes


def _train_on_a_share(rank, folder):
    for variant, dtype in itertools.product(STATISTICS, DTYPES):
        torch.save(_train_twenty_steps(rank, 2, variant, dtype), f"{folder}/{variant}-{dtype}-{rank}.pt")
    torch.save(_start_principal_patches(rank, 2), f"{folder}/principal-{rank}.pt")
    for size in CODEBOOKS:
        torch.save(_count_codes(rank, size), f"{folder}/{size}-{rank}.pt")


def _train_twenty_steps(rank, world_size, variant, dtype):
    torch.manual_seed(5)
    quantizer_type, codebook_size, config = STATISTICS[variant]
    quantizer = make_quantizer(quantizer_type, codebook_size, 6, config).to(dtype).train()
    latents = torch.randn(20, 8, 6, 10, dtype=dtype)
    masks = torch.rand(20, 8, 10) < 0.8
    masks[7, 4:] = False  # the second process has nothing real in this step
    masks[9] = False
    torch.manual_seed(7 + 1000 * rank)  # the draws of rank 0 decide
    for step, mask in zip(latents, masks, strict=True):
        quantizer(step.chunk(world_size)[rank], mask.chunk(world_size)[rank])
    last = latents[0].chunk(world_size)[rank].clone().requires_grad_()
    quantizer(last, masks[0].chunk(world_size)[rank]).latents.square().sum().backward()
    gradient = torch.zeros_like(latents[0])
    gradient.chunk(world_size)[rank].copy_(last.grad)
    return {**quantizer.state_dict(), "gradient": sum_over_processes(gradient)}


def _start_principal_patches(rank, world_size):
    torch.manual_seed(5)
    product = {"codebook_size": 8, "codebook_dim": 16, "quantizer_type": "product", "quantizer_config": {"groups": 2}}
    model = VQVAE(1, 8, 0, **product, shortcut="principal", reconstruction_loss="logistic")
    sample = torch.randn(8, 1, 32, 32) * torch.arange(1, 17).view(4, 4).repeat(8, 8) / 16  # no two variances alike
    torch.manual_seed(7 + 1000 * rank)
    model.initialize_codebook(sample.chunk(world_size)[rank])
    return model.state_dict()


def _train_sharded(rank, folder):
    torch.manual_seed(0)
    model = VQVAE(1, hidden_channels=8, stage_channels=(4,), num_residual_layers=0, codebook_size=8, codebook_dim=6)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model.to(torch.bfloat16), mesh=mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    samples = torch.rand(6, 2, 4, 1, 8, 8)[:, rank].bfloat16() * 2 - 1
    codebooks = []
    for sample in samples:
        model.train()(sample).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        codebooks.append(model.quantizer.embedding.weight.clone())
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    torch.save({"codebooks": codebooks, "state": state if rank == 0 else {}}, f"{folder}/{rank}.pt")


def _count_codes(rank, size):
    usage = CodebookUsage(size)
    usage.update(torch.tensor([[5, 7, size - 1]] if rank else [[5, 5]]))
    output = usage.compute()
    return [output.counts, output.dead_codes]


CODEBOOKS = (2**40, 2**10)  # of which one has a counter for each code
RESTARTING = {"restart_threshold": 0.5}
STATISTICS = {
    "vector": ("vector", 24, RESTARTING),
    "ema": ("ema", 24, RESTARTING),
    "residual cosine": ("residual", 24, {"num_levels": 2, "level_config": {**RESTARTING, "normalize": True}}),
    "finite_scalar": ("finite_scalar", 192, {"levels_per_dim": [4, 3, 2, 2, 2, 2]}),
    "product of shared residuals": (
        "product", 16, {"group_type": "residual",
                        "group_config": {"num_levels": 2, "shared_codebook": True, "level_config": RESTARTING}},
    ),
}  # fmt: skip


DTYPES = {torch.float64: 1e-10, torch.float32: 1e-5}  # and how near


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """What two processes trained, each on its half: a process takes longer to start than to train."""
    folder = tmp_path_factory.mktemp("shares")
    in_two_processes(_train_on_a_share, str(folder))
    return folder


@pytest.mark.parametrize("variant", STATISTICS)
def test_two_processes_equal_one(variant, shares):
    for dtype, near in DTYPES.items():
        alone = _train_twenty_steps(0, 1, variant, dtype)
        for rank in (0, 1):
            together = torch.load(shares / f"{variant}-{dtype}-{rank}.pt", weights_only=True)
            for key, value in alone.items():
                torch.testing.assert_close(together[key], value, rtol=near, atol=near, msg=key)


def test_two_processes_start_patches_and_scale_like_one(shares):
    alone = _start_principal_patches(0, 1)
    first, second = (torch.load(shares / f"principal-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("patches.encoder.weight", "upsample.1.conv.bias"):
        torch.testing.assert_close(first[name].abs(), alone[name].abs(), rtol=1e-4, atol=1e-4)  # signs are free


@pytest.mark.parametrize("size", CODEBOOKS)
def test_two_processes_count_codes_together(size, shares):
    for rank in (0, 1):
        counts, dead = torch.load(shares / f"{size}-{rank}.pt", weights_only=True)
        assert counts[counts > 0].tolist() == [3, 1, 1]
        assert dead == size - 3


def test_fsdp2_moves_the_same_float32_codebook_on_every_rank_and_saves_it(tmp_path):
    """(A frozen Parameter instead of a buffer would lose every update.)"""
    in_two_processes(_train_sharded, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    first, *_, last = ranks[0]["codebooks"]
    assert not torch.equal(first, last)
    assert last.dtype == torch.float32
    assert torch.equal(last, ranks[1]["codebooks"][-1])
    state = ranks[0]["state"]
    assert torch.equal(state["quantizer.embedding.weight"], last)
    assert state["quantizer.embedding_sum"].dtype == torch.float32
    assert state["to_latents.weight"].shape == (6, 8, 1, 1)

"""Facts about quantizers: the contract of all, parity with Sonnet and lucidrains, restart, precision, processes."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hf_vq.quantizers import QUANTIZERS, EMAVectorQuantizer, VectorQuantizer, make_quantizer, nearest_codes
from hf_vq.quantizers.lookup import lookup

from .conftest import FIXTURES, channels_first, fixture, sonnet_variables

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
TYPES = sorted(QUANTIZERS)


def trained(quantizer_type, codebook_size=12, dim=6, **config):
    quantizer = make_quantizer(quantizer_type, codebook_size, dim, config)
    quantizer.train()(torch.randn(4, dim, 5, 5))
    return quantizer


# The contract


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("grid", [(7,), (4, 3), (2, 3, 2)])
def test_codes_decode_to_the_quantized_latents(name, grid):
    quantizer, latents = trained(name).eval(), torch.randn(2, 6, *grid)
    output = quantizer(latents)
    assert output.codes.shape == (2, *grid)
    assert output.codes.dtype == torch.int64
    assert torch.equal(quantizer.detokenize(output.codes), output.latents)
    assert torch.equal(quantizer.tokenize(latents), output.codes)


@pytest.mark.parametrize("name", TYPES)
def test_training_returns_codes_and_latents_of_the_codebook_before_the_update(name):
    quantizer = trained(name)
    before, latents = copy.deepcopy(quantizer).eval(), torch.randn(2, 6, 4, 4)
    output = quantizer(latents)
    assert torch.equal(output.latents, before.detokenize(output.codes))


@pytest.mark.parametrize("name", TYPES)
def test_gradient_passes_straight_through(name):
    quantizer, latents = trained(name), torch.randn(2, 6, 4, 4, requires_grad=True)
    upstream = torch.randn(2, 6, 4, 4)
    (quantizer(latents).latents * upstream).sum().backward()
    assert torch.equal(latents.grad, upstream)


@pytest.mark.parametrize("name", TYPES)
def test_padding_changes_neither_codes_nor_losses_nor_statistics(name):
    short = torch.randn(3, 6, 8)
    padded = torch.cat([short, torch.full((3, 6, 5), 1e6)], dim=2)
    mask = torch.arange(13).expand(3, 13) < 8
    a, b = trained(name), None
    b = copy.deepcopy(a)
    torch.manual_seed(1)
    plain = a(short)
    torch.manual_seed(1)
    masked = b(padded, padding_mask=mask)
    assert torch.equal(masked.codes[:, :8], plain.codes)
    torch.testing.assert_close(masked.loss, plain.loss)
    for key, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], value, msg=key)


@pytest.mark.parametrize("name", TYPES)
def test_save_and_load_keeps_every_code_and_never_runs_kmeans_again(name):
    source = trained(name)
    target = make_quantizer(name, 12, 6)
    assert not target.initialized
    target.load_state_dict(source.state_dict())
    latents = torch.randn(8, 6, 4, 4)
    assert not target.initialize(latents)
    torch.manual_seed(3)
    expected = source(latents)
    torch.manual_seed(3)
    assert torch.equal(target.train()(latents).codes, expected.codes)
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("train", [True, False])
def test_compiles_whole_and_equals_eager(name, train):
    eager = trained(name, restart_threshold=0.0).train(train)
    quantizer, latents = copy.deepcopy(eager), torch.randn(2, 6, 4, 4)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    expected, output = eager(latents), compiled(latents)
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close(output.loss, expected.loss)
    for key, value in eager.state_dict().items():
        torch.testing.assert_close(quantizer.state_dict()[key], value, msg=key)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TYPES)
def test_inductor_trains_as_eager_does(name, two_threads):
    """With two threads inductor's own scatter-add writes beyond its tensor (pytorch/pytorch#191837)."""
    eager = trained(name)
    quantizer, latents = copy.deepcopy(eager), torch.randn(2, 6, 4, 4)
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    expected, output = eager(ours), torch.compile(quantizer, fullgraph=True)(theirs)
    for result in (expected, output):
        (result.loss + result.latents.square().sum()).backward()
    assert torch.equal(output.codes, expected.codes)
    torch.testing.assert_close((output.loss, theirs.grad), (expected.loss, ours.grad))
    for key, value in eager.state_dict().items():  # nothing was dead: the drawn rows were not needed
        torch.testing.assert_close(quantizer.state_dict()[key], value, msg=key)
    for parameter, other in zip(eager.parameters(), quantizer.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad)


def test_the_gradient_of_a_lookup_is_the_sum_by_code():
    codes, codebook = torch.randint(5, (2, 3)), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda table: lookup(codes, table), codebook)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_latents_raise_and_leave_the_state_alone(name, bad):
    quantizer, latents = trained(name), torch.randn(2, 6, 4, 4)
    latents[0, 0, 0, 0] = bad
    before = copy.deepcopy(quantizer.state_dict())
    for call in (quantizer, quantizer.tokenize):
        with pytest.raises(RuntimeError, match="NaN or infinity"):
            call(latents)
    assert all(torch.equal(v, quantizer.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_stays_float32_and_autocast_does_not_change_codes(name, dtype):
    quantizer = trained(name, codebook_size=512, dim=8)
    latents = torch.randn(4, 8, 16, 16)
    codes = quantizer.tokenize(latents)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(quantizer.tokenize(latents), codes)
    assert all(v.dtype != dtype for v in quantizer.to(dtype).state_dict().values())
    output = quantizer.eval()(latents.to(dtype))
    assert output.latents.dtype == dtype
    assert torch.equal(output.codes, quantizer.tokenize(latents.to(dtype).float()))


@pytest.mark.parametrize("name", TYPES)
def test_deferred_updates_equal_one_update_on_the_whole_batch(name):
    whole = trained(name, restart_threshold=0.01)
    parts, latents = copy.deepcopy(whole), torch.randn(8, 6, 4, 4)
    parts.codebook_updates = "deferred"
    before = copy.deepcopy(parts.state_dict())
    whole(latents)
    for part in latents.split(2):
        parts(part)
    assert all(torch.equal(v, parts.state_dict()[k]) for k, v in before.items())
    parts.update_codebook()
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, msg=key)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer_type": "emma"}, "quantizer_type.*emma"),
        ({"quantizer_config": {"decai": 0.9}}, "decai.*decay"),
        ({"codebook_size": 0}, "codebook_size.*0"),
        ({"quantizer_config": {"decay": 1.5}}, "decay.*1.5"),
        ({"quantizer_config": {"beta": -1.0}}, "beta.*-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    defaults = {"quantizer_type": "ema", "codebook_size": 4, "dim": 2}
    with pytest.raises(ValueError, match=message):
        make_quantizer(**{**defaults, **arguments})


def test_bad_latents_and_codes_are_named():
    quantizer = trained("ema")
    with pytest.raises(ValueError, match=r"\(batch, 6, \*grid\)"):
        quantizer(torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match=r"\[0, 12\), got 0 to 12"):
        quantizer.detokenize(torch.tensor([[0, 12]]))
    with pytest.raises(ValueError, match="integers"):
        quantizer.detokenize(torch.rand(2, 3))


# The search


@pytest.mark.parametrize(("rows", "codebook_size", "dim"), [(4096, 1024, 8), (513, 700, 64), (3, 5, 1)])
def test_search_equals_float64(rows, codebook_size, dim):
    latents, codebook = torch.randn(rows, dim), torch.randn(codebook_size, dim)
    exact = torch.cdist(latents.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_codes(latents, codebook), exact)


def test_search_is_exact_far_from_the_origin_and_whatever_else_is_in_the_batch():
    codebook = 50 + torch.randn(300, 16)  # the matmul form alone errs here
    latents = 50 + torch.randn(1000, 16)
    exact = torch.cdist(latents.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    together = nearest_codes(latents, codebook)
    assert torch.equal(together, exact)
    assert torch.equal(torch.cat([nearest_codes(row[None], codebook) for row in latents]), together)


def test_equal_distances_take_the_lowest_index():
    codebook = torch.randn(40, 8)
    codebook[20:] = codebook[:20]
    assert nearest_codes(torch.randn(500, 8), codebook).max() < 20
    assert (nearest_codes(torch.randn(500, 8), torch.zeros(64, 8)) == 0).all()


def test_training_step_at_16384_by_16384_adds_little_memory():
    script = """
import resource, torch
from hf_vq.quantizers import EMAVectorQuantizer
quantizer = EMAVectorQuantizer(16384, 64, kmeans_init=False).train()
small = torch.randn(1, 64, 16, requires_grad=True)
quantizer(small).loss.backward()
latents = torch.randn(1, 64, 16384, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = quantizer(latents)
(output.loss + output.latents.square().mean()).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    added = float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert added < 512, f"{added} MiB"


# Health


@pytest.mark.parametrize("name", TYPES)
def test_codebook_follows_a_second_cluster(name):
    """The toy where EnCodec's restart stays at 2 of 64 codes: it resets the code but not its average."""
    quantizer = make_quantizer(name, 64, 8).train()

    def draw(count, both):
        centre = torch.full((count, 1), 5.0)
        if both:
            centre[count // 2 :] *= -1
        return (centre + 0.3 * torch.randn(count, 8)).T[None]

    for step in range(300):
        quantizer(draw(512, both=step >= 20))
    assert quantizer.tokenize(draw(8192, both=True)).unique().numel() >= 60


def test_restart_sets_code_sum_and_count_together():
    quantizer = trained("ema", codebook_size=16)
    quantizer.embedding.weight[3] = 1e3  # far from every latent: never used again
    quantizer.embedding_sum[3] = 1e3 * quantizer.cluster_size[3]
    quantizer.cluster_size[3] = 1e-3
    latents = torch.randn(4, 6, 5, 5)
    quantizer(latents)
    code = quantizer.embedding.weight[3]
    assert (latents.movedim(1, -1).reshape(-1, 6) == code).all(dim=1).any()
    torch.testing.assert_close(quantizer.embedding_sum[3] / quantizer.cluster_size[3], code)
    assert quantizer.cluster_size[3] > 0.5 * quantizer.cluster_size.mean()


def test_beta_sits_on_the_commitment_term_unless_legacy():
    latents = torch.randn(2, 6, 4, 4, requires_grad=True)
    gradients = {}
    for legacy in (False, True):
        quantizer = trained("vector", beta=0.25, legacy=legacy)
        quantizer.embedding.weight.data = torch.linspace(-1, 1, 72).view(12, 6)
        encoder, codebook = torch.autograd.grad(quantizer(latents).loss, [latents, quantizer.embedding.weight])
        gradients[legacy] = encoder, codebook
    torch.testing.assert_close(gradients[True][0], 4 * gradients[False][0])
    torch.testing.assert_close(4 * gradients[True][1], gradients[False][1])


def test_loading_a_bare_codebook_derives_the_averages():
    codebook = torch.randn(12, 6)
    for zero_debias in (False, True):
        quantizer = EMAVectorQuantizer(12, 6, zero_debias=zero_debias, restart_threshold=0.0)
        missing, _ = quantizer.load_state_dict({"embedding.weight": codebook}, strict=False)
        quantizer.finish_loading(missing)
        quantizer.train()(torch.randn(4, 6, 5, 5))
        assert (quantizer.embedding.weight - codebook).abs().max() < 0.5  # moved a little, not replaced


# Parity


def test_sonnet_ema_three_steps():
    tensors, meta = fixture("sonnet_vqvae/ema_quantizer")
    options = meta["hyperparameters"]
    quantizer = EMAVectorQuantizer(
        options["K"], options["D"], beta=options["beta"], decay=options["decay"], epsilon=options["eps"],
        zero_debias=True, kmeans_init=False, restart_threshold=0.0,
    )  # fmt: skip
    quantizer.embedding.weight.copy_(sonnet_variables("ema_quantizer")["embeddings"].T)

    latents = channels_first(tensors["in.inputs_step1"]).requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.loss, tensors["out.eval_loss"], **CLOSE)
    torch.testing.assert_close(output.latents, channels_first(tensors["out.eval_quantize"]), **CLOSE)
    (gradient,) = torch.autograd.grad(output.loss, latents)
    torch.testing.assert_close(gradient, channels_first(tensors["out.grad_inputs_loss"]), **CLOSE)

    quantizer.train()
    for step in (1, 2, 3):
        output = quantizer(channels_first(tensors[f"in.inputs_step{step}"]))
        assert torch.equal(output.codes, tensors[f"out.indices_step{step}"])
        expected = {
            "loss": (output.loss, tensors[f"out.loss_step{step}"]),
            "latents": (output.latents, channels_first(tensors[f"out.quantize_step{step}"])),
            "codebook": (quantizer.embedding.weight, tensors[f"out.embeddings_after_step{step}"].T),
            "counts": (quantizer.cluster_size, tensors[f"out.ema_cluster_size.hidden_after_step{step}"]),
            "sums": (quantizer.embedding_sum, tensors[f"out.ema_dw.hidden_after_step{step}"].T),
        }
        for name, (ours, theirs) in expected.items():
            torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda text, at=(name, step): f"{at}: {text}")


def test_sonnet_gradient_codebook():
    tensors, meta = fixture("sonnet_vqvae/vq_quantizer")
    options = meta["hyperparameters"]
    quantizer = VectorQuantizer(options["K"], options["D"], beta=options["beta"])
    quantizer.load_state_dict(
        {"embedding.weight": sonnet_variables("vq_quantizer")["embeddings"].T.contiguous()}, strict=False
    )
    latents = channels_first(tensors["in.inputs_step1"]).requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.loss, tensors["out.eval_loss"], **CLOSE)
    encoder, codebook = torch.autograd.grad(output.loss, [latents, quantizer.embedding.weight])
    torch.testing.assert_close(encoder, channels_first(tensors["out.grad_inputs_loss"]), **CLOSE)
    torch.testing.assert_close(codebook.T, tensors["out.grad_embeddings_loss"], **CLOSE)


def test_lucidrains_euclidean_three_steps():
    tensors, meta = fixture("lucidrains_vector_quantize/vq_euclidean")
    options = meta["hyperparameters"]
    weights = torch.load(FIXTURES / "lucidrains_vector_quantize/vq_euclidean/model.pt", weights_only=True)
    quantizer = EMAVectorQuantizer(
        options["codebook_size"], options["dim"], beta=options["commitment_weight"], decay=options["decay"],
        restart_threshold=0.0,
    )  # fmt: skip
    names = {"embedding.weight": "embed", "embedding_sum": "embed_avg", "cluster_size": "cluster_size"}
    quantizer.load_state_dict({ours: weights[f"_codebook.{theirs}"][0] for ours, theirs in names.items()})

    latents = tensors["in.x"].requires_grad_()
    output = quantizer.eval()(latents)
    assert torch.equal(output.codes, tensors["out.eval_indices"])
    torch.testing.assert_close(output.latents, tensors["out.eval_quantized"], **CLOSE)
    torch.testing.assert_close(quantizer.detokenize(output.codes), tensors["out.codes_from_indices"], **CLOSE)
    quantizer.train()
    for step in (1, 2, 3):
        output = quantizer(latents)
        if step == 1:
            assert torch.equal(output.codes, tensors["out.train_indices"])
            torch.testing.assert_close(output.loss, tensors["out.train_loss"], **CLOSE)
            (gradient,) = torch.autograd.grad(output.loss, latents, retain_graph=True)
            torch.testing.assert_close(gradient, tensors["out.grad_x_loss"], **CLOSE)
            (gradient,) = torch.autograd.grad((output.latents * tensors["in.upstream_grad"]).sum(), latents)
            torch.testing.assert_close(gradient, tensors["out.grad_x_straight_through"], **CLOSE)
        for ours, theirs in names.items():
            expected = tensors[f"out.after_step{step}.{theirs}"][0]
            torch.testing.assert_close(quantizer.state_dict()[ours], expected, **CLOSE)


# Processes


def _train_on_a_share(rank, world_size, name, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["HF_VQ_TEST_PORT"])
    if world_size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(5)
    latents = torch.randn(6, 8, 6, 10, dtype=torch.float64)
    quantizer = make_quantizer(name, 24, 6, {"restart_threshold": 0.5}).double().train()
    torch.manual_seed(7)  # the draws of rank 0 decide
    if rank:
        torch.manual_seed(1000 + rank)
    for step in latents:
        quantizer(step.chunk(world_size)[rank])
    torch.save(quantizer.state_dict(), f"{folder}/{name}-{world_size}-{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("name", TYPES)
def test_two_processes_equal_one(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_VQ_TEST_PORT", str(20000 + os.getpid() % 20000))
    mp.spawn(_train_on_a_share, (2, name, str(tmp_path)), nprocs=2)
    _train_on_a_share(0, 1, name, str(tmp_path))
    alone, *ranks = (torch.load(tmp_path / f"{name}-{run}.pt", weights_only=True) for run in ("1-0", "2-0", "2-1"))
    for rank in ranks:
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-10, atol=1e-10, msg=key)

"""PixelSNAIL: causality, cached sampling, its conditions, parity with rosinality's network, and what is refused."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_vq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig
from hf_vq.training.prior import PriorTrainingArguments, train_prior

from .conftest import compile_whole
from .sampling_checks import cached_logits

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
ORIGINAL = {"rtol": 1e-4, "atol": 1e-5}
VARIANTS = {
    "top": {},
    "top with classes": {"num_classes": 3, "class_dropout_prob": 0.2, "kernel_size": 3, "num_output_layers": 2},
    "bottom": {"attention": False, "context_codebook_sizes": (7,), "num_output_layers": 1},
    "bottom with classes": {
        "attention": False, "context_codebook_sizes": (7, 9), "num_context_layers": 1, "num_classes": 3,
        "class_dropout_prob": 0.2, "context_kernel_size": 5, "hidden_channels": 7, "condition_channels": 5,
    },
    "cut rows": {"sees_row_ends": False, "kernel_size": 3, "num_output_layers": 1},
    "cut rows, bottom": {"sees_row_ends": False, "attention": False, "context_codebook_sizes": (7,)},
    "attention and context": {"context_codebook_sizes": (7,), "kernel_size": 7, "num_context_layers": 0},
}  # fmt: skip
GRIDS = [(5, 7), (6, 4), (1, 5), (4, 1), (1, 1)]
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_prior(variant="top", **changes) -> PixelSNAIL:
    options = {
        "codebook_size": 11, "hidden_channels": 16, "residual_channels": 6, "num_blocks": 2, "num_residual_layers": 2,
        "num_attention_heads": 4, "dropout": 0.0, "code_shape": (5, 7),
    }  # fmt: skip
    torch.manual_seed(0)
    prior = PixelSNAIL(PixelSNAILConfig(**{**options, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
        prior.head.weight.mul_(5)
    return prior.eval()


def make_conditions(prior, batch_size=2, grid=(5, 7)):
    """Classes with the null class among them, and coarser grids, the first of one code."""
    conditions, config = {}, prior.config
    if config.num_classes:
        conditions["class_labels"] = (3 + torch.arange(batch_size)) % config.num_class_embeddings
    if config.context_codebook_sizes:
        grids = [((grid[0] + 1) // 2, (grid[1] + 1) // 2), (1, 1)][: len(config.context_codebook_sizes)][::-1]
        conditions["context_codes"] = tuple(
            torch.randint(size, (batch_size, *shape))
            for size, shape in zip(config.context_codebook_sizes, grids, strict=True)
        )
    return conditions


# The network


@variants
@pytest.mark.parametrize("grid", GRIDS[:4], ids=str)
@torch.no_grad()
def test_logits_depend_on_no_code_at_or_after_their_position(variant, grid):
    prior, size = make_prior(variant), grid[0] * grid[1]
    codes, conditions = torch.randint(11, (1, *grid)).repeat(size, 1, 1), make_conditions(prior, size, grid)
    changed = codes.clone()
    changed.flatten(1).diagonal().add_(5).remainder_(11)  # of each item one position
    logits = [prior(each, **conditions).logits for each in (codes, changed)]
    moved = (logits[0] != logits[1]).any(-1).flatten(1)  # (changed position, position)
    assert not moved.tril().any()
    next_to = torch.arange(size - 1) % grid[1] < grid[1] - 1  # in the same row
    assert (moved.diagonal(1) | ~next_to).all()
    if prior.config.attention:  # from a row later on to everything; sooner, no key may know of a code far to the right
        assert (moved | torch.ones_like(moved).tril(grid[1] - 1)).all()


def test_work_per_code_does_not_grow_with_the_grid():
    prior, per_code = make_prior("bottom", context_codebook_sizes=()), []  # attention has more and more to look at
    for height, width in [(2, 3), (3, 8), (8, 4)]:
        with FlopCounterMode(display=False) as counter:
            prior.sample(2, (height, width))
        per_code.append(counter.get_total_flops() / (height * width))
    assert per_code[0] > 0
    assert per_code == [per_code[0]] * 3


@variants
def test_every_parameter_learns(variant):
    prior = make_prior(variant).train()
    conditions = make_conditions(prior, 8)
    prior(torch.randint(11, (8, 5, 7)), **conditions).loss.backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("variant", ["top with classes", "bottom"])
def test_gradient_checkpointing_gives_the_same_gradients(variant):
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior(variant, dropout=0.5).train()
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(torch.arange(70).view(2, 5, 7) % 11, **make_conditions(prior)).loss.backward()
        gradients.append([p.grad for p in prior.parameters()])
    torch.testing.assert_close(*gradients)


def test_forward_compiles_whole_and_agrees():
    prior = make_prior("attention and context", num_blocks=1, num_residual_layers=1)
    compiled = compile_whole(prior, "eager")
    codes, conditions = torch.randint(11, (2, 5, 7)), make_conditions(prior)
    expected, output = prior(codes, **conditions), compiled(codes, **conditions)
    torch.testing.assert_close((output.loss, output.logits), (expected.loss, expected.logits))


def test_attention_implementations_agree(tmp_path):
    make_prior().save_pretrained(tmp_path)
    codes, outputs = torch.randint(11, (2, 5, 7)), []
    for name in ("eager", "sdpa"):
        prior = PixelSNAIL.from_pretrained(tmp_path, attn_implementation=name)
        assert prior.config._attn_implementation == name
        outputs.append(prior(codes).logits)
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_dropout_thins_attention_weights_in_training_only(name):
    prior = make_prior(dropout=0.5)
    prior.set_attn_implementation(name)
    attention = prior.blocks[0].attention
    for projection in (attention.query, attention.value):  # all keys count the same, all values are 1
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.constant_(projection.bias, 0.0 if projection is attention.query else 1.0)
    queries, keys = torch.randn(1, 18, 1, 200), torch.randn(1, 34, 1, 200)
    attended = attention(queries, keys)[0, :, 0]
    torch.testing.assert_close(attended[:, 1:], torch.ones(8, 199))
    assert not attended[:, 0].any()
    attended = attention.train()(queries, keys)[0, :, 0]
    assert set(attended[:, 1].tolist()) <= {0.0, 2.0}
    assert attended[:, 100:].mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("variant", ["top with classes", "bottom"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.02)])
@torch.no_grad()
def test_low_precision_is_near_float32(variant, dtype, tolerance):
    """Largest difference of a log-probability, in nats."""
    prior, codes = make_prior(variant), torch.randint(11, (2, 5, 7))
    conditions = make_conditions(prior)
    expected = prior(codes, **conditions).logits.log_softmax(-1)
    low = prior.to(dtype)
    assert low(codes, **conditions).loss.dtype == torch.float32
    for logits in (low(codes, **conditions).logits, cached_logits(low, codes, **conditions)):
        assert logits.dtype == dtype
        assert (logits.float().log_softmax(-1) - expected).abs().max() < tolerance
    assert low.sample(1 if not conditions else None, **conditions).shape[1:] == (5, 7)


@torch.no_grad()
def test_autocast_does_not_change_samples():
    prior = make_prior()
    with torch.autocast("cpu", torch.bfloat16):
        codes = prior.sample(2, temperature=0)
    assert torch.equal(codes, prior.sample(2, temperature=0))


@variants
def test_training_starts_near_uniform_codes_whatever_the_size(variant):
    for hidden_channels, num_blocks in ((16, 1), (64, 4)):
        sizes = {"hidden_channels": hidden_channels, "residual_channels": 32, "num_blocks": num_blocks}
        torch.manual_seed(0)
        prior = PixelSNAIL(PixelSNAILConfig(**{**VARIANTS[variant], **sizes, "codebook_size": 64}))
        with torch.no_grad():
            logits = prior(torch.randint(64, (2, 8, 8)), **make_conditions(prior, 2, (8, 8))).logits
        assert 0.05 < logits.std() < 0.15


# Conditions


@torch.no_grad()
def test_each_code_sees_the_coarser_codes_around_it_and_only_the_kernels_reach():
    prior = make_prior("bottom", num_residual_layers=1, num_blocks=1, num_context_layers=0, context_kernel_size=1)
    codes, top = torch.randint(11, (1, 6, 8)), torch.randint(7, (1, 3, 4))
    for row, column in ((0, 0), (1, 2), (2, 3)):
        changed = top.clone()
        changed[0, row, column] = (top[0, row, column] + 3) % 7
        moved = (prior(codes, context_codes=(top,)).logits != prior(codes, context_codes=(changed,)).logits).any(-1)[0]
        expected = torch.zeros(6, 8, dtype=torch.bool)
        expected[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
        assert torch.equal(moved, expected)  # of one layer the gates alone: nothing spreads


@torch.no_grad()
def test_every_level_of_the_context_and_the_class_matter():
    prior = make_prior("bottom with classes")
    codes, conditions = torch.randint(11, (2, 5, 7)), make_conditions(prior)
    expected = prior(codes, **conditions).logits
    coarse, fine = conditions["context_codes"]
    for changed in (
        {"context_codes": ((coarse + 1) % 7, fine)},
        {"context_codes": (coarse, (fine + 1) % 9)},
        {"class_labels": (conditions["class_labels"] + 1) % 4},
    ):
        assert (prior(codes, **{**conditions, **changed}).logits != expected).any(-1).all()


# Sampling


@pytest.mark.parametrize("variant", ["top", "bottom"])
def test_samples_follow_the_probabilities_of_the_prior(variant):
    prior = make_prior(variant, codebook_size=2, code_shape=(2, 2))
    grids = torch.cartesian_prod(*[torch.arange(2)] * 4).view(-1, 2, 2)

    def conditions(batch_size):
        return {"context_codes": (torch.full((batch_size, 1, 1), 4),)} if prior.contexts else {}

    expected = prior.log_prob(grids, **conditions(16)).exp()
    torch.testing.assert_close(expected.sum(), torch.tensor(1.0))
    batch_size, generator = None if prior.contexts else 4000, torch.Generator().manual_seed(0)
    samples = prior.sample(batch_size, generator=generator, **conditions(4000))
    drawn = (samples.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16) / 4000
    assert (drawn - expected).abs().sum() / 2 < 0.04  # total variation; 0.02 is expected of 16 cells


@pytest.mark.parametrize("variant", ["top with classes", "bottom with classes"])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@torch.no_grad()
def test_greedy_guided_sample_is_the_argmax_of_full_guided_logits(variant, guidance_scale):
    prior = make_prior(variant)
    conditions = make_conditions(prior, 3) | {"class_labels": torch.tensor([0, 1, 2])}
    codes = prior.sample(guidance_scale=guidance_scale, temperature=0, **conditions)
    conditional = prior(codes, **conditions).logits
    unconditional = prior(codes, **conditions | {"class_labels": torch.tensor([3, 3, 3])}).logits
    guided = unconditional + guidance_scale * (conditional - unconditional)
    assert torch.equal(guided.argmax(-1), codes)


@pytest.mark.parametrize("variant", ["top", "bottom"])
def test_known_codes_are_kept_and_later_codes_follow_them(variant):
    prior = make_prior(variant)
    conditions = make_conditions(prior)
    known_codes = torch.full((2, 5, 7), -1)  # what the mask leaves out is never read
    known_mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    known_codes[0, 2], known_mask[0, 2] = torch.arange(7), True
    known_codes[1, :, 3:], known_mask[1, :, 3:] = 5, True
    batch_size = None if conditions else 2
    codes = prior.sample(batch_size, temperature=0, known_codes=known_codes, known_mask=known_mask, **conditions)
    assert torch.equal(codes[known_mask], known_codes[known_mask])
    assert torch.equal(prior(codes, **conditions).logits.argmax(-1)[~known_mask], codes[~known_mask])


# Training


class Stripes(torch.utils.data.Dataset):
    """Each row repeats its first code and the code of the coarser grid, or the class, is that code."""

    def __init__(self, kind):
        self.rows, self.kind = torch.randint(4, (64, 4), generator=torch.Generator().manual_seed(0)), kind

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        codes = self.rows[index][:, None].repeat(1, 4)
        if self.kind == "bottom":
            return {"codes": codes, "context_codes": (codes[::2, ::2],)}
        return {"codes": codes, "class_labels": codes[0, 0]}


@pytest.mark.parametrize(("kind", "uniform_rows"), [("bottom", 2), ("class", 3)])
def test_training_learns_rows_and_conditions(kind, uniform_rows, tmp_path):
    """A row's first code is a surprise, unless the condition tells it: a nat and a half, of 16 codes."""
    options = {"attention": False, "context_codebook_sizes": (4,)} if kind == "bottom" else {"num_classes": 4}
    torch.manual_seed(0)
    sizes = {"hidden_channels": 16, "residual_channels": 16, "num_blocks": 1, "num_residual_layers": 2}
    prior = PixelSNAIL(PixelSNAILConfig(codebook_size=4, dropout=0.0, **sizes, **options))
    arguments = PriorTrainingArguments(
        str(tmp_path), per_device_train_batch_size=16, max_steps=70, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
    )  # fmt: skip
    data = Stripes(kind)
    report = train_prior(prior, data, arguments, data)
    losses = [entry["loss"] for entry in report["history"] if "loss" in entry]
    uniform = torch.tensor(4.0).log().item()
    assert losses[0] == pytest.approx(uniform, abs=0.2)
    assert uniform_rows * uniform / 16 * 0.7 < report["metrics"]["eval_loss"] < uniform_rows * uniform / 16 * 1.3


# What is refused

CODES, TOP = torch.zeros(2, 5, 7, dtype=torch.int64), torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("match", "variant", "call"),
    [
        ("no coarser grids", "top", lambda prior: prior(CODES, context_codes=(TOP,))),
        ("tuple of 1 grids.* got NoneType", "bottom", lambda prior: prior(CODES)),
        ("tuple of 1 grids.* got NoneType", "bottom", lambda prior: prior.sample(2)),
        ("tuple of 1 grids.* got Tensor", "bottom", lambda prior: prior(CODES, context_codes=TOP)),
        ("tuple of 1 grids.* got 2", "bottom", lambda prior: prior(CODES, context_codes=(TOP, TOP))),
        (r"context_codes\[0\] must be integers", "bottom", lambda prior: prior(CODES, context_codes=(TOP.float(),))),
        (r"context_codes\[0\] must be \(batch", "bottom", lambda prior: prior(CODES, context_codes=(TOP[0],))),
        (r"context_codes\[0\] must have 2 grids", "bottom", lambda prior: prior(CODES, context_codes=(TOP[:1],))),
        (r"context_codes\[0\].*\[0, 7\), got 9", "bottom", lambda prior: prior(CODES, context_codes=(TOP + 9,))),
        ("coarser than the codes", "bottom", lambda prior: prior(CODES[:, :2], context_codes=(TOP,))),
        ("class_labels missing", "bottom with classes", lambda prior: prior(CODES, context_codes=(TOP, TOP))),
        ("coarse to fine", "bottom with classes", lambda p: p.sample(class_labels=[0, 1], context_codes=(CODES, TOP))),
        ("batch_size=2 given", "bottom", lambda prior: prior.sample(2, context_codes=(TOP,))),
        ("needs a null class", "bottom", lambda prior: prior.sample(context_codes=(TOP,), guidance_scale=2.0)),
    ],
)
def test_bad_input_is_a_clear_error(match, variant, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(variant))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("hidden_channels .* got 0", {"hidden_channels": 0}),
        ("num_blocks .* got 0", {"num_blocks": 0}),
        ("num_residual_layers .* got 0", {"num_residual_layers": 0}),
        ("residual_channels .* got 0", {"residual_channels": 0}),
        ("num_output_layers .* got -1", {"num_output_layers": -1}),
        ("num_context_layers .* got -1", {"num_context_layers": -1}),
        ("condition_channels .* got 0", {"condition_channels": 0}),
        ("kernel_size must be an integer between 3 and 256, got 1", {"kernel_size": 1}),
        ("context_kernel_size must be odd, got 4", {"context_kernel_size": 4}),
        ("num_attention_heads must divide .* got 8 for 12", {"hidden_channels": 24}),
        ("context_codebook_sizes.* got", {"context_codebook_sizes": (4, 0)}),
        ("dropout .* got 1.5", {"dropout": 1.5}),
        ("code_shape", {"code_shape": (4,)}),
    ],
)
def test_bad_config_is_a_clear_error(match, options):
    with pytest.raises(ValueError, match=match):
        PixelSNAILConfig(**options)

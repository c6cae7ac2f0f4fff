"""Priors: causality, cached sampling, parity with the originals, the loss that Trainer sees, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_vq.priors.pixelcnn import PixelCNN, PixelCNNConfig
from hf_vq.priors.sampling import apply_temperature, draw_codes, draw_uniforms, guide, keep_top_k, keep_top_p

from .conftest import FIXTURES, compile_whole, fixture
from .sampling_checks import cached_logits

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS = {
    "gated": {"gated": True},
    "gated one-hot": {"gated": True, "one_hot": True, "first_kernel_size": 3, "kernel_size": 5, "num_layers": 2},
    "plain": {"gated": False},
    "plain one-hot": {"gated": False, "one_hot": True, "kernel_size": 5, "first_kernel_size": 5},
    "plain pointwise": {"gated": False, "kernel_size": 1, "head_channels": []},
}
GRIDS = [(5, 7), (6, 4), (1, 5), (4, 1)]
variants = pytest.mark.parametrize("variant", VARIANTS)


def make_prior(variant="gated", **changes) -> PixelCNN:
    options = {"codebook_size": 11, "hidden_channels": 8, "num_layers": 3, "head_channels": [16], "code_shape": (5, 7)}
    torch.manual_seed(0)
    prior = PixelCNN(PixelCNNConfig(**{**options, **VARIANTS[variant], **changes}))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
    return prior.eval()


# The network


@variants
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@torch.no_grad()
def test_logits_depend_on_no_code_at_or_after_their_position(variant, grid):
    prior, size = make_prior(variant), grid[0] * grid[1]
    codes = torch.randint(11, (1, *grid))
    logits = prior(codes).logits
    moved = torch.empty(size, size, dtype=torch.bool)  # (changed position, position)
    for position in range(size):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 5) % 11
        moved[position] = (prior(changed).logits != logits).any(-1).flatten()
    assert not moved.tril().any()
    if variant != "plain pointwise":  # whose reach ends with its first kernel
        assert moved.diagonal(1).sum() >= size - grid[0]  # the next position in the row does depend on it


@variants
@torch.no_grad()
def test_every_position_within_reach_matters(variant):
    prior = make_prior(variant, code_shape=(3, 3))
    codes = torch.randint(11, (1, 3, 3))
    for row, column in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]:
        changed = codes.clone()
        changed[0, row, column] = (codes[0, row, column] + 5) % 11
        assert (prior(changed).logits[0, 2, 2] != prior(codes).logits[0, 2, 2]).any(), (row, column)


@variants
def test_work_per_code_does_not_grow_with_the_grid(variant):
    prior, per_code = make_prior(variant), []
    for height, width in [(2, 3), (3, 8), (8, 4)]:
        with FlopCounterMode(display=False) as counter:
            prior.sample(2, (height, width))
        per_code.append(counter.get_total_flops() / (height * width))
    assert per_code[0] > 0
    assert per_code == [per_code[0]] * 3


@variants
def test_every_parameter_learns(variant):
    prior = make_prior(variant, num_classes=3).train()
    prior(torch.randint(11, (3, 5, 7)), class_labels=torch.arange(3)).loss.backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # 5.17 has only this name
@pytest.mark.parametrize("variant", ["gated", "plain"])
def test_gradient_checkpointing_gives_the_same_gradients(variant):
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior(variant, num_classes=3, class_dropout_prob=0.5, dropout=0.5).train()
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(torch.arange(70).view(2, 5, 7) % 11, class_labels=torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in prior.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("variant", ["gated", "plain"])
def test_forward_compiles_whole_and_agrees(variant):
    prior = make_prior(variant, num_classes=3, class_dropout_prob=0.5)
    compiled = compile_whole(prior, "aot_eager" if variant == "gated" else "eager")
    codes, class_labels = torch.randint(11, (2, 5, 7)), torch.tensor([0, 3])
    expected = prior(codes, class_labels=class_labels)
    output = compiled(codes, class_labels=class_labels)
    torch.testing.assert_close((output.loss, output.logits), (expected.loss, expected.logits))
    prior.train()
    compiled(codes, class_labels=class_labels).loss.backward()


@torch.no_grad()
def test_gated_prior_has_no_blind_spot():
    prior = make_prior(kernel_size=3, first_kernel_size=3, num_layers=7).double()
    codes = torch.randint(11, (1, 5, 7))
    expected = prior(codes).logits[0, 4, 3]
    for position in range(4 * 7 + 3):
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 5) % 11
        assert (prior(changed).logits[0, 4, 3] != expected).any(), divmod(position, 7)


@pytest.mark.parametrize("variant", ["gated", "plain"])
def test_autocast_does_not_change_samples(variant):
    prior = make_prior(variant)
    with torch.autocast("cpu", torch.bfloat16):
        codes = prior.sample(2, temperature=0)
    assert torch.equal(codes, prior.sample(2, temperature=0))


def test_low_precision_prior_samples_and_has_a_float32_loss():
    prior = make_prior().to(torch.bfloat16)
    codes = prior.sample(2)
    assert prior(codes).loss.dtype == prior.log_prob(codes).dtype == torch.float32


# Parity with the originals


@torch.no_grad()
def test_gated_pixelcnn_agrees_with_ritheshkumar():
    expected = fixture("ritheshkumar_vqvae")[0]
    prior = PixelCNN.from_single_file(FIXTURES / "ritheshkumar_vqvae/prior.pt")
    output = prior(expected["codes"], class_labels=expected["class_labels"])
    torch.testing.assert_close(output.logits.movedim(-1, 1), expected["prior_logits"], **CLOSE)
    torch.testing.assert_close(output.loss, expected["prior_ce"], **CLOSE)
    greedy = prior.sample(class_labels=expected["class_labels"], code_shape=(8, 8), temperature=0)
    assert torch.equal(greedy, expected["greedy_codes"])
    logits = cached_logits(prior, greedy, class_labels=expected["class_labels"])
    torch.testing.assert_close(logits.movedim(-1, 1), expected["greedy_logits"], **CLOSE)


@torch.no_grad()
def test_plain_pixelcnn_agrees_with_the_keras_example():
    expected = fixture("keras_vqvae_example")[0]
    prior = PixelCNN.from_single_file(FIXTURES / "keras_vqvae_example/pixelcnn_keras3.keras")
    output = prior(expected["in.codes"])
    torch.testing.assert_close(output.logits, expected["out.pixelcnn_logits"], **CLOSE)
    torch.testing.assert_close(output.loss, expected["out.pixelcnn_loss"], **CLOSE)
    assert torch.equal(prior.sample(3, code_shape=(7, 7), temperature=0), expected["out.greedy_codes"])


# Loss and likelihood


def test_loss_is_the_mean_cross_entropy_and_labels_only_override_the_targets():
    prior, codes = make_prior(), torch.randint(11, (2, 5, 7))
    output = prior(codes)
    flat = output.logits.flatten(0, 2)
    torch.testing.assert_close(output.loss, F.cross_entropy(flat, codes.flatten()))
    labels = torch.where(torch.rand(codes.shape) < 0.5, codes, -100)
    labels[0, 0, 0] = (codes[0, 0, 0] + 1) % 11
    kept = labels.flatten() != -100
    masked = prior(codes, labels=labels)
    assert torch.equal(masked.logits, output.logits)
    torch.testing.assert_close(masked.loss, F.cross_entropy(flat[kept], labels.flatten()[kept]))
    assert prior(codes, return_loss=False).loss is None
    assert len(prior(codes, return_dict=False)) == 2


def test_log_prob_sums_over_the_grid_and_ignores_training_mode():
    prior = make_prior(num_classes=2, class_dropout_prob=0.5, dropout=0.5)
    codes, class_labels = torch.randint(11, (3, 5, 7)), torch.tensor([0, 1, 2])
    expected = [-35 * prior(codes[i : i + 1], class_labels=class_labels[i : i + 1]).loss for i in range(3)]
    log_prob = prior.train().log_prob(codes, class_labels=class_labels)
    torch.testing.assert_close(log_prob, torch.stack(expected))
    assert (log_prob <= 0).all()
    assert not log_prob.requires_grad
    assert all(m.training for m in prior.modules())


@torch.no_grad()
def test_probabilities_of_all_grids_sum_to_one():
    prior = make_prior(codebook_size=3)
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    torch.testing.assert_close(prior.log_prob(grids).exp().sum(), torch.tensor(1.0))


def test_training_drops_classes_to_the_null_class_at_the_configured_rate():
    prior = make_prior(num_classes=4, class_dropout_prob=0.25)
    class_labels = torch.arange(4).repeat(5000)
    conditions = {"class_labels": class_labels}
    assert torch.equal(prior.drop_conditions(conditions)["class_labels"], class_labels)  # not in eval mode
    prior.train()
    torch.manual_seed(0)
    dropped = prior.drop_conditions(conditions)["class_labels"]
    assert abs((dropped == 4).float().mean() - 0.25) < 0.01
    assert torch.equal(dropped[dropped < 4], class_labels[dropped < 4])
    torch.manual_seed(0)
    again = prior.drop_conditions(conditions)["class_labels"]
    assert torch.equal(again, dropped)  # the global generator, so that resume is exact


class Items(torch.utils.data.Dataset):
    def __init__(self, num_classes):
        self.codes = torch.randint(11, (32, 5, 7), generator=torch.Generator().manual_seed(0))
        self.num_classes = num_classes

    def __len__(self):
        return len(self.codes)

    def __getitem__(self, index):
        item = {"codes": self.codes[index]}
        return item | {"class_labels": torch.tensor(index % self.num_classes)} if self.num_classes else item


class Logged(TrainerCallback):
    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **kwargs):
        self.logs.append(logs)


def train(folder, num_classes, batch_size, accumulation):
    logged = Logged()
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=2,
        logging_steps=1,
        label_names=[],
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    data = Items(num_classes)
    trainer = Trainer(make_prior(num_classes=num_classes), arguments, None, data, data, callbacks=[logged])
    trainer.train()
    return logged.logs, trainer.evaluate()


@pytest.mark.parametrize("num_classes", [0, 3])
def test_trainer_sees_eval_loss_and_accumulation_changes_nothing(num_classes, tmp_path):
    whole, evaluation = train(tmp_path, num_classes, batch_size=16, accumulation=1)
    parts, _ = train(tmp_path, num_classes, batch_size=4, accumulation=4)
    assert 0 < evaluation["eval_loss"] < 10
    for one, four in zip(whole[:2], parts[:2], strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(four["grad_norm"], rel=1e-4)


# Sampling


@pytest.mark.parametrize("variant", ["gated", "plain"])
def test_samples_follow_the_probabilities_of_the_prior(variant):
    prior = make_prior(variant, codebook_size=3, code_shape=(2, 2))
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4)
    expected = prior.log_prob(grids.view(-1, 2, 2)).exp()
    samples = prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    drawn = (samples.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1).bincount(minlength=81) / 20_000
    assert (drawn - expected).abs().sum() / 2 < 0.03  # total variation; 0.02 is expected of 81 cells


@pytest.mark.parametrize("variant", ["gated", "plain"])
@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@torch.no_grad()
def test_greedy_guided_sample_is_the_argmax_of_full_guided_logits(variant, guidance_scale):
    prior = make_prior(variant, num_classes=3, class_dropout_prob=0.1)
    class_labels, null = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    codes = prior.sample(class_labels=class_labels, guidance_scale=guidance_scale, temperature=0)
    conditional = prior(codes, class_labels=class_labels).logits
    unconditional = prior(codes, class_labels=null).logits
    guided = unconditional + guidance_scale * (conditional - unconditional)
    assert torch.equal(guided.argmax(-1), codes)
    if guidance_scale == 0:
        assert torch.equal(prior.sample(class_labels=null, temperature=0), codes)


def test_known_codes_are_kept_and_later_codes_follow_them():
    prior = make_prior()
    known_codes = torch.full((2, 5, 7), -1)  # what the mask leaves out is never read
    known_mask = torch.zeros(2, 5, 7, dtype=torch.bool)
    known_codes[0, 2], known_mask[0, 2] = torch.arange(7), True
    known_codes[1, :, 3:], known_mask[1, :, 3:] = 5, True
    codes = prior.sample(2, temperature=0, known_codes=known_codes, known_mask=known_mask)
    assert torch.equal(codes[known_mask], known_codes[known_mask])
    assert torch.equal(prior(codes).logits.argmax(-1)[~known_mask], codes[~known_mask])


def test_generators_decide_the_sample_and_a_list_makes_items_independent_of_the_batch():
    prior = make_prior(num_classes=3)

    def draw(class_labels, *seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return prior.sample(class_labels=class_labels, generator=generators if len(seeds) > 1 else generators[0])

    assert torch.equal(draw([0, 1], 7), draw([0, 1], 7))
    assert not torch.equal(draw([0, 1], 7), draw([0, 1], 8))
    both = draw([0, 1], 7, 8)
    assert torch.equal(both, torch.cat([draw([0], 7), draw([1], 8)]))


def test_sample_leaves_modes_alone_and_shows_progress():
    prior = make_prior(dropout=0.9).train()
    prior.head.eval()
    seen = []
    first, second = (prior.sample(2, temperature=0, progress_bar=lambda p: seen.append(len(p)) or p) for _ in "ab")
    assert torch.equal(first, second)
    assert seen == [35, 35]
    assert prior.training
    assert not prior.head.training


def test_sample_and_log_prob_fetch_offloaded_weights_as_forward_does():
    class Hook:
        fetched = []

        def pre_forward(self, module):
            self.fetched.append(module)

    prior = make_prior()
    prior._hf_hook = Hook()
    prior.log_prob(prior.sample(1))
    assert Hook.fetched == [prior, prior]


def test_logits_that_are_not_finite_are_an_error():
    prior = make_prior()
    prior.embedding.weight.data[:] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        prior.sample(2)


def test_sampling_functions():
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, -1.0, 5.0, 4.0]])
    assert torch.equal(keep_top_k(logits, 2).isfinite().sum(1), torch.tensor([2, 2]))
    assert torch.equal(keep_top_k(logits, 1).isfinite().sum(1), torch.tensor([1, 1]))  # ties stay within k
    assert torch.equal(keep_top_k(logits, 9), logits)
    probabilities = torch.tensor([[0.15, 0.5, 0.05, 0.3]])
    for top_p, kept in [(0.01, [1]), (0.5, [1]), (0.6, [1, 3]), (0.81, [0, 1, 3]), (0.97, [0, 1, 2, 3])]:
        assert keep_top_p(probabilities.log(), top_p)[0].isfinite().nonzero()[:, 0].tolist() == kept
    assert torch.equal(apply_temperature(logits, 1e-38).argmax(-1), torch.tensor([1, 2]))
    assert not apply_temperature(logits, 1e-38).isnan().any()
    torch.testing.assert_close(apply_temperature(logits, 0.5).softmax(-1), (logits / 0.5).softmax(-1))
    torch.testing.assert_close(guide(logits[:1], logits[1:], 3.0), logits[1:] + 3 * (logits[:1] - logits[1:]))


def test_draw_never_gives_an_impossible_code_and_follows_the_probabilities():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    extremes = torch.tensor([0.0, 1 - 2**-24])
    assert draw_codes(logits.expand(2, -1), extremes).tolist() == [1, 3]
    uniforms = draw_uniforms(50_000, 1, torch.Generator().manual_seed(0), torch.device("cpu"))[:, 0]
    frequency = (draw_codes(logits.expand(50_000, -1), uniforms) == 3).float().mean()
    assert frequency == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.01)


# What is refused

CODES = torch.zeros(2, 5, 7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("match", "options", "call"),
    [
        ("codes must be integers", {}, lambda prior: prior(CODES.float())),
        ("codes must be .* 2 grid axes", {}, lambda prior: prior(CODES[0])),
        (r"codes must be in \[0, 11\), got 11", {}, lambda prior: prior(CODES + 11)),
        (r"codes must be in \[0, 11\), got -1", {}, lambda prior: prior.log_prob(CODES - 1)),
        ("labels must have the shape", {}, lambda prior: prior(CODES, labels=CODES[:1])),
        (r"labels must be in .* got 12", {}, lambda prior: prior(CODES, labels=CODES + 12)),
        ("no classes", {}, lambda prior: prior(CODES, class_labels=torch.tensor([0, 0]))),
        ("no classes", {}, lambda prior: prior.sample(class_labels=[0])),
        ("batch_size must be", {}, lambda prior: prior.sample()),
        ("batch_size must be", {}, lambda prior: prior.sample(0)),
        (r"code_shape\[1\] must be an integer between 1 and", {}, lambda prior: prior.sample(2, (5, 0))),
        ("code_shape missing", {"code_shape": None}, lambda prior: prior.sample(2)),
        ("class_labels missing", {"num_classes": 3}, lambda prior: prior(CODES)),
        ("class_labels missing", {"num_classes": 3}, lambda prior: prior.sample()),
        ("batch_size=2 given", {"num_classes": 3}, lambda prior: prior.sample(2, class_labels=[0, 1])),
        (r"class_labels must be \(2,\)", {"num_classes": 3}, lambda prior: prior(CODES, torch.tensor([0]))),
        ("class_labels must be integers", {"num_classes": 3}, lambda prior: prior.sample(class_labels=[0.5])),
        (r"class_labels must be in \[0, 3\), got 3", {"num_classes": 3}, lambda p: p.sample(class_labels=[0, 3])),
        (
            r"class_labels must be in \[0, 4\), got 4",
            {"num_classes": 3, "class_dropout_prob": 0.1},
            lambda prior: prior.sample(class_labels=[4]),
        ),
        (
            "guidance_scale=2.0 needs a null class",
            {"num_classes": 3},
            lambda prior: prior.sample(class_labels=[0], guidance_scale=2.0),
        ),
        ("guidance_scale=2.0 needs a null class", {}, lambda prior: prior.sample(1, guidance_scale=2.0)),
        ("guidance_scale must be", {}, lambda prior: prior.sample(1, guidance_scale=-1.0)),
        ("temperature must be", {}, lambda prior: prior.sample(1, temperature=-0.1)),
        ("temperature must be", {}, lambda prior: prior.sample(1, temperature=float("nan"))),
        ("top_k must be", {}, lambda prior: prior.sample(1, top_k=0)),
        ("top_p must be", {}, lambda prior: prior.sample(1, top_p=0.0)),
        ("go together", {}, lambda prior: prior.sample(2, known_codes=CODES)),
        ("known_mask must be torch.bool", {}, lambda prior: prior.sample(2, known_codes=CODES, known_mask=CODES)),
        (
            "known_codes must be in .* got 11",
            {},
            lambda prior: prior.sample(2, known_codes=CODES + 11, known_mask=CODES == 0),
        ),
        ("one per item: got 3 for 2", {}, lambda prior: prior.sample(2, generator=[torch.Generator()] * 3)),
    ],
)
def test_bad_input_is_a_clear_error(match, options, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(**options))


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("codebook_size .* got 0", {"codebook_size": 0}),
        ("num_classes .* got -1", {"num_classes": -1}),
        ("class_dropout_prob .* got 1.0", {"num_classes": 2, "class_dropout_prob": 1.0}),
        ("num_classes is 0", {"class_dropout_prob": 0.1}),
        ("code_shape", {"code_shape": (4,)}),
        ("code_shape", {"code_shape": (4, 0)}),
        ("hidden_channels .* got 1", {"hidden_channels": 1}),
        ("num_layers .* got 0", {"num_layers": 0}),
        ("kernel_size must be odd, got 4", {"kernel_size": 4}),
        ("first_kernel_size must be an integer between 3 and 256, got 1", {"first_kernel_size": 1}),
        ("head_channels", {"head_channels": [8, 0]}),
        ("dropout .* got 1.5", {"dropout": 1.5}),
    ],
)
def test_bad_config_is_a_clear_error(match, options):
    with pytest.raises(ValueError, match=match):
        PixelCNNConfig(**options)

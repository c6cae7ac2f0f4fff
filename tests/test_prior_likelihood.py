"""What is called a likelihood: networks that copy, labels of evaluation, and codes that count where lengths differ."""

import math

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from hf_vq import VQVAE
from hf_vq.metrics.likelihood import CodeLikelihood
from hf_vq.priors import AutoregressivePrior, Prior, PriorConfig
from hf_vq.training.evaluation import evaluate_prior
from hf_vq.training.likelihood import evaluate_likelihood
from hf_vq.training.prior import PriorTrainingArguments, train_prior
from hf_vq.training.prior_trainer import PriorTrainer

from .contracts.toy_masked_prior import ToyMaskedPrior, ToyMaskedPriorConfig
from .prior_families import AUTOREGRESSIVE, FAMILIES
from .tiny_models import Codes, Images, tiny_prior


class CopyingConfig(PriorConfig):
    """Config of `CopyingPrior`."""

    model_type = "hf_vq_copying"

    reach: int = 1


class CopyingPrior(AutoregressivePrior, PreTrainedModel):
    """A convolution around every code, that code included; at first its logits are all equal."""

    config_class = CopyingConfig
    grid_dims = 2

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, 16)
        self.mix = nn.Conv2d(16, 16, 2 * config.reach + 1, padding=config.reach)
        self.head = nn.Linear(16, config.codebook_size)
        self.post_init()

    def _init_weights(self, module):
        if module is getattr(self, "head", None):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, codes, class_labels=None, labels=None, return_loss=True, lengths=None):
        return self.run_forward(codes, labels, return_loss, lengths, class_labels=class_labels)

    def predict(self, codes, class_labels=None):
        return self.head(self.mix(self.embedding(codes).movedim(-1, 1)).movedim(1, -1).tanh())


COPIES = "CopyingPrior has logits that depend on the very codes they are of"


def copying(steps=0, **options):
    torch.manual_seed(0)
    prior = CopyingPrior(CopyingConfig(codebook_size=8, **options))
    optimizer, dataset = torch.optim.AdamW(prior.parameters(), lr=0.05), Codes(64)
    for _ in range(steps):
        prior(dataset.codes).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return prior


def arguments(folder, **options):
    defaults = {"use_cpu": True, "disable_tqdm": True, "max_steps": 3, "per_device_train_batch_size": 8}
    return PriorTrainingArguments(output_dir=str(folder), report_to=[], **{**defaults, **options})


# Networks that copy


@pytest.mark.parametrize("reach", [0, 1])
def test_a_network_that_sees_what_it_predicts_has_no_likelihood(reach, tmp_path):
    prior, codes = copying(steps=60, reach=reach), Codes(16)
    assert prior(codes.codes).loss < 0.01  # nothing of it is true: the first rows are random
    for ask in (
        lambda: prior.log_prob(codes.codes),
        lambda: evaluate_prior(prior, codes),
        lambda: prior.check_likelihood(codes.codes),
        lambda: train_prior(prior, codes, arguments(tmp_path / "out"), codes),
    ):
        with pytest.raises(ValueError, match=COPIES):
            ask()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=COPIES):
        prior.log_prob(codes.codes[:, :1, :1])
    with pytest.raises(ValueError, match=COPIES):
        prior.log_prob(codes.codes, lengths=torch.tensor([1, 4] * 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_an_untrained_copy_is_found_in_any_precision(dtype):
    prior = copying().to(dtype)
    nn.init.normal_(prior.head.weight, std=1e-3)
    with pytest.raises(ValueError, match=COPIES):
        prior.log_prob(Codes(4).codes)


@pytest.mark.parametrize("share", [0.2, 0.05, 0.02])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_small_leak_is_found_in_any_precision(dtype, share):
    """One that rounding in half precision would explain, beside logits that vary by about 1."""
    prior, codes = tiny_prior(num_classes=0).to(dtype), Codes(4).codes
    prior.log_prob(codes)
    predict = prior.predict
    prior.predict = lambda codes: predict(codes) + share * nn.functional.one_hot(codes, 8).to(prior.dtype)
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    for check in (prior.log_prob, prior.check_likelihood):
        prior.causal_state = None
        with pytest.raises(ValueError, match="PixelCNN has logits that depend"):
            check(codes)
    assert all(tensor.dtype == dtype and torch.equal(tensor, before[n]) for n, tensor in prior.state_dict().items())


def test_a_copy_that_begins_as_nothing_is_found_after_training(tmp_path):
    prior, codes = copying(), Codes(64)
    uniform = evaluate_prior(prior, codes)
    assert uniform["nats_per_code"] == pytest.approx(math.log(8))
    with pytest.raises(ValueError, match=COPIES):
        train_prior(prior, codes, arguments(tmp_path / "out", learning_rate=0.05), codes)
    assert not (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_no_family_is_accused_in_low_precision(name, dtype):
    prior, codes, conditions = FAMILIES[name]
    assert prior.to(dtype).log_prob(codes, **conditions).isfinite().all()
    assert prior.causal_state is not None


@torch.no_grad()
def test_the_check_is_made_once_for_a_state_of_the_weights_and_leaves_no_trace():
    prior, codes = tiny_prior(num_classes=0).train(), Codes(4).codes
    calls, predict = [], prior.predict
    prior.predict = lambda *inputs, **conditions: calls.append(len(inputs[0])) or predict(*inputs, **conditions)
    state = torch.get_rng_state()
    for _ in range(2):
        prior.log_prob(codes)
    assert calls == [4, 4, 4]  # the check, then twice the batch
    prior.stack.layers[0].train(False)
    modes = [module.training for module in prior.modules()]
    next(prior.parameters()).add_(0.1)
    prior.log_prob(codes[:3])
    assert calls[3:] == [4, 3]
    assert [module.training for module in prior.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    prior(codes)
    next(prior.parameters()).add_(0.1)
    prior(codes)
    assert calls[5:] == [4, 4]  # training steps do not check


@torch.no_grad()
def test_a_look_at_codes_drawn_later_is_found():
    class LooksAhead(CopyingPrior):
        def predict(self, codes, class_labels=None):
            ahead = torch.cat([codes.flatten(1)[:, 1:], codes.flatten(1)[:, :1] * 0], dim=1)
            return super().predict(ahead.view_as(codes))

    prior = LooksAhead(CopyingConfig(codebook_size=8, reach=0))
    nn.init.normal_(prior.head.weight)
    with pytest.raises(ValueError, match="or on codes drawn later"):
        prior.log_prob(Codes(2).codes)


def with_logits(prior, change):
    """The prior with a function of its logits (batch, *grid, codebook_size) behind it."""
    predict = prior.predict
    prior.predict = lambda *inputs, **conditions: change(predict(*inputs, **conditions))
    return prior


def masked(value, codes=slice(0, 1)):
    def change(logits):
        return logits.index_fill(-1, torch.arange(logits.shape[-1])[codes], value)

    return change


CONSTANTS = {
    "a mask of -1e9": masked(-1e9),
    "a mask of -inf": masked(-torch.inf),
    "a mask of the lowest number": lambda logits: masked(torch.finfo(logits.dtype).min)(logits),
    "half of the codes masked": masked(-1e9, slice(4, None)),
    "an offset of 1e6": lambda logits: logits + 1e6,
}


@pytest.mark.parametrize("constant", CONSTANTS)
def test_large_constants_do_not_hide_a_copy(constant):
    prior, codes = copying(steps=20), Codes(4).codes
    with pytest.raises(ValueError, match=COPIES):
        with_logits(prior, CONSTANTS[constant]).log_prob(codes)


@pytest.mark.parametrize("constant", list(CONSTANTS)[:4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_mask_hides_no_copy_in_other_precisions(constant, dtype):
    prior = with_logits(copying(steps=60).to(dtype), CONSTANTS[constant])
    with pytest.raises(ValueError, match=COPIES):
        prior.log_prob(Codes(4).codes)


def test_a_mask_that_follows_the_code_is_a_copy():
    prior = tiny_prior(num_classes=0)
    predict = prior.predict
    prior.predict = lambda codes: predict(codes).masked_fill(nn.functional.one_hot(codes, 8) == 0, -torch.inf)
    with pytest.raises(ValueError, match=r"PixelCNN has logits that depend.*moved by"):
        prior.log_prob(Codes(4).codes)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused_by_name(value):
    prior = with_logits(tiny_prior(num_classes=0), masked(value))
    with pytest.raises(ValueError, match="PixelCNN has logits that are NaN or infinity"):
        prior.log_prob(Codes(4).codes)


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_no_family_is_accused_beside_a_masked_code_or_at_any_step(name, dtype):
    prior, codes, conditions = FAMILIES[name]
    prior.to(dtype).check_likelihood(codes, **conditions)
    if name == "wavenet waveforms":  # parameters of a mixture, whose components take the place of codes
        return
    for constant in ("a mask of -1e9", "a mask of -inf", "an offset of 1e6"):
        if dtype != torch.float16 or constant == "a mask of -inf":
            changed = with_logits(FAMILIES[name][0].to(dtype), CONSTANTS[constant])
            changed.check_likelihood(codes, **conditions)


class SwitchedPrior(CopyingPrior):
    """Sees nothing but, where it leaks, its own code at one step, or at each."""

    leak: int | str | None = None

    def predict(self, codes, class_labels=None):
        blind = torch.zeros_like(codes).flatten(1)
        if self.leak is not None:
            steps = slice(None) if self.leak == "each" else self.leak
            blind[:, steps] = codes.flatten(1)[:, steps]
        return super().predict(blind.view_as(codes))


def switched(leak=None):
    torch.manual_seed(0)
    prior = SwitchedPrior(CopyingConfig(codebook_size=8, reach=0)).eval()
    nn.init.normal_(prior.head.weight)
    prior.leak = leak
    return prior


@pytest.mark.parametrize("leak", range(16))
def test_a_leak_at_any_step_is_found_before_training_and_evaluation(leak, tmp_path):
    with pytest.raises(ValueError, match="SwitchedPrior has logits that depend"):
        evaluate_prior(switched(leak), Codes(4))
    with pytest.raises(ValueError, match="SwitchedPrior has logits that depend"):
        train_prior(switched(leak), Codes(4), arguments(tmp_path / "out"))


def test_checks_of_a_long_order_take_turns():
    codes = torch.zeros(1, 10, 10, dtype=torch.int64)

    def found(leak):
        prior = switched(leak)
        for check in range(12):
            try:
                prior.check_likelihood(codes)
            except ValueError:
                return check
        return None

    checks = [found(leak) for leak in range(0, 100, 3)]
    assert None not in checks
    assert {0, 1} < set(checks)
    assert checks[0] == checks[-1] == 0  # where a beginning or an end is dealt with by itself


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1e-7, 1e-5, 1, 100])
def test_rounding_between_positions_is_no_leak(size, dtype):
    """As of a convolution by Fourier transforms, in float32 whatever the weights are."""

    def round_anew(logits):
        noise = torch.rand(logits.shape, dtype=torch.float32) - 0.5
        return (logits * size).float().mul(1 + noise * torch.finfo(torch.float32).eps).add(noise * 1e-7).to(dtype)

    prior = with_logits(switched().to(dtype), round_anew)
    for _ in range(5):
        prior.check_likelihood(Codes(4).codes)


@torch.no_grad()
def test_a_switch_or_a_buffer_changed_after_a_check_is_noticed():
    prior, codes = switched(), Codes(4).codes
    prior.log_prob(codes)
    prior.leak = "each"
    with pytest.raises(ValueError, match="SwitchedPrior has logits that depend"):
        prior.log_prob(codes)
    prior = tiny_prior(num_classes=0)
    prior.register_buffer("leaks", torch.zeros((), dtype=torch.bool))
    predict = prior.predict
    prior.predict = lambda codes: predict(codes) + prior.leaks * nn.functional.one_hot(codes, 8)
    prior.log_prob(codes)
    prior.leaks.fill_(True)
    with pytest.raises(ValueError, match="PixelCNN has logits that depend"):
        prior.log_prob(codes)


def test_a_copy_that_begins_as_nothing_is_found_without_an_evaluation_set(tmp_path):
    with pytest.raises(ValueError, match=COPIES):
        train_prior(copying(), Codes(64), arguments(tmp_path / "out", learning_rate=0.05))
    assert not (tmp_path / "out/model.safetensors").exists()


def test_a_copy_that_begins_as_nothing_is_found_at_the_first_evaluation(tmp_path):
    options = {"learning_rate": 0.05, "max_steps": 50, "eval_steps": 3}
    prior = copying()
    with pytest.raises(ValueError, match=COPIES):
        train_prior(prior, Codes(64), arguments(tmp_path / "out", **options), Codes(8))
    checkpoints = [path.name for path in (tmp_path / "out").glob("checkpoint-*")]
    assert checkpoints == ["checkpoint-3"]


# Offloaded weights


@pytest.mark.parametrize(("name", "where"), [("gpt", "cpu"), *((name, "disk") for name in FAMILIES)])
def test_offloaded_weights_give_the_same_outputs_log_prob_and_samples(name, where, tmp_path):
    prior, codes, conditions = FAMILIES[name]
    expected, shape = prior.log_prob(codes, **conditions), tuple(codes.shape[1:])
    with torch.no_grad():
        output = prior(codes, **conditions)
    size = {} if conditions else {"batch_size": len(codes)}

    def sample():
        return prior.sample(code_shape=shape, generator=torch.Generator().manual_seed(0), **size, **conditions)

    drawn = sample()
    if where == "cpu":
        accelerate.cpu_offload(prior, torch.device("cpu"))
    else:
        accelerate.disk_offload(prior, str(tmp_path), torch.device("cpu"))
    for _ in range(2):
        assert all(weight.is_meta for weight in prior.parameters())
        assert torch.equal(prior.log_prob(codes, **conditions), expected)
        assert torch.equal(sample(), drawn)
        with torch.no_grad():
            found = prior(codes, **conditions)
        assert torch.equal(found.logits, output.logits)
        assert torch.equal(found.loss, output.loss)


def test_evaluation_of_an_offloaded_prior_and_of_one_that_copies():
    prior = tiny_prior().eval()
    expected = evaluate_prior(prior, Codes(8))
    accelerate.cpu_offload(prior, torch.device("cpu"))
    assert evaluate_prior(prior, Codes(8)) == pytest.approx(expected)
    with pytest.raises(ValueError, match=COPIES):
        accelerate.cpu_offload(copying(steps=5), torch.device("cpu")).log_prob(Codes(4).codes)


# Labels of evaluation


class NoLikelihood(ToyMaskedPrior):
    """The toy without a likelihood."""

    likelihood = None
    log_prob = Prior.log_prob


def toy(prior_class=ToyMaskedPrior):
    torch.manual_seed(0)
    return prior_class(ToyMaskedPriorConfig(codebook_size=8, num_classes=2, code_shape=(4, 4))).eval()


def test_evaluation_says_what_its_figures_are():
    assert evaluate_prior(tiny_prior(), Codes(8))["likelihood_is_exact"] is True
    assert evaluate_prior(toy(), Codes(8))["likelihood_is_exact"] is False
    with pytest.raises(ValueError, match="NoLikelihood has likelihood=None"):
        evaluate_prior(toy(NoLikelihood), Codes(8))
    autoencoder, images = VQVAE(1, 8, 0, stage_channels=(8,), codebook_size=8, codebook_dim=4), Images(4)
    autoencoder.train()(images.samples)
    with pytest.raises(ValueError, match="NoLikelihood has likelihood=None"):
        evaluate_likelihood(autoencoder, [toy(NoLikelihood)], images)
    assert evaluate_likelihood(autoencoder, None, images)[0][0]["likelihood_is_exact"] is True
    with pytest.raises(NotImplementedError, match="NoLikelihood has no log_prob"):
        toy(NoLikelihood).log_prob(Codes(8).codes)


def test_training_reports_what_the_prior_can_say(tmp_path):
    for name, prior in (("bound", toy()), ("none", toy(NoLikelihood))):
        metrics = train_prior(prior, Codes(16), arguments(tmp_path / name), Codes(8))["metrics"]
        assert math.isfinite(metrics["eval_loss"])
        assert metrics.get("eval_likelihood_is_exact") == (False if name == "bound" else None)
        assert ("eval_nats_per_code" in metrics) == (name == "bound")


# Lengths


class UnequalCodes(Dataset):
    """The codes of `Codes`, cut off at 1 to 4 rows, with junk below."""

    codebook_size = 8

    def __init__(self, count):
        self.full, self.lengths = Codes(count), torch.arange(count) % 4 + 1

    def __len__(self):
        return len(self.full)

    def __getitem__(self, index):
        item = dict(self.full[index])
        item["codes"] = item["codes"].clone()
        item["codes"][self.lengths[index] :] = 77
        return {**item, "lengths": self.lengths[index]}


def test_accumulated_batches_of_unequal_lengths_are_one_batch(tmp_path):
    weights, losses = [], []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        prior = tiny_prior(dropout=0.0)
        options = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        options |= {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "logging_steps": 1}
        report = train_prior(prior, UnequalCodes(32), arguments(tmp_path / str(accumulation), **options))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in prior.parameters()]))
        losses.append([entry["loss"] for entry in report["history"] if "loss" in entry])
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_evaluation_counts_real_codes_only_whatever_the_batches():
    prior, codes = tiny_prior().eval(), UnequalCodes(12)
    one, many = (evaluate_prior(prior, codes, size, sample_shape=(1, 8, 8)) for size in (1, 12))
    assert one == pytest.approx(many)
    total, count, seen = 0.0, 0, []
    for item in codes:
        real = item["codes"][: item["lengths"]]
        total -= prior.log_prob(real[None], class_labels=item["class_labels"][None]).item()
        count, seen = count + real.numel(), [*seen, *real.flatten().tolist()]
    assert one["nats_per_code"] == pytest.approx(total / count, rel=1e-5)
    frequency = torch.bincount(torch.tensor(seen)).double() / count
    assert one["unigram_entropy"] == pytest.approx(torch.special.entr(frequency).sum().item())
    assert one["bits_per_dim"] == pytest.approx(total / math.log(2) / (count * 4), rel=1e-5)  # 4 pixels a code


def test_the_loss_of_evaluation_counts_real_codes_too(tmp_path):
    prior, losses = tiny_prior(dropout=0.0), []
    for batch_size in (1, 5):
        options = {"per_device_eval_batch_size": batch_size}
        trainer = PriorTrainer(prior, arguments(tmp_path, **options), Codes(8), UnequalCodes(12), None)
        losses.append(trainer.evaluate()["eval_loss"])
    expected = evaluate_prior(prior, UnequalCodes(12))["nats_per_code"]
    assert losses == pytest.approx([expected, expected], rel=1e-5)


def test_lengths_along_another_axis():
    codes = torch.arange(12).view(1, 2, 6) % 3
    codes[:, :, 4:] = 9
    likelihood = CodeLikelihood(3, sample_shape=(1, 24))
    likelihood.update(codes, torch.tensor([-8.0]), torch.tensor([4]), axis=2)
    output = likelihood.compute()
    assert output.nats_per_code == pytest.approx(1)
    assert output.bits_per_dim == pytest.approx(8 / math.log(2) / 16)
    with pytest.raises(ValueError, match=r"lengths must be \(1,\)"):
        likelihood.update(codes, torch.tensor([-8.0]), torch.tensor([4, 4]), axis=2)

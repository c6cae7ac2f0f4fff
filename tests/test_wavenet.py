"""WaveNets: causality, steps equal to the full forward, the mixture of logistics, mu-law, parity with the original."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer, TrainingArguments

from hf_vq.networks.causal import CausalConv1d
from hf_vq.networks.logistic_mixture import draw_amplitudes, mixture_log_prob
from hf_vq.networks.mu_law import mu_law_decode, mu_law_encode
from hf_vq.networks.upsampling import FeatureUpsampler
from hf_vq.networks.wavenet import WaveNetStack, dilation_cycles
from hf_vq.networks.wavenet_steps import WaveNetSteps
from hf_vq.priors import MixtureWaveNet, MixtureWaveNetConfig, WaveNet, WaveNetConfig

from .conftest import compile_whole

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"residual_channels": 8, "gate_channels": 12, "skip_channels": 10, "num_layers": 6, "global_channels": 5}
VARIANTS = {
    "plain": {},
    "three taps": {"kernel_size": 3, "num_cycles": 3, "start_code": 4},
    "one layer": {"num_layers": 1, "num_cycles": 1, "kernel_size": 4},
    "pointwise": {"kernel_size": 1},
    "global": {"num_classes": 3, "class_dropout_prob": 0.2, "num_speakers": 2, "use_global_features": True},
    "local": {"local_channels": 4},
    "upsampled": {
        "local_channels": 4,
        "upsample_scales": [3, 2],
        "upsample_context": 1,
        "num_speakers": 2,
        "num_classes": 3,
        "class_dropout_prob": 0.2,
    },
}
LENGTH = 23  # not a multiple of 6, longer than the steps whose conditions are computed together
variants = pytest.mark.parametrize("variant", VARIANTS)
both = pytest.mark.parametrize("kind", ["codes", "waveforms"])


def shake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
    return model.eval()


def make_prior(variant="plain", kind="codes", **changes):
    torch.manual_seed(0)
    options = {**SIZES, **VARIANTS[variant], "code_shape": (LENGTH,), **changes}
    if kind == "codes":
        return shake(WaveNet(WaveNetConfig(codebook_size=11, **options)))
    options.pop("start_code", None)
    options["class_dropout_prob"] = 0.0
    return shake(MixtureWaveNet(MixtureWaveNetConfig(codebook_size=17, num_mixtures=2, **options)))


def make_input(kind, batch_size=3, length=LENGTH):
    if kind == "codes":
        return torch.randint(11, (batch_size, length))
    return torch.randint(17, (batch_size, length)) / 8 - 1.0


def make_conditions(prior, batch_size=3, length=LENGTH):
    config, conditions = prior.config, {}
    if config.num_classes:
        conditions["class_labels"] = torch.arange(batch_size) % config.num_classes
    if config.num_speakers:
        conditions["speaker_labels"] = torch.arange(batch_size) % config.num_speakers
    if config.use_global_features:
        conditions["global_features"] = torch.randn(batch_size, config.global_channels)
    if config.local_channels:
        frames = length if prior.upsampler is None else prior.upsampler.num_frames(length)
        conditions["local_features"] = torch.randn(batch_size, config.local_channels, frames)
    return conditions


# The network


@variants
@both
@torch.no_grad()
def test_outputs_depend_on_no_later_sample_and_on_every_earlier_one_in_reach(variant, kind):
    prior = make_prior(variant, kind)
    inputs, conditions = make_input(kind, 1), make_conditions(prior, 1)
    logits = prior(inputs, **conditions).logits
    moved = torch.empty(LENGTH, LENGTH, dtype=torch.bool)  # (changed place, place)
    for place in range(LENGTH):
        changed = inputs.clone()
        changed[0, place] = (changed[0, place] + 5) % 11 if kind == "codes" else -changed[0, place] - 0.01
        moved[place] = (prior(changed.clamp(-1), **conditions).logits != logits).any(-1)[0]
    distance = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]
    within = (distance >= 1) & (distance <= prior.stack.receptive_field)
    if variant in ("pointwise", "one layer"):
        assert torch.equal(moved, within)
    assert not (moved & ~within).any()
    assert moved.diagonal(1).all()


@torch.no_grad()
def test_the_stack_works_alone_and_steps_equal_its_forward_at_ordinary_depth():
    torch.manual_seed(0)
    dilations = dilation_cycles(20, 2)
    assert dilations == [2**i for i in range(10)] * 2
    stack = WaveNetStack(16, 32, 16, 7, dilations, kernel_size=3, local_channels=5, global_channels=2).eval()
    assert stack.receptive_field == 1 + 2 * sum(dilations)
    inputs, local, wide = torch.randn(2, 16, 200), torch.randn(2, 5, 200), torch.randn(2, 2)
    steps = WaveNetSteps(stack, 2, local, wide)
    outputs = torch.stack([steps.step(one) for one in inputs.unbind(2)], dim=2)
    torch.testing.assert_close(outputs, stack(inputs, local, wide), **CLOSE)


@both
def test_work_per_sample_does_not_grow_with_the_length(kind):
    prior, per_step = make_prior("three taps", kind), []
    for length in (4, 16):
        with FlopCounterMode(display=False) as counter:
            prior.sample(2, (length,))
        per_step.append(counter.get_total_flops() / length)
    assert per_step[0] > 0
    assert per_step == [per_step[0]] * 2


@variants
@both
def test_every_parameter_learns(variant, kind):
    prior = make_prior(variant, kind, upsample_activation="leaky_relu").train()
    prior(make_input(kind), **make_conditions(prior)).loss.backward()
    assert [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@both
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    gradients = []
    for checkpointing in (False, True):
        prior = make_prior("upsampled", kind, dropout=0.3).train()
        if checkpointing:
            prior.gradient_checkpointing_enable()
        torch.manual_seed(1)
        prior(make_input(kind), **make_conditions(prior)).loss.backward()
        gradients.append([p.grad for p in prior.parameters()])
    torch.testing.assert_close(*gradients)


@both
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
@torch.no_grad()
def test_low_precision_is_near_float32(kind, dtype, tolerance):
    prior = make_prior("upsampled", kind)
    inputs, conditions = make_input(kind), make_conditions(prior)
    expected = prior(inputs, **conditions)
    output = prior.to(dtype)(inputs, **conditions)
    torch.testing.assert_close(output.logits.float(), expected.logits, atol=tolerance, rtol=tolerance)
    assert output.loss.dtype == prior.log_prob(inputs, **conditions).dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, atol=tolerance, rtol=tolerance)
    assert prior.sample(**conditions).shape == (3, LENGTH)


@both
def test_forward_compiles_as_one_graph(kind):
    prior = make_prior("upsampled", kind, num_layers=2).train()
    inputs, conditions = make_input(kind), make_conditions(prior)
    prior.config.class_dropout_prob = 0.0
    compiled = compile_whole(prior, "eager")  # inductor takes long
    torch.testing.assert_close(compiled(inputs, **conditions).loss, prior(inputs, **conditions).loss)


def test_features_of_frames_cover_the_samples():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 7)
    for input_conv in (True, False):
        upsampler = FeatureUpsampler(4, [3, 2], 1, input_conv, 3, activation="relu")
        assert upsampler(features).shape == (2, 4, 30)
        assert [upsampler.num_frames(length) for length in (1, 6, 7, 30)] == [3, 3, 4, 7]
    flat = FeatureUpsampler(1, [2], 0, input_conv=False)
    torch.nn.init.constant_(flat.smoothing[0].weight, 1.0)
    assert flat(torch.tensor([[[1.0, 10.0]]])).tolist() == [[[12.0, 22.0, 22.0, 21.0]]]


def test_a_causal_convolution_ends_with_the_present():
    conv = CausalConv1d(1, 1, kernel_size=3, dilation=2, bias=False)
    torch.nn.init.ones_(conv.weight)
    assert conv(2.0 ** torch.arange(6)[None, None]).tolist() == [[[1, 2, 5, 10, 21, 42]]]


# Likelihood


@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one():
    prior = make_prior()
    pairs = torch.cartesian_prod(torch.arange(11), torch.arange(11))
    torch.testing.assert_close(prior.log_prob(pairs).exp().sum(), torch.tensor(1.0))
    prior = make_prior(kind="waveforms")
    pairs = torch.cartesian_prod(*[torch.arange(17) / 8 - 1] * 2)
    log_prob = prior.log_prob(pairs)
    torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0))
    assert (log_prob <= 0).all()


@both
def test_loss_is_the_mean_of_log_prob_and_labels_only_override_the_targets(kind):
    prior = make_prior("upsampled", kind).eval()
    inputs, conditions = make_input(kind), make_conditions(prior)
    output = prior(inputs, **conditions)
    torch.testing.assert_close(output.loss, -prior.log_prob(inputs, **conditions).mean() / LENGTH)
    labels = inputs.roll(1, 1)
    labels[:, 10:] = -100
    masked = prior(inputs, labels=labels, **conditions)
    assert torch.equal(masked.logits, output.logits)
    if kind == "codes":
        expected = F.cross_entropy(output.logits[:, :10].flatten(0, 1), labels[:, :10].flatten())
    else:
        expected = -mixture_log_prob(output.logits[:, :10], labels[:, :10], 17).mean()
    torch.testing.assert_close(masked.loss, expected)
    assert prior(inputs, return_loss=False, **conditions).loss is None


def test_mixture_masses_are_exact_where_float32_differences_are_not():
    torch.manual_seed(0)
    parameters, levels = torch.randn(500, 9) * torch.tensor([1.0] * 6 + [3.0] * 3), 65536
    parameters[:, 6:] -= 4
    amplitudes = torch.randint(levels, (500,)).double() / (levels - 1) * 2 - 1
    amplitudes[:2] = torch.tensor([-1.0, 1.0])
    logits, means, log_scales = parameters.double().chunk(3, dim=1)
    scales, half = log_scales.clamp(min=-7).exp(), 1 / (levels - 1)
    upper, lower = ((amplitudes[:, None] - means + sign * half) / scales for sign in (1, -1))
    lower[0], upper[1] = -torch.inf, torch.inf
    flip = lower > 0  # the smaller tails, where differences keep their digits
    masses = torch.where(flip, (-lower).sigmoid() - (-upper).sigmoid(), upper.sigmoid() - lower.sigmoid())
    expected = (logits.softmax(1) * masses).sum(1).log()
    parameters.requires_grad_()
    log_prob = mixture_log_prob(parameters, amplitudes, levels)
    kept = expected > -500
    assert kept.sum() > 450
    torch.testing.assert_close(log_prob[kept].double(), expected[kept], atol=2e-3, rtol=1e-4)
    mixture_log_prob(parameters * 40, amplitudes, levels).sum().backward()  # far tails, huge and tiny scales
    assert parameters.grad.isfinite().all()


def test_drawn_amplitudes_follow_the_masses():
    torch.manual_seed(0)
    parameters, count = torch.randn(1, 9), 40_000
    levels = torch.arange(9) / 4 - 1.0
    expected = mixture_log_prob(parameters.expand(9, -1), levels, 9).exp()
    drawn = draw_amplitudes(parameters.expand(count, -1), torch.rand(2, count), 9)
    frequency = ((drawn + 1) * 4).round().long().bincount(minlength=9) / count
    torch.testing.assert_close(expected.sum(), torch.tensor(1.0))
    assert (frequency - expected).abs().sum() / 2 < 0.02
    likeliest = parameters[0, 3 + parameters[0, :3].argmax()].clamp(-1, 1)
    greedy = draw_amplitudes(parameters, torch.rand(2, 1), 9, temperature=0)
    assert greedy.item() == round((likeliest.item() + 1) * 4) / 4 - 1


# Sampling


@variants
@torch.no_grad()
def test_greedy_sample_is_the_argmax_of_full_logits(variant):
    prior = make_prior(variant)
    conditions = make_conditions(prior)
    start_codes = torch.tensor([3, 0, 10])
    codes = prior.sample(**conditions, start_codes=start_codes, temperature=0)
    assert torch.equal(prior(codes, **conditions, start_codes=start_codes).logits.argmax(-1), codes)


@pytest.mark.parametrize("guidance_scale", [0.0, 2.5])
@torch.no_grad()
def test_greedy_guided_sample_is_the_argmax_of_two_passes(guidance_scale):
    prior = make_prior("upsampled")
    conditions = make_conditions(prior)
    codes = prior.sample(**conditions, guidance_scale=guidance_scale, temperature=0)
    conditional = prior(codes, **conditions).logits
    unconditional = prior(codes, **{**conditions, "class_labels": torch.tensor([3, 3, 3])}).logits
    assert torch.equal((unconditional + guidance_scale * (conditional - unconditional)).argmax(-1), codes)


@both
def test_known_samples_are_kept_and_later_ones_follow_them(kind):
    prior = make_prior(kind=kind)
    known, mask = torch.full((2, LENGTH), -7), torch.zeros(2, LENGTH, dtype=torch.bool)  # -7 is never read
    known[0, :9], mask[0, :9] = torch.arange(9), True
    known[1, 12:], mask[1, 12:] = 1, True
    if kind == "codes":
        drawn = prior.sample(2, temperature=0, known_codes=known, known_mask=mask)
        assert torch.equal(prior(drawn).logits.argmax(-1)[~mask], drawn[~mask])
    else:
        known = known / 8
        drawn = prior.sample(2, temperature=0, known_values=known, known_mask=mask)
        mixtures = prior(drawn).logits.flatten(0, 1)
        expected = draw_amplitudes(mixtures, torch.zeros(2, 2 * LENGTH), 17, temperature=0).view(2, LENGTH)
        torch.testing.assert_close(drawn[~mask], expected[~mask])
    assert torch.equal(drawn[mask], known[mask])


def test_waveforms_train_with_trainer(tmp_path):
    items = [{"waveforms": wave} for wave in make_input("waveforms", 8)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, label_names=[], report_to="none", save_strategy="no", use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False, learning_rate=0.01,
    )  # fmt: skip
    trainer = Trainer(make_prior(kind="waveforms"), arguments, None, items, items)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


# mu-law


@pytest.mark.parametrize("codebook_size", [2, 24, 256, 1024])
def test_mu_law_codes_are_kept_and_amplitudes_nearly(codebook_size):
    codes = torch.arange(codebook_size)
    amplitudes = mu_law_decode(codes, codebook_size)
    assert torch.equal(mu_law_encode(amplitudes, codebook_size), codes)
    assert (amplitudes.diff() > 0).all()
    assert amplitudes[[0, -1]].tolist() == [-1, 1]
    waveform = torch.linspace(-1, 1, 1001)
    restored = mu_law_decode(mu_law_encode(waveform, codebook_size), codebook_size)
    assert (restored - waveform).abs().max() <= amplitudes.diff().max() * 0.6
    expected = math.copysign(math.log1p((codebook_size - 1) * 0.3) / math.log(codebook_size), -0.3)
    assert mu_law_encode(torch.tensor(-0.3), codebook_size) == math.floor(
        (expected + 1) / 2 * (codebook_size - 1) + 0.5
    )


# What is refused

CODES, WAVES = torch.zeros(2, LENGTH, dtype=torch.int64), torch.zeros(2, LENGTH)
FRAMES, SCALED = torch.zeros(2, 4, 6), {"upsample_scales": [2], "local_channels": 3}


@pytest.mark.parametrize(
    ("match", "variant", "kind", "call"),
    [
        ("codes must be integers", "plain", "codes", lambda p: p(WAVES)),
        (r"codes must be in \[0, 11\), got 11", "plain", "codes", lambda p: p(CODES + 11)),
        ("waveforms must be floats", "plain", "waveforms", lambda p: p(CODES)),
        (r"waveforms must be \(batch, length\)", "plain", "waveforms", lambda p: p(WAVES[0])),
        (r"waveforms must be in \[-1, 1\], got .* 2.0", "plain", "waveforms", lambda p: p(WAVES + 2)),
        (r"waveforms must be in .* nan", "plain", "waveforms", lambda p: p.log_prob(WAVES * torch.nan)),
        ("labels must be floats of the shape", "plain", "waveforms", lambda p: p(WAVES, labels=CODES)),
        ("labels must be in", "plain", "waveforms", lambda p: p(WAVES, labels=WAVES - 3)),
        ("local_features missing", "local", "codes", lambda p: p(CODES)),
        ("local_features given", "plain", "codes", lambda p: p(CODES, local_features=FRAMES)),
        (r"local_features must be \(2, 4, 23\), got", "local", "codes", lambda p: p(CODES, local_features=FRAMES)),
        ("local_features must be floats", "local", "codes", lambda p: p(CODES, local_features=FRAMES.long())),
        ("local_features must be", "local", "codes", lambda p: p.log_prob(CODES, local_features=FRAMES)),
        (
            r"local_features must be \(2, 4, 6\), got \(2, 4, 5\)",
            "upsampled",
            "codes",
            lambda p: p.sample(class_labels=[0, 1], speaker_labels=[0, 1], local_features=FRAMES[..., :5]),
        ),
        ("speaker_labels missing", "upsampled", "codes", lambda p: p(CODES, class_labels=[0, 1])),
        (
            r"speaker_labels must be in \[0, 2\), got 2",
            "upsampled",
            "codes",
            lambda p: p.sample(class_labels=[0, 1], speaker_labels=[0, 2], local_features=FRAMES),
        ),
        (r"start_codes must be \(2,\)", "plain", "codes", lambda p: p(CODES, start_codes=CODES)),
        (r"start_codes must be in \[0, 11\)", "plain", "codes", lambda p: p(CODES, start_codes=CODES[:, 0] - 1)),
        ("start_values must be floats", "plain", "waveforms", lambda p: p(WAVES, start_values=CODES[:, 0])),
        ("start_values must be in", "plain", "waveforms", lambda p: p(WAVES, start_values=WAVES[:, 0] + 2)),
        ("batch_size must be", "plain", "waveforms", lambda p: p.sample()),
        ("code_shape must be 1 sizes", "plain", "waveforms", lambda p: p.sample(2, (3, 3))),
        ("temperature must be", "plain", "waveforms", lambda p: p.sample(2, temperature=-1)),
        ("go together", "plain", "waveforms", lambda p: p.sample(2, known_values=WAVES)),
        (
            "known_mask must be torch.bool",
            "plain",
            "waveforms",
            lambda p: p.sample(2, known_values=WAVES, known_mask=CODES),
        ),
        (
            "known_values must be in",
            "plain",
            "waveforms",
            lambda p: p.sample(2, known_values=WAVES - 2, known_mask=WAVES == 0),
        ),
        ("guidance_scale=2.0 needs a null class", "local", "codes", lambda p: p.sample(
            local_features=torch.zeros(2, 4, LENGTH), guidance_scale=2.0)),
        ("waveforms must be in|mu", "plain", "codes", lambda p: mu_law_encode(WAVES + 2)),
        ("waveforms must be floats", "plain", "codes", lambda p: mu_law_encode(CODES)),
        (r"codes must be in \[0, 256\), got 256", "plain", "codes", lambda p: mu_law_decode(CODES + 256)),
        ("codebook_size must be at least 2, got 1", "plain", "codes", lambda p: mu_law_decode(CODES, 1)),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error(match, variant, kind, call):
    with pytest.raises(ValueError, match=match):
        call(make_prior(variant, kind))


@pytest.mark.parametrize(
    ("match", "config_class", "options"),
    [
        ("num_cycles must divide num_layers=6, got 4", WaveNetConfig, {"num_layers": 6, "num_cycles": 4}),
        ("num_layers must be an integer between 1 and 1024, got 0", WaveNetConfig, {"num_layers": 0}),
        ("gate_channels must be even, got 5", WaveNetConfig, {"gate_channels": 5}),
        ("kernel_size must be an integer between 1 and 256, got 0", WaveNetConfig, {"kernel_size": 0}),
        ("skip_channels must be .* between 1 and 65536, got 0", WaveNetConfig, {"skip_channels": 0}),
        ("dropout must be .* got 1.0", WaveNetConfig, {"dropout": 1.0}),
        ("local_channels must be .* between 0 and 65536, got -1", WaveNetConfig, {"local_channels": -1}),
        ("global_channels must be .* between 1 and 65536, got 0", WaveNetConfig, {"global_channels": 0}),
        ("num_speakers must be .* between 0 and 16777216, got -1", WaveNetConfig, {"num_speakers": -1}),
        ("need local_channels", WaveNetConfig, {"upsample_scales": [2]}),
        ("needs upsample_scales", WaveNetConfig, {"upsample_context": 2}),
        ("scales.* must be .* got", WaveNetConfig, {"upsample_scales": [2, 0], "local_channels": 3}),
        ("mode must be one of .* got 'x'", WaveNetConfig, {**SCALED, "upsample_mode": "x"}),
        ("activation must be one of .* got 'x'", WaveNetConfig, {**SCALED, "upsample_activation": "x"}),
        ("must be odd, got 2", WaveNetConfig, {**SCALED, "upsample_kernel_size": 2}),
        ("code_shape must be .length,., got", WaveNetConfig, {"code_shape": (4, 4)}),
        (r"start_code must be in \[0, 8\), got 8", WaveNetConfig, {"codebook_size": 8, "start_code": 8}),
        ("codebook_size must be an integer between 2 and", MixtureWaveNetConfig, {"codebook_size": 1}),
        ("num_mixtures must be .* between 1 and 65536, got 0", MixtureWaveNetConfig, {"num_mixtures": 0}),
        ("class_dropout_prob must be 0", MixtureWaveNetConfig, {"num_classes": 2, "class_dropout_prob": 0.1}),
    ],
)  # fmt: skip
def test_bad_config_is_a_clear_error(match, config_class, options):
    with pytest.raises(ValueError, match=match):
        config_class(**options)

"""Training on signals: terms of mels and spectra, with and without a discriminator, weighed by hand or balanced."""

import pytest
import torch
import torch.nn.functional as F

from hf_vq.data.padding import SampleCollator
from hf_vq.losses import CombinedDiscriminator, MelLoss, SpectralLoss
from hf_vq.training.autoencoder import make_task, train_autoencoder
from hf_vq.training.discriminators import load_discriminator

from .resume_runs import CODEC, signal_codec
from .test_tasks import arguments, entries
from .tiny_codecs import SignalCodec, Waves
from .tiny_models import tiny_autoencoder

SPECTRA = {"spectral_weight": 0.5, "spectral_config": {"n_ffts": [16], "hop_lengths": None, "window_lengths": None}}
BY_HAND = {**{name: value for name, value in CODEC.items() if "balancer" not in name}, **SPECTRA}


def train(folder, **options):
    torch.manual_seed(0)
    return train_autoencoder(signal_codec(), Waves(SignalCodec, 64), arguments(folder, **options))


def task_of(folder, **options):
    return make_task(signal_codec(), arguments(folder, adversarial_weight=1.0, **options))


def step_of(options, folder, step=4):
    """A task in one of its steps, a padded batch, and what the autoencoder makes of it."""
    torch.manual_seed(0)
    model, waves = signal_codec(), Waves(SignalCodec, 8, variable_length=True)
    task = make_task(model, arguments(folder, **options))
    task.make_turns(10)
    batch = SampleCollator([4])([waves[index] for index in range(8)])
    model.initialize_codebook(batch["sample"], batch["padding_mask"])
    model.set_codebook_updates("off")
    task.step, task.reconstructions = step, []
    return task, batch, model(batch["sample"], batch["padding_mask"])


def terms_of(task, batch, sample):
    """Every term of a task with all of them, in one graph."""
    mask = batch["padding_mask"]
    sample, target = sample * mask[:, None], batch["sample"]
    (real,), (fake,) = (task.discriminator(each, return_features=True) for each in (target, sample))
    pairs = [(one, other) for ones, others in zip(real.features, fake.features, strict=True)
             for one, other in zip(ones, others, strict=True)]  # fmt: skip
    return {
        "reconstruction": F.mse_loss(sample, target, reduction="sum") / (2 * mask.sum()),
        "mel": MelLoss(8000, (16, 8), 4)(sample, target, mask).mean(),
        "spectral": SpectralLoss((16,), None, None)(sample, target, mask).mean(),
        "adversarial": sum((1 - logits).square().mean() for logits in fake.logits) / 3,
        "feature_matching": sum((one - other).abs().mean() / one.abs().mean() for one, other in pairs) / len(pairs),
    }


WEIGHTS = {"mel": 2.0, "spectral": 0.5, "adversarial": 3.0 * 2 / 5, "feature_matching": 3.0 * 2 / 5}  # step 2 of 5


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradient_of_a_step_is_that_of_the_whole_formula(adaptive, tmp_path):
    task, batch, output = step_of({**BY_HAND, "adaptive_weight": adaptive}, tmp_path)
    loss, logged = task.loss(batch, output)
    terms = terms_of(task, batch, output.sample)
    expected = output.loss + sum(WEIGHTS[name] * terms[name] for name in ("mel", "spectral"))
    factor = 1.0
    if adaptive:
        layer = task.autoencoder.last_layer
        own, other = (torch.autograd.grad(each, layer, retain_graph=True)[0].norm() for each in
                      (expected, terms["adversarial"]))  # fmt: skip
        factor = own / (other + 1e-4)
    expected = expected + WEIGHTS["adversarial"] * factor * terms["adversarial"]
    expected = expected + WEIGHTS["feature_matching"] * terms["feature_matching"]
    torch.testing.assert_close(loss, expected)
    for name, term in terms.items():
        torch.testing.assert_close(logged[f"loss_{name}"], term)
    parameters = list(task.autoencoder.parameters())
    found, wanted = (torch.autograd.grad(each, parameters, retain_graph=True) for each in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_a_balanced_step_weighs_the_gradient_of_each_item_of_each_term(tmp_path):
    task, batch, output = step_of({**CODEC, **SPECTRA, "balancer_norm": 5.0}, tmp_path)
    loss, logged = task.loss(batch, output)
    leaf = output.sample.detach().requires_grad_()
    values = terms_of(task, batch, leaf)
    torch.testing.assert_close(loss, output.loss + sum(weight * values[name] for name, weight in WEIGHTS.items()))
    gradients = {name: torch.autograd.grad(term, leaf, retain_graph=True)[0] for name, term in
                 values.items()}  # fmt: skip
    weights = {"reconstruction": 1.0, **WEIGHTS}
    expected = 0
    for name, gradient in gradients.items():
        norm = (8 * gradient).flatten(1).norm(dim=1).mean()
        scale = 5 * weights[name] / sum(weights.values()) / norm
        torch.testing.assert_close(logged[f"weight_{name}"], scale, rtol=1e-4, atol=0)
        expected = expected + scale * gradient
    parameters = list(task.autoencoder.parameters())
    (found,) = torch.autograd.grad(loss - output.quantizer_loss, [output.sample], retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert all(gradient is not None for gradient in torch.autograd.grad(loss, parameters, allow_unused=True))


def test_terms_of_signals_need_no_discriminator(tmp_path):
    report = train(tmp_path / "plain", mel_weight=1.0, mel_config=CODEC["mel_config"], **SPECTRA)
    first, *_, last = entries(report)
    assert last["loss_mel"] < first["loss_mel"]
    assert first["loss"] == pytest.approx(
        first["reconstruction_loss"] + first["quantizer_loss"] + first["loss_mel"] + 0.5 * first["loss_spectral"]
    )
    (first, *_) = entries(train(tmp_path / "balanced", loss_balancer=True, **SPECTRA))
    assert {"weight_reconstruction", "weight_spectral"} <= first.keys()


def test_a_balanced_adversarial_training_resumes_exactly(tmp_path):
    options = {**CODEC, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
    whole = train(tmp_path / "whole", **options)
    train(tmp_path / "parts", max_steps=4, **options)
    resumed = train(tmp_path / "parts", resume_from_checkpoint="true", **options)
    for one, other in zip(entries(whole), entries(resumed), strict=True):
        assert one == other
    last = entries(whole)[-1]
    assert {"discriminator_loss", "discriminator_real", "loss_feature_matching", "weight_adversarial"} <= last.keys()
    assert not any("nan" in str(value) for value in last.values())
    assert isinstance(load_discriminator(str(tmp_path / "whole")), CombinedDiscriminator)
    assert task_of(tmp_path / "more", discriminator_init=str(tmp_path / "whole")).discriminator.config.in_channels == 2
    with pytest.raises(ValueError, match="holds a CombinedDiscriminator, not discriminator_type='multi_band'"):
        task_of(tmp_path / "more", discriminator_init=str(tmp_path / "whole"), discriminator_type="multi_band")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (signal_codec, {"mel_weight": 1.0}, "mel_config must have the autoencoder's sampling_rate, got None"),
        (
            signal_codec,
            {"mel_weight": 1.0, "mel_config": {"sampling_rate": 8000, "mels": 3}},
            "mel_config: MelLoss has no option 'mels'; did you mean",
        ),
        (tiny_autoencoder, {"mel_weight": 1.0}, r"mel_weight=1\.0 is for samples with one axis of space"),
        (signal_codec, {"perceptual": "random"}, "perceptual='random' is for samples with two axes of space"),
        (
            signal_codec,
            {"adversarial_weight": 1.0, "discriminator_type": "patch"},
            "discriminator_type='patch' is for samples with two axes of space",
        ),
        (
            signal_codec,
            {"adversarial_weight": 1.0, "discriminator_config": {"num_layers": 3}},
            "discriminator_config: MultiScaleSTFTDiscriminator has no option 'num_layers'",
        ),
    ],
)
def test_terms_that_do_not_fit_the_samples_are_refused(model, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_task(model(), arguments(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_balancer": True}, "loss_balancer=True balances nothing without perceptual"),
        ({**CODEC, "adaptive_weight": True}, "loss_balancer=True and adaptive_weight=True exclude each other"),
        ({"mel_config": {"num_mels": 3}}, r"mel_config=.* is given for nothing beside mel_weight=0\.0"),
        ({"balancer_norm": 2.0}, r"balancer_norm=2\.0 is given for nothing beside loss_balancer=False"),
        ({"feature_matching_weight": 1.0}, "feature_matching_weight=1.0 is given for nothing beside adversarial"),
        ({"mel_weight": 1.0, "mel_config": "here"}, "mel_config='here' must be a mapping"),
        ({"adversarial_weight": 1.0, "discriminator_type": "multi"}, "discriminator_type must be one of"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)

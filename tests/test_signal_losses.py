"""Losses of signals: mels against a NumPy oracle, padding, features, and the balancer's one property."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from hf_vq.losses import Balancer, FeatureMatchingLoss, MelLoss, SpectralLoss


def signals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(0.3).clamp(-1, 1)


def numpy_mels(signal, length, count, rate, **options):
    """Mels (frames, mels) of a signal (time,), transform by transform."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    padded = np.pad(signal, length // 2, mode="reflect")
    frames = [padded[at : at + length] * window for at in range(0, len(signal) + 1, length // 4)]
    return np.abs(np.fft.rfft(frames)) @ mel_filter_bank(length // 2 + 1, count, 0, rate / 2, rate, **options)


def test_the_mel_loss_is_its_formula_with_both_kinds_of_filters():
    sample, target = signals(2, 2, 300), signals(2, 2, 300, seed=1)
    dac = MelLoss(8000, (64, 32), (12, 5))
    encodec = MelLoss(
        8000, (64, 32), 8, mel_scale="htk", normalize_filters=False, normalize_windows=True,
        log_weight=0.0, linear_weight=2.0, square_weight=3.0,
    )  # fmt: skip
    for one, other, by_dac, by_encodec in zip(
        sample.double().numpy(), target.double().numpy(), dac(sample, target), encodec(sample, target), strict=True
    ):
        logs, others = [], []
        for length, count in ((64, 12), (32, 5)):
            pair = [[numpy_mels(each, length, count, 8000, norm="slaney", mel_scale="slaney") for each in signal]
                    for signal in (one, other)]  # fmt: skip
            difference = np.diff(np.log10(np.maximum(pair, 1e-5)), axis=0)
            logs.append(np.abs(difference).mean())
            unit = np.sqrt(length * 3 / 8)  # root of the summed squares of Hann's window
            pair = np.array([[numpy_mels(each, length, 8, 8000) / unit for each in signal] for signal in (one, other)])
            squares = np.diff(np.log10(np.maximum(pair, 1e-5)), axis=0) ** 2
            others.append(2 * np.abs(np.diff(pair, axis=0)).mean() + 3 * squares.mean())
        assert by_dac.item() == pytest.approx(np.mean(logs), rel=1e-5)
        assert by_encodec.item() == pytest.approx(np.mean(others), rel=1e-5)


@pytest.mark.parametrize(
    "loss", [MelLoss(8000), MelLoss(8000, linear_weight=1.0, square_weight=1.0), SpectralLoss()], ids=type
)
def test_padding_changes_nothing_and_silence_and_short_signals_have_gradients(loss):
    """Neither does what stands in it, nor whether a signal is shorter than half of the longest window."""
    sample, target = signals(3, 1, 1500), signals(3, 1, 1500, seed=1)
    lengths = (1500, 1100, 70)
    mask = torch.arange(1500) < torch.tensor(lengths)[:, None]
    alone = [loss(*(each[index : index + 1, :, :length] for each in (sample, target))) for index, length in
             enumerate(lengths)]  # fmt: skip
    sample.requires_grad_()
    found = loss(sample, target, mask)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), sample)
    assert gradient[~mask[:, None]].abs().max() == 0
    assert gradient[2].abs().max() > 0
    for wanted in (torch.zeros(1, 1, 64), target[:1, :, :64]):
        silence = torch.zeros(1, 1, 64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(silence, wanted).sum(), silence)
        assert torch.isfinite(gradient).all()
    with torch.autocast("cpu", torch.bfloat16):  # rounds no spectrum
        torch.testing.assert_close(loss(sample, target, mask), found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_mels": (5, 6)}, r"num_mels must be one, or one for each of window_lengths .* got \(5, 6\)"),
        ({"highest": 5000.0}, r"lowest=0\.0 and highest=5000\.0 must rise, up to half of sampling_rate=8000"),
        ({"mel_scale": "bark"}, "mel_scale must be one of"),
        ({"log_weight": 0.0}, r"log_weight=0\.0, linear_weight and square_weight must not all be 0"),
    ],
)
def test_mels_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MelLoss(8000, **options)


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"padding_mask must be bool of shape \(1, 64\), got torch.bool of shape"):
        MelLoss(8000)(torch.zeros(1, 1, 64), torch.zeros(1, 1, 64), torch.ones(1, 63, dtype=torch.bool))


def test_feature_matching_is_its_formula_and_moves_reconstructions_alone():
    real = [[signals(2, 3, seed=1), signals(2, 5, seed=2)], [signals(2, 4, seed=3)]]
    fake = [[signals(2, 3, seed=4), signals(2, 5, seed=5)], [signals(2, 4, seed=6)]]
    pairs = [
        (one, other) for ones, others in zip(real, fake, strict=True) for one, other in zip(ones, others, strict=True)
    ]
    for one, other in pairs:
        one.requires_grad_()
        other.requires_grad_()
    distances = [(one - other).abs().mean() for one, other in pairs]
    relative = [distance / one.abs().mean() for distance, (one, _) in zip(distances, pairs, strict=True)]
    for loss, expected in ((FeatureMatchingLoss(), relative), (FeatureMatchingLoss(relative=False), distances)):
        found = loss(real, fake)
        torch.testing.assert_close(found, torch.stack(expected).mean())
        found.backward()
        assert loss(real, real) == 0
    assert all(one.grad is None and other.grad.abs().sum() > 0 for one, other in pairs)
    with pytest.raises(ValueError, match="as many features, at least 1; got 3 and 2"):
        FeatureMatchingLoss()(real, fake[:1])


def gradients_of(output, scale=1.0):
    """Of two terms that are means over a batch, the second `scale` times as large."""
    terms = {"near": output.square().mean(), "far": scale * 100 * (output - 1).abs().mean()}
    return {name: torch.autograd.grad(term, output, retain_graph=True)[0] for name, term in terms.items()}


def test_balanced_gradients_go_by_the_weights_whatever_the_scales_of_the_losses():
    output, weights = signals(4, 1, 50).requires_grad_(), {"near": 1.0, "far": 3.0}
    for scale in (1e-4, 1e3):
        gradients, balancer = gradients_of(output, scale), Balancer(["near", "far", "later"], total_norm=2.0)
        scales = balancer(gradients, weights)
        for name, norm in (("near", 0.5), ("far", 1.5)):
            of_items = (4 * scales[name] * gradients[name]).flatten(1).norm(dim=1)  # 4: of the items' own losses
            assert of_items.mean().item() == pytest.approx(norm, rel=1e-5)
    with pytest.raises(ValueError, match="same terms out of near, far, later, got near, far and near"):
        balancer(gradients, {"near": 1.0})


def test_the_balancers_averages_are_of_the_steps_that_were_taken():
    balancer, norms = Balancer(["near"], decay=0.5), []
    for seed in range(3):
        gradients = {"near": gradients_of(signals(4, 1, 50, seed=seed).requires_grad_())["near"]}
        norms.append(4 * gradients["near"].flatten(1).norm(dim=1).mean())
        if seed == 1:  # fails after this
            balancer(gradients, {"near": 2.0})
            balancer.forget()
        else:
            scale = balancer(gradients, {"near": 2.0})["near"]
            balancer.update()
    expected = (0.5 * norms[0] + norms[2]) / 1.5
    assert scale.item() == pytest.approx(1 / expected.item(), rel=1e-5)
    again = Balancer(["near"], decay=0.5)
    again.load_state_dict(balancer.state_dict())
    assert again(gradients, {"near": 2.0}) == balancer(gradients, {"near": 2.0})

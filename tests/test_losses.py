"""Perceptual and spectral losses against their formulas, written anew in NumPy, in values and in gradients."""

import hashlib

import numpy as np
import pytest
import torch

from hf_vq.features import load_perceptual_loss
from hf_vq.losses.perceptual import LPIPS, FeatureDistance, load_heads
from hf_vq.losses.spectral import SpectralLoss
from hf_vq.networks.convolutional_features import AlexNetFeatures, RandomFeatures


def images(*shape):
    return (torch.rand(*shape) * 2 - 1).double()


def slope(loss, sample, target, direction, step=1e-7):
    """How the sum of a loss changes along a direction, by finite differences and by autograd."""
    with torch.no_grad():
        ends = [loss(sample + side * step * direction, target).sum() for side in (1, -1)]
    sample = sample.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(sample, target).sum(), sample)
    return ((ends[0] - ends[1]) / (2 * step)).item(), (gradient * direction).sum().item()


def distance_of_layers(ones, others, weights):
    """Of each layer and image, the weighted squares of unit vectors' differences, which both losses sum or average."""
    layers = []
    for one, other, weight in zip(ones, others, weights, strict=True):
        one, other = one.numpy(), other.numpy()
        one = one / (np.sqrt((one**2).sum(axis=1, keepdims=True)) + 1e-10)
        other = other / (np.sqrt((other**2).sum(axis=1, keepdims=True)) + 1e-10)
        squares = (one - other) ** 2 * np.broadcast_to(weight, one.shape[1:2])[None, :, None, None]
        layers.append([image.sum() / image[0].size for image in squares])
    return np.array(layers)  # (layers, batch)


def test_lpips_is_its_formula_with_the_published_heads():
    features, heads = AlexNetFeatures().double(), load_heads("alex")
    loss, sample = LPIPS(features, heads).double(), images(2, 3, 48, 40)
    target = sample.roll(3, dims=3)
    expected = distance_of_layers(features(sample), features(target), [head.numpy() for head in heads]).sum(axis=0)
    np.testing.assert_allclose(loss(sample, target), expected, rtol=1e-12)
    assert [len(head) for head in heads] == [64, 192, 384, 256, 256]
    assert loss(sample, sample).abs().max() == 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_a_distance_of_features_is_the_mean_over_layers():
    features = RandomFeatures().double()
    sample = images(2, 3, 24, 16)
    target = sample.flip(3)
    expected = distance_of_layers(features(sample), features(target), [1.0] * 5).mean(axis=0)
    np.testing.assert_allclose(FeatureDistance(features)(sample, target), expected, rtol=1e-12)


@pytest.mark.parametrize("calibrated", [True, False])
def test_gradients_of_perceptual_losses_are_their_slopes(calibrated):
    features = AlexNetFeatures().double() if calibrated else RandomFeatures().double()
    loss = LPIPS(features, load_heads("alex")).double() if calibrated else FeatureDistance(features)
    sample, target = images(1, 3, 32, 32), images(1, 3, 32, 32)
    expected, found = slope(loss, sample, target, images(1, 3, 32, 32))
    assert found == pytest.approx(expected, rel=1e-4)
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    loss.float()(black, black.detach() + 0.5).backward()
    assert torch.isfinite(black.grad).all()


def test_half_precision_counts_in_float32():
    loss = FeatureDistance(lambda sample: [sample])
    sample, target = (images(2, 3, 4, 4).bfloat16() for _ in range(2))
    torch.testing.assert_close(loss(sample, target), loss(sample.float(), target.float()), rtol=0, atol=0)
    calibrated = LPIPS(lambda sample: [sample], [torch.rand(3)])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = calibrated(sample, target)
    torch.testing.assert_close(rounded, calibrated(sample.float(), target.float()), rtol=0, atol=0)


def test_what_a_perceptual_loss_refuses(tmp_path):
    loss = FeatureDistance(RandomFeatures())
    with pytest.raises(ValueError, match=r"shape of sample, \(1, 3, 16, 16\); got \(1, 3, 16, 32\)"):
        loss(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match=r"heads\[0\] must be .* not below 0; got shape \(16,\), from -1 to -1"):
        LPIPS(RandomFeatures(), [-torch.ones(16)])
    with pytest.raises(ValueError, match=r"heads\[0\] is of 64 channels, and the network has 16"):
        LPIPS(RandomFeatures(), load_heads("vgg"))(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"network must be one of \['alex', 'vgg'\], got 'squeeze'"):
        load_heads("squeeze")
    path = tmp_path / "heads.pth"
    heads = {f"lin{layer}.model.1.weight": torch.full((1, 2, 1, 1), layer) for layer in range(5)}
    torch.save(heads, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"sha256 {digest}, not df73285e"):
        load_heads("alex", str(path))
    assert [head.tolist() for head in load_heads("alex", f"{path}@{digest}")] == [[layer] * 2 for layer in range(5)]


def test_networks_that_people_judged_have_heads_and_others_have_none(tmp_path):
    assert type(load_perceptual_loss("random")) is FeatureDistance
    path = tmp_path / "alexnet.pth"
    torch.save(AlexNetFeatures().state_dict(), path)
    loss = load_perceptual_loss(f"{path}@{hashlib.sha256(path.read_bytes()).hexdigest()}")
    assert type(loss) is LPIPS
    assert loss(torch.zeros(2, 1, 32, 32), torch.ones(2, 1, 32, 32)).shape == (2,)


def spectrogram(signal, n_fft, hop, length):
    """Magnitudes of a signal (time,) by a transform of every frame, (frames, frequencies)."""
    window = np.zeros(n_fft)
    start = (n_fft - length) // 2
    window[start : start + length] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    padded = np.pad(signal, n_fft // 2, mode="reflect")
    frames = [padded[at : at + n_fft] * window for at in range(0, len(signal) + 1, hop)]
    return np.maximum(np.abs(np.fft.rfft(frames)), 1e-4)


def test_the_spectral_loss_is_its_formula():
    loss = SpectralLoss(n_ffts=(64, 32), hop_lengths=(10, 8), window_lengths=(60, 32)).double()
    for index, length in enumerate((60, 32)):  # as they are in float32 otherwise
        setattr(loss, f"window_{index}", torch.hann_window(length, dtype=torch.float64))
    sample, target = images(2, 2, 150), images(2, 2, 150)
    expected = []
    for own, wanted in zip(sample.numpy(), target.numpy(), strict=True):
        terms = []
        for resolution in ((64, 10, 60), (32, 8, 32)):
            ones, others = (np.stack([spectrogram(each, *resolution) for each in one]) for one in (own, wanted))
            convergence = np.sqrt(((others - ones) ** 2).sum()) / np.sqrt((others**2).sum())
            terms.append(convergence + np.abs(np.log(others) - np.log(ones)).mean())
        expected.append(np.mean(terms))
    np.testing.assert_allclose(loss(sample, target), expected, rtol=1e-10)
    slopes = slope(loss, sample, target, images(2, 2, 150))
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-5)


def test_silence_has_finite_gradients():
    loss, noise = SpectralLoss(), torch.randn(1, 1, 2048)
    for target in (torch.zeros_like(noise), noise):
        silence = torch.zeros_like(noise).requires_grad_()
        value = loss(silence, target)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(silence.grad).all()
    assert loss(noise, noise).item() == 0
    assert loss(0.5 * noise, noise).item() == pytest.approx(0.5 + np.log(2), rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_ffts": (64, 32)}, "one entry for each resolution"),
        ({"n_ffts": (64,), "hop_lengths": (0,), "window_lengths": None}, r"hop_lengths must be ints .* got \(0,\)"),
        ({"n_ffts": (64,), "hop_lengths": None, "window_lengths": (65,)}, r"at most n_ffts, \(64,\); got \(65,\)"),
        ({"floor": 0.0}, "floor must be above 0 and finite, got 0.0"),
    ],
)
def test_resolutions_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpectralLoss(**options)


def test_signals_that_do_not_fit_are_refused():
    loss = SpectralLoss(n_ffts=(64,), hop_lengths=None, window_lengths=None)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 64\) and \(1, 64\)"):
        loss(torch.zeros(1, 64), torch.zeros(1, 64))

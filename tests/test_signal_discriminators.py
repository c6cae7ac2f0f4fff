"""Discriminators of signals: the logits of the originals, signals of any length, and what is saved."""

import math

import pytest
import torch
from torch import nn

from hf_vq import (
    CombinedDiscriminator,
    MultiBandDiscriminator,
    MultiPeriodDiscriminator,
    MultiScaleSTFTDiscriminator,
    PatchDiscriminator,
)
from hf_vq.losses import DISCRIMINATORS

TINY = {
    "patch": {"hidden_channels": 4, "num_layers": 1},
    "multi_scale_stft": {"hidden_channels": 2, "window_lengths": [64, 32]},
    "multi_period": {"hidden_channels": 1, "periods": [2, 3]},
    "multi_band": {"hidden_channels": 2, "window_lengths": [64], "bands": [[0.0, 0.5], [0.5, 1.0]]},
    "combined": {"parts": {"multi_period": {"hidden_channels": 1, "periods": [3]}, "multi_scale_stft": None}},
}
BANDS = [[0.0, 0.2], [0.2, 1.0]]


def with_known_weights(discriminator):
    """Every convolution has weights that a formula gives."""
    convolutions = [module for module in discriminator.modules() if isinstance(module, nn.Conv2d)]
    for index, layer in enumerate(convolutions):
        shape = layer.weight.shape
        values = (torch.arange(math.prod(shape), dtype=torch.float64) * 0.37 + index).sin().view(shape)
        with torch.no_grad():
            layer.weight = (values / math.sqrt(math.prod(shape[1:])) * 2).float()
            layer.bias.copy_((torch.arange(len(layer.bias)) + index).cos() / 10)
    return discriminator


def known_signal(channels, length):
    places = torch.arange(channels * length, dtype=torch.float64)
    return ((places * 0.11).sin() * (places * 0.017).cos()).float().view(1, channels, length)


@pytest.mark.parametrize(
    ("discriminator", "sample", "expected"),
    [  # shape, sum and sum of squares of each original's logits, of the same weights and signal
        (
            MultiScaleSTFTDiscriminator(2, 2, [64, 32]),  # encodec's `MultiScaleSTFTDiscriminator`
            known_signal(2, 150),
            [
                ((6, 5), -0.3635764210484922, 0.08241233753674372),
                ((15, 3), -0.03928281692788005, 0.012416755099379447),
            ],
        ),
        (
            MultiPeriodDiscriminator(periods=[3]),  # HiFi-GAN's `DiscriminatorP`
            known_signal(1, 100),
            [((1, 3), 0.07469619251787663, 0.0018598404490346339)],
        ),
        (
            MultiBandDiscriminator(window_lengths=[64], bands=BANDS),  # DAC's `MRD`
            known_signal(1, 150),
            [((10, 5), -4.122803404927254, 0.34086625192866704)],
        ),
    ],
    ids=["encodec", "hifi_gan", "dac"],
)
def test_logits_are_those_of_the_originals(discriminator, sample, expected):
    with torch.no_grad():
        (logits,) = with_known_weights(discriminator)(sample)
    assert [tuple(each.shape[2:]) for each in logits] == [shape for shape, _, _ in expected]
    for found, (_, total, squares) in zip(logits, expected, strict=True):
        assert found.double().sum().item() == pytest.approx(total, abs=1e-5)
        assert found.double().square().sum().item() == pytest.approx(squares, rel=1e-5)


def test_each_discriminator_judges_two_batches_alike_and_comes_back_from_its_folder(tmp_path):
    """Of mono and of stereo, of odd lengths and of signals shorter than all windows."""
    for name, discriminator_class in DISCRIMINATORS.items():
        signal = discriminator_class.space_dims == 1
        for channels, space in ((1, (301,)), (2, (17,))) if signal else ((1, (24, 24)),):
            discriminator = discriminator_class(channels, **TINY[name])
            one, other = torch.randn(2, 3, channels, *space).unbind()
            judged = discriminator(one, other, return_features=True)
            for batch, judgement in zip((one, other), judged, strict=True):
                (alone,) = discriminator(batch, return_features=True)
                torch.testing.assert_close(judgement, alone, msg=name)
                assert len(judgement.logits) == len(judgement.features)
                assert {len(each) for each in judgement.logits} == {3}
                assert all(layers for layers in judgement.features)
        discriminator.save_pretrained(tmp_path / name)
        again = discriminator_class.from_pretrained(tmp_path / name)
        torch.testing.assert_close(again(one), discriminator(one))
    with pytest.raises(ValueError, match="holds a CombinedDiscriminator, not a MultiPeriodDiscriminator"):
        MultiPeriodDiscriminator.from_pretrained(tmp_path / "combined")


def test_a_combination_judges_levelled_signals_by_all_parts():
    combined = CombinedDiscriminator(1, TINY["combined"]["parts"])
    sample = known_signal(1, 90)
    (levelled,) = combined(3 * sample + 0.5)
    torch.testing.assert_close(levelled, combined(sample)[0], rtol=1e-4, atol=1e-5)
    centred = sample - sample.mean()
    parts = [part(0.8 * centred / centred.abs().max())[0] for part in combined.judges.values()]
    torch.testing.assert_close(levelled, (*parts[0], *parts[1]), rtol=1e-4, atol=1e-5)
    names = [name.split(".") for name, _ in CombinedDiscriminator().named_modules()]
    assert {name[1] for name in names if len(name) > 1} == {"multi_period", "multi_band"}  # DAC's


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CombinedDiscriminator(1, {"patch": {}}), "parts: 'patch' must be one of multi_scale_stft"),
        (lambda: CombinedDiscriminator(1, {}), "must name at least one of"),
        (
            lambda: CombinedDiscriminator(1, {"multi_period": {"period": [2]}}),
            "MultiPeriodDiscriminator has no option 'period'; did you mean 'periods'",
        ),
        (lambda: MultiBandDiscriminator(bands=[[0.5, 0.5]]), "no frequency at window_lengths 2048"),
        (lambda: MultiScaleSTFTDiscriminator(window_lengths=[]), "window_lengths must be a sequence of at least one"),
        (lambda: MultiPeriodDiscriminator()(torch.zeros(1, 2, 9)), r"must be \(batch, 1, time\), got \(1, 2, 9\)"),
        (lambda: PatchDiscriminator()(torch.zeros(1, 3, 9, 9)), "at least 24 high and wide"),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()

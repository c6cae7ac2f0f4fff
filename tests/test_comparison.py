"""Figures are shown side by side only where all that they depend on is alike."""

import copy

import pytest

from hf_vq.metrics.comparison import compare_evaluations

EVALUATION = {
    "model": "one",
    "protocol": {
        "data": "digits",
        "split": "validation",
        "resize": "crop",
        "num_images": 10,
        "precision": "float32",
        "metrics": {
            "psnr": {"implementation": "hf_vq"},
            "rfid": {"implementation": "torchmetrics", "extractor": {"sha256": "aa", "source": "here"}},
            "fid": {"implementation": "torchmetrics", "extractor": {"sha256": "aa", "source": "here"}},
        },
        "samples": {"seed": 0},
    },
    "autoencoder": {"psnr": 20.0, "rfid": 3.0, "usage": None, "not_defined": {"usage": "why"}, "num_samples": 10},
    "samples": {"fid": 5.0, "num_samples": 10},
    "likelihood": {"bits_per_dim": 4.0, "protocol": {"decoder_scale_fitted_on": "train"}},
}
EVERY = {"autoencoder.psnr", "autoencoder.rfid", "autoencoder.usage", "samples.fid", "likelihood.bits_per_dim"}


def compared(*changed, names=None):
    """Compare with an evaluation in which the value at a path of keys is another."""
    other = copy.deepcopy(EVALUATION) | {"model": "other"}
    place = other
    for key in changed[:-2]:
        place = place[key]
    if changed:
        place[changed[-2]] = changed[-1]
    return compare_evaluations({"a.json": EVALUATION, "b.json": other}, names)


def test_like_figures_stand_side_by_side():
    assert set(compared().rows) == EVERY
    found = compared("autoencoder", "psnr", 21.0)
    assert found.rows["autoencoder.psnr"] == [20.0, 21.0]
    assert not found.refused
    assert set(compared("protocol", "metrics", "rfid", "extractor", "source", "there").rows) == EVERY


@pytest.mark.parametrize(
    ("changed", "refused", "words"),
    [
        (("metrics", "rfid", "extractor", "sha256", "bb"), {"autoencoder.rfid"},
         "metrics.rfid.extractor.sha256 is 'aa' in a.json, 'bb' in b.json"),
        (("metrics", "psnr", "implementation", "skimage"), {"autoencoder.psnr"},
         "metrics.psnr.implementation is 'hf_vq' in a.json, 'skimage' in b.json"),
        (("samples", {"seed": 0, "num_samples": 9}), {"samples.fid"},
         "samples.num_samples is 'not told' in a.json, 9 in b.json"),
        (("split", "test"), EVERY - {"likelihood.bits_per_dim"}, "split is 'validation' in a.json, 'test' in b.json"),
        (("resize", "pad"), EVERY - {"likelihood.bits_per_dim"}, "resize is 'crop' in a.json, 'pad' in b.json"),
    ],
)  # fmt: skip
def test_what_was_measured_otherwise_is_refused_and_the_rest_compares(changed, refused, words):
    found = compared("protocol", *changed)
    assert found.rows.keys() == EVERY - refused
    assert found.refused.keys() == refused
    for name, reason in found.refused.items():
        assert reason == f"{name} does not compare: {words}"
        with pytest.raises(ValueError, match="does not compare"):
            compared("protocol", *changed, names=[name.partition(".")[2]])
    kept = sorted(EVERY - refused)[0]
    assert list(compared("protocol", *changed, names=[kept]).rows) == [kept]


def test_what_cannot_be_compared_is_named():
    with pytest.raises(ValueError, match=r"figures: ssim is not in a.json, b.json; there are autoencoder.psnr"):
        compared(names=["ssim"])
    with pytest.raises(ValueError, match=r"figures: lpips is not in a.json; there are"):
        compared("autoencoder", "lpips", 0.5, names=["lpips"])
    assert compared("autoencoder", "lpips", 0.5).missing == ["autoencoder.lpips"]
    with pytest.raises(ValueError, match=r"b.json has no protocol"):
        compared("protocol", None)
    with pytest.raises(ValueError, match=r"two or more, got a.json"):
        compare_evaluations({"a.json": EVALUATION})
    plain = {key: EVALUATION[key] for key in ("protocol", "autoencoder")}
    other = {**plain, "protocol": {**EVALUATION["protocol"], "data": "mnist"}}
    with pytest.raises(ValueError, match=r"data is 'digits' in a.json, 'mnist' in b.json"):
        compare_evaluations({"a.json": plain, "b.json": other})

"""Likelihoods that compare: probabilities that sum to 1, a bound that is one, and a protocol that says how."""

import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import Dataset

import hf_vq
import hf_vq_cli
from hf_vq.data.decoding import is_lossless
from hf_vq.data.images import load_images
from hf_vq.data.slices import slice_rows
from hf_vq.metrics.pixels import LogisticScale, discretized_logistic_log_prob, discretized_logistic_log_probs
from hf_vq.training.likelihood import FittedPixelLikelihood, OwnPixelLikelihood, evaluate_likelihood

datasets = pytest.importorskip("datasets")
DISTRIBUTIONS = ("softmax", "logistic", "logistic_softmax")
ALL_VALUES = torch.arange(256) * 2 / 255 - 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def small(distribution="mse", **options):
    options = {"hidden_channels": 8, "num_residual_layers": 0, "codebook_size": 8, "codebook_dim": 4, **options}
    return hf_vq.VQVAE(**{"in_channels": 1, "reconstruction_loss": distribution, "stage_channels": (8,), **options})


def hierarchy(distribution="mse", **options):
    return hf_vq.VQVAE2(1, 8, 1, 4, (5, 6), 4, strides=(2, 2), reconstruction_loss=distribution, **options)


def small_prior(code_shape, **options):
    options = {"hidden_channels": 8, "num_layers": 1, "head_channels": 8, **options}
    prior = hf_vq.PixelCNN(hf_vq.PixelCNNConfig(code_shape=code_shape, **{"codebook_size": 8, **options}))
    torch.nn.init.normal_(prior.head[-1].weight)  # from its own start it is nearly uniform
    return prior


class Pixels(Dataset):
    """Images of random 8-bit values."""

    num_values, num_classes = 256, 2

    def __init__(self, count, shape=(1, 4, 4), seed=0):
        values = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(seed))
        self.samples = values * 2 / 255 - 1

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"sample": self.samples[index], "class_labels": torch.tensor(index % 2)}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("build", [small, hierarchy])
def test_probabilities_of_the_256_values_sum_to_one_and_are_the_loss(build, distribution):
    model, images = build(distribution), Pixels(3).samples
    with torch.no_grad():
        parameters = model.decode_parameters(model.vectors(model.tokenize(images)))
    for factor in (1, 30):  # 30: locations out of range, scales at their bounds
        log_probs = torch.stack(
            [
                model.pixel_distribution.evaluate(parameters * factor, torch.full_like(images, value))[1]
                for value in ALL_VALUES
            ]
        )
        torch.testing.assert_close(log_probs.logsumexp(0), torch.zeros_like(images), rtol=0, atol=2e-5)
    output = model.eval()(images)
    log_prob = model.reconstruction_log_prob(images, output.codes)
    assert log_prob.shape == (3,)
    torch.testing.assert_close(output.reconstruction_loss, -log_prob.mean() / 16)
    torch.testing.assert_close(output.loss, output.reconstruction_loss + output.quantizer_loss)
    torch.testing.assert_close(output.sample, model.detokenize(output.codes))
    assert output.sample.abs().max() <= 1


def test_the_sample_is_the_mean_of_the_softmax_and_the_median_of_the_logistic():
    for distribution in DISTRIBUTIONS:
        model = small(distribution)
        codes = torch.randint(8, (1, 2, 2))
        parameters = model.decode_parameters(model.vectors(codes)).detach()
        probs = torch.stack(
            [
                model.pixel_distribution.evaluate(parameters, torch.full((1, 1, 4, 4), value))[1].exp()
                for value in ALL_VALUES
            ]
        )
        sample = model.detokenize(codes)
        if distribution.endswith("softmax"):
            torch.testing.assert_close(sample, torch.tensordot(probs, ALL_VALUES, ([0], [0])))
        else:
            median = ALL_VALUES[(probs.cumsum(0) < 0.5).sum(0)]
            assert (sample - median).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("build", [small, hierarchy])
@torch.no_grad()
def test_a_decoder_that_takes_another_distribution_keeps_codes_and_places(build):
    images = Pixels(3).samples
    plain = build("mse", input_scale=0.5, input_shift=0.1).eval()
    codes = plain.tokenize(images)
    logistic = plain.with_reconstruction_loss("logistic")
    torch.testing.assert_close(logistic.detokenize(codes), plain.detokenize(codes).clamp(-1, 1))
    torch.testing.assert_close(logistic.with_reconstruction_loss("l1").detokenize(codes), plain.detokenize(codes))
    assert logistic.quantizers[0].initialized == plain.quantizers[0].initialized
    for parameter in logistic.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
    both = logistic.with_reconstruction_loss("logistic_softmax")
    torch.testing.assert_close(
        both.reconstruction_log_prob(images, codes), logistic.reconstruction_log_prob(images, codes)
    )
    both.last_layer.add_(0.1 * torch.randn_like(both.last_layer))
    assert not torch.allclose(
        both.reconstruction_log_prob(images, codes), logistic.reconstruction_log_prob(images, codes), rtol=1e-3
    )
    assert type(both)(**{k: v for k, v in both.config.items() if k[0] != "_"}).config == both.config
    assert plain.half().with_reconstruction_loss("l1").dtype == torch.float16
    with pytest.raises(ValueError, match=r"'logistic'.*'softmax'"):
        logistic.with_reconstruction_loss("softmax")


def test_discretized_logistic_is_the_difference_of_two_sigmoids():
    location, log_scale = torch.randn(2, 500, dtype=torch.float64).mul(torch.tensor([[1.0], [1.5]])).sub(0.5)
    step = 2 / 255
    for value in (0, 1, 77, 255):
        x = torch.tensor(value * step - 1, dtype=torch.float64)
        above = torch.sigmoid((x + step / 2 - location) / log_scale.exp()) if value < 255 else 1.0
        below = torch.sigmoid((x - step / 2 - location) / log_scale.exp()) if value else 0.0
        expected = torch.as_tensor(above - below)
        found = discretized_logistic_log_prob(x.expand(500), location, log_scale).exp()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    each = discretized_logistic_log_prob(ALL_VALUES.double(), location[:, None], log_scale[:, None])
    together = discretized_logistic_log_probs(location[:, None], log_scale[:, None])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=1e-5)
    far = torch.tensor(30.0, requires_grad=True)  # where both sigmoids are 1 in float32
    log_prob = discretized_logistic_log_prob(torch.tensor(0.0), far, torch.tensor(-3.0))
    log_prob.backward()
    assert log_prob.isfinite()
    assert far.grad.isfinite()


def test_distributions_reach_saved_folders_and_faces_and_learn(tmp_path):
    images = Pixels(8).samples
    for distribution in DISTRIBUTIONS:
        model = small(distribution, quantizer_config={"kmeans_init": False})
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for _ in range(60):
            loss = model.train()(images).reconstruction_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.3
        model.eval().save_pretrained(tmp_path / distribution)
        loaded = hf_vq.AutoVQModel.from_pretrained(tmp_path / distribution)
        codes = model.tokenize(images)
        expected = model.reconstruction_log_prob(images, codes)
        torch.testing.assert_close(loaded.reconstruction_log_prob(images, codes), expected)
        face = hf_vq.VQVAEForAutoModel.from_pretrained(tmp_path / distribution)
        torch.testing.assert_close(face(images).loss, model(images).loss)
    with pytest.raises(ValueError, match="reconstruction_loss='mse' gives pixels no distribution"):
        small().reconstruction_log_prob(images, codes)
    with pytest.raises(ValueError, match="output_activation must be 'none'"):
        small("softmax", output_activation="tanh")


@pytest.mark.parametrize("num_values", [256, 17])
def test_fitted_scale_is_the_most_likely_one_of_each_channel(num_values):
    step, generator = 2 / (num_values - 1), torch.Generator().manual_seed(0)
    locations = torch.rand(200, 2, 8, 8, generator=generator) * 2.2 - 1.1
    noise = torch.logit(torch.rand(200, 2, 8, 8, generator=generator).clamp(1e-6, 1 - 1e-6))
    scales = torch.tensor([0.7, 4.0]) * step
    samples = ((locations + noise * scales.view(2, 1, 1) + 1) / step).round().clamp(0, num_values - 1) * step - 1
    metrics = [LogisticScale(2, num_values) for _ in range(2)]
    for metric, batch_size in zip(metrics, (200, 7), strict=True):
        for batch in zip(samples.split(batch_size), locations.split(batch_size), strict=True):
            metric.update(*batch)
    found, again = (metric.compute() for metric in metrics)
    assert torch.equal(found, again)
    torch.testing.assert_close(found.exp(), scales, rtol=0.05, atol=0)

    def log_likelihood(shift):
        scale = (found + shift).view(2, 1, 1)
        return discretized_logistic_log_prob(samples, locations, scale, num_values).double().sum((0, 2, 3))

    assert all((log_likelihood(0) >= log_likelihood(shift)).all() for shift in (-0.02, 0.02))


def test_bits_per_dim_are_a_bound_on_what_all_codes_together_give():
    images, model, prior = Pixels(20, (1, 2, 2)), small("softmax"), small_prior((1, 1))
    _, whole = evaluate_likelihood(model, [prior], images, OwnPixelLikelihood(model), batch_size=6)
    joint = torch.stack(  # log p(x, codes) of each of the 8 codes that the one place can have
        [
            model.reconstruction_log_prob(images.samples, codes) + prior.log_prob(codes)
            for codes in torch.arange(8).view(8, 1, 1, 1).expand(-1, 20, 1, 1)
        ]
    )
    exact = -joint.logsumexp(0).mean().item() / (4 * math.log(2))
    chosen = -joint.gather(0, model.tokenize(images.samples).view(1, 20)).mean().item() / (4 * math.log(2))
    assert whole["bits_per_dim"] == pytest.approx(chosen, rel=1e-5)
    assert exact < whole["bits_per_dim"]
    assert whole["protocol"]["codes"] == "exact"
    assert "upper bound" in whole["protocol"]["whole_model"]


def test_parts_add_up_whatever_the_batches_the_decoder_or_the_prior():
    images, training = Pixels(10), Pixels(40, seed=1)
    model, prior = small(), small_prior((2, 2), num_classes=2)
    pixels = FittedPixelLikelihood(model, training, batch_size=16)
    (codes, whole), (again, other) = (
        evaluate_likelihood(model, [prior], images, pixels, batch_size=size) for size in (3, 10)
    )
    assert codes[0] == pytest.approx(again[0])
    assert whole["bits_per_dim"] == pytest.approx(other["bits_per_dim"])
    assert whole["bits_per_dim"] == pytest.approx(whole["code_bits_per_dim"] + whole["decoder_bits_per_dim"])
    assert whole["nats_per_sample"] == pytest.approx(whole["bits_per_dim"] * 16 * math.log(2))
    assert codes[0]["bits_per_dim"] == pytest.approx(whole["code_bits_per_dim"])
    assert codes[0]["nats_per_token"] == codes[0]["nats_per_code"]
    assert codes[0]["bits_per_code"] == pytest.approx(codes[0]["nats_per_code"] / math.log(2))
    assert whole["protocol"]["conditions"] == ["class_labels"]
    assert len(whole["protocol"]["decoder_scale"]) == 1
    figures, none = evaluate_likelihood(model, None, images)
    assert none is None
    assert figures[0]["bits_per_code"] == pytest.approx(3)  # uniform among 8


def test_fine_codes_are_predicted_from_coarse_ones_and_levels_count():
    class Copies:
        """Knows that a fine code is the coarse one above it."""

        likelihood, condition_names = "exact", ("context_codes",)

        def pick_conditions(self, item):
            return {name: item[name] for name in self.condition_names if name in item}

        def check_likelihood(self, codes, context_codes=()):
            assert len(context_codes) == (codes.shape[1:] == (4, 4))

        def log_prob(self, codes, context_codes=()):
            if not context_codes:
                return torch.full((len(codes),), -math.log(5) * codes[0].numel())
            above = context_codes[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
            return -math.log(2) * (codes == above).flatten(1).sum(1) - math.log(12) * (codes != above).flatten(1).sum(
                1
            )

    model, images = hierarchy("logistic"), Pixels(4, (1, 8, 8))
    figures, whole = evaluate_likelihood(model, [Copies(), Copies()], images, OwnPixelLikelihood(model))
    top, bottom = model.tokenize(images.samples)
    equal = (bottom == top.repeat_interleave(2, 1).repeat_interleave(2, 2)).float().mean().item()
    assert figures[0]["nats_per_code"] == pytest.approx(math.log(5))
    assert figures[1]["nats_per_code"] == pytest.approx(equal * math.log(2) + (1 - equal) * math.log(12))
    nats = 4 * figures[0]["nats_per_code"] + 16 * figures[1]["nats_per_code"]
    assert whole["code_bits_per_dim"] == pytest.approx(nats / 64 / math.log(2))
    with pytest.raises(ValueError, match="priors must be 2"):
        evaluate_likelihood(model, [Copies()], images)

    options = {"codebook_dim": 20, "quantizer_type": "product", "quantizer_config": {"groups": 10}}
    product = small("softmax", in_channels=3, stage_channels=(8, 8), **options)
    assert product.code_shape((3, 32, 32)) == (10, 8, 8)
    images = Pixels(2, (3, 32, 32))
    _, whole = evaluate_likelihood(product, None, images, OwnPixelLikelihood(product))
    assert whole["code_bits_per_dim"] == pytest.approx(10 * 64 * 3 / 3072)
    assert whole["protocol"]["priors"] == ["uniform"]


def write_images(path, count, form="PNG", size=8):
    """A Parquet file of random grey images, whose first pixel is the row's number."""
    rows = []
    for row in range(count):
        pixels = np.random.default_rng(row).integers(0, 256, (size, size), dtype=np.uint8)
        pixels[0, 0] = row
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, form)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": rows}, features=features).to_parquet(path)
    return str(path)


def test_slices_are_rows_of_the_source_in_its_order(tmp_path):
    source = write_images(tmp_path / "images.parquet", 20)
    for split, rows in [
        ("train[15:20]", range(15, 20)),
        ("train[:25%]", range(5)),
        ("train[:2]+train[-2:]", [0, 1, 18, 19]),
    ]:
        assert load_images(source, split=split).cache[:, 0, 0, 0].tolist() == list(rows)
    assert len(load_images("digits", split="train[:]")) == 1797  # nothing is held out of a slice
    for split, words in [
        ("train[5:", "no slice of one split"),
        ("train[:5]+test[:5]", "no slice of one split"),
        ("train[:5]+train[4:6]", "rows twice"),
        ("train[20:]", "is empty"),
        ("validation[:5]", "validation"),
    ]:
        with pytest.raises(ValueError, match=words):
            load_images(source, split=split)
    assert slice_rows("train[90%:]", 50).tolist() == [45, 46, 47, 48, 49]


def test_changed_pixels_are_noticed(tmp_path):
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "odd length"  # makes an extended WebP
    for form, options, lossless in [
        ("PNG", {}, True),
        ("BMP", {}, True),
        ("TIFF", {"compression": "tiff_lzw"}, True),
        ("TIFF", {"compression": "jpeg"}, False),
        ("JPEG", {"quality": 100}, False),
        ("WEBP", {"lossless": True}, True),
        ("WEBP", {"lossless": True, "exif": exif}, True),
        ("WEBP", {"quality": 100}, False),
        ("WEBP", {"quality": 100, "exif": exif}, False),
    ]:
        buffer = io.BytesIO()
        rgb.save(buffer, form, **options)
        assert is_lossless(Image.open(buffer)) == lossless, (form, options)
    source = write_images(tmp_path / "png.parquet", 3)
    assert load_images(source, split="train[:]").pixel_changes() == []
    assert load_images(source, split="train[:]", image_size=4).pixel_changes() == [
        "3 of 3 images were cropped or resized"
    ]
    lossy = load_images(write_images(tmp_path / "jpeg.parquet", 3, "JPEG"), split="train[:2]")
    assert lossy.pixel_changes() == ["2 of 2 images were of a format that loses detail"]


@pytest.mark.data
@pytest.mark.skipif("HF_VQ_DATA" not in os.environ, reason="HF_VQ_DATA does not name the folder of the data sets")
def test_held_out_rows_of_cifar10_are_lossless_and_its_test_images_are_not():
    folder = f"{os.environ['HF_VQ_DATA']}/cifar10"
    held_out = load_images(folder, split="train[45000:50000]")
    assert (len(held_out), held_out.sample_shape) == (5000, (3, 32, 32))
    assert held_out.pixel_changes() == []
    assert load_images(folder, split="test[:50]").pixel_changes() == [
        "50 of 50 images were of a format that loses detail"
    ]


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


def test_the_command_line_states_its_protocol(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_images("images.parquet", 30)
    common = {"max_steps": 2, "use_cpu": True, "disable_tqdm": True}
    data = {"data": "images.parquet", "train_split": "train[:20]", "validation_split": "train[20:30]"}
    config = {"hidden_channels": 8, "stage_channels": [4], "num_residual_layers": 0, "codebook_size": 8}
    prior = {"prior_config": {"hidden_channels": 8, "num_layers": 1, "head_channels": 8}, **common}
    Path("prior.yaml").write_text(yaml.safe_dump(prior))
    splits = [part for name in data for part in (f"--{name}", data[name])]
    whole = {}
    for loss in ("mse", "softmax"):
        recipe = {**data, "model_config": {**config, "reconstruction_loss": loss}, **common}
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert run("train", "autoencoder", "recipe.yaml", "--output", f"{loss}/a") == 0
        assert run("tokenize", f"{loss}/a", *splits, "--output", f"{loss}/codes") == 0
        flags = ["--codes", f"{loss}/codes", "--autoencoder", f"{loss}/a", "--output", f"{loss}/p"]
        assert run("train", "prior", "prior.yaml", *flags) == 0
        assert run("evaluate", f"{loss}/p/pipeline", *splits, "--output", f"{loss}.json") == 0
        figures = json.loads(Path(f"{loss}.json").read_text())
        whole[loss] = figures["likelihood"]
        protocol = whole[loss]["protocol"]
        assert (protocol["split"], protocol["num_images"]) == ("train[20:30]", 10)
        assert protocol["images"] == "images.parquet train row 20 to images.parquet train row 29"
        assert figures["prior"]["bits_per_dim"] == pytest.approx(whole[loss]["code_bits_per_dim"])
    assert whole["mse"]["protocol"]["decoder_scale_fitted_on"] == "20 images, none of them evaluated"
    assert whole["softmax"]["protocol"]["decoder_likelihood"].startswith("256-way softmax")

    # without train_split the scale is fitted on all rows that are not evaluated; without such rows there is no figure
    flags = ["--data", "images.parquet", "--output", "again.json", "--overwrite"]
    assert run("evaluate", "mse/p/pipeline", "--split", "train[20:30]", *flags) == 0
    again = json.loads(Path("again.json").read_text())["likelihood"]
    assert again["protocol"]["decoder_scale_fitted_on"] == "18 images, none of them evaluated"  # 27, 9 of them taken
    assert run("evaluate", "mse/p/pipeline", "--split", "train[:]", *flags) == 0
    assert "not evaluated" in json.loads(Path("again.json").read_text())["likelihood"]["skipped"]
    assert run("evaluate", "softmax/a", "--split", "train[20:30]", "--image_size", 4, *flags) == 0
    assert "10 of 10 images were cropped" in capsys.readouterr().err
    capsys.readouterr()
    overlap = [*splits[:-1], "train[19:30]"]
    assert run("tokenize", "mse/a", *overlap, "--output", "codes") != 0
    assert "1 images in common" in capsys.readouterr().err
    assert run("tokenize", "mse/a", *splits, "--splits", "train[:5]", "--output", "codes") != 0

"""Frozen networks whose activations tell images apart: their layers, their weights, and what they refuse."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers.image_processing_base import ImageProcessingMixin

from hf_vq import VQVAE, published
from hf_vq.features import load_features
from hf_vq.networks.convolutional_features import AlexNetFeatures, VGG16Features
from hf_vq.networks.model_features import AutoencoderFeatures
from hf_vq.published import Published, PublishedOnline

from .contracts.test_autoencoders import make
from .tiny_codecs import register_codecs

MEAN, DEVIATION = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
VIT = ViTConfig(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=4
)


def images(*shape):
    return torch.rand(*shape) * 2 - 1


def random_alexnet(tmp_path):
    """A file with all weights of a full AlexNet's convolutions, and one of its classifier."""
    weights = {**AlexNetFeatures().state_dict(), "classifier.1.weight": torch.zeros(2)}
    path = tmp_path / "alexnet-00000000.pth"
    torch.save(weights, path)
    return path, weights


def test_weights_have_the_names_of_torchvision():
    for network, indices in (
        (VGG16Features, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
        (AlexNetFeatures, (0, 3, 6, 8, 10)),
    ):
        assert network.weight_names() == [f"features.{i}.{kind}" for i in indices for kind in ("weight", "bias")]


@pytest.mark.parametrize("network", [VGG16Features, AlexNetFeatures])
def test_activations_are_those_that_lpips_looks_at(network):
    features, sample = network().double(), images(1, 3, 40, 33).double()
    weights = features.state_dict()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = (sample - shift[:, None, None]) / scale[:, None, None]
    vgg = network is VGG16Features
    seen, pooled = ((2, 7, 14, 21, 28), (2, 7, 14, 21)) if vgg else ((0, 3, 6, 8, 10), (0, 3))
    expected = []
    for index in sorted({int(name.split(".")[1]) for name in weights}):
        weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
        first = not vgg and index == 0
        padding = 2 if first else weight.shape[-1] // 2
        hidden = F.relu(F.conv2d(hidden, weight, bias, stride=4 if first else 1, padding=padding))
        if index in seen:
            expected.append(hidden)
        if index in pooled:
            hidden = F.max_pool2d(hidden, 2 if vgg else 3, 2)
    torch.testing.assert_close(features(sample), expected, rtol=1e-5, atol=1e-7)  # the scaling is stored in float32
    smallest = features.smallest_size
    features(images(1, 3, smallest, smallest))
    with pytest.raises(ValueError, match=f"at least {smallest} pixels a side, got {smallest - 1} x 64"):
        features(images(1, 3, smallest - 1, 64))


def test_a_file_is_the_published_one_or_named_by_its_hash(tmp_path):
    path, weights = random_alexnet(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (known,) = AlexNetFeatures.published.sha256
    with pytest.raises(ValueError, match=f"sha256 {digest}, not {known} .*{path}@{digest[:8]}"):
        load_features(str(path))
    with pytest.raises(ValueError, match=f"sha256 {digest}, not 0123456789"):
        load_features(f"{path}@0123456789")
    features = load_features(f"{path}@{digest[:8]}")
    for name, one in features.state_dict().items():
        assert torch.equal(one, weights[name])
    again = tmp_path / "again.safetensors"
    save_file(weights, again)
    other = load_features(f"{again}@{hashlib.sha256(again.read_bytes()).hexdigest()}")
    assert other.identity["sha256"] == features.identity["sha256"]  # of the weights, not of the file
    assert Published("AlexNet", (digest,)).checked(str(path)) == path


def test_published_weights_are_looked_for_in_the_cache_of_torch_first(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"AlexNet cannot be had \(there is no .*--perceptual none\|random\|FILE"):
        load_features("alex")
    with pytest.raises(ValueError, match=r"VGG16 cannot be had \(.*--perceptual none\|random\|FILE") as found:
        load_features("vgg")
    assert "\n" not in str(found.value)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / AlexNetFeatures.published.torch_file).write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"sha256 .* not 7be5be79"):
        load_features("alex")


def test_published_weights_are_downloaded_once_and_whole(tmp_path, monkeypatch):
    path, _ = random_alexnet(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(published, "TORCH_URL", f"{tmp_path.as_uri()}/")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(AlexNetFeatures, "published", PublishedOnline("AlexNet", ("0" * 64,), path.name))
    with pytest.raises(ValueError, match=rf"AlexNet cannot be had \(invalid hash .* got \"{digest}\""):
        load_features("alex")
    monkeypatch.setattr(AlexNetFeatures, "published", PublishedOnline("AlexNet", (digest,), path.name))
    first = load_features("alex")
    path.unlink()
    assert load_features("alex").identity == first.identity


def test_wrong_weights_and_sources_are_named(tmp_path):
    path, weights = random_alexnet(tmp_path)

    def load(**changed):
        left = {name: one for name, one in (weights | changed).items() if one is not None}
        torch.save(left, path)
        return load_features(f"{path}@{hashlib.sha256(path.read_bytes()).hexdigest()}")

    name = "features.10.bias"
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load(**{name: None})
    with pytest.raises(ValueError, match=rf"{name} of AlexNetFeatures must be finite, of shape \(256,\)"):
        load(**{name: weights[name] * torch.nan})
    with pytest.raises(ValueError, match=rf"{name} .* got shape \(3,\)"):
        load(**{name: torch.zeros(3)})
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"cannot read {path}: it is no whole file"):
        load_features(str(path))
    with pytest.raises(ValueError, match="'nowhere' must be one of random, vgg, alex, a file"):
        load_features("nowhere")
    with pytest.raises(ValueError, match="there is no file nowhere"):
        load_features("nowhere@01234567")


def test_grey_images_become_three_equal_channels_and_others_are_refused():
    features, grey = load_features("random"), images(2, 1, 16, 16)
    torch.testing.assert_close(features.embed(grey), features.embed(grey.repeat(1, 3, 1, 1)))
    assert features.embed(grey).shape == (2, 128)
    with pytest.raises(ValueError, match="3 channels or 1, got 4"):
        features(images(2, 4, 16, 16))
    with pytest.raises(ValueError, match=r"sample must be floating point, .* got torch.uint8"):
        features(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="takes images of 1 channels, got 3"):
        AutoencoderFeatures(VQVAE(in_channels=1, hidden_channels=8), "grey")(images(1, 3, 16, 16))


def save_classifier(config, folder):
    model = (ResNetForImageClassification if config is RESNET else ViTForImageClassification)(config).eval()
    for module in model.modules():  # statistics that a step would move
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    model.save_pretrained(folder)
    ImageProcessingMixin(image_mean=MEAN, image_std=DEVIATION).save_pretrained(folder)
    return model


@pytest.mark.parametrize(("config", "size"), [(RESNET, 24), (VIT, 16)], ids=["resnet", "vit"])
def test_hidden_states_of_a_classifier_are_maps_of_pixels_as_its_processor_scales_them(config, size, tmp_path):
    model = save_classifier(config, tmp_path)
    sample = images(2, 3, size, size)
    pixels = ((sample + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    expected = model(pixels, output_hidden_states=True).hidden_states
    if config is VIT:  # its first token is of no patch
        expected = [state[:, 1:].transpose(1, 2).reshape(2, 8, 4, 4) for state in expected]
    features = load_features(str(tmp_path))
    torch.testing.assert_close(features(sample), [*expected], rtol=1e-4, atol=1e-5)
    assert features.embed(sample).shape == (2, 16 if config is RESNET else 8)
    if config is VIT:  # takes one size only
        large = images(1, 3, 48, 32)
        torch.testing.assert_close(
            features(large), features(F.interpolate(large, (16, 16), mode="bilinear", antialias=True))
        )
    else:
        assert features(images(1, 3, 48, 32))[0].shape[2:] == (12, 8)


def test_a_folder_without_its_processor_or_of_something_else_is_refused(tmp_path):
    ResNetForImageClassification(RESNET).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have a preprocessor_config\.json"):
        load_features(str(tmp_path))
    ImageProcessingMixin(image_mean=0.5).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have lists image_mean and image_std"):
        load_features(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds 'bert', neither an autoencoder of images nor an image classifier"):
        load_features(str(tmp_path))


@pytest.mark.parametrize("name", ["DVAE", "VQVAE2", "ViTVQModel", "PictureCodec"])
def test_the_stages_and_latents_of_an_autoencoder_reach_its_input(name, monkeypatch):
    register_codecs(monkeypatch)
    model, sample = make(name)
    features = AutoencoderFeatures(model, name)
    sample.requires_grad_()
    activations = features(sample)
    sizes = [one.shape[2] * one.shape[3] for one in activations]
    assert sizes == sorted(sizes, reverse=True)
    latents = model.encode(model.normalize(sample, None)[0]).latents
    torch.testing.assert_close(activations[-1], latents[0] if model.hierarchical else latents)
    stages = {"DVAE": 2, "VQVAE2": 2, "ViTVQModel": 1, "PictureCodec": 0}[name]
    assert len(activations) == stages + len(model.quantizers)
    for one in activations:
        (gradient,) = torch.autograd.grad(one.square().sum(), sample, retain_graph=True)
        assert gradient.abs().sum() > 0


def test_nothing_in_an_extractor_moves(tmp_path):
    save_classifier(RESNET, tmp_path)
    features = load_features(str(tmp_path))
    before = {name: one.clone() for name, one in features.state_dict().items()}
    holder = torch.nn.ModuleList([features]).train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in holder.parameters())
    assert {one.dtype for one in features.parameters()} == {torch.float32}
    features(images(4, 3, 16, 16).requires_grad_())[-1].sum().backward()
    for name, one in features.state_dict().items():
        assert torch.equal(one, before[name]), name

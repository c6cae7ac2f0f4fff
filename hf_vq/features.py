"""From what a user names to a frozen network whose activations tell images apart, and to a perceptual loss."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageClassification, PreTrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_vq.auto import AutoVQModel
from hf_vq.losses.perceptual import LPIPS, FeatureDistance, load_heads
from hf_vq.networks.convolutional_features import (
    AlexNetFeatures,
    ConvolutionalFeatures,
    RandomFeatures,
    VGG16Features,
)
from hf_vq.networks.features import FeatureExtractor
from hf_vq.networks.model_features import AutoencoderFeatures, ClassifierFeatures
from hf_vq.published import read_tensors, with_hash
from hf_vq.registry import AUTOENCODERS
from hf_vq.saved import check_folder, saved_name
from hf_vq.weights import is_finite, listed, missing_names

NETWORKS: dict[str, type[ConvolutionalFeatures]] = {"vgg": VGG16Features, "alex": AlexNetFeatures}
CHOICES = "random, vgg, alex, a file of weights, a folder or user/name"


def load_features(source: str) -> FeatureExtractor:
    """A frozen network, on the CPU and in float32.

    Args:
        source: "random": a narrow VGG16 with random weights, always the same. "vgg" or "alex": torchvision's published
            weights of VGG16 or AlexNet, from torch's cache or the network. A file of such weights (.pth or
            .safetensors): the published ones or, where "@" and at least 8 digits of its sha256 follow, that file. A
            folder or repository: of one of our autoencoders, or of an image classifier of transformers.

    Raises:
        ValueError: weights that cannot be had or are others than the published ones, a folder of something else.
    """
    if source == "random":
        return RandomFeatures()
    if source in NETWORKS:
        return _load_published(source)
    path, wanted = with_hash(source)
    if Path(path).is_file():
        return _load_file(source, path)
    if wanted is not None:
        raise ValueError(f"{source}: a hash can follow a file alone, and there is no file {path}")
    return _load_model(source)


def load_perceptual_loss(source: str) -> FeatureDistance:
    """The distance of images that a training adds to its loss, or an evaluation reports.

    Args:
        source: as of `load_features`. Of VGG16 and AlexNet the distance is LPIPS, of everything else, random weights
            included, that of features.

    Raises:
        ValueError: as `load_features`.
        ImportError: LPIPS without torchmetrics or lpips, which have its weights.
    """
    features = load_features(source)
    network = published_network(features)
    return FeatureDistance(features) if network is None else LPIPS(features, load_heads(network))


def published_network(features: FeatureExtractor) -> str | None:
    """The name, "vgg" or "alex", of the network that LPIPS has weights for; None for another one."""
    return next((name for name, network in NETWORKS.items() if type(features) is network), None)


def _load_published(source):
    network = NETWORKS[source]
    try:
        path = network.published.fetch()
    except (OSError, RuntimeError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"the weights of {network.published.name} cannot be had ({words[0]}): put {network.published.torch_file} "
            "into torch's cache or name the file, or use --perceptual none|random|FILE"
        ) from error
    return network(read_tensors(path, network.weight_names()), source)


def _load_file(source, path):
    first = read_tensors(path, ["features.0.weight"])["features.0.weight"]
    network = AlexNetFeatures if tuple(first.shape[2:]) == (11, 11) else VGG16Features
    network.published.checked(source)
    return network(read_tensors(path, network.weight_names()), path)


def _load_model(source):
    """The features of an autoencoder or a classifier, in a folder or a repository."""
    check_folder(source, None, AutoVQModel)
    try:
        config, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:
        raise ValueError(
            f"{source!r} must be one of {CHOICES} of a model: {str(error).strip().splitlines()[0]}"
        ) from error
    if config.get("_class_name") in AUTOENCODERS:
        return AutoencoderFeatures(AutoVQModel.from_pretrained(source), source)
    if config.get("model_type") not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise ValueError(
            f"{source} holds {saved_name(config)!r}, neither an autoencoder of images nor an image classifier of "
            "transformers"
        )
    classifier, info = AutoModelForImageClassification.from_pretrained(source, output_loading_info=True)
    wrong = missing_names(info) or {name for name, one in classifier.state_dict().items() if not is_finite(one)}
    if wrong:
        raise ValueError(f"{source} lacks {listed(wrong)} of {type(classifier).__name__}, or holds NaN there")
    return ClassifierFeatures(classifier, _processor_of(source), source)


def _processor_of(source: str) -> dict[str, Any]:
    try:
        return ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError as error:
        raise ValueError(f"{source} must have a preprocessor_config.json, which says how pixels are scaled") from error

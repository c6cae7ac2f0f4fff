"""The convolutions of VGG16 and AlexNet, as LPIPS looks into them."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple, cast

import torch
from torch import nn

from hf_vq.networks.features import FeatureExtractor
from hf_vq.published import PublishedOnline
from hf_vq.weights import is_finite

PIXEL_MEAN, PIXEL_DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of [-1, 1], as LPIPS has them


class Convolution(NamedTuple):
    """A convolution and a relu.

    Attributes:
        width: channels that it gives.
        kernel, stride, padding: in pixels.
        seen: whether its activations are among the features.
    """

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    seen: bool = False


class Pool(NamedTuple):
    """The largest of a kernel's values."""

    kernel: int = 2
    stride: int = 2
    padding: int = 0


class ConvolutionalFeatures(FeatureExtractor):
    """A row of convolutions and pools; its weights have the names of torchvision, `features.0.weight` and so on.

    Args:
        weights: by name; others that are there, such as a classifier's, count for nothing. None: random ones.
        source: where they come from, for people.

    Raises:
        ValueError: weights that are missing, of another shape, or not finite.
    """

    layers: ClassVar[tuple[Convolution | Pool, ...]]
    published: ClassVar[PublishedOnline]
    in_channels = 3
    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, weights: Mapping[str, torch.Tensor] | None = None, source: str = "random"):
        super().__init__()
        self.features = nn.Sequential(*_modules(self.layers, self.in_channels))
        self.smallest_size = _smallest_size(self.layers)
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(PIXEL_DEVIATION).view(1, 3, 1, 1), persistent=False)
        if weights is None:
            self._draw_weights()
        else:
            self._take_weights(weights, source)
        self.freeze(source)

    def forward(self, sample: torch.Tensor) -> list[torch.Tensor]:
        hidden = (self.as_input(sample) - self.mean) / self.deviation
        activations = []
        modules = iter(self.features)
        for layer in self.layers:
            hidden = next(modules)(hidden)
            if isinstance(layer, Convolution):
                hidden = next(modules)(hidden)
                if layer.seen:
                    activations.append(hidden)
        return activations

    @classmethod
    def weight_names(cls) -> list[str]:
        """Names of the weights, as torchvision has them."""
        with torch.device("meta"):
            return [f"features.{name}" for name in nn.Sequential(*_modules(cls.layers, cls.in_channels)).state_dict()]

    def _draw_weights(self):
        """Normal with the deviation that keeps the scale of activations behind a relu; the same ones every time."""
        generator = torch.Generator().manual_seed(0)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(cast(torch.Tensor, module.bias))

    def _take_weights(self, weights, source):
        for name, own in self.state_dict().items():
            if name not in weights:
                raise ValueError(f"{source} lacks {name}, a weight of {type(self).__name__}")
            if weights[name].shape != own.shape or not is_finite(weights[name]):
                raise ValueError(
                    f"{source}: {name} of {type(self).__name__} must be finite, of shape {tuple(own.shape)}; got "
                    f"shape {tuple(weights[name].shape)}"
                )
            own.copy_(weights[name])


class VGG16Features(ConvolutionalFeatures):
    """VGG16 (https://arxiv.org/abs/1409.1556, configuration D): the last activations before each pool."""

    layers = (
        *(Convolution(64), Convolution(64, seen=True), Pool()),
        *(Convolution(128), Convolution(128, seen=True), Pool()),
        *(Convolution(256), Convolution(256), Convolution(256, seen=True), Pool()),
        *(Convolution(512), Convolution(512), Convolution(512, seen=True), Pool()),
        *(Convolution(512), Convolution(512), Convolution(512, seen=True)),
    )
    published = PublishedOnline(
        name="VGG16",
        sha256=(
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
            "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8",  # the file on the Hub
        ),
        torch_file="vgg16-397923af.pth",
        hub=("timm/vgg16.tv_in1k", "3394518cba29aee1ea82a49d971be90d2dd1dab7", "model.safetensors"),
    )


class AlexNetFeatures(ConvolutionalFeatures):
    """AlexNet in one column (https://arxiv.org/abs/1404.5997): the activations of every convolution."""

    layers = (
        *(Convolution(64, kernel=11, stride=4, padding=2, seen=True), Pool(kernel=3)),
        *(Convolution(192, kernel=5, padding=2, seen=True), Pool(kernel=3)),
        *(Convolution(384, seen=True), Convolution(256, seen=True), Convolution(256, seen=True)),
    )
    published = PublishedOnline(
        name="AlexNet",
        sha256=("7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",),
        torch_file="alexnet-owt-7be5be79.pth",
    )


class RandomFeatures(ConvolutionalFeatures):
    """VGG16 of a quarter of the width with random weights, which nobody need download."""

    layers = tuple(
        layer._replace(width=layer.width // 4) if isinstance(layer, Convolution) else layer
        for layer in VGG16Features.layers
    )


def _modules(layers: Iterable[Convolution | Pool], in_channels: int) -> Iterable[nn.Module]:
    for layer in layers:
        if isinstance(layer, Convolution):
            yield nn.Conv2d(in_channels, layer.width, layer.kernel, layer.stride, layer.padding)
            yield nn.ReLU()
            in_channels = layer.width
        else:
            yield nn.MaxPool2d(layer.kernel, layer.stride, layer.padding)


def _smallest_size(layers: tuple[Convolution | Pool, ...]) -> int:
    """Pixels a side of the smallest image of which one position is left."""
    size = 1
    for layer in reversed(layers):
        size = max(1, (size - 1) * layer.stride + layer.kernel - 2 * layer.padding)
    return size

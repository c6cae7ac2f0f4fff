"""Distances of images by what a frozen network makes of them: LPIPS, and the same without calibration."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from hf_vq.published import Published, read_tensors

EPSILON = 1e-10  # added to lengths of activations, as LPIPS does
HEADS = {  # version 0.1
    "vgg": Published("LPIPS for VGG16", ("a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",)),
    "alex": Published("LPIPS for AlexNet", ("df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",)),
}
NUM_HEADS = 5
WHEELS = {"torchmetrics": "functional/image/lpips_models", "lpips": "weights/v0.1"}  # that hold the published heads


class FeatureDistance(nn.Module):
    """Distance of images by the directions of activations of a frozen network, each layer counting the same.

        d(x, y) = mean over layers l and positions hw of |a_l(x)_hw / |a_l(x)_hw| - a_l(y)_hw / |a_l(y)_hw||^2

    with the length |.| over channels. It is between 0 and 4.

    Args:
        features: from images (batch, channels, height, width) in [-1, 1] to a list of activations (batch, channels,
            height, width), such as a `FeatureExtractor`.
    """

    def __init__(self, features: Callable[[torch.Tensor], list[torch.Tensor]]):
        super().__init__()
        self.features = features

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The distance of each of some images from its target.

        Args:
            sample, target: (batch, channels, height, width) in [-1, 1].

        Returns:
            (batch,) distances; a loss is their mean.

        Raises:
            ValueError: shapes that differ, or images that the network does not take.
        """
        return torch.stack(self.layer_distances(sample, target)).mean(dim=0)

    def layer_distances(self, sample: torch.Tensor, target: torch.Tensor) -> list[torch.Tensor]:
        """The distances (batch,) in each layer; arguments as of `forward`."""
        if sample.shape != target.shape:
            raise ValueError(f"target must have the shape of sample, {tuple(sample.shape)}; got {tuple(target.shape)}")
        pairs = zip(self.features(sample), self.features(target), strict=True)
        return [
            self.weighted(layer, (_directions(one) - _directions(other)).square()).mean(dim=(1, 2))
            for layer, (one, other) in enumerate(pairs)
        ]

    def weighted(self, layer: int, squares: torch.Tensor) -> torch.Tensor:
        """Squared differences (batch, channels, height, width) of a layer summed over channels."""
        return squares.sum(dim=1)


class LPIPS(FeatureDistance):
    """Learned perceptual image patch similarity (https://arxiv.org/abs/1801.03924, eq. 1), version 0.1.

        d(x, y) = sum over layers l, mean over positions hw, sum over channels c of
                  w_lc (a_l(x)_chw / |a_l(x)_hw| - a_l(y)_chw / |a_l(y)_hw|)^2

    with weights w that were fitted to what people find similar.

    Args:
        features: `VGG16Features` or `AlexNetFeatures`.
        heads: w_l of each layer, (channels,) and not below 0, see `load_heads`.

    Raises:
        ValueError: heads below 0 or not finite.
    """

    def __init__(self, features: Callable[[torch.Tensor], list[torch.Tensor]], heads: Sequence[torch.Tensor]):
        super().__init__(features)
        for layer, head in enumerate(heads):
            if head.ndim != 1 or not bool(torch.isfinite(head).all() and (head >= 0).all()):
                raise ValueError(
                    f"heads[{layer}] must be (channels,), finite and not below 0; got shape {tuple(head.shape)}, from "
                    f"{head.min().item():.3g} to {head.max().item():.3g}"
                )
        self.heads = nn.ParameterList(nn.Parameter(head, requires_grad=False) for head in heads)

    def forward(self, sample: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """As of `FeatureDistance`."""
        return torch.stack(self.layer_distances(sample, target)).sum(dim=0)

    def weighted(self, layer: int, squares: torch.Tensor) -> torch.Tensor:
        """Squared differences (batch, channels, height, width) of a layer summed over channels, each by its weight."""
        if len(self.heads[layer]) != squares.shape[1]:
            raise ValueError(
                f"heads[{layer}] is of {len(self.heads[layer])} channels, and the network has {squares.shape[1]} there"
            )
        return (squares * self.heads[layer][:, None, None]).sum(dim=1)  # no einsum, which autocast would round


def load_heads(network: str, source: str | None = None) -> list[torch.Tensor]:
    """The weights of LPIPS's layers, each (channels,) float32.

    Args:
        network: "vgg" or "alex".
        source: a file with them, named `lin0.model.1.weight` and so on: the published one or, where "@" and at least 8
            digits of its sha256 follow, that file. None: the published one out of torchmetrics or lpips, one of which
            must be installed.

    Raises:
        ValueError: another network, a file that is not the published one, or lacks weights.
        ImportError: neither library is there.
    """
    if network not in HEADS:
        raise ValueError(f"network must be one of {sorted(HEADS)}, got {network!r}")
    path = HEADS[network].checked(_installed_heads(network) if source is None else source)
    names = [f"lin{layer}.model.1.weight" for layer in range(NUM_HEADS)]
    return [head.flatten().float() for head in read_tensors(path, names).values()]


def _installed_heads(network):
    for library, folder in WHEELS.items():
        spec = find_spec(library)  # imports nothing
        for place in (spec and spec.submodule_search_locations) or ():
            path = Path(place, folder, f"{network}.pth")
            if path.is_file():
                return str(path)
    raise ImportError("LPIPS needs its published weights, which torchmetrics has: pip install hf_vq[train]")


def _directions(activations: torch.Tensor) -> torch.Tensor:
    """Activations (batch, channels, height, width) over their length at each position, in float32 at least."""
    activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
    return activations / (torch.linalg.vector_norm(activations, dim=1, keepdim=True) + EPSILON)

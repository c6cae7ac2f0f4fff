"""Weights that are a direction times a length, as torch has stored them in its old way and in its new one."""

from collections.abc import Callable

import torch

DIRECTIONS = ("weight", "weight_v", "parametrizations.weight.original1")  # the first is the weight itself
MAGNITUDES = {"weight_v": "weight_g", DIRECTIONS[2]: "parametrizations.weight.original0"}


def weight_kind(tensors: dict[str, torch.Tensor], stem: str) -> str:
    """The one of `DIRECTIONS` as which the weight of a layer is stored, or would be beside its magnitude."""
    halves = [kind for kind, magnitude in MAGNITUDES.items() if f"{stem}.{magnitude}" in tensors]
    return next((kind for kind in DIRECTIONS if f"{stem}.{kind}" in tensors), [*halves, DIRECTIONS[0]][0])


def folded(tensors: dict[str, torch.Tensor], take: Callable[[str], torch.Tensor], stem: str) -> torch.Tensor:
    """The weight itself, however it is stored."""
    kind = weight_kind(tensors, stem)
    direction = take(f"{stem}.{kind}")
    if kind not in MAGNITUDES:
        return direction
    magnitude, direction = take(f"{stem}.{MAGNITUDES[kind]}").double(), direction.double()
    norm = direction.flatten(1).norm(dim=1).view(-1, *[1] * (direction.ndim - 1))
    return (direction * (magnitude / norm)).to(torch.float32)


def layer_tensor(
    tensors: dict[str, torch.Tensor], take: Callable[[str], torch.Tensor], stem: str, part: str
) -> torch.Tensor:
    """A tensor of a layer by the end of its name in torch's new way: "bias", "weight", or a half of a weight.

    Args:
        stem: of the layer's names in the checkpoint, without the dot.
        part: the end of the name in the model, such as "parametrizations.weight.original0".
    """
    kind = weight_kind(tensors, stem)
    if part == "weight":
        return folded(tensors, take, stem)
    if part == MAGNITUDES[DIRECTIONS[2]]:
        return take(f"{stem}.{MAGNITUDES.get(kind, part)}")
    return take(f"{stem}.{kind if part == DIRECTIONS[2] else part}")

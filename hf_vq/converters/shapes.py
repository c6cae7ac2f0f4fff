"""What the shapes of a foreign checkpoint say, and whether its config says the same."""

import re
from collections.abc import Mapping
from typing import Any

import torch


def shape_of(tensors: dict[str, torch.Tensor], name: str, num_dims: int) -> tuple[int, ...]:
    """Shape of a tensor, which must be there with so many dimensions; ValueError otherwise."""
    if name not in tensors:
        raise ValueError(f"the checkpoint has no tensor {name!r}")
    shape = tuple(tensors[name].shape)
    if len(shape) != num_dims:
        raise ValueError(f"{name} must have {num_dims} dimensions, got shape {shape}")
    return shape


def count(tensors: dict[str, torch.Tensor], prefix: str, separator: str = ".") -> int:
    """How many indices follow a prefix: 3 where the last name is prefix + ".2.…"; 0 where there is none."""
    pattern = re.compile(re.escape(prefix + separator) + r"(\d+)[./]")
    return 1 + max((int(match[1]) for match in map(pattern.match, tensors) if match), default=-1)


def check_agrees(config: dict[str, Any], section: Mapping[str, Any], **values: Any) -> None:
    """Every value that the config section names must be what the weights say.

    Raises:
        ValueError: it names the key and both values.
    """
    for key, value in values.items():
        told = config.get(key, value)
        told = list(told) if isinstance(told, tuple) else told
        if told != value:
            raise ValueError(f"{section}{key} is {told!r} in the config, but the weights say {value!r}")

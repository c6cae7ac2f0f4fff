"""minGPT's transformer blocks, which taming-transformers and rq-vae-transformer share."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_vq.converters.shapes import count, shape_of

BLOCK = {"norm1": "ln1", "output": "attn.proj", "norm2": "ln2", "expand": "mlp.0", "contract": "mlp.2"}


def take_block(name: str, take: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """The tensor of `Transformer` with this name, such as "blocks.0.qkv.weight"; `take` adds what stands before it."""
    _, layer, part, kind = re.fullmatch(r"(blocks)\.(\d+)\.(\w+)\.(\w+)", name).groups()
    if part == "qkv":
        return torch.cat([take(f"blocks.{layer}.attn.{one}.{kind}") for one in ("query", "key", "value")])
    return take(f"blocks.{layer}.{BLOCK[part]}.{kind}")


def count_blocks(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    """Number of blocks after a prefix; ValueError where there is none or they are no minGPT blocks."""
    shape_of(tensors, f"{prefix}blocks.0.attn.query.weight", 2)
    return count(tensors, f"{prefix}blocks")


def get_told(config: Mapping[str, Any], section: str, key: str) -> Any:
    """A value that only the config can say.

    Raises:
        ValueError: it names the key.
    """
    if key not in config:
        raise ValueError(f"{section}{key} is missing: no tensor says it, so the original's config must (give config)")
    return config[key]

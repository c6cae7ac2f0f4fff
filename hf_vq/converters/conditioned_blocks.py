"""Names of the blocks of `ConditionedTransformer` in the checkpoints of others."""

import re
from collections.abc import Callable, Mapping

import torch

BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)")


def take_block(
    name: str, take: Callable[[str], torch.Tensor], prefix: str, parts: Mapping[str, tuple[str, ...]]
) -> torch.Tensor:
    """The tensor of a prior's block with this name, such as "transformer.blocks.0.attention.key_value.weight".

    Args:
        name: in the prior.
        take: hands out tensors of the checkpoint.
        prefix: what stands there before the number of a block.
        parts: of modules in a block, such as "attention.key_value", to those whose tensors follow each other in it.
    """
    layer, part, kind = BLOCK.fullmatch(name).groups()
    return torch.cat([take(f"{prefix}{layer}.{one}.{kind}") for one in parts[part]])

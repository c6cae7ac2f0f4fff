"""What a data set asks of the autoencoder that makes its codes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch


class Tokenizer(Protocol):
    """An autoencoder, as far as data sets know it: every one of ours is one."""

    training: bool
    hierarchical: bool
    decoder_options: tuple[str, ...]

    @property
    def config(self) -> Any: ...

    @property
    def codebook_size(self) -> int | tuple[int, ...]: ...

    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...

    @property
    def grid_strides(self) -> tuple[tuple[int, ...], ...]: ...

    @classmethod
    def renamed_options(cls) -> dict[str, str]: ...

    @classmethod
    def as_saved_config(cls, config: dict[str, Any]) -> dict[str, Any]: ...

    def state_dict(self) -> Mapping[str, torch.Tensor]: ...

    def parameters(self) -> Any: ...

    def eval(self) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def only_decodes(self, name: str) -> bool: ...

    def code_shape(self, sample_shape: Sequence[int]) -> tuple: ...

    def tokenize(self, sample: torch.Tensor, padding_mask: torch.Tensor | None = None) -> Any: ...

    def real_length(self, padding_mask: torch.Tensor | None) -> torch.Tensor | None: ...

    def grid_lengths(self, length: torch.Tensor) -> tuple[torch.Tensor, ...]: ...

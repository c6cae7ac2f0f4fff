"""GPT over two-dimensional grids of codes, as VQGAN trains it."""

from math import prod
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from hf_vq.networks.transformer import KeyValueCache, Transformer, check_heads, init_weights
from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.config import PriorConfig
from hf_vq.ranges import Chance, Count, Depth, Range, Samples, Width
from hf_vq.registry import register


class GPTPriorConfig(PriorConfig):
    """Config of `GPTPrior`.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`.
        block_size: most codes of a grid.
        hidden_size: width, a multiple of `num_heads`.
        num_layers: transformer blocks.
        num_heads: heads of attention.
        shared_start: the first token, which stands for the class, is a row of the codes' embedding table, class c
            that of code c, as in taming-transformers; otherwise it has an embedding table of its own.
        start_token: the row that begins every grid where `shared_start` and there are no classes.
        permutation: order in which the codes are drawn: the place in the flattened grid of each; None is raster
            order. It fixes the number of codes of a grid.
        dropout: of what attention and MLP add.
        attention_dropout: of the attention weights.
        embedding_dropout: of the sum of code and position embeddings.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_gpt"

    block_size: Samples = 256
    hidden_size: Width = 512
    num_layers: Depth = 12
    num_heads: Depth = 8
    shared_start: bool = False
    start_token: Annotated[int, Range(0, 2**24)] = 0
    permutation: list[Count] | tuple[Count, ...] | None = None
    dropout: Chance = 0.0
    attention_dropout: Chance = 0.0
    embedding_dropout: Chance = 0.0

    def __post_init__(self, **kwargs):
        check_heads(self.hidden_size, self.num_heads)
        if self.permutation is not None:
            self.permutation = list(self.permutation)
            if not self.permutation or sorted(self.permutation) != list(range(len(self.permutation))):
                raise ValueError(f"permutation must have every place of the grid once, got {self.permutation}")
        super().__post_init__(**kwargs)
        if self.code_shape is not None:
            if len(self.code_shape) != 2:
                raise ValueError(f"code_shape must be (height, width), got {self.code_shape}")
            self.check_grid("code_shape", tuple(self.code_shape))

    def check_grid(self, name: str, grid: tuple[int, ...]) -> None:
        """Raise a `ValueError` that begins with a name for a grid of more codes than fit, or than are permuted."""
        if prod(grid) > self.block_size:
            raise ValueError(f"{name} must have at most block_size={self.block_size} codes, got a grid of {grid}")
        if self.permutation is not None and prod(grid) != len(self.permutation):
            raise ValueError(f"{name} must have as many codes as permutation, {len(self.permutation)}, got {grid}")

    @property
    def num_embeddings(self) -> int:
        """Rows of the codes' embedding table."""
        if not self.shared_start:
            return self.codebook_size
        return max(self.codebook_size, self.num_class_embeddings if self.num_classes else self.start_token + 1)


@register
class GPTPrior(AutoregressivePrior, PreTrainedModel):
    """Transformer prior of VQGAN (https://arxiv.org/abs/2012.09841, section 3.2): the GPT of taming-transformers.

    The grid is read in raster order, or in that of `permutation`, after one token for the class or the start, with
    learned positions. Any grid of up to `block_size` codes will do.
    """

    config_class = GPTPriorConfig
    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["TransformerBlock"]
    grid_dims = 2

    def __init__(self, config: GPTPriorConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.num_embeddings, config.hidden_size)
        self.start_embedding = None
        if not config.shared_start:
            self.start_embedding = nn.Embedding(max(1, config.num_class_embeddings), config.hidden_size)
        self.position_embedding = nn.Embedding(config.block_size, config.hidden_size)
        self.transformer = Transformer(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.codebook_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        super().check_codes(codes, labels)
        self.config.check_grid("codes", tuple(codes.shape[1:]))

    def code_order(self, code_shape: tuple[int, ...]) -> torch.Tensor | None:
        return None if self.config.permutation is None else torch.tensor(self.config.permutation)

    def embed_start(self, num_grids: int, class_labels: torch.Tensor | None) -> torch.Tensor:
        """Vectors (num_grids, hidden_size) of the token before the first code."""
        table = self.embedding if self.start_embedding is None else self.start_embedding
        if class_labels is None:
            start = self.config.start_token if self.config.shared_start else 0
            class_labels = torch.full((num_grids,), start, device=table.weight.device)
        return table(class_labels)

    def predict(self, codes: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        grid, codes = codes.shape[1:], codes.flatten(1)
        order = self.code_order(grid)
        if order is not None:
            order = order.to(codes.device)
            codes = codes[:, order]
        start = self.embed_start(len(codes), class_labels)[:, None]
        hidden = torch.cat([start, self.embedding(codes[:, :-1])], dim=1)  # (batch, positions, hidden_size)
        hidden = hidden + self.position_embedding.weight[: codes.shape[1]]
        hidden = F.dropout(hidden, self.config.embedding_dropout, self.training)
        logits = self.head(self.norm(self.transformer(hidden, self.config._attn_implementation)))
        if order is not None:
            logits = logits[:, order.argsort()]
        return logits.unflatten(1, grid)

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], class_labels: torch.Tensor | None = None
    ) -> "GPTSamplingState":
        self.config.check_grid("code_shape", tuple(code_shape))
        return GPTSamplingState(self, num_grids, prod(code_shape), class_labels)


class GPTSamplingState:
    """The `SamplingState` of a `GPTPrior`.

    Args:
        prior: the GPTPrior, in eval mode and without gradients.
        num_grids: grids sampled together.
        num_codes: codes of a grid.
        class_labels: (num_grids,) of a prior with classes.
    """

    def __init__(self, prior: GPTPrior, num_grids: int, num_codes: int, class_labels: torch.Tensor | None):
        self.prior, self.cache = prior, KeyValueCache(prior.transformer, num_grids, num_codes)
        self.newest = prior.embed_start(num_grids, class_labels)[:, None]  # vectors (grids, positions, hidden_size)

    def prefill(self, codes: torch.Tensor) -> None:
        self.newest = torch.cat([self.newest, self.prior.embedding(codes)], dim=1)

    def next_logits(self) -> torch.Tensor:
        first, prior = self.cache.filled, self.prior
        hidden = self.newest + prior.position_embedding.weight[first : first + self.newest.shape[1]]
        hidden = prior.transformer(hidden, prior.config._attn_implementation, self.cache)
        return prior.head(prior.norm(hidden[:, -1]))  # (grids, codebook_size)

    def append(self, codes: torch.Tensor) -> None:
        self.newest = self.prior.embedding(codes[:, None])

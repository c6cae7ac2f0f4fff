"""RQ-Transformer: a transformer over positions, and at each of them a smaller one over its residual codes."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from hf_vq.modes import fetched
from hf_vq.networks.transformer import ACTIVATIONS, KeyValueCache, Transformer, check_heads, init_weights
from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.base import PriorOutput
from hf_vq.priors.conditions import Condition, PromptCondition, speaker_condition
from hf_vq.priors.config import SpeakerConfig
from hf_vq.priors.inputs import IGNORED
from hf_vq.priors.sampling import positions_first
from hf_vq.ranges import Chance, Depth, FreeWidth, Labels, OneOf, Range, Samples, Width
from hf_vq.registry import register

SPATIAL_INPUTS = ("vectors", "embeddings")
DEPTH_INPUTS = ("cumulative_vectors", "vectors", "embeddings")


@dataclass
class RQTransformerOutput(PriorOutput):
    """Result of an `RQTransformer`.

    Attributes:
        loss: scalar nats; with a prompt (1 - prompt_loss_weight) x code_loss + prompt_loss_weight x prompt_loss.
        logits: (batch, levels, *space, codebook_size).
        code_loss: with a prompt, mean nats per code.
        prompt_loss: with a prompt, mean nats per token after the first.
        prompt_logits: (batch, length - 1, prompt_vocab_size), for the tokens after the first.
    """

    code_loss: torch.Tensor | None = None
    prompt_loss: torch.Tensor | None = None
    prompt_logits: torch.Tensor | None = None


class RQTransformerConfig(SpeakerConfig):
    """Config of `RQTransformer`.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`.
        num_speakers, speaker_dropout_prob: see `SpeakerConfig`; speakers go with classes, with prompts, and alone.
        grid_dims: axes of a grid of codes, that of levels included; that of `code_shape`, or 3, by default.
        num_levels: codes at every position.
        block_size: most positions of a grid: height x width, or of sound its length.
        prompt_vocab_size: number of text tokens, where the prior follows prompts; 0: it follows none.
        prompt_length: most tokens of a prompt.
        prompt_loss_weight: share of the prompt's own likelihood in the loss; 0.1 as for CC-3M.
        hidden_size: width of both transformers, a multiple of both numbers of heads.
        num_spatial_layers, num_spatial_heads: blocks and heads of the transformer over positions.
        num_depth_layers, num_depth_heads: those of the transformer over the codes of a position.
        spatial_inputs: what a position's codes are to the first: the sum of their "vectors", projected, or of learned
            "embeddings".
        depth_inputs: what the codes before are to the second: their "cumulative_vectors", each the sum up to its
            level, or each its "vectors" or learned "embeddings".
        code_vector_dim: width of the vectors.
        shared_code_vectors: one table of vectors for all levels, otherwise one for each.
        shared_embeddings: the same of the learned embeddings.
        shared_head: the same of the linear layer that gives logits.
        dropout: of what attention and MLP add.
        attention_dropout: of the attention weights.
        embedding_dropout: of the input of the transformer over positions.
        attention_bias, mlp_bias: whether the linear layers of attention and MLP have biases.
        activation: "gelu" or "quick_gelu".

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "hf_vq_rq_transformer"
    later_options = {**SpeakerConfig.later_options, "grid_dims": 3}

    grid_dims: Annotated[int, Range(2, 4)] | None = None
    num_levels: Depth = 4
    block_size: Samples = 64
    prompt_vocab_size: Labels = 0
    prompt_length: FreeWidth = 0
    prompt_loss_weight: Chance = 0.1
    hidden_size: Width = 512
    num_spatial_layers: Depth = 12
    num_spatial_heads: Depth = 8
    num_depth_layers: Depth = 4
    num_depth_heads: Depth = 8
    spatial_inputs: Annotated[str, OneOf(SPATIAL_INPUTS)] = "vectors"
    depth_inputs: Annotated[str, OneOf(DEPTH_INPUTS)] = "cumulative_vectors"
    code_vector_dim: Width = 256
    shared_code_vectors: bool = True
    shared_embeddings: bool = True
    shared_head: bool = True
    dropout: Chance = 0.0
    attention_dropout: Chance = 0.0
    embedding_dropout: Chance = 0.0
    attention_bias: bool = True
    mlp_bias: bool = True
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "gelu"

    def __post_init__(self, **kwargs):
        for kind in ("spatial_", "depth_"):
            check_heads(self.hidden_size, getattr(self, f"num_{kind}heads"), kind)
        if (self.prompt_vocab_size > 0) != (self.prompt_length > 0):
            raise ValueError(
                f"prompt_vocab_size and prompt_length go together, got {self.prompt_vocab_size} and "
                f"{self.prompt_length}"
            )
        if self.prompt_vocab_size and self.num_classes:
            raise ValueError(
                f"prompt_vocab_size is {self.prompt_vocab_size} and num_classes is {self.num_classes}: a prior "
                "follows prompts or classes, not both"
            )
        super().__post_init__(**kwargs)
        if self.grid_dims is None:
            self.grid_dims = 3 if self.code_shape is None else len(self.code_shape)
        if self.code_shape is not None:
            if len(self.code_shape) != self.grid_dims:
                raise ValueError(
                    f"code_shape must be the levels and grid_dims={self.grid_dims} - 1 sizes, got {self.code_shape}"
                )
            self.check_grid("code_shape", tuple(self.code_shape))

    def check_grid(self, name: str, grid: tuple[int, ...]) -> None:
        """Raise a `ValueError` that begins with a name for a grid of other levels, or of more positions than fit."""
        if grid[0] != self.num_levels:
            raise ValueError(f"{name} must have num_levels={self.num_levels} levels, got a grid of {grid}")
        if prod(grid[1:]) > self.block_size:
            raise ValueError(f"{name} must have at most block_size={self.block_size} positions, got a grid of {grid}")

    @property
    def uses_vectors(self) -> bool:
        """Whether code vectors of the autoencoder are among the inputs."""
        return self.spatial_inputs == "vectors" or self.depth_inputs != "embeddings"

    @property
    def uses_embeddings(self) -> bool:
        """Whether learned embeddings are among the inputs."""
        return "embeddings" in (self.spatial_inputs, self.depth_inputs)


@register
class RQTransformer(AutoregressivePrior, PreTrainedModel):
    """RQ-Transformer (https://arxiv.org/abs/2203.01941, section 3.2), conditioned on a class, a prompt or nothing.

    Speakers go with each of these. Codes are drawn position by position, at each of them level by level. A prior that
    takes code vectors keeps a frozen copy of the autoencoder's, which `set_code_vectors` fills.

    Attributes:
        code_vectors: buffer (1 or levels, codebook_size, code_vector_dim), or None.
    """

    code_vectors: Any
    embedding: Any  # these three, and what speaks of speakers and prompts, are None where the config leaves them out
    spatial_projection: Any
    depth_projection: Any
    config_class = RQTransformerConfig
    base_model_prefix = "prior"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["TransformerBlock"]
    has_levels = True

    def __init__(self, config: RQTransformerConfig):
        super().__init__(config)
        width, levels, size = config.hidden_size, config.num_levels, config.codebook_size
        num_conditions = config.prompt_vocab_size or max(1, config.num_class_embeddings)
        self.condition_embedding = nn.Embedding(num_conditions, width)
        self.condition_position_embedding = nn.Embedding(max(1, config.prompt_length), width)
        self.speaker_embedding = nn.Embedding(config.num_speaker_embeddings, width) if config.num_speakers else None
        self.position_embedding = nn.Embedding(config.block_size, width)
        self.level_embedding = nn.Embedding(levels, width)

        tables = 1 if config.shared_code_vectors else levels
        vectors = torch.zeros(tables, size, config.code_vector_dim) if config.uses_vectors else None
        self.register_buffer("code_vectors", vectors)
        self._vectors_seen = False
        self.embedding = self.spatial_projection = self.depth_projection = None
        if config.uses_embeddings:
            self.embedding = nn.Embedding(size * (1 if config.shared_embeddings else levels), width)
        if config.spatial_inputs == "vectors":
            self.spatial_projection = nn.Linear(config.code_vector_dim, width)
        if config.depth_inputs != "embeddings":
            self.depth_projection = nn.Linear(config.code_vector_dim, width)

        options = {
            name: getattr(config, name)
            for name in ("dropout", "attention_dropout", "attention_bias", "mlp_bias", "activation")
        }
        self.spatial_transformer = Transformer(config.num_spatial_layers, width, config.num_spatial_heads, **options)
        self.depth_transformer = Transformer(config.num_depth_layers, width, config.num_depth_heads, **options)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size) if config.shared_head else LevelLinear(levels, width, size)
        self.prompt_norm = self.prompt_head = None
        if config.prompt_vocab_size:
            self.prompt_norm = nn.LayerNorm(width)
            self.prompt_head = nn.Linear(width, config.prompt_vocab_size)
        self.post_init()

    @property
    def grid_dims(self) -> int:  # type: ignore[override]
        return self.config.grid_dims

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LevelLinear):
            init.normal_(module.weight, std=0.02)
            init.zeros_(module.bias)
        elif module is self and self.code_vectors is not None:
            init.zeros_(self.code_vectors)
        else:
            init_weights(module)

    @torch.no_grad()
    def set_code_vectors(self, vectors: torch.Tensor) -> None:
        """Take a copy of an autoencoder's code vectors.

        Args:
            vectors: (codebook_size, code_vector_dim) for all levels, or (tables, codebook_size, code_vector_dim) with
                one table or, without `shared_code_vectors`, one for each level.

        Raises:
            ValueError: another shape, nothing but zeros, or a prior that takes no code vectors.
        """
        if self.code_vectors is None:
            raise ValueError("vectors given, but this prior takes none: its inputs are learned embeddings")
        vectors = vectors[None] if vectors.ndim == 2 else vectors
        if vectors.shape != self.code_vectors.shape:
            raise ValueError(f"vectors must be {tuple(self.code_vectors.shape)}, got {tuple(vectors.shape)}")
        if not vectors.any():
            raise ValueError("vectors are all zero: they are no codebook")
        self.code_vectors.copy_(vectors)

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_probs: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        speaker_labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> RQTransformerOutput:
        """Logits of every code from the codes drawn before it, and their loss.

        Args:
            codes: (batch, levels, *space) int64, at most `block_size` positions.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            prompt_ids: (batch, length) int64 of a prior with prompts, 1 to `prompt_length` tokens.
            labels: (batch, levels, *space) int64 targets instead of `codes`; -100 is ignored.
            target_probs: (batch, levels, *space, codebook_size) probabilities as targets instead of `codes`, such as
                the soft codes of RQ-VAE (section 3.2.3).
            return_loss: compute the loss.
            speaker_labels: (batch,) int64 of a prior with speakers; in training some are dropped to the null speaker.
            lengths: (batch,) int64, real positions of each item along the first axis of space; what is beyond takes no
                part in the loss, and prompts count by the real codes that follow them.

        Returns:
            `RQTransformerOutput`.

        Raises:
            ValueError: codes, conditions or targets out of range or of the wrong shape or type, or no code vectors.
        """
        self._check_target_probs(target_probs, codes, labels)
        codes, labels, conditions = self.check_inputs(
            codes, labels, lengths, class_labels=class_labels, prompt_ids=prompt_ids, speaker_labels=speaker_labels
        )
        with fetched(self):
            logits, prompt_logits = self._predict_all(codes, **conditions)
        output = RQTransformerOutput(logits=logits, prompt_logits=prompt_logits)
        if return_loss:
            self._add_losses(output, codes, labels, target_probs, conditions.get("prompt_ids"), lengths)
        return output

    def predict(self, codes: torch.Tensor, **conditions: Any) -> torch.Tensor:
        return self._predict_all(codes, **conditions)[0]

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], **conditions: Any
    ) -> "RQTransformerSamplingState":
        self.config.check_grid("code_shape", tuple(code_shape))
        self._check_code_vectors()
        return RQTransformerSamplingState(self, num_grids, prod(code_shape[1:]), **conditions)

    def code_order(self, code_shape: tuple[int, ...]) -> torch.Tensor:
        return positions_first(code_shape)

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        super().check_codes(codes, labels)
        self.config.check_grid("codes", tuple(codes.shape[1:]))
        self._check_code_vectors()

    def make_conditions(self) -> tuple[Condition, ...]:
        config = self.config
        prompt = PromptCondition(
            config.prompt_vocab_size,
            config.prompt_length,
            padded=False,
            having=f"has prompt_vocab_size={config.prompt_vocab_size}",
            lacking="follows no prompts (prompt_vocab_size=0)",
        )
        return (*super().make_conditions(), prompt, speaker_condition(config))

    def embed_conditions(
        self,
        num_grids: int,
        class_labels: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Vectors (num_grids, length, hidden_size) of what stands before the first position."""
        if class_labels is not None:
            tokens = class_labels[:, None]
        elif prompt_ids is not None:
            tokens = prompt_ids
        else:
            tokens = torch.zeros(num_grids, 1, dtype=torch.int64, device=self.condition_embedding.weight.device)
        hidden = self.condition_embedding(tokens) + self.condition_position_embedding.weight[: tokens.shape[1]]
        return hidden if speaker_labels is None else hidden + self.speaker_embedding(speaker_labels)[:, None]

    def embed_positions(self, codes: torch.Tensor) -> torch.Tensor:
        """Inputs (batch, positions, hidden_size) of the spatial transformer, of codes (batch, positions, levels)."""
        if self.config.spatial_inputs == "embeddings":
            return self._look_up_embeddings(codes).sum(dim=2)
        # the original adds up projections, so the bias counts once for each level
        vectors = self._look_up_vectors(codes).sum(dim=2)
        return F.linear(vectors, self.spatial_projection.weight, codes.shape[2] * self.spatial_projection.bias)

    def embed_levels(self, codes: torch.Tensor) -> torch.Tensor:
        """Inputs (*codes.shape, hidden_size) of the depth transformer after codes (batch, positions, levels)."""
        if self.config.depth_inputs == "embeddings":
            return self._look_up_embeddings(codes)
        vectors = self._look_up_vectors(codes)
        if self.config.depth_inputs == "cumulative_vectors":
            vectors = vectors.cumsum(dim=2)
        return self.depth_projection(vectors)

    def _predict_all(
        self, codes: torch.Tensor, prompt_ids: torch.Tensor | None = None, **conditions: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of codes (batch, levels, *space), and those of the prompt."""
        batch_size, _, *space = codes.shape
        codes = codes.flatten(2).transpose(1, 2)  # (batch, positions, levels)
        before = self.embed_conditions(batch_size, prompt_ids=prompt_ids, **conditions)
        positions = self.embed_positions(codes[:, :-1]) + self.position_embedding.weight[: codes.shape[1] - 1]
        hidden = F.dropout(torch.cat([before, positions], dim=1), self.config.embedding_dropout, self.training)
        hidden = self.spatial_transformer(hidden, self.config._attn_implementation)
        last = before.shape[1] - 1  # the last token of the condition speaks of the first position
        inputs = torch.cat([hidden[:, last:, None], self.embed_levels(codes[..., :-1])], dim=2)
        inputs = (inputs + self.level_embedding.weight).flatten(0, 1)  # (batch x positions, levels, hidden_size)
        levels = self.depth_transformer(inputs, self.config._attn_implementation)
        logits = self.head(self.norm(levels)).unflatten(0, (batch_size, -1)).transpose(1, 2).unflatten(2, space)
        prompt_logits = None if prompt_ids is None else self.prompt_head(self.prompt_norm(hidden[:, :last]))
        return logits, prompt_logits

    def _add_losses(self, output, codes, labels, target_probs, prompt_ids, lengths) -> None:
        if target_probs is None:
            output.loss = self.compute_loss(output.logits, codes, labels)
        else:
            kept = slice(None) if labels is None else labels != IGNORED
            output.loss = soft_cross_entropy(output.logits[kept], target_probs[kept])
        if prompt_ids is None:
            return
        output.code_loss = output.loss
        if prompt_ids.shape[1] > 1:  # the first token has nothing before it
            weight, logits = self.config.prompt_loss_weight, output.prompt_logits.float()
            if lengths is None:
                output.prompt_loss = F.cross_entropy(logits.transpose(1, 2), prompt_ids[:, 1:])
            else:
                nats = F.cross_entropy(logits.transpose(1, 2), prompt_ids[:, 1:], reduction="none").mean(1)
                lengths = torch.as_tensor(lengths, device=nats.device)
                output.prompt_loss = (nats * lengths).sum() / lengths.sum()
            output.loss = (1 - weight) * output.code_loss + weight * output.prompt_loss

    def _look_up_vectors(self, codes: torch.Tensor) -> torch.Tensor:
        return F.embedding(self._rows(codes, self.config.shared_code_vectors), self.code_vectors.flatten(0, 1))

    def _look_up_embeddings(self, codes: torch.Tensor) -> torch.Tensor:
        return self.embedding(self._rows(codes, self.config.shared_embeddings))

    def _rows(self, codes: torch.Tensor, shared: bool) -> torch.Tensor:
        """Rows of a table for codes (..., levels): tables of levels of their own lie one after the other."""
        if shared:
            return codes
        return codes + self.config.codebook_size * torch.arange(codes.shape[-1], device=codes.device)

    def _check_code_vectors(self) -> None:
        if self.code_vectors is None or self._vectors_seen or torch.compiler.is_compiling():
            return
        if not self.code_vectors.any():
            raise ValueError(
                "code_vectors are empty: give set_code_vectors the code vectors of the autoencoder (a converter takes "
                "its checkpoint as first_stage)"
            )
        self._vectors_seen = True  # looked at once: a look waits for the device

    def _check_target_probs(self, target_probs, codes, labels) -> None:
        if target_probs is None:
            return
        if labels is not None:
            raise ValueError("labels and target_probs are both targets: give one of them")
        shape = (*codes.shape, self.config.codebook_size)
        if not target_probs.is_floating_point() or target_probs.shape != shape:
            raise ValueError(
                f"target_probs must be floats of shape {shape}, got {target_probs.dtype} {tuple(target_probs.shape)}"
            )


class LevelLinear(nn.Module):
    """A linear layer of its own for each level."""

    def __init__(self, levels: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(levels, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(levels, out_features))

    def forward(self, inputs: torch.Tensor, level: int | None = None) -> torch.Tensor:
        """Inputs (..., levels, in_features) of all levels, or (batch, in_features) of one."""
        if level is not None:
            return torch.addmm(self.bias[level], inputs, self.weight[level])
        return torch.einsum("...li,lio->...lo", inputs, self.weight) + self.bias


def soft_cross_entropy(logits: torch.Tensor, target_probs: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy with probabilities as targets, as RQ-VAE computes it: 1e-7 is added inside the logarithm."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits - logits.amax(dim=-1, keepdim=True)
    log_probs = logits - torch.log(logits.exp().sum(dim=-1, keepdim=True) + 1e-7)
    return -(target_probs * log_probs).sum(dim=-1).mean()


class RQTransformerSamplingState:
    """The `SamplingState` of an `RQTransformer`.

    Args:
        prior: the RQTransformer, in eval mode and without gradients.
        num_grids: grids sampled together.
        num_positions: positions of a grid.
        conditions: checked conditions.
    """

    def __init__(self, prior: RQTransformer, num_grids: int, num_positions: int, **conditions: Any):
        self.prior, self.implementation = prior, prior.config._attn_implementation
        self.num_positions, self.position, self.level = num_positions, 0, 0
        hidden = prior.embed_conditions(num_grids, **conditions)
        levels = prior.config.num_levels
        self.spatial_cache = KeyValueCache(prior.spatial_transformer, num_grids, hidden.shape[1] + num_positions - 1)
        self.depth_cache = KeyValueCache(prior.depth_transformer, num_grids, levels)
        self.codes = torch.empty(num_grids, 1, levels, dtype=torch.int64, device=hidden.device)  # of this position
        self.newest = hidden  # what the spatial transformer has not yet seen, (grids, positions, hidden_size)

    def prefill(self, codes: torch.Tensor) -> None:
        prior, levels = self.prior, self.prior.config.num_levels
        self.position = codes.shape[1] // levels  # whole positions
        first, columns = codes[:, : self.position * levels], codes[:, self.position * levels :].unbind(1)
        hidden = prior.embed_positions(first.unflatten(1, (-1, levels)))
        self.newest = torch.cat([self.newest, hidden + prior.position_embedding.weight[: self.position]], dim=1)
        for column in columns:
            self.next_logits()
            self.append(column)

    def next_logits(self) -> torch.Tensor:
        prior = self.prior
        if self.level == 0:
            self.input = prior.spatial_transformer(self.newest, self.implementation, self.spatial_cache)[:, -1:]
        hidden = self.input + prior.level_embedding.weight[self.level]
        hidden = prior.norm(prior.depth_transformer(hidden, self.implementation, self.depth_cache)[:, 0])
        return prior.head(hidden) if prior.config.shared_head else prior.head(hidden, self.level)

    def append(self, codes: torch.Tensor) -> None:
        prior = self.prior
        self.codes[:, 0, self.level] = codes
        self.level += 1
        if self.level < prior.config.num_levels:
            self.input = prior.embed_levels(self.codes[..., : self.level])[:, :, -1]
            return
        self.depth_cache.filled = self.level = 0
        self.position += 1
        if self.position < self.num_positions:
            self.newest = prior.embed_positions(self.codes) + prior.position_embedding.weight[self.position - 1]

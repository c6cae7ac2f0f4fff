"""Priors that predict all codes of a grid at once, from states of which some are codes: their config and network."""

import reprlib
import zlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, cast

import torch
from diffusers import SchedulerMixin
from torch import nn
from transformers import initialization as init

from hf_vq.networks.conditioned_transformer import ConditionedTransformer
from hf_vq.networks.grid_embedding import GridEmbedding
from hf_vq.networks.transformer import check_heads, init_weights
from hf_vq.priors.conditions import Condition, ContextCondition, class_condition
from hf_vq.priors.config import PriorConfig
from hf_vq.priors.inputs import InputChecks, at_own_lengths, map_tensors
from hf_vq.priors.sampling import Generators, check_generators, guide
from hf_vq.priors.text_conditions import TEXT, TEXT_MASK, TextCondition, TextMaskCondition, fill_text
from hf_vq.ranges import Chance, Codebook, Depth, FreeWidth, NotEmpty, OneOf, Range, Side, Width

NULL_TEXTS = ("learned", "zero")


class ParallelPriorConfig(PriorConfig):
    """Config of priors that predict all codes at once.

    Args:
        codebook_size, num_classes, class_dropout_prob: see `PriorConfig`.
        code_shape: the largest grid, (levels, *space) of residual codes; every axis has learned positions.
        positions_per_axis: positions are sums of one vector an axis; False: each has one of its own, in raster order.
        num_levels: above 1, the first axis of the grid holds the levels of a residual quantizer.
        context_codebook_sizes: of the coarser grids of a hierarchy, coarse to fine.
        hidden_size: width, a multiple of `num_heads`.
        num_layers: transformer blocks.
        num_heads: heads of attention.
        intermediate_size: width inside the MLPs; by default four times `hidden_size`.
        mlp: "linear" or "conv", 3x3 convolutions over a grid of two axes.
        activation: of the MLPs: "gelu", "gelu_tanh", "quick_gelu" or "geglu".
        attention_bias: whether queries, keys and values have biases.
        cross_attention_dim: width of the text's states that every block looks at; 0 is a prior without text.
        text_length: states of every text; 0: any number.
        text_dropout_prob: chance that training leaves the text out; above 0 it makes guidance by text possible.
        null_text: what stands for a text that is left out: "learned", states of its own, or "zero"; None: nothing
            (guidance then takes `negative_encoder_hidden_states`).
        dropout: of what attention and MLP add.
        attention_dropout: of the attention weights.

    Raises:
        ValueError: a value is out of its range.
    """

    code_shape: Annotated[tuple[Side, ...] | list[Side], NotEmpty()] | None = (16, 16)
    positions_per_axis: bool = True
    num_levels: Depth = 1
    context_codebook_sizes: list[Codebook] | tuple[Codebook, ...] = ()
    hidden_size: Width = 512
    num_layers: Depth = 8
    num_heads: Depth = 8
    intermediate_size: Annotated[int, Range(1, 2**18)] | None = None
    mlp: Annotated[str, OneOf(("linear", "conv"))] = "linear"
    activation: Annotated[str, OneOf(("gelu", "gelu_tanh", "quick_gelu", "geglu"))] = "gelu"
    attention_bias: bool = True
    cross_attention_dim: FreeWidth = 0
    text_length: FreeWidth = 0
    text_dropout_prob: Chance = 0.0
    null_text: Annotated[str, OneOf(NULL_TEXTS)] | None = None
    dropout: Chance = 0.0
    attention_dropout: Chance = 0.0

    def __post_init__(self, **kwargs):
        check_heads(self.hidden_size, self.num_heads)
        super().__post_init__(**kwargs)
        if self.code_shape is None:
            raise ValueError("code_shape must be a grid, whose axes have learned positions, got None")
        if (self.cross_attention_dim == 0) and (self.text_length or self.text_dropout_prob or self.null_text):
            raise ValueError(
                f"text_length={self.text_length}, text_dropout_prob={self.text_dropout_prob} and null_text="
                f"{self.null_text!r} are of a prior with text, but cross_attention_dim is 0"
            )
        if self.null_text == "learned" and not self.text_length:
            raise ValueError(
                "text_length must be given for null_text='learned', which is a text of that length, got 0"
            )
        if self.text_dropout_prob > 0 and self.null_text is None:
            raise ValueError(
                f"text_dropout_prob={self.text_dropout_prob} needs null_text, 'learned' or 'zero', got None"
            )
        self.context_codebook_sizes = list(self.context_codebook_sizes)
        if self.context_codebook_sizes and len(self.code_shape) > 2:
            raise ValueError(
                f"context_codebook_sizes={self.context_codebook_sizes} need grids of one or two axes, got code_shape="
                f"{self.code_shape}"
            )
        if self.mlp == "conv" and len(self.code_shape) != 2:
            raise ValueError(f"mlp='conv' needs grids of two axes, got code_shape={self.code_shape}")
        if self.num_levels > 1 and (len(self.code_shape) < 2 or self.code_shape[0] != self.num_levels):
            raise ValueError(f"code_shape must begin with num_levels={self.num_levels}, got {self.code_shape}")


class ParallelNetwork(InputChecks):
    """A bidirectional transformer over grids of states: codes, and one that is none, the mask.

    It stands before `Prior` among the bases. A prior with it says what its states are and draws codes; `run_network`
    gives logits of all codes from the states.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ConditionedBlock"]

    def build(self, num_timesteps: int = 0, timestep_embedding: str = "learned") -> None:
        """Make the modules; called by the constructor of a subclass, before `post_init`."""
        config = self.config
        self.embedding = GridEmbedding(
            config.codebook_size + 1, config.hidden_size, tuple(config.code_shape), config.positions_per_axis
        )
        self.context_embeddings = nn.ModuleList(
            nn.Embedding(size, config.hidden_size) for size in config.context_codebook_sizes
        )
        self.transformer = ConditionedTransformer(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            num_timesteps=num_timesteps,
            num_classes=config.num_class_embeddings,
            cross_attention_dim=config.cross_attention_dim,
            intermediate_size=config.intermediate_size,
            mlp=config.mlp,
            activation=config.activation,
            attention_bias=config.attention_bias,
            timestep_embedding=timestep_embedding,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.codebook_size)
        self.null_text = None
        if config.null_text == "learned":
            self.null_text = nn.Parameter(torch.zeros(config.text_length, config.cross_attention_dim))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)
        if module is self and self.null_text is not None:
            init.normal_(self.null_text, std=0.02)

    @property
    def grid_dims(self) -> int:
        return len(self.config.code_shape)

    @property
    def has_levels(self) -> bool:
        return self.config.num_levels > 1

    @property
    def mask(self) -> int:
        """The state that is no code."""
        return self.config.codebook_size

    def make_conditions(self) -> tuple[Condition, ...]:
        config = self.config
        text = TextCondition(config.cross_attention_dim, config.text_length, config.text_dropout_prob)
        context = ContextCondition(config.context_codebook_sizes, len(config.code_shape))
        return (class_condition(config), context, text, TextMaskCondition(config.cross_attention_dim > 0))

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        super().check_codes(codes, labels)
        self.check_grid("codes", tuple(codes.shape[1:]))

    def _check_code_shape(self, code_shape: Sequence[int] | None) -> tuple[int, ...]:
        code_shape = super()._check_code_shape(code_shape)
        self.check_grid("code_shape", code_shape)
        return code_shape

    def check_grid(self, name: str, grid: tuple[int, ...]) -> None:
        """Raise a ValueError that begins with a name for a grid that has no positions, or not all of the levels."""
        largest = tuple(self.config.code_shape)
        if any(size > most for size, most in zip(grid, largest, strict=True)):
            raise ValueError(f"{name} must be a grid of at most config.code_shape={largest}, got {grid}")
        if self.has_levels and grid[0] != self.config.num_levels:
            raise ValueError(f"{name} must have {self.config.num_levels} levels, got {grid}")

    def run_network(
        self,
        states: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        context_codes: tuple[torch.Tensor, ...] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of all codes.

        Args:
            states: (batch, *grid) int64, codes or `mask`.
            timesteps: (batch,) int64, of a network that knows them.
            padding_mask: (batch, *grid) bool, True = real; others are not looked at.
            class_labels, context_codes, encoder_hidden_states, encoder_attention_mask: checked conditions.

        Returns:
            (batch, *grid, codebook_size).
        """
        if encoder_hidden_states is not None:
            null = encoder_hidden_states.new_zeros(1, 1) if self.null_text is None else self.null_text
            encoder_hidden_states, encoder_attention_mask = fill_text(
                encoder_hidden_states, encoder_attention_mask, null
            )
        hidden, grid = self.embedding(states), tuple(states.shape[1:])
        if context_codes is not None:
            hidden = hidden + self.embed_context(context_codes, grid, padding_mask).flatten(1, -2)
        hidden = self.transformer(
            hidden,
            grid,
            timesteps=timesteps,
            class_labels=class_labels,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            padding_mask=None if padding_mask is None else padding_mask.flatten(1),
            implementation=self.config._attn_implementation,
        )
        return self.head(self.norm(hidden)).unflatten(1, grid)

    def check_inputs(
        self,
        codes: torch.Tensor,
        labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        **conditions: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict]:
        """As of `InputChecks`; among the conditions is a `padding_mask` (batch, *grid), True = real, given lengths."""
        codes, labels, conditions = super().check_inputs(codes, labels, lengths, **conditions)
        if lengths is not None:
            if self.config.mlp == "conv":
                raise ValueError("lengths given, but mlp='conv' would see the padding: give grids of one size")
            conditions["padding_mask"] = self.real_places(self.check_lengths(lengths, codes), codes)
        return codes, labels, conditions

    def embed_context(
        self, context_codes: tuple[torch.Tensor, ...], grid: tuple[int, ...], padding_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Features (batch, *grid, hidden_size) of the coarser codes; padded items have those of their own rows."""
        height, *rest = grid
        if padding_mask is None:
            return self.spread_context(context_codes, grid)
        lengths = padding_mask.flatten(2)[:, :, 0].sum(1) if rest else padding_mask.sum(1)

        def of_rows(rows: torch.Tensor, length: int) -> torch.Tensor:
            cut = tuple(codes[rows, : -(-length * codes.shape[1] // height)] for codes in context_codes)
            return self.spread_context(cut, (length, *rest)).movedim(-1, 1)

        return at_own_lengths(lengths, height, of_rows).movedim(1, -1)

    def spread_context(self, context_codes: tuple[torch.Tensor, ...], grid: tuple[int, ...]) -> torch.Tensor:
        """`embed_context` of whole items: every coarser code stands over the places that it covers."""
        features = []
        for embedding, codes in zip(self.context_embeddings, context_codes, strict=True):
            places = (
                torch.arange(size, device=codes.device) * own // size
                for size, own in zip(grid, codes.shape[1:], strict=True)
            )
            index: tuple[Any, ...] = (slice(None), *torch.meshgrid(*places, indexing="ij"))
            features.append(embedding(codes[index]))
        return torch.stack(features).sum(0)

    def guidance_conditions(
        self,
        conditions: dict,
        guidance_scale: float,
        negative: torch.Tensor | None = None,
        negative_mask: torch.Tensor | None = None,
    ) -> dict:
        """Checked conditions as `guided` wants them: with guidance twice, as they are and then what it compares with.

        Args:
            conditions: checked.
            guidance_scale: 1 is no guidance.
            negative: (batch, length, width), a text to guide away from instead of none.
            negative_mask: (batch, length) of it; None: all counts.

        Raises:
            ValueError: there is nothing to guide away from, or no guidance, or the text does not fit.
        """
        if negative is None and negative_mask is not None:
            raise ValueError("negative_encoder_attention_mask given without negative_encoder_hidden_states")
        if guidance_scale == 1:
            if negative is not None:
                raise ValueError("negative_encoder_hidden_states given, but guidance_scale=1 guides away from nothing")
            return conditions
        if negative is None and not self.can_guide:
            raise ValueError(
                f"guidance_scale={guidance_scale} needs a null class or a null text, but this prior was made with "
                f"class_dropout_prob={self.config.class_dropout_prob}, text_dropout_prob="
                f"{self.config.text_dropout_prob}"
            )
        null = self.null_conditions(conditions)
        if negative is not None:
            conditions, null = self._add_negative(conditions, null, negative, negative_mask)
        return {
            name: map_tensors(lambda *both: torch.cat(both), value, null[name]) for name, value in conditions.items()
        }

    def _add_negative(self, conditions, null, negative, mask):
        """Conditions and null ones with a text in these; where one text has a mask, all of the other counts."""
        texts, wanted = {TEXT: negative, TEXT_MASK: mask}, conditions.get(TEXT)
        others = {name: value for name, value in conditions.items() if name not in texts}
        try:
            null = null | self.check_conditions({**others, **texts}, None if wanted is None else len(wanted))
        except ValueError as error:
            raise ValueError(f"negative_{error}") from error
        if null[TEXT].shape != conditions[TEXT].shape:
            raise ValueError(
                f"negative_{TEXT} must have the shape of {TEXT}, {tuple(conditions[TEXT].shape)}, got "
                f"{tuple(null[TEXT].shape)}"
            )
        if mask is None and TEXT_MASK in conditions:
            null[TEXT_MASK] = torch.ones_like(conditions[TEXT_MASK])
        if mask is not None and TEXT_MASK not in conditions:
            conditions = {**conditions, TEXT_MASK: torch.ones_like(null[TEXT_MASK])}
        return conditions, null

    def check_request(
        self,
        batch_size: int | None,
        code_shape: tuple[int, ...],
        conditions: dict,
        generator: Generators,
        known: tuple[torch.Tensor | None, torch.Tensor | None],
        guidance_scale: float,
        negative: tuple[torch.Tensor | None, torch.Tensor | None],
    ) -> tuple[tuple[int, ...], dict, Callable[[torch.Tensor], torch.Tensor]]:
        """Check what `sample` got beside its options and a checked code_shape.

        Args:
            batch_size, conditions, generator, guidance_scale: as given.
            known: `known_codes` and `known_mask`, as given.
            negative: states and mask of the text to guide away from, as given.

        Returns:
            The shape (batch, *grid); conditions as of `guidance_conditions`; and what puts the known codes into states
            of that shape.
        """
        batch_size, conditions = self._check_batch(batch_size, conditions, code_shape)
        shape = (batch_size, *code_shape)
        codes = self._check_known(*known, shape)
        check_generators(generator, batch_size)
        conditions = self.guidance_conditions(conditions, guidance_scale, *negative)

        def keep(states: torch.Tensor) -> torch.Tensor:
            if codes is None:
                return states
            return torch.where(cast(torch.Tensor, known[1]).to(self.device), codes.to(self.device), states)

        return shape, conditions, keep

    def guided(
        self, predict: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, guidance_scale: float
    ) -> torch.Tensor:
        """What a network predicts of states; with guidance in one pass of twice the batch, guided.

        Args:
            predict: from states to logits (batch, *grid, codebook_size), with the conditions that
                `guidance_conditions` gave.
            states: (batch, *grid) int64.
            guidance_scale: 1 is no guidance.

        Returns:
            (batch, *grid, codebook_size), at least float32.

        Raises:
            RuntimeError: logits that are not finite.
        """
        guides = guidance_scale != 1
        logits = predict(torch.cat([states, states]) if guides else states)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if not logits.sum().isfinite():
            raise RuntimeError("the prior gave logits that are not finite: its weights or its dtype are at fault")
        if not guides:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guide(conditional, unconditional, guidance_scale)


def check_scheduler(scheduler: Any, wanted: type) -> None:
    """Raise a ValueError that names a scheduler which is not of the wanted class."""
    if not isinstance(scheduler, wanted):
        got = type(scheduler).__name__ if isinstance(scheduler, SchedulerMixin) else reprlib.repr(scheduler)
        raise ValueError(f"scheduler must be a {wanted.__name__}, got {got}")


def seeded_uniforms(
    codes: torch.Tensor, padding_mask: torch.Tensor | None, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform numbers that depend on the real codes of each item alone, not on its batch or padding.

    Args:
        codes: (batch, *grid) int64.
        padding_mask: (batch, *grid) bool, True = real; None: all.
        count: how often.

    Returns:
        choices (count, batch) and noise (count, 2, batch, *grid), float32 in [0, 1); 0 in padding.
    """
    choices = torch.empty(count, len(codes))
    noise = torch.zeros(count, 2, *codes.shape)
    real = torch.ones(codes.shape, dtype=torch.bool) if padding_mask is None else padding_mask.cpu()
    for item, (grid, mask) in enumerate(zip(codes.cpu(), real, strict=True)):
        generator = torch.Generator().manual_seed(zlib.crc32(grid[mask].numpy().tobytes()))
        choices[:, item] = torch.rand(count, generator=generator)
        noise[:, :, item, mask] = torch.rand(count, 2, int(mask.sum()), generator=generator)
    return choices.to(codes.device), noise.to(codes.device)

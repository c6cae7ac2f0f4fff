"""What transformer priors share: the config of a Llama decoder, its vocabulary, and the prompt that codes follow."""

from math import prod
from typing import Annotated, cast

import torch
from transformers.models.llama import LlamaConfig

from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.conditions import Condition, PromptCondition, speaker_condition
from hf_vq.priors.config import SpeakerConfig
from hf_vq.priors.sampling import positions_first
from hf_vq.ranges import Chance, Depth, FreeWidth, Labels, Positive, Range, Samples, Weight, Width


class DecoderConfig(SpeakerConfig):
    """Sizes of a Llama decoder (https://arxiv.org/abs/2302.13971) over codes, under the names of transformers.

    The vocabulary is codes, then classes, then the null entry, then text tokens, then speakers. The null entry is the
    null class, the begin token of a prior without classes, and stands for absent text.

    Args:
        codebook_size, num_classes, code_shape, class_dropout_prob: see `PriorConfig`.
        num_speakers, speaker_dropout_prob: see `SpeakerConfig`.
        grid_dims: axes of a grid of codes, levels included; that of `code_shape`, or 2, by default.
        num_levels: above 1, the first axis of the grid holds the levels of a residual quantizer.
        num_text_tokens: size of the text vocabulary; 0 is a prior without text.
        prompt_length: text tokens before the codes.
        prompt_dropout_prob: chance that training drops the text; above 0 it makes guidance by text possible.
        hidden_size: width of the decoder.
        num_layers: decoder layers.
        num_heads: attention heads; they divide `hidden_size`.
        num_key_value_heads: heads of keys and values, which divide `num_heads`; by default as many.
        intermediate_size: width inside the gated MLP; by default 8/3 of `hidden_size`, up to a multiple of 64.
        attention_dropout: in training.
        rms_norm_eps: added to the mean square.
        initializer_range: standard deviation of new weights.
        rope_parameters: as transformers' Llama; `{"rope_type": "default", "rope_theta": 10000.0}` by default.
        tie_word_embeddings: one matrix embeds tokens and gives logits.

    Raises:
        ValueError: a value is out of its range.
    """

    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    keys_to_ignore_at_inference = ["past_key_values"]
    base_model_tp_plan = LlamaConfig.base_model_tp_plan
    base_model_pp_plan = LlamaConfig.base_model_pp_plan
    hidden_act, attention_bias, mlp_bias, pad_token_id, use_cache = "silu", False, False, None, True
    bos_token_id, eos_token_id = None, None  # Llama's 1 and 2 would be codes

    grid_dims: Annotated[int, Range(1, 4)] | None = None
    num_levels: Depth = 1
    num_text_tokens: Labels = 0
    prompt_length: FreeWidth = 0
    prompt_dropout_prob: Chance = 0.0
    hidden_size: Width = 512
    num_layers: Depth = 8
    num_heads: Depth = 8
    num_key_value_heads: Depth | None = None
    intermediate_size: Annotated[int, Range(1, 2**18)] | None = None
    attention_dropout: Chance = 0.0
    rms_norm_eps: Positive = 1e-6
    initializer_range: Weight = 0.02
    rope_parameters: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_heads
        if self.intermediate_size is None:
            self.intermediate_size = -(-8 * self.hidden_size // 3 // 64) * 64
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 2 * num_heads = {2 * self.num_heads}, got {self.hidden_size}"
            )
        if self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_heads={self.num_heads}, got {self.num_key_value_heads}"
            )
        if (self.num_text_tokens > 0) != (self.prompt_length > 0):
            raise ValueError(
                f"num_text_tokens={self.num_text_tokens} and prompt_length={self.prompt_length} go together"
            )
        if self.prompt_dropout_prob > 0 and self.num_text_tokens == 0:
            raise ValueError(
                f"prompt_dropout_prob is {self.prompt_dropout_prob}, but num_text_tokens is 0: nothing to drop"
            )
        super().__post_init__(**kwargs)
        if self.grid_dims is None:
            self.grid_dims = 2 + (self.num_levels > 1) if self.code_shape is None else len(self.code_shape)
        if self.code_shape is not None:
            if len(self.code_shape) != self.grid_dims:
                raise ValueError(f"code_shape must have grid_dims={self.grid_dims} sizes, got {self.code_shape}")
            if self.num_levels > 1 and self.code_shape[0] != self.num_levels:
                raise ValueError(f"code_shape must begin with num_levels={self.num_levels}, got {self.code_shape}")
        if self.grid_dims < 1 + (self.num_levels > 1):
            raise ValueError(f"grid_dims must count the axis of levels and one more, got {self.grid_dims}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def num_code_tokens(self) -> int:
        """Rows of the vocabulary that are codes; they come first."""
        return self.codebook_size

    @property
    def null_token(self) -> int:
        """Place of the null entry in the vocabulary."""
        return self.num_code_tokens + self.num_classes

    @property
    def vocab_size(self) -> int:
        return self.speaker_token + self.num_speaker_embeddings

    @property
    def speaker_token(self) -> int:
        """Place of the first speaker in the vocabulary."""
        return self.null_token + 1 + self.num_text_tokens

    @property
    def num_tokens_before(self) -> int:
        """Tokens before the first code: text, the speaker, and the class or the null entry."""
        return self.prompt_length + (self.num_speakers > 0) + 1

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the longest sequence: the prompt and the codes of `code_shape` (8192 where that is open)."""
        return self.num_tokens_before + (8192 if self.code_shape is None else prod(self.code_shape))


class PromptMixin(AutoregressivePrior):
    """The part of a transformer prior before its codes: text, then the speaker, then the class or the null entry."""

    @property
    def grid_dims(self) -> int:
        return self.config.grid_dims

    @property
    def has_levels(self) -> bool:
        return self.config.num_levels > 1

    def make_conditions(self) -> tuple[Condition, ...]:
        config = self.config
        prompt = PromptCondition(
            config.num_text_tokens,
            config.prompt_length,
            padded=True,
            having=f"has num_text_tokens={config.num_text_tokens}",
            lacking="has no text (num_text_tokens=0)",
            dropout_prob=config.prompt_dropout_prob,
        )
        return (*super().make_conditions(), prompt, speaker_condition(config))

    def check_codes(self, codes: torch.Tensor, labels: torch.Tensor | None = None) -> None:
        super().check_codes(codes, labels)
        if self.config.num_levels > 1 and codes.shape[1] != self.config.num_levels:
            raise ValueError(f"codes must have {self.config.num_levels} levels in axis 1, got {tuple(codes.shape)}")

    def code_order(self, code_shape: tuple[int, ...]) -> torch.Tensor | None:
        """Residual codes: all levels of a place before the next place, places in raster order."""
        return None if self.config.num_levels == 1 else positions_first(code_shape)

    def _check_code_shape(self, code_shape) -> tuple[int, ...]:
        code_shape = super()._check_code_shape(code_shape)
        if self.config.num_levels > 1 and code_shape[0] != self.config.num_levels:
            raise ValueError(f"code_shape must begin with {self.config.num_levels} levels, got {code_shape}")
        return code_shape

    def make_prompt(
        self,
        batch_size: Samples | None = None,
        *,
        class_labels: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The tokens before the first code.

        Args:
            batch_size: of a prior without conditions.
            class_labels: (batch,) integers of a prior with classes; `num_classes` is the null class.
            prompt_ids: (batch, at most prompt_length) integers in [-1, num_text_tokens) of a prior with text; -1 is no
                token.
            speaker_labels: (batch,) integers of a prior with speakers; `num_speakers` is the null speaker.

        Returns:
            (batch, num_tokens_before of the config) int64 in [0, vocab_size).

        Raises:
            ValueError: a condition is missing or does not fit.
        """
        conditions = self.check_conditions(
            {"class_labels": class_labels, "prompt_ids": prompt_ids, "speaker_labels": speaker_labels}, batch_size
        )
        given = list(conditions.values())
        if not given and batch_size is None:
            raise ValueError("batch_size missing: this prior has no conditions")
        return self.prompt_tokens(len(given[0]) if given else cast(int, batch_size), **conditions)

    def prompt_tokens(
        self,
        batch_size: int,
        class_labels: torch.Tensor | None = None,
        prompt_ids: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`make_prompt` of checked conditions."""
        config = self.config
        if class_labels is None:
            begin = torch.full((batch_size,), config.null_token, device=self.device)
        else:
            begin = config.num_code_tokens + class_labels
        parts = []
        if prompt_ids is not None:
            parts.append(config.null_token + 1 + prompt_ids)  # no token, -1, becomes the null entry
        if speaker_labels is not None:
            parts.append((config.speaker_token + speaker_labels)[:, None])
        return torch.cat([*parts, begin[:, None]], dim=1)

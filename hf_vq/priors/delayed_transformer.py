"""DelayedTransformerPrior: all levels of residual codes in one step, each level one step later than the one above."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel
from transformers.utils import can_return_tuple

from hf_vq.priors.base import PriorOutput
from hf_vq.priors.compiled_sampling import CompiledSampling
from hf_vq.priors.prompts import DecoderConfig, PromptMixin
from hf_vq.priors.transformer import start_decoder
from hf_vq.registry import register


class DelayedTransformerPriorConfig(DecoderConfig):
    __doc__ = str(DecoderConfig.__doc__).replace("Sizes of", "Config of `DelayedTransformerPrior`, the sizes of")

    model_type = "hf_vq_delayed_transformer"

    def __post_init__(self, **kwargs):
        if self.num_levels < 2:
            raise ValueError(f"num_levels must be at least 2 for a delay between levels, got {self.num_levels}")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings must be False, since the logits are of codes only, got True")
        super().__post_init__(**kwargs)

    @property
    def num_code_tokens(self) -> int:
        return self.num_levels * self.codebook_size  # each level has codes of its own

    @property
    def max_position_embeddings(self) -> int:
        return super().max_position_embeddings + self.num_levels


@register
class DelayedTransformerPrior(CompiledSampling, PromptMixin, LlamaPreTrainedModel):
    """MusicGen's delay pattern (https://arxiv.org/abs/2306.05284, section 2.2) over residual codes (levels, *space).

    In step t the decoder gives level l of place t - l, for all levels at once, from the sum of the embeddings of the
    codes of step t - 1: a grid takes places + levels - 1 steps instead of places times levels. The codes of one step
    do not see each other. This is no Llama to others, on disk neither: stock `generate` gives one token a step.
    """

    config_class = DelayedTransformerPriorConfig
    config: DelayedTransformerPriorConfig  # type: ignore[assignment]  # read as a LlamaConfig
    reads_lengths = True  # padding of one level is drawn before the last codes of the next

    def __init__(self, config: DelayedTransformerPriorConfig):
        super().__init__(config)
        self.model = LlamaModel(cast(Any, config))  # the fields that it reads are there
        self.lm_head = nn.Linear(config.hidden_size, config.num_code_tokens, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        prompt_ids: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
    ) -> PriorOutput:
        """Logits of every code from the codes of the steps before its own, and their loss.

        Args:
            codes: (batch, levels, *space) int64.
            class_labels, labels, return_loss, prompt_ids, speaker_labels, lengths: see `TransformerPrior.forward`.

        Returns:
            `PriorOutput` with the loss in mean nats per code and logits (batch, levels, *space, codebook_size).

        Raises:
            ValueError: codes, conditions or targets out of range or of the wrong shape or type.
        """
        return self.run_forward(
            codes, labels, return_loss, lengths,
            class_labels=class_labels, prompt_ids=prompt_ids, speaker_labels=speaker_labels,
        )  # fmt: skip

    def delay(
        self, num_places: int, real: torch.Tensor | int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where each level is in each step.

        Args:
            num_places: of a grid, in each level.
            real: (batch, 1, 1), how many of them are no padding; None: all.

        Returns:
            levels (levels,), places (steps, levels), and whether that place exists (steps, levels), with `real`
            (batch, steps, levels).
        """
        levels = torch.arange(self.config.num_levels, device=self.device)
        places = torch.arange(num_places + len(levels) - 1, device=self.device)[:, None] - levels
        return levels, places, (places >= 0) & (places < (num_places if real is None else real))

    def code_order(self, code_shape: tuple[int, ...]) -> torch.Tensor:
        num_places = torch.Size(code_shape[1:]).numel()
        levels, places, exist = self.delay(num_places)
        return (levels * num_places + places)[exist]

    def predict(self, codes: torch.Tensor, lengths: torch.Tensor | None = None, **conditions: Any) -> torch.Tensor:
        config, flat = self.config, codes.flatten(2)  # (batch, levels, places)
        real = None if lengths is None else lengths[:, None, None] * codes[0, 0, 0].numel()
        levels, places, exist = self.delay(flat.shape[2], real)
        tokens = flat[:, levels, places.clamp(0, flat.shape[2] - 1)] + levels * config.codebook_size
        tokens = tokens.where(exist, config.null_token)[:, :-1]  # (batch, steps - 1, levels)
        prompt = self.prompt_tokens(len(codes), **conditions)
        embed = self.model.embed_tokens
        inputs = torch.cat([embed(prompt), embed(tokens).sum(2)], dim=1)
        features = self.model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, prompt.shape[1] - 1 :]
        logits = self.lm_head(features).unflatten(2, (-1, config.codebook_size))  # (batch, steps, levels, codes)
        steps = levels[:, None] + torch.arange(flat.shape[2], device=codes.device)  # (levels, places)
        return logits[:, steps, levels[:, None]].view(*codes.shape, -1)

    def start_sampling(self, num_grids: int, code_shape: tuple[int, ...], **conditions: Any) -> "DelayedSamplingState":
        num_places = torch.Size(code_shape[1:]).numel()
        return DelayedSamplingState(self, self.prompt_tokens(num_grids, **conditions), num_places)


class DelayedSamplingState:
    """The `SamplingState` of a `DelayedTransformerPrior`: the decoder runs once for all codes of a step.

    Args:
        prior: in eval mode and without gradients.
        prompt: (grids, length) tokens.
        num_places: of a grid, in each level.
    """

    drawn: list[torch.Tensor]

    def __init__(self, prior: DelayedTransformerPrior, prompt: torch.Tensor, num_places: int):
        self.config, self.embedding = prior.config, prior.model.embed_tokens.weight
        levels, _, exist = prior.delay(num_places)
        self.levels = [levels[here].tolist() for here in exist]  # of each step
        num_steps = prompt.shape[1] - 1 + len(exist)
        self.decoder = start_decoder(prior, len(prompt), num_steps, prior.lm_head.weight)
        self.newest, self.drawn, self.step = F.embedding(prompt, self.embedding), [], 0

    def prefill(self, codes: torch.Tensor) -> None:
        columns, inputs = list(codes.unbind(1)), [self.newest]
        while len(columns) >= len(self.levels[self.step]):  # whole steps
            count = len(self.levels[self.step])
            inputs.append(self.embed_step(columns[:count]))
            columns, self.step = columns[count:], self.step + 1
        self.newest = torch.cat(inputs, dim=1)
        for column in columns:
            self.next_logits()
            self.append(column)

    def next_logits(self) -> torch.Tensor:
        if not self.drawn:
            self.decoder.advance(self.newest)
            self.logits = self.decoder.logits().unflatten(1, (-1, self.config.codebook_size))
        return self.logits[:, self.levels[self.step][len(self.drawn)]]

    def append(self, codes: torch.Tensor) -> None:
        self.drawn.append(codes)
        if len(self.drawn) == len(self.levels[self.step]):
            self.newest = self.embed_step(self.drawn)
            self.drawn, self.step = [], self.step + 1

    def embed_step(self, drawn: list[torch.Tensor]) -> torch.Tensor:
        """The input (grids, 1, hidden_size) after the codes (grids,) of every level that this step has."""
        tokens = torch.full((len(drawn[0]), self.config.num_levels), self.config.null_token, device=drawn[0].device)
        for level, codes in zip(self.levels[self.step], drawn, strict=True):
            tokens[:, level] = level * self.config.codebook_size + codes
        return F.embedding(tokens, self.embedding).sum(1, keepdim=True)

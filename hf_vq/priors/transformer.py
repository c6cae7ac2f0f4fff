"""TransformerPrior: codes as the tokens of a Llama, which any stack that serves Llamas serves."""

import json
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from transformers import GenerationConfig
from transformers.models.llama import LlamaForCausalLM
from transformers.utils import can_return_tuple

from hf_vq.hub import PRIOR_SECTION
from hf_vq.priors.base import PriorOutput
from hf_vq.priors.compiled_sampling import CompiledSampling
from hf_vq.priors.decoder_sampling import DecoderState
from hf_vq.priors.prompts import DecoderConfig, PromptMixin
from hf_vq.registry import register

PRIOR_FIELDS = (
    "codebook_size", "num_classes", "code_shape", "class_dropout_prob", "grid_dims", "num_levels", "num_text_tokens",
    "prompt_length", "prompt_dropout_prob", "num_speakers", "speaker_dropout_prob", "codes_sha256",
    "rounded_codes_sha256",
)  # fmt: skip
DERIVED = ("vocab_size", "head_dim", "max_position_embeddings")
FIXED = ("hidden_act", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id")


class TransformerPriorConfig(DecoderConfig):
    __doc__ = str(DecoderConfig.__doc__).replace(
        "Sizes of a Llama decoder", "Config of `TransformerPrior`, a Llama decoder"
    )

    model_type = "llama"

    def to_json_string(self, use_diff: bool = True) -> str:
        """The config.json of a stock `LlamaForCausalLM`; what stock does not know is in its section `vq_prior`."""
        told = self.to_diff_dict() if use_diff else self.to_dict()
        told[PRIOR_SECTION] = {name: told.pop(name) for name in PRIOR_FIELDS if name in told}
        for theirs, ours in self.attribute_map.items():
            told[theirs] = told.pop(ours)
        told |= {name: getattr(self, name) for name in DERIVED + FIXED}
        told["architectures"] = ["LlamaForCausalLM"]
        return json.dumps(told, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs: Any) -> Any:
        """A config from `to_dict()`, or from the config.json of a Llama with the section `vq_prior`.

        Raises:
            ValueError: a Llama that is no prior, or one with parts that a prior does not have.
        """
        told = dict(config_dict)
        if PRIOR_SECTION in told:
            told |= told.pop(PRIOR_SECTION)
            told["architectures"] = ["TransformerPrior"]
            told |= {ours: told.pop(theirs) for theirs, ours in cls.attribute_map.items() if theirs in told}
            for name in FIXED:
                if told.pop(name, getattr(cls, name)) != getattr(cls, name):
                    raise ValueError(f"{name} must be {getattr(cls, name)!r}, got {config_dict[name]!r}")
        elif "codebook_size" not in told:
            raise ValueError(f"the config has no section {PRIOR_SECTION!r}: this Llama is no prior over codes")
        derived = {name: told.pop(name) for name in DERIVED if name in told}
        loaded = super().from_dict(told, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name in ("vocab_size", "head_dim"):
            if derived.get(name, getattr(config, name)) != getattr(config, name):
                raise ValueError(f"{name} must be {getattr(config, name)}, got {derived[name]}")
        return loaded


@register
class TransformerPrior(CompiledSampling, PromptMixin, LlamaForCausalLM):
    """An autoregressive transformer over codes, with classes or text (https://arxiv.org/abs/2302.13971 on codes).

    Its sequence is `make_prompt`, then the codes: of a grid in raster order, of residual codes (levels, *space) all
    levels of a place before the next place. On disk it is a `LlamaForCausalLM`: it loads in stock
    `AutoModelForCausalLM`, and so where Llamas are served. There `generate` continues the prompt, which is
    `codebook_size` + class. Of a prior without conditions it is the null entry `codebook_size`, with which
    `generate` begins by itself. The saved `generation_config.json` keeps it to codes and to the length of
    `code_shape`; a server that ignores `suppress_tokens` must be given the allowed ids [0, codebook_size) itself.

    `sample` does not use `generate`: its own loop (decoder_sampling.py) gives the same codes several times faster, and
    `compile_sampling` makes its steps graphs.
    """

    config_class = TransformerPriorConfig
    config: TransformerPriorConfig  # type: ignore[assignment]  # read as a LlamaConfig, but not one of its class
    main_input_name = "input_ids"  # where `generate` puts its tokens

    def __init__(self, config: TransformerPriorConfig):
        super().__init__(cast(Any, config))  # the fields that it reads are there
        self.set_generation_limits()

    def set_generation_limits(self) -> None:
        """Keep `generate` to codes, drawn from all of them, and to a grid of `config.code_shape`.

        Without conditions it begins by itself; with them there is no prompt that says nothing of what is wanted.
        """
        config = self.config
        conditional = any(condition.taken for condition in self.conditions)
        self.generation_config = GenerationConfig(
            do_sample=True,
            top_k=0,
            bos_token_id=None if conditional else config.null_token,
            max_new_tokens=config.max_position_embeddings - config.num_tokens_before,
            suppress_tokens=list(range(config.codebook_size, config.vocab_size)),
        )

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        self.set_generation_limits()  # code_shape may have changed
        super().save_pretrained(save_directory, **kwargs)

    @can_return_tuple
    def forward(
        self,
        codes: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_loss: bool = True,
        *,
        prompt_ids: torch.Tensor | None = None,
        speaker_labels: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> PriorOutput:
        """Logits of every code from the codes before it, and their loss.

        Args:
            codes: (batch, *grid) int64.
            class_labels: (batch,) int64 of a prior with classes; in training some are dropped to the null class.
            labels: (batch, *grid) int64 targets instead of `codes`; -100 is ignored.
            return_loss: compute the loss.
            prompt_ids: (batch, at most prompt_length) int64 of a prior with text; -1 is no token.
            speaker_labels: (batch,) int64 of a prior with speakers; in training some are dropped to the null speaker.
            lengths: (batch,) int64, real positions of each item along the first axis of space; what is beyond takes no
                part in the loss.
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep, kwargs:
                without `codes`, those of `LlamaForCausalLM`, whose output this then is; `generate` calls it so.

        Returns:
            `PriorOutput` with the loss in mean nats per code and logits (batch, *grid, codebook_size).

        Raises:
            ValueError: codes, conditions or targets out of range or of the wrong shape or type.
        """
        if input_ids is None and (use_cache is not None or past_key_values is not None or attention_mask is not None):
            codes, input_ids = None, codes  # transformers' own guidance passes its tokens by place
        if codes is not None:
            if input_ids is not None or inputs_embeds is not None:
                raise ValueError("codes and input_ids exclude each other: give one of them")
            return self.run_forward(
                codes, labels, return_loss, lengths,
                class_labels=class_labels, prompt_ids=prompt_ids, speaker_labels=speaker_labels,
            )  # fmt: skip
        if input_ids is None and inputs_embeds is None:
            raise ValueError("codes missing")
        return LlamaForCausalLM.forward(
            self,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def predict(self, codes: torch.Tensor, **conditions: Any) -> torch.Tensor:
        prompt, order = self.prompt_tokens(len(codes), **conditions), self.code_order(codes.shape[1:])
        flat = codes.flatten(1)
        if order is not None:
            order = order.to(codes.device)
            flat = flat[:, order]
        tokens = torch.cat([prompt, flat[:, :-1]], dim=1)
        features = self.model(input_ids=tokens, use_cache=False).last_hidden_state[:, prompt.shape[1] - 1 :]
        logits = F.linear(features, self.lm_head.weight[: self.config.codebook_size])
        if order is not None:
            logits = logits[:, order.argsort()]
        return logits.view(*codes.shape, -1)

    def start_sampling(
        self, num_grids: int, code_shape: tuple[int, ...], **conditions: Any
    ) -> "TransformerSamplingState":
        num_codes = torch.Size(code_shape).numel()
        return TransformerSamplingState(self, self.prompt_tokens(num_grids, **conditions), num_codes)


class TransformerSamplingState:
    """The `SamplingState` of a `TransformerPrior`.

    Args:
        prior: in eval mode and without gradients.
        prompt: (grids, length) tokens.
        num_codes: of a grid.
    """

    def __init__(self, prior: TransformerPrior, prompt: torch.Tensor, num_codes: int):
        num_steps = prompt.shape[1] - 1 + num_codes
        self.decoder = start_decoder(prior, len(prompt), num_steps, prior.lm_head.weight[: prior.config.codebook_size])
        self.embedding = prior.model.embed_tokens.weight
        self.newest = F.embedding(prompt, self.embedding)

    def prefill(self, codes: torch.Tensor) -> None:
        self.newest = torch.cat([self.newest, F.embedding(codes, self.embedding)], dim=1)

    def next_logits(self) -> torch.Tensor:
        self.decoder.advance(self.newest)
        return self.decoder.logits()

    def append(self, codes: torch.Tensor) -> None:
        self.newest = F.embedding(codes[:, None], self.embedding)


def start_decoder(prior: Any, num_rows: int, num_steps: int, head: torch.Tensor) -> DecoderState:
    """A decoder of a prior's `LlamaModel` for sequences of `num_steps` tokens."""
    model = prior.model
    wide = torch.zeros((), dtype=torch.promote_types(head.dtype, torch.float32), device=head.device)
    angles = model.rotary_emb(wide, torch.arange(num_steps, device=head.device)[None])
    cosines, sines = (table[0].chunk(2, dim=-1)[0] for table in angles)
    return prior.make_decoder(model.layers, model.norm, head, cosines, sines, num_rows)

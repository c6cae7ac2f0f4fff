"""Prompts as the states of any text encoder of transformers, as a prior over codes takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hf_vq.priors.text_conditions import TEXT, TEXT_MASK, TextCondition, TextMaskCondition

LONGEST = 2**20  # what tokenizers without a length say is more


@dataclass(frozen=True)
class TextReader:
    """A tokenizer and a text encoder, and how a prior wants what they make of a text.

    Args:
        tokenizer: of transformers, with a padding token.
        text_encoder: of transformers, any that gives a `last_hidden_state` of token ids.
        condition: of the prior, which tells width and number of the states.
        normalize: scale every state to length 1.
        mask_padding: tell text encoder and prior which tokens are padding; otherwise all count.

    Raises:
        ValueError: parts that do not belong together.
    """

    tokenizer: Any
    text_encoder: Any
    condition: TextCondition
    normalize: bool = False
    mask_padding: bool = False

    def __post_init__(self):
        name, config = type(self.text_encoder).__name__, self.text_encoder.config
        width, wanted = getattr(config, "hidden_size", None), self.condition.width
        if width != wanted:
            raise ValueError(
                f"text_encoder, a {name}, gives states of width hidden_size={width}, but the prior takes "
                f"cross_attention_dim={wanted}"
            )
        words, known = len(self.tokenizer), getattr(config, "vocab_size", None)
        if known is not None and words > known:
            raise ValueError(f"tokenizer has {words} tokens, but text_encoder, a {name}, knows vocab_size={known}")
        if self.tokenizer.pad_token_id is None:
            raise ValueError(f"tokenizer, a {type(self.tokenizer).__name__}, has no pad_token: set it")
        most = getattr(config, "max_position_embeddings", None)
        if most is not None and self.condition.length > most:
            raise ValueError(
                f"text_encoder, a {name}, takes max_position_embeddings={most} tokens, but the prior texts of "
                f"text_length={self.condition.length}"
            )
        if self.length is None and not self.mask_padding:
            raise ValueError(
                "tokenizer does not tell a model_max_length to fill texts up to, nor does the prior a text_length: "
                "set one of them, or mask_padding=True"
            )

    @property
    def length(self) -> int | None:
        """Tokens that every text is filled up to; None: as many as the longest of a batch has."""
        if self.condition.length:
            return self.condition.length
        told = (self.tokenizer.model_max_length, getattr(self.text_encoder.config, "max_position_embeddings", None))
        known = [length for length in told if length is not None and length < LONGEST]
        return min(known, default=None)

    def tokenize(self, texts: Sequence[str], truncate: bool = False) -> dict[str, torch.Tensor]:
        """Token ids (texts, length) and their `attention_mask`, where padding is to be masked.

        Raises:
            ValueError: a text is too long, and `truncate` is False.
        """
        length = self.length
        if length is not None and not truncate:
            for text, ids in zip(texts, self.tokenizer(list(texts), verbose=False).input_ids, strict=True):
                if len(ids) > length:
                    raise ValueError(
                        f"prompt is too long by {len(ids) - length} tokens: it has {len(ids)}, at most {length} are "
                        f"taken (truncate_prompt=True cuts it): {text!r:.60}"
                    )
        padded = self.tokenizer(
            list(texts),
            padding="longest" if length is None else "max_length",
            max_length=length,
            truncation=truncate and length is not None,
            return_attention_mask=True,
            return_tensors="pt",
        )
        names = ("input_ids", "attention_mask") if self.mask_padding else ("input_ids",)
        return {name: padded[name] for name in names}

    def encode(self, tokens: dict[str, torch.Tensor], device: torch.device) -> torch.Tensor:
        """States (texts, length, width) of what `tokenize` gave."""
        states = self.text_encoder(**{name: one.to(device) for name, one in tokens.items()}).last_hidden_state
        return states / states.norm(dim=-1, keepdim=True) if self.normalize else states


@dataclass
class Texts:
    """The texts of an argument, or their states where those are given: one for each prompt, one for all, or none.

    Attributes:
        prompts: the texts; [] where there are none.
        embeds: their states (texts, length, width); None where there are none.
        mask: (texts, length) of 0 and 1, which of the states count; None: all.
    """

    prompts: list[str] = field(default_factory=list)
    embeds: torch.Tensor | None = None
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts) if self.embeds is None else len(self.embeds)

    def pick(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """Conditions of a prior, by name: the states, and the mask, of the texts at places (n,) int64.

        One text alone is at all places; of none there are no conditions.
        """
        if self.embeds is None:
            return {}
        places = (places * (len(self) > 1)).to(self.embeds.device)
        mask = {} if self.mask is None else {TEXT_MASK: self.mask.to(places.device)[places]}
        return {TEXT: self.embeds[places], **mask}


def read_texts(
    name: str, prompt: Any, embeds: Any, mask: Any, condition: TextCondition, number: int | None = None
) -> Texts:
    """The Texts of an argument.

    Args:
        name: of the argument, such as "prompt"; those of states and mask begin with it.
        prompt: a string or several; None: none.
        embeds: (texts, length, width) floats; None: none.
        mask: (texts, length) of 0 and 1, of the states; None: all count.
        condition: of the prior.
        number: texts that there may be beside one alone; None: any, but at least one, and none of them empty.

    Raises:
        ValueError: arguments that exclude each other, or one that does not fit.
    """
    if prompt is not None and embeds is not None:
        raise ValueError(f"{name} and {name}_embeds exclude each other: give one of them")
    if mask is not None and embeds is None:
        raise ValueError(f"{name}_attention_mask given without {name}_embeds")
    if embeds is not None:
        _check_embeds(name, embeds, mask, condition, number)
    elif prompt is not None:
        prompts = as_prompts(name, prompt, may_be_empty=number is not None)
        if number is not None and len(prompts) not in (1, number):
            raise ValueError(f"{name} must be one, or one for each of {number} prompts, got {len(prompts)}")
        return Texts(prompts)
    elif number is None:
        raise ValueError(f"{name} is missing: give it, or {name}_embeds")
    return Texts([], embeds, mask)


def as_prompts(name: str, prompt: Any, may_be_empty: bool) -> list[str]:
    """A text or several as a list; a ValueError that begins with a name where they are none, or one is empty."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise ValueError(f"{name} must be a string or a list of at least one, got {prompt!r:.80}")
    if not may_be_empty and not all(one.strip() for one in prompts):
        raise ValueError(f"{name} must not be empty, got {prompt!r:.80}")
    return list(prompts)


def _check_embeds(name, embeds, mask, condition, number):
    if not isinstance(embeds, torch.Tensor):
        raise ValueError(f"{name}_embeds must be a tensor of floats, got {type(embeds).__name__}")
    _check_as(f"{name}_embeds", condition, embeds)
    if number is not None and len(embeds) not in (1, number):
        wanted = (number, *embeds.shape[1:])
        raise ValueError(f"{name}_embeds must be {wanted}, got {tuple(embeds.shape)}")
    if mask is not None:
        _check_as(f"{name}_attention_mask", TextMaskCondition(True), mask)
        if mask.shape != embeds.shape[:2]:
            shape = tuple(embeds.shape[:2])
            raise ValueError(f"{name}_attention_mask must be {shape}, as {name}_embeds, got {tuple(mask.shape)}")


def _check_as(name, condition, value):
    """The checks of a condition, whose errors begin with its name, under the name of an argument."""
    try:
        condition.check(value)
    except ValueError as error:
        raise ValueError(name + str(error).removeprefix(condition.name)) from error

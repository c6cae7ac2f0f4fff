"""Text encoder, prior and autoencoder in a row: pictures of what a text says."""

import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch

from hf_vq.pipelines.base import ClassNames, check_prior, split_keywords
from hf_vq.pipelines.images import PicturesPipeline
from hf_vq.pipelines.texts import TextReader, Texts, as_prompts, read_texts
from hf_vq.priors.sampling import check_generators
from hf_vq.priors.text_conditions import TEXT, TEXT_MASK
from hf_vq.ranges import Count, Samples, Side, Size, TopP, Weight
from hf_vq.registry import register


@register
class VQTextToImagePipeline(PicturesPipeline):
    """Draws pictures of texts from a prior over the codes of an autoencoder (https://arxiv.org/abs/2111.14822).

    Args:
        autoencoder: any of ours with one grid of codes.
        prior: `DiscreteDiffusionPrior` or any prior that takes `encoder_hidden_states`.
        text_encoder: of transformers, such as `CLIPTextModel`, `T5EncoderModel` or `BertModel`, whose states are as
            wide as the prior's `cross_attention_dim`; None: calls give `prompt_embeds`.
        tokenizer: its tokenizer.
        scheduler: takes the prior's steps, a `DiscreteDiffusionScheduler`, or of a `MaskedPrior` a `MaskedScheduler`;
            None: that of its config.
        normalize_text_embeddings: scale every state of a text to length 1, as VQ-Diffusion does.
        mask_padding: tell text encoder and prior which tokens of a text are padding; False: all count, as in
            pipelines of diffusers with CLIP.
        class_names, judge, judge_processor: of a prior with classes, see `VQPipeline`.

    Raises:
        ValueError: parts that do not belong together.
    """

    inference_verbs = ("__call__", "encode_prompt")
    prior: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    model_cpu_offload_seq: Any = "text_encoder->prior->autoencoder->judge"
    _optional_components = ["text_encoder", "tokenizer", "scheduler", "judge", "judge_processor"]

    def __init__(
        self,
        autoencoder: Any,
        prior: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        scheduler: Any = None,
        normalize_text_embeddings: bool = False,
        mask_padding: bool = False,
        class_names: ClassNames | None = None,
        judge: Any = None,
        judge_processor: Any = None,
    ):
        super().__init__()
        self._check_modality(autoencoder)
        if autoencoder.hierarchical:
            raise ValueError(f"autoencoder is a {type(autoencoder).__name__}, a hierarchy: one grid is needed")
        check_prior("prior", prior, autoencoder.codebook_size, autoencoder.grid_dims)
        if TEXT not in prior.condition_names:
            raise ValueError(f"prior, a {type(prior).__name__}, does not take {TEXT}")
        if (text_encoder is None) != (tokenizer is None):
            missing = "text_encoder" if text_encoder is None else "tokenizer"
            raise ValueError(f"text_encoder and tokenizer go together: {missing} is missing")
        self.register_modules(
            autoencoder=autoencoder, prior=prior, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
            judge=judge, judge_processor=judge_processor,
        )  # fmt: skip
        self.register_to_config(normalize_text_embeddings=normalize_text_embeddings, mask_padding=mask_padding)
        self._set_up(class_names, prior.config.num_classes)
        self.sample_judge  # noqa: B018  (it checks what it is made of)
        condition = self.text_condition
        if not condition.taken:
            raise ValueError(f"prior, a {type(prior).__name__}, {condition.lacking}")
        if text_encoder is not None:
            self.text_reader  # noqa: B018  (it checks what it is made of)
        self._steps(None)

    @property
    def text_condition(self) -> Any:
        """The prior's condition on a text."""
        return next(condition for condition in self.prior.conditions if condition.name == TEXT)

    @property
    def text_reader(self) -> TextReader:
        """Text encoder and tokenizer, as the prior wants them; a ValueError where they do not fit it."""
        if self.text_encoder is None:
            raise ValueError("prompt needs a text_encoder, but this pipeline has none: give prompt_embeds")
        return TextReader(
            self.tokenizer, self.text_encoder, self.text_condition,
            self.config.normalize_text_embeddings, self.config.mask_padding,
        )  # fmt: skip

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | Sequence[str], truncate_prompt: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A text or several, which may be empty, as `prompt_embeds` and `prompt_attention_mask`.

        Args:
            prompt: the texts.
            truncate_prompt: cut those that are too long.

        Returns:
            (texts, length, width) floats, and with `mask_padding` (texts, length) int64, else None.
        """
        texts = Texts(as_prompts("prompt", prompt, may_be_empty=True))
        (found,) = self._encode(*self._tokenize(truncate_prompt, texts), texts)
        return cast(torch.Tensor, found.embeds), found.mask

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: Size | None = None,
        guidance_scale: Weight = 5.0,
        truncation_rate: TopP = 1.0,
        num_images_per_prompt: Samples = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        truncate_prompt: bool = False,
        class_labels: Count | str | Sequence[Count | str] | torch.Tensor | None = None,
        image: Any = None,
        mask_image: Any = None,
        height: Side | None = None,
        width: Side | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        acceptance_rate: TopP = 1.0,
        candidate_batch_size: Samples = 64,
        output_type: str | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Any, dict], Any] | None = None,
        **keywords: Any,
    ) -> Any:
        """Draws pictures of texts, or completes them.

        Args:
            prompt: a text or several; an empty one is refused.
            num_inference_steps: passes of the prior's network; None: as many as it takes by default.
            guidance_scale: classifier-free guidance towards the text; 1 is none.
            truncation_rate: draw codes from the likeliest ones of this mass; 1 is no truncation.
            num_images_per_prompt: pictures of each text, in a row.
            generator: a generator, or one for each picture.
            negative_prompt: a text, or one for each prompt, to guide away from; None: what the prior learned for no
                text, or else the empty text.
            prompt_embeds, prompt_attention_mask, and the same of negative_prompt: what `encode_prompt` gives, instead.
            truncate_prompt: cut texts that are too long, which are refused otherwise.
            class_labels, image, mask_image, height, width, known_codes, known_mask, acceptance_rate,
                candidate_batch_size, output_type, return_dict: see `VQPipeline`.
            callback_on_step_end: called after each step with this pipeline, number and time of the step, and {}.
            keywords: other conditions and options that the prior declares, such as `temperature`.

        Returns:
            ImagePipelineOutput, whose `images` are what `output_type` says.

        Raises:
            TypeError: a keyword that the prior does not declare.
            ValueError: an argument that does not fit, named with its value.
        """
        _refuse_own(keywords)
        rejection = self._rejection(acceptance_rate, candidate_batch_size)
        texts = read_texts("prompt", prompt, prompt_embeds, prompt_attention_mask, self.text_condition)
        negative = self._read_negative(
            negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask, texts, guidance_scale
        )
        words, tokens = self._tokenize(truncate_prompt, texts, negative)
        keywords |= {
            "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale,
            "truncation_rate": truncation_rate, **self._steps(num_inference_steps),
            TEXT: torch.arange(len(texts)),  # which prompt each picture is of
        }  # fmt: skip
        labels, count = self._check_request(
            class_labels, None, num_images_per_prompt, self.num_classes, output_type, [keywords], [self.prior]
        )
        check_generators(generator, count)
        places = keywords.pop(TEXT)
        known, shape = self._known(
            known_codes, known_mask, image, mask_image, height, width, count, num_images_per_prompt
        )
        options, request = split_keywords("prior", self.prior, {**keywords, "class_labels": labels, **known})
        texts, negative = self._encode(words, tokens, texts, negative)
        request |= {f"negative_{name}": value for name, value in negative.pick(places).items()} | texts.pick(places)
        options["progress_bar"] = self._bar(callback_on_step_end)
        codes = self._draw_grid(rejection, shape, options, request, labels, count, generator)
        return self._finish(codes, output_type, return_dict)

    def _steps(self, num_inference_steps):
        """The scheduler as an option of the prior, where there is one; checked against it and that many steps."""
        if "scheduler" not in self.prior.sampling_options:
            if self.scheduler is not None:
                raise ValueError(f"scheduler given, but prior, a {type(self.prior).__name__}, does not take one")
            return {}
        self.prior.take_scheduler(self.scheduler, num_inference_steps)
        return {} if self.scheduler is None else {"scheduler": self.scheduler}

    def _read_negative(self, prompt, embeds, mask, texts, guidance_scale):
        """The Texts to guide away from; none where there is no guidance, or the prior learned what no text is."""
        if guidance_scale == 1 and (prompt is not None or embeds is not None):
            raise ValueError("negative_prompt given, but guidance_scale=1 guides away from nothing")
        if guidance_scale != 1 and prompt is None and embeds is None and self.text_condition.dropout_prob == 0:
            if self.text_encoder is None and not texts.prompts:
                raise ValueError(
                    f"guidance_scale={guidance_scale} needs negative_prompt_embeds: the prior learned none for no text"
                )
            prompt = ""
        return read_texts("negative_prompt", prompt, embeds, mask, self.text_condition, len(texts))

    def _tokenize(self, truncate, *several):
        """All different texts of Texts, and their tokens."""
        words = list(dict.fromkeys(prompt for texts in several for prompt in texts.prompts))
        return words, self.text_reader.tokenize(words, truncate) if words else {}

    def _encode(self, words, tokens, *several):
        """Texts with their states, from what `_tokenize` gave for them."""
        if not words:
            return several
        states, mask = self.text_reader.encode(tokens, self._execution_device), tokens.get("attention_mask")
        encoded = []
        for texts in several:
            rows = [words.index(prompt) for prompt in texts.prompts]
            chosen = Texts(texts.prompts, states[rows], None if mask is None else mask[rows])
            encoded.append(chosen if rows else texts)
        return encoded

    def _bar(self, callback):
        """The progress bar for the prior's loop, which calls a callback after each step."""
        if callback is None:
            return self.progress_bar

        def bar(steps: Iterable) -> Iterator:
            for index, step in enumerate(self.progress_bar(steps)):
                yield step
                callback(self, index, step, {})

        return bar


def _refuse_own(keywords):
    """A TypeError for options of the prior that a pipeline of texts makes itself."""
    for name in ("scheduler", TEXT, TEXT_MASK, f"negative_{TEXT}", f"negative_{TEXT_MASK}"):
        if name in keywords:
            instead = "set the pipeline's" if name == "scheduler" else "give prompt or prompt_embeds"
            raise TypeError(f"{name}={reprlib.repr(keywords[name])} is no argument of a call: {instead}")

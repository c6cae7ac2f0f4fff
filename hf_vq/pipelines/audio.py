"""Prior and audio autoencoder in a row: new sounds, or given ones that go on."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from hf_vq.modalities.audio import AUDIO
from hf_vq.pipelines.base import ClassNames, CodesPipeline, by_number, label_ids, move_known, split_keywords
from hf_vq.pipelines.continuation import Sounds, check_levels, level_count, new_scales, normalizes
from hf_vq.priors.sampling import check_generators
from hf_vq.ranges import Count, Positive, Rate, Samples, Size, TopP, Weight
from hf_vq.registry import register


@register
class VQAudioPipeline(CodesPipeline):
    """Draws sounds from a prior over the codes of an audio autoencoder (MusicGen, https://arxiv.org/abs/2306.05284).

    Args:
        autoencoder: `AudioCodec` or any autoencoder of sounds with one grid of codes.
        prior: over all levels of the codes, such as `DelayedTransformerPrior` or `RQTransformer`, or where levels are
            residual, over the first of them; one over codes (length,), such as `WaveNet`, is of the first level alone.
        class_names: names of the prior's classes, a list or by number, so that `class_labels` may be names; optional.
        speaker_names: the same of its speakers and `speaker_labels`.

    Raises:
        ValueError: an autoencoder of something else or of several grids, a prior that speaks of other codes, or of
            classes or speakers than there are names.
    """

    draws: ClassVar[str | None] = AUDIO.name
    copies_name: ClassVar[str] = "num_waveforms_per_prompt"
    prior: Any  # any of ours
    model_cpu_offload_seq: Any = "prior->autoencoder"

    def __init__(
        self,
        autoencoder: Any,
        prior: Any,
        class_names: ClassNames | None = None,
        speaker_names: ClassNames | None = None,
    ):
        super().__init__()
        name = type(autoencoder).__name__
        if autoencoder.modality != AUDIO.name:
            raise ValueError(f"autoencoder must be one of sounds, got {name}, which VQPipeline takes")
        if autoencoder.hierarchical:
            raise ValueError(
                f"autoencoder is a {name} of several grids, a hierarchy, which needs a prior for each: VQVAE2Pipeline"
            )
        check_levels(prior, autoencoder)
        self.register_modules(autoencoder=autoencoder, prior=prior)
        self._set_up(class_names, prior.config.num_classes)
        names = by_number("speaker_names", speaker_names, self.num_speakers, "speaker")
        self.register_to_config(speaker_names=names)

    @property
    def sampling_rate(self) -> int | None:
        """Samples of a sound in a second; None where the autoencoder does not know."""
        return self.autoencoder.processor.sampling_rate

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Count | str | Sequence[Count | str] | torch.Tensor | None = None,
        batch_size: Samples | None = None,
        *,
        audio: Any = None,
        sampling_rate: Rate | None = None,
        audio_length_in_s: Positive | None = None,
        loudness: Positive | None = None,
        num_waveforms_per_prompt: Samples = 1,
        speaker_labels: Count | str | Sequence[Count | str] | torch.Tensor | None = None,
        temperature: Weight = 1.0,
        top_k: Size | None = None,
        top_p: TopP | None = None,
        guidance_scale: Weight = 1.0,
        guidance_steps: Count | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        known_codes: torch.Tensor | None = None,
        known_mask: torch.Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
        **keywords: Any,
    ) -> Any:
        """Draws sounds, or continues given ones.

        Args:
            class_labels: a class or several, as numbers or as names of `class_names`; of a prior with classes.
            batch_size: how many sounds, of a prior without classes and other conditions; by default as many as
                `audio` has, or 1.
            audio: a sound to continue, in any form that the autoencoder's processor takes (a file, its bytes, an
                array, a dict as of `datasets`, or several): one for all, one for each class label or prompt, or one
                for each waveform. Its codes are the first ones of the result, so that the result begins with its
                reconstruction; where it ends within a frame, that frame is as the codec pads it.
            sampling_rate: in Hz, of `audio` where it is an array, which does not tell its own.
            audio_length_in_s: seconds of a whole result, that of `audio` included, which ends at just this sample; by
                default all that the codes of the prior's `code_shape` stand for.
            loudness: root mean square of the sound, of a codec that normalises its input: 0.1 by default. What
                continues `audio` goes on with the scale that the codec gave to its end.
            num_waveforms_per_prompt: sounds of each class label, speaker, prompt and other condition, in a row.
            speaker_labels: a speaker or several, as numbers or as names of `speaker_names`; of a prior with speakers.
            temperature, top_k, top_p, guidance_scale, guidance_steps, generator, known_codes, known_mask: see the
                prior's `sample`; a prior that has no such option takes the default only.
            output_type: "np" (the default) or "pt", (batch, channels, length) in [-1, 1]; "sample", the same as the
                autoencoder gives it, which may go beyond; or "codes".
            return_dict: False gives a tuple of one.
            keywords: other conditions and options that the prior declares, such as `prompt_ids`.

        Returns:
            AudioPipelineOutput, whose `audios` are what `output_type` says.

        Raises:
            TypeError: a keyword that the prior does not declare.
            ValueError: an argument that does not fit, named with its value.
        """
        if speaker_labels is not None:
            keywords["speaker_labels"] = label_ids("speaker", speaker_labels, self.config.speaker_names)
        sounds = None if audio is None else Sounds.read(self.autoencoder, audio, sampling_rate)
        self._check_sounds(sounds, sampling_rate, loudness, known_codes)
        conditions = (class_labels, *map(keywords.get, self.prior.condition_names))
        if sounds is not None and batch_size is None and all(one is None for one in conditions):
            batch_size = len(sounds)
        labels, count = self._check_request(
            class_labels, batch_size, num_waveforms_per_prompt, self.num_classes, output_type, [keywords], [self.prior]
        )
        check_generators(generator, count)
        length, shape = self._length_and_shape(audio_length_in_s, sounds)
        keywords |= {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance_scale": guidance_scale,
            "guidance_steps": guidance_steps, "known_codes": known_codes, "known_mask": known_mask,
        }  # fmt: skip
        if labels is not None:
            keywords["class_labels"] = labels
        options, request = split_keywords("prior", self.prior, keywords)
        self.prior.check_conditions(request, None, shape)
        move_known(options, request)
        known, scales = self._begin(sounds, loudness, shape, count, num_waveforms_per_prompt)
        codes = self._sample(self.prior, shape, count, generator, options, request | known)
        return self._finish(codes, output_type, return_dict, scales=scales, length=length)

    def _check_sounds(self, sounds, sampling_rate, loudness, known_codes):
        """Raise a ValueError for arguments that are of use only with a sound to continue, or only without."""
        if sounds is None and sampling_rate is not None:
            raise ValueError(f"sampling_rate={sampling_rate} given without audio, whose rate it is")
        if sounds is not None and known_codes is not None:
            raise ValueError("audio and known_codes exclude each other")
        if loudness is not None and sounds is not None:
            raise ValueError(f"loudness={loudness} given beside audio, which goes on as loud as it is")
        if loudness is not None and not normalizes(self.autoencoder):
            name = type(self.autoencoder).__name__
            raise ValueError(
                f"loudness={loudness} given, but this {name} does not normalise: its codes have a loudness"
            )

    def _length_and_shape(self, seconds, sounds):
        """Samples of a result, None where all that its codes stand for are, and the shape of the prior's codes."""
        default, longest = self.prior.config.code_shape, 0 if sounds is None else int(sounds.lengths.max())
        if seconds is None and default is None:
            raise ValueError("audio_length_in_s missing: the prior has no code_shape, which says how long sounds are")
        if seconds is None:
            frames = self._frames(longest) if longest else 0
            if frames >= default[-1]:
                raise ValueError(
                    f"audio has {frames} frames of codes, all that the prior draws by default (code_shape="
                    f"{tuple(default)}): give audio_length_in_s, the length of the whole"
                )
            return None, tuple(default)
        rate = self.sampling_rate
        if rate is None:
            raise ValueError(f"audio_length_in_s={seconds} needs a rate, but the autoencoder's processor has none")
        length = max(1, round(seconds * rate))
        if length <= longest:
            raise ValueError(
                f"audio_length_in_s={seconds} is that of the whole result: it must be above that of audio, "
                f"{longest / rate:g}"
            )
        levels = (level_count(self.prior, self.autoencoder),) if self.prior.grid_dims == 2 else ()
        return length, (*levels, self._frames(length))

    def _begin(self, sounds, loudness, shape, count, copies):
        """What is known of the codes, options of the prior by name, and the scales of their sounds or None."""
        if sounds is None:
            return {}, new_scales(self.autoencoder, shape[-1], count, loudness, self._execution_device)
        sounds.check_count(count, copies)
        return sounds.begin(self.autoencoder, shape, count, self._execution_device)

    def _frames(self, length):
        """Frames of codes of so many samples."""
        return int(self.autoencoder.grid_lengths(torch.tensor([length]))[0])

    def _decode(self, codes, **decoding):
        first_alone = self.prior.grid_dims < self.autoencoder.grid_dims
        return super()._decode(codes[:, None] if first_alone else codes, **decoding)

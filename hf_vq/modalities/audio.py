"""Sounds: the modality of one axis of space, time."""

from dataclasses import dataclass, field
from typing import Any

from diffusers import AudioPipelineOutput

from hf_vq.data.audio import load_audio
from hf_vq.data.audio_dataset import AudioDataset
from hf_vq.data.sound_rules import LARGEST
from hf_vq.metrics.sounds import LogSpectralDistance, ScaleInvariantDistortion
from hf_vq.modalities.audio_pictures import save_code_maps, save_reconstructions, save_samples
from hf_vq.modalities.audio_processor import OUTPUT_TYPES, AudioProcessor
from hf_vq.modalities.base import Modality
from hf_vq.modalities.options import SharedOptions, SharedTraining


@dataclass
class AudioSize:
    """How long sounds are."""

    audio_length: int | None = field(
        default=None,
        metadata={
            "help": "of sounds: how many samples (of their rate) are kept of each, shorter ones end in silence; "
            "default: all of each"
        },
    )


@dataclass
class AudioOptions(AudioSize, SharedOptions):
    """How sounds are read; see `hf_vq.data.audio.load_audio`."""

    sampling_rate: int | None = field(
        default=None,
        metadata={"help": "of sounds, in Hz, to which they are resampled; default: the model's, else their own"},
    )
    audio_column: str | None = field(default=None, metadata={"help": "column of the sounds"})
    speaker_column: str | None = field(
        default=None, metadata={"help": "of sounds: column of the speakers; default: no speakers"}
    )
    trim_silence: float | None = field(
        default=None,
        metadata={
            "help": "of sounds: cut off what is softer at both ends than so many dB below the loudest sample; "
            "default: as the model's, else nothing"
        },
    )


@dataclass
class AudioTraining(SharedTraining):
    """How training reads sounds; see `hf_vq.data.audio.load_audio`."""


def fit_options(options: dict[str, Any], channels: int | None, processor: AudioProcessor | None) -> dict[str, Any]:
    """Options of `load_audio` for a model: its channels; rate and trimming where none are given."""
    if channels is not None and options["channels"] not in (None, channels):
        raise ValueError(f"channels={options['channels']}, but the model takes {channels}")
    options = {**options, "channels": channels or options["channels"]}
    for name, value in ({} if processor is None else processor.loader_options()).items():
        options[name] = value if options[name] is None else options[name]
    return options


def space_of(options: AudioSize) -> tuple[int] | None:
    """(length,) in samples that options ask for, or None."""
    return None if options.audio_length is None else (options.audio_length,)


def describe_data(sounds: AudioDataset) -> tuple[dict[str, Any], list[str]]:
    """What a report must say of the samples of an `AudioDataset`, and a warning for each way in which they changed."""
    names, changes = sounds.source.names, sounds.changes()
    facts = {
        "num_sounds": len(sounds),
        **({"commit": sounds.source.commit} if sounds.source.commit else {}),
        "sounds": f"{names[0]} to {names[-1]}",
        "seconds": round(sounds.seconds, 3),
        "sampling_rate": sounds.sampling_rate,
        **({} if sounds.rules.trim_silence is None else {"trim_silence": sounds.rules.trim_silence}),
        "changed_samples": changes or "none: lossless, of their own rate, channels and length",
    }
    return facts, [f"bits per dimension are not those of the original sounds: {change}" for change in changes]


def file_options(processor: AudioProcessor) -> dict[str, Any]:
    """What files of sounds need besides samples: their rate."""
    return {"sampling_rate": processor.sampling_rate}


AUDIO = Modality(
    name="audio",
    plural="sounds",
    unit="sample",
    tasks={
        "autoencoder": "feature-extraction",  # as other codecs of the Hub have it
        "pipeline": "text-to-audio",
        "pipeline of texts": "text-to-audio",
    },
    example_space=(24000,),
    show_sample="audio = {call}.audios[0]  # (channels, length) in [-1, 1]\n"
    'pipe.autoencoder.processor.save_wav("sample.wav", audio)',
    embed='[{title}]({file}) <audio controls src="{file}"></audio>',
    suffix=".wav",
    map_suffix=".png",
    size_options=AudioSize,
    loader_options=AudioOptions,
    training_options=AudioTraining,
    shared_options=("sampling_rate",),
    loader=load_audio,
    fit_options=fit_options,
    space_of=space_of,
    describe_data=describe_data,
    processor=AudioProcessor,
    file_options=file_options,
    save_reconstructions=save_reconstructions,
    save_code_maps=save_code_maps,
    save_samples=save_samples,
    output_class=AudioPipelineOutput,
    output_types=OUTPUT_TYPES,
    similarities=(ScaleInvariantDistortion, LogSpectralDistance),
    largest_value=LARGEST,
)

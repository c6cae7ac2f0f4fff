"""Sounds to samples and back, by the rule that training data are made by; saved with a model, for stock readers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from hf_vq.arguments import check_fields
from hf_vq.data.audio_dataset import AudioDataset
from hf_vq.data.padding import SampleCollator
from hf_vq.data.sound_rules import SoundRules, wav_bytes
from hf_vq.modalities.audio_inputs import read_sound
from hf_vq.modalities.processor_files import read_processor, write_processor
from hf_vq.ranges import Positive, Rate, Width
from hf_vq.writing import whole

STOCK_TYPE = "EncodecFeatureExtractor"  # of transformers: pads, and refuses other rates than its own
OUTPUT_TYPES = ("np", "pt")


@dataclass(frozen=True)
class AudioProcessor:
    """Makes samples of sounds, exactly as `hf_vq.data.audio` does for training, and sounds of samples.

    Args:
        sampling_rate: of samples, in Hz; None where it is not known: then those of each sound.
        channels: of samples. One is made of several by their mean, several of one by copies.
        trim_silence: dB below the loudest sample; what is softer at both ends is cut off. None: nothing is.

    Raises:
        ValueError: an argument that does not fit, named with its value.
    """

    size: ClassVar[None] = None  # samples may have any length
    sampling_rate: Rate | None = None
    channels: Width = 1
    trim_silence: Positive | None = None

    def __post_init__(self):
        check_fields(self)

    @classmethod
    def from_dataset(cls, dataset: AudioDataset) -> "AudioProcessor":
        """The processor that makes the samples of an `AudioDataset`."""
        rules = dataset.rules
        return cls(rules.sampling_rate, rules.channels, rules.trim_silence)

    def __call__(
        self,
        audio: Any,
        sampling_rate: Rate | None = None,
        device: torch.device | str | None = None,
        return_mask: bool = False,
    ) -> Any:
        """Samples of sounds.

        Args:
            audio: path or bytes of a sound file; array or tensor (length,) or (channels, length), or a batch (batch,
                channels, length), floats of which 1.0 is full scale, or integers as files have them: uint8, int8,
                int16, int32; a dict with `array` and `sampling_rate`, or with `bytes` or `path`, as `datasets` gives
                them decoded or not; or a list of these.
            sampling_rate: in Hz, of arrays that do not tell theirs.
            device: of the result.
            return_mask: a dict with `padding_mask` (batch, length) bool, True = real, beside `sample`: sounds of
                different lengths are followed by silence.

        Returns:
            (batch, channels, length) float32 in [-1, 1]; or the dict, as autoencoders take it.

        Raises:
            ImportError: soundfile or soxr is missing where it is needed.
            ValueError: another type, shape, scale or number of channels; an array without a rate; NaN; or sounds that
                differ in length without `return_mask`.
        """
        alone = not isinstance(audio, list | tuple) or (len(audio) > 0 and isinstance(audio[0], int | float))
        found = [pair for one in ([audio] if alone else audio) for pair in read_sound(one, sampling_rate)]
        if not found:
            raise ValueError("audio must be one sound or more, got an empty list")
        samples = [self._sample(values, rate) for values, rate in found]
        lengths = sorted({sample.shape[1] for sample in samples})
        if len(lengths) > 1 and not return_mask:
            raise ValueError(
                f"audio: samples differ in length, {lengths[0]} to {lengths[-1]}; return_mask=True pads them"
            )
        batch = SampleCollator((1,))([{"sample": sample} for sample in samples])
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        return moved if return_mask else moved["sample"]

    def postprocess(self, sample: torch.Tensor, output_type: str = "np") -> np.ndarray | torch.Tensor:
        """Sounds of samples (batch, channels, length), cut to [-1, 1].

        Args:
            output_type: "np" or "pt", an array or a tensor of the same shape.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
        sounds = sample.detach().float().clamp(-1, 1)
        return sounds if output_type == "pt" else sounds.cpu().numpy()

    def save_wav(self, path: str | Path, audio: np.ndarray | torch.Tensor) -> None:
        """Write a sound (channels, length) in [-1, 1] as a WAV file of 16 bits.

        Raises:
            ValueError: the rate is not known, or another shape.
        """
        write_wav(path, torch.as_tensor(audio), self.sampling_rate)

    def loader_options(self) -> dict[str, Any]:
        """Arguments of `load_audio` by which a data set gets this processor's samples."""
        return {"sampling_rate": self.sampling_rate, "trim_silence": self.trim_silence}

    def differences(self, dataset: AudioDataset) -> list[str]:
        """How the samples of a data set are unlike this processor's, in words; none where they are alike."""
        lines, rules = [], dataset.rules
        for name, unit in (("sampling_rate", " Hz"), ("channels", ""), ("trim_silence", " dB")):
            theirs, ours = getattr(rules, name), getattr(self, name)
            if theirs != ours and not (name == "sampling_rate" and ours is None):
                told = [f"{value:g}{unit}" if value is not None else "not given" for value in (theirs, ours)]
                lines.append(f"{name} is {told[0]} for the sounds, {told[1]} for the model")
        return lines

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json`, which `transformers.AutoFeatureExtractor` reads without hf_vq."""
        write_processor(folder, self.to_dict())

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "AudioProcessor | None":
        """The processor of a folder or repository; arguments as in huggingface_hub.

        Returns:
            AudioProcessor; None where there is no `preprocessor_config.json`, and with a warning where it is broken or
            asks for what no AudioProcessor does.
        """
        return read_processor(
            cls,
            path_or_repo,
            "sounds are taken as they come",
            subfolder,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            force_download=force_download,
        )

    def to_dict(self) -> dict[str, Any]:
        """What the file holds: stock keys, and `trim_silence`."""
        return {
            "feature_extractor_type": STOCK_TYPE,
            "feature_size": self.channels,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            **({} if self.sampling_rate is None else {"sampling_rate": self.sampling_rate}),
            **({} if self.trim_silence is None else {"trim_silence": self.trim_silence}),
        }

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "AudioProcessor | None":
        """The processor that does what a `preprocessor_config.json` says; None where none of ours does."""
        try:
            plain = config.get("padding_value", 0.0) == 0 and not config.get("do_normalize", False)
            found = cls(config.get("sampling_rate"), config["feature_size"], config.get("trim_silence"))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        return found if plain else None

    def _sample(self, values, rate):
        try:
            rules = SoundRules(self.sampling_rate or rate, self.channels, self.trim_silence)
            return rules.to_sample(values, rate)
        except ValueError as error:
            raise ValueError(f"audio: {error}") from error


def write_wav(path: str | Path, sample: torch.Tensor, sampling_rate: int | None) -> None:
    """Write a sample (channels, length) in [-1, 1] as a WAV file of 16 bits, whole or not at all.

    Raises:
        ValueError: the rate is None, or another shape.
    """
    if sampling_rate is None:
        raise ValueError("sampling_rate is None: the model's processor does not say at which rate to write sounds")
    if sample.ndim != 2:
        raise ValueError(f"a sound must be (channels, length), got shape {tuple(sample.shape)}")
    with whole(path) as partial:
        Path(partial).write_bytes(wav_bytes(sample, sampling_rate))

"""A small modality of a user's own: signals of one axis in .npy files, shown as text."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch.utils.data import Dataset

from hf_vq.modalities import Modality

from .tiny_codecs import SignalCodec


class TextCodec(SignalCodec):
    """The codec of signals, in this modality."""

    modality = "signal"


@dataclass
class SignalPipelineOutput(BaseOutput):
    signals: list


@dataclass
class SignalSize:
    signal_length: int | None = field(default=None, metadata={"help": "of signals: values that are kept"})


@dataclass
class SignalOptions(SignalSize):
    gain: float = field(default=1.0, metadata={"help": "of signals: what they are multiplied by"})


class Signals(Dataset):
    """Rows of a .npy file (count, channels, length) in [-1, 1], the last tenth of them for validation."""

    num_values, labels, class_names, num_classes, skipped = 256, None, None, 0, ()

    def __init__(self, source, *, split="train", signal_length=None, gain=1.0, **others):
        rows = np.load(source[0] if isinstance(source, list) else source)
        held_out = len(rows) // 10
        chosen = {"train": range(len(rows) - held_out), "validation": range(len(rows) - held_out, len(rows))}[split]
        self.rows, self.names = torch.from_numpy(rows[chosen, :, :signal_length] * gain), list(chosen)
        self.sample_shape = tuple(self.rows.shape[1:])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"sample": self.rows[index]}

    def without(self, other):
        return np.array([row for row, name in enumerate(self.names) if name not in other.names])


@dataclass(frozen=True)
class SignalProcessor:
    size: tuple[int, ...] | None = None
    channels: int = 2

    @classmethod
    def from_dataset(cls, dataset):
        return cls(dataset.sample_shape[1:], dataset.sample_shape[0])

    def __call__(self, signals, device=None):
        return torch.as_tensor(np.stack(signals), dtype=torch.float32, device=device)

    def postprocess(self, sample, output_type):
        return list(sample.numpy()) if output_type == "np" else sample

    def differences(self, dataset):
        length = dataset.sample_shape[1]
        return [] if self.size in (None, (length,)) else [f"signals have {length} values, not {self.size[0]}"]

    def save_pretrained(self, folder):
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps([self.size, self.channels]))

    @classmethod
    def from_pretrained(cls, path, **hub):
        file = Path(path, "preprocessor_config.json")
        if not file.is_file():
            return None
        size, channels = json.loads(file.read_text())
        return cls(size and tuple(size), channels)


def fit_options(options, channels, processor):
    size = None if processor is None else processor.size
    return {**options, "signal_length": options["signal_length"] or (size and size[0])}


def write(path, **parts):
    Path(path).write_text("\n".join(f"{name}: {tuple(part.shape)}" for name, part in parts.items()))


SIGNAL = Modality(
    name="signal",
    plural="signals",
    unit="step",
    tasks={"autoencoder": "feature-extraction"},
    example_space=(24,),
    show_sample="signal = {call}.signals[0]",
    embed="[{title}]({file})",
    suffix=".txt",
    size_options=SignalSize,
    loader_options=SignalOptions,
    loader=Signals,
    fit_options=fit_options,
    space_of=lambda options: options.signal_length and (options.signal_length,),
    describe_data=lambda dataset: ({"num_signals": len(dataset)}, ["signals are made up"]),
    processor=SignalProcessor,
    save_reconstructions=lambda path, samples, reconstructions: write(path, samples=samples, again=reconstructions),
    save_code_maps=lambda path, samples, codes, codebook_size: write(path, samples=samples, codes=codes),
    save_samples=lambda path, samples, columns: write(path, samples=samples),
    output_class=SignalPipelineOutput,
    output_types=("np", "pt"),
)

"""The options of every verb that reads data: those of any data and of every modality; and the splits they give."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from hf_vq.cli.checks import find_modality
from hf_vq.data.padding import is_stream, padded_shape
from hf_vq.data.sources import MissingSplitError
from hf_vq.modalities import MODALITIES, Modality

SUFFIXES = " or ".join(f"{modality.suffix} ({modality.plural})" for modality in MODALITIES.values())


@dataclass
class DataOptions:
    """Which data. A modality that is fitted to them says how they are read; see `data_options`.

    Attributes:
        modality: of the data, None before `fit`.
        model: that is to take them, None where there is none yet.
        compared: whether data and model have been compared.
    """

    data: str | None = field(
        default=None,
        metadata={
            "help": "digits, a folder of files, Parquet or tars (file, folder or glob), or a data set id of the Hub"
        },
    )
    label_column: str | None = field(
        default=None, metadata={"help": "column of the classes; none: leave classes out; default: label, if any"}
    )
    data_config_name: str | None = field(default=None, metadata={"help": "configuration of a data set of the Hub"})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "held out for validation where the data has no validation split"}
    )
    train_split: str = field(
        default="train", metadata={"help": "what to train on: a split, or rows of one such as train[:45000]"}
    )
    validation_split: str = field(
        default="validation", metadata={"help": "what to hold out: a split, or rows of one such as train[45000:50000]"}
    )
    skip_bad: bool = field(default=False, metadata={"help": "leave out samples that cannot be read, and list them"})
    modality: Any = field(default=None, init=False)
    model: Any = field(default=None, init=False)
    compared: bool = field(default=False, init=False)

    def fit(
        self,
        modality: Modality,
        channels: int | None = None,
        model: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> Self:
        """These options for data of a modality, completed by what a model takes.

        Args:
            modality: Modality.
            channels: of the model, None where they are not known.
            model: an autoencoder, if there is one; where data are unlike those of its processor, stderr tells it.
            config: of a model that is to be built, as far as it is given.

        Raises:
            ValueError: options and model contradict each other.
        """
        self._check_foreign(modality)
        options = modality.fit_options(self._loader_options(modality), channels, model and model.processor)
        for name in modality.shared_options:
            own = (config or {}).get(name) if model is None else model.config.get(name)
            if own is not None and options[name] not in (None, own):
                raise ValueError(f"{name}={options[name]!r}, but the model has {own!r}")
            options[name] = options[name] if own is None else own
        fitted = dataclasses.replace(self, **options)
        fitted.modality, fitted.model = modality, model
        return fitted

    def fit_model(self, model: Any) -> Self:
        """These options for data of an autoencoder."""
        return self.fit(find_modality(type(model).__name__), model.in_channels, model)

    def load(self, split: str = "train", **options: Any) -> Any:
        """Load one split; bad samples that were left out are listed on stderr.

        Args:
            split: "train" or "validation", which `train_split` and `validation_split` explain, or another split.
            options: further arguments of the modality's loader.
        """
        if self.data is None:
            raise ValueError("data is missing: give --data (try digits)")
        dataset = self.modality.loader(
            self.data,
            split=self.resolve(split),
            label_column=self.label_column,
            config_name=self.data_config_name,
            validation_fraction=self.validation_fraction,
            skip_bad=self.skip_bad,
            **self._loader_options(self.modality),
            **options,
        )
        for line in dataset.skipped:
            print(f"skipped: {line}", file=sys.stderr)
        return self._compare(dataset)

    def load_files(self, files: Sequence[str]) -> Any:
        """Load samples of single files."""
        return self._compare(self.modality.loader(files, **self._loader_options(self.modality)))

    def load_train_and_validation(self) -> tuple[Any, Any]:
        """The training data and the validation data, None where there is none and none was asked for.

        Raises:
            ValueError: some samples are in both.
        """
        train = self.load("train")
        shared = {name: getattr(train, name) for name in self.modality.shared_options}
        alike = self.fit(self.modality, train.sample_shape[0], config=shared)  # what one split is guessed by, both are
        try:
            validation = alike.load("validation")
        except MissingSplitError:
            if self.validation_fraction > 0 or self.validation_split != "validation":
                raise
            return train, None
        if is_stream(train):
            if self.train_split == self.validation_split:
                raise ValueError(f"train_split and validation_split are both {self.train_split!r}")
            return train, validation
        plural = self.modality.plural
        common = len(train) - len(train.without(validation))
        if common:
            raise ValueError(
                f"train_split={self.train_split!r} and validation_split={self.validation_split!r} have {common:,} "
                f"{plural} in common: give both as rows of one split, such as train[:90%] and train[90%:]"
            )
        return train, validation

    def resolve(self, split: str) -> str:
        """What a split stands for, see `load`."""
        return {"train": self.train_split, "validation": self.validation_split}.get(split, split)

    def _loader_options(self, modality):
        return {entry.name: getattr(self, entry.name) for entry in self._fields_of(modality)}

    def _fields_of(self, modality):
        """The loader options of a modality that are among these."""
        parts = [modality.loader_options]
        if modality.training_options is not None and isinstance(self, modality.training_options):
            parts.append(modality.training_options)
        return [entry for part in parts for entry in dataclasses.fields(part)]

    def _check_foreign(self, modality):
        """Raise a ValueError for an option that was given and that other modalities alone have."""
        own = {entry.name for entry in self._fields_of(modality)}
        for other in MODALITIES.values():
            for entry in self._fields_of(other) if isinstance(self, other.loader_options) else ():
                value = getattr(self, entry.name)
                if entry.name not in own and value != entry.default:
                    raise ValueError(
                        f"{entry.name}={value!r} is for {other.plural}, and the model takes {modality.plural}"
                    )

    def _compare(self, dataset):
        """Raise a ValueError for a shape that the model cannot take; say once where data are unlike its own."""
        if self.model is not None and not self.compared:
            self.model.code_shape(padded_shape(self.model, dataset))
            if lines := self.model.processor.differences(dataset):
                print(f"warning: {'; '.join(lines)}", file=sys.stderr)
            self.compared = True
        return dataset


def data_options(training: bool = False) -> type:
    """`DataOptions` with the loader options of all modalities, a dataclass; with those of training an autoencoder."""
    parts = [modality.loader_options for modality in MODALITIES.values()]
    if training:
        parts += filter(None, (modality.training_options for modality in MODALITIES.values()))
    return _compose(DataOptions, *parts)


def size_options() -> type:
    """The options of all modalities that give a sample's size, a dataclass."""
    return _compose(*(modality.size_options for modality in MODALITIES.values()))


def sizes_of_samples() -> list[str]:
    """Names of the options of all modalities that give a sample's size."""
    return [entry.name for entry in dataclasses.fields(size_options())]


def _compose(*parts):
    return dataclass(type("Options", tuple(dict.fromkeys(parts)), {}))

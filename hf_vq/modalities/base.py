"""What a modality is: everything that commands, cards, reports and pipelines ask about a kind of signal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Modality:
    """A kind of signal: how its samples are loaded, prepared, shown, named and rated.

    Attributes:
        name: of one sample, "image".
        plural: of several, "images".
        unit: of which a sample has many, "pixel": rates are in bits per unit and bits per sample.
        tasks: the Hub's name of what a folder does, by its kind: "autoencoder", "pipeline", or "pipeline of texts".
        example_space: a usual size, one number for each axis of space; for the example on a card.
        show_sample: Python for the card of a pipeline that draws one and writes it to a file; `{call}` is the call.
        embed: Markdown that shows a file of samples on a card; `{title}` and `{file}`.
        suffix: of files of samples, ".png".
        map_suffix: of files of code maps; None: as that of samples.
        size_options: dataclass of the command line's options that give a sample's size.
        loader_options: dataclass of all options that only this loader takes, those of the size included.
        training_options: dataclass of the loader's options that training an autoencoder alone takes, if any.
        shared_options: loader options that are arguments of autoencoders too, and attributes of data sets, such as a
            rate: model and data agree on them.
        loader: data set of a source: `loader(source, split=, label_column=, config_name=, validation_fraction=,
            skip_bad=, cache_bytes=, **loader options)`, or of a list of files. It has `sample_shape`, `num_values`
            (of a number in a sample), `labels`, `class_names`, `num_classes`, `skipped` and `without(other)`.
        fit_options: `fit_options(options, channels, processor)`: the loader options, a dict, completed by what a
            model takes: its channels and its processor, None each where not known. A ValueError where they disagree.
        space_of: `space_of(options)`: space of the samples that options ask for, None where they leave it open.
        describe_data: `describe_data(dataset)`: what a report must say of the samples for likelihoods to compare, a
            dict, and a list of warnings.
        processor: class that prepares and shows samples, has `size` (space or None), `from_dataset`,
            `from_pretrained`, `save_pretrained`, `__call__`, `postprocess` and `differences(dataset)`.
        file_options: `file_options(processor)`: a dict, what the three functions below take besides, such as a rate.
        save_reconstructions: `(path, samples, reconstructions)`: originals beside reconstructions, as a file.
        save_code_maps: `(path, samples, codes, codebook_size)`: samples beside their codes.
            These two get `lengths` too, along the first axis of space, where samples are padded.
        save_samples: `(path, samples, columns)`: all samples.
        output_class: what a pipeline returns; its one field are the samples.
        output_types: forms in which `processor.postprocess` gives samples.
        similarities: classes of metrics of reconstructions besides errors, such as those of
            `hf_vq.metrics.similarity`; each has a `name`, the `smallest_size` of samples, whether it is `cheap`, and
            where more is not better, `more_is_better` False.
        largest_value: of a sample in [-1, 1], how far resampling and noise may take it; what lies beyond is of another
            scale, and `tokenize` refuses it. None: samples may have any values.
    """

    registry_kind: ClassVar[str] = "modality"
    name: str
    plural: str
    unit: str
    tasks: dict[str, str]
    example_space: tuple[int, ...]
    show_sample: str
    embed: str
    suffix: str
    size_options: type
    loader_options: type
    loader: Callable
    fit_options: Callable
    space_of: Callable
    describe_data: Callable
    processor: type
    save_reconstructions: Callable
    save_code_maps: Callable
    save_samples: Callable
    output_class: type
    output_types: tuple[str, ...]
    largest_value: float | None = None
    similarities: tuple[type, ...] = ()
    training_options: type | None = None
    map_suffix: str | None = None
    shared_options: tuple[str, ...] = ()
    file_options: Callable = lambda processor: {}

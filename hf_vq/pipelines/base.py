"""What pipelines share: requests for codes, and the way from codes to samples; nothing here speaks of pictures."""

import inspect
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from hf_vq.arguments import check_arguments, check_own
from hf_vq.data.identity import makes_codes, tokenizer_identity
from hf_vq.hub import HubPipelineMixin
from hf_vq.modalities import Modality
from hf_vq.modes import InferenceVerbs
from hf_vq.priors.autoregressive import AutoregressivePrior
from hf_vq.priors.inputs import first, map_tensors
from hf_vq.priors.sampling import check_sampling_options
from hf_vq.registry import MODALITIES, PIPELINES

# options of sampling that pipelines name: at these values, a prior without such an option need not know of them
OPTION_DEFAULTS = {
    "temperature": 1.0, "top_k": None, "top_p": None, "guidance_scale": 1.0, "guidance_steps": None,
    "known_codes": None, "known_mask": None, "num_inference_steps": None, "truncation_rate": 1.0,
}  # fmt: skip

RANGED = ("temperature", "top_k", "top_p", "guidance_scale", "guidance_steps")  # of them, those that are numbers

# of what a constructor takes; diffusers looks into these types alone, and warns of others
ClassNames = list[str] | tuple[str, ...] | dict[int, str] | dict[str, str]


@dataclass
class SamplePipelineOutput(BaseOutput):
    """What a pipeline returns whose autoencoder has no modality.

    Attributes:
        samples: (batch, channels, *space) in [-1, 1], or codes.
    """

    samples: torch.Tensor


class CodesPipeline(InferenceVerbs, HubPipelineMixin, DiffusionPipeline):
    """A pipeline of an autoencoder and priors over its codes; a subclass registers them and draws the codes."""

    registry_kind = "pipeline"
    inference_verbs: ClassVar[tuple[str, ...]] = ("__call__",)
    draws: ClassVar[str | None] = None  # the one modality that this class is made for, by name
    copies_name: ClassVar[str] = "num_images_per_prompt"  # what diffusers calls the number of samples of each request
    autoencoder: Any  # any of ours
    config: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_own(cls, "__init__", "__call__")

    @classmethod
    def check_contract(cls) -> None:
        """Raise a TypeError that says what a class lacks to be registered."""
        if "__call__" not in {name for base in cls.__mro__[: cls.__mro__.index(CodesPipeline)] for name in vars(base)}:
            raise TypeError(f"{cls.__name__} must define __call__, which draws samples")
        components = inspect.signature(cls.__init__).parameters
        if "autoencoder" not in components or not any(name.endswith("prior") for name in components):
            raise TypeError(
                f"the constructor of {cls.__name__} must take autoencoder, and prior or several named such as "
                f"top_prior; it takes {', '.join(list(components)[1:])}"
            )

    def inference_modules(self) -> list[torch.nn.Module]:
        return [part for part in self.components.values() if isinstance(part, torch.nn.Module)]

    def _check_modality(self, autoencoder):
        """Raise a ValueError for an autoencoder of a modality that has another pipeline."""
        own = pipeline_of(autoencoder.modality)
        if own is not None and not isinstance(self, own):
            raise ValueError(
                f"autoencoder is a {type(autoencoder).__name__} of the modality {autoencoder.modality!r}, whose "
                f"samples {own.__name__} draws"
            )

    def _set_up(self, class_names, num_classes):
        """Keep the class names, a list or by number."""
        self.register_to_config(class_names=by_number("class_names", class_names, num_classes, "class"))

    def register_modules(self, **modules: Any) -> None:
        """As diffusers, for components that belong together.

        Raises:
            ValueError: a prior that was trained on the codes of another autoencoder.
        """
        check_tokenizers({**self._parts(), **modules})
        vars(self)["_registering"] = True  # one after the other, old ones and new ones are mixed
        try:
            super().register_modules(**modules)
        finally:
            del vars(self)["_registering"]

    def __setattr__(self, name: str, value: Any) -> None:
        parts = self._parts()
        if name in parts and "_registering" not in vars(self):
            check_tokenizers({**parts, name: value})
        super().__setattr__(name, value)

    def _parts(self):
        """The models, by component name."""
        return {name: part for name, part in vars(self).items() if name == "autoencoder" or name.endswith("prior")}

    @property
    def modality(self) -> Modality | None:
        """The Modality of the samples; None where they are tensors."""
        return MODALITIES.get(self.autoencoder.modality)

    @property
    def output_types(self) -> tuple[str, ...]:
        """Forms in which samples can be had, the usual one first; "sample" is what the autoencoder gives."""
        return (*(self.modality.output_types if self.modality else ("pt",)), "sample", "codes")

    @property
    def num_classes(self) -> int:
        """Of the priors; 0 where there are no classes."""
        return max(prior.config.num_classes for prior in self._priors())

    @property
    def num_speakers(self) -> int:
        """Of the priors; 0 where there are no speakers."""
        return max(getattr(prior.config, "num_speakers", 0) for prior in self._priors())

    def _priors(self):
        return [part for name, part in self._parts().items() if name != "autoencoder" and part is not None]

    def get_label_ids(self, class_labels: int | str | Sequence[int | str] | torch.Tensor) -> torch.Tensor:
        """Class labels, numbers or names, as a tensor (n,) int64.

        Raises:
            ValueError: a name that is none of `class_names`.
        """
        return label_ids("class", class_labels, self.config.class_names)

    def _check_request(self, class_labels, batch_size, copies, num_classes, output_type, requests, priors):
        """Labels (n,) or None, and the number of samples n, of a request.

        Args:
            requests: keywords for every prior, dicts; of those that a prior declares as conditions, in place, each
                item is repeated `copies` times in a row.
            priors: as many.
        """
        if output_type is not None and output_type not in self.output_types:
            raise ValueError(f"output_type must be one of {list(self.output_types)}, got {output_type!r}")
        for name, value in {self.copies_name: copies, "batch_size": batch_size}.items():
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not (whole and value >= 1) and (value is not None or name != "batch_size"):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if class_labels is None and num_classes:
            raise ValueError(f"class_labels missing: the prior has {num_classes} classes")
        if class_labels is not None and num_classes == 0:
            raise ValueError(f"class_labels={class_labels!r} given, but the prior has no classes")

        def repeat(one):
            return one.repeat_interleave(copies, dim=0)

        labels = None if class_labels is None else _as_batch(self.get_label_ids(class_labels))
        numbers = {} if labels is None else {"class_labels": len(labels)}  # of items, by condition
        for request, prior in zip(requests, priors, strict=True):
            for name, value in request.items():
                if name in prior.condition_names and value is not None:
                    value = _as_batch(value)
                    numbers[name] = len(first(value))
                    request[name] = map_tensors(repeat, value)
        number = next(iter(numbers.values()), 1 if batch_size is None else batch_size)
        if numbers and batch_size is not None:
            raise ValueError(f"batch_size={batch_size} given beside {next(iter(numbers))}, whose number decides")
        if any(other != number for other in numbers.values()):
            raise ValueError(f"conditions must be of one number of samples, got {numbers}")
        return None if labels is None else repeat(labels), number * copies

    def _sample(self, prior, shape, number, generator, options, request):
        """Codes of a prior: options are for all of them, a request has a row for each."""
        conditions = request.keys() & set(prior.condition_names)
        return prior.sample(
            None if conditions else number, shape, generator=generator,
            **{"progress_bar": self.progress_bar, **options, **request},
        )  # fmt: skip

    def _decode(self, codes, **decoding):
        """Codes of the priors as samples; `decoding` is what `detokenize` takes besides."""
        return self.autoencoder.detokenize(codes, **decoding)

    def _finish(self, codes, output_type, return_dict, **decoding):
        """Codes as samples, in the form that was asked for and the output of their modality; see `_decode`."""
        modality, samples = self.modality, codes
        if output_type != "codes":
            samples = self._decode(codes, **decoding)  # (batch, channels, *space) in [-1, 1]
            if modality is not None and output_type != "sample":
                samples = self.autoencoder.processor.postprocess(samples, output_type or self.output_types[0])
        self.maybe_free_model_hooks()
        if not return_dict:
            return (samples,)
        return (SamplePipelineOutput if modality is None else modality.output_class)(samples)


def pipeline_of(modality: str | None) -> Any:
    """The registered pipeline class that is made for one modality alone, by its name; None where there is none."""
    return next((one for one in PIPELINES.values() if one.draws is not None and one.draws == modality), None)


def by_number(argument: str, names: ClassNames | None, count: int, what: str) -> dict[str, str] | None:
    """Names of classes or the like, a list or by number, by number as a string; None stays None.

    Args:
        argument: name of the argument, for messages.
        names: what was given.
        count: how many there must be; a ValueError where there are not.
        what: they name, "class".
    """
    if names is None:
        return None
    if len(names) != count:
        raise ValueError(f"{argument} must be {count}, one for each {what} of the prior, got {names!r}")
    if not isinstance(names, Mapping):  # stock takes a list for a component
        names = dict(enumerate(names))
    return {str(label): name for label, name in names.items()}


def label_ids(what: str, labels: Any, names: Mapping[str, str] | None) -> torch.Tensor:
    """Labels of classes or the like, numbers or names, as a tensor (n,).

    Args:
        what: they label, "class".
        labels: one or several.
        names: as `by_number` gives them; a ValueError for a label that is a name and none of them.
    """
    if isinstance(labels, torch.Tensor):
        return labels
    if isinstance(labels, str | int) or not isinstance(labels, Iterable):  # one, NumPy's too
        labels = [labels]
    if not labels:
        raise ValueError(f"{what}_labels must name at least one {what}, got {labels!r}")
    numbers = {name: int(label) for label, name in (names or {}).items()}
    for label in labels:
        if isinstance(label, str) and label not in numbers:
            raise ValueError(f"{what}_labels: {label!r} is none of the {what} names {list(numbers)}")
    return torch.tensor([numbers[label] if isinstance(label, str) else label for label in labels])


def _as_batch(value: Any) -> Any:
    """A condition as a tensor, or as a tuple of them where it is several; a number alone is a batch of one."""
    if isinstance(value, tuple | list) and value and all(isinstance(one, torch.Tensor) for one in value):
        return tuple(value)
    value = torch.as_tensor(value)
    return value[None] if value.ndim == 0 else value


def check_prior(name: str, prior: Any, codebook_size: int | tuple[int, ...], grid_dims: int) -> None:
    """Raise a ValueError unless a prior speaks of these codes."""
    if prior.config.codebook_size != codebook_size:
        raise ValueError(
            f"{name} has codebook_size={prior.config.codebook_size}, but the autoencoder has {codebook_size} codes: "
            "they were not trained together"
        )
    if prior.grid_dims != grid_dims:
        raise ValueError(
            f"{name} models codes with {prior.grid_dims} axes, but those of the autoencoder have {grid_dims}"
        )


def check_tokenizers(parts: Mapping[str, Any]) -> None:
    """Raise a ValueError for the first prior that was trained on the codes of another autoencoder.

    Args:
        parts: `autoencoder`, and priors by component name. A prior that does not know its tokenizer, of an older
            version or converted, goes with any.
    """
    answers: dict[tuple, bool | None] = {}
    for name, prior in parts.items():
        told = getattr(getattr(prior, "config", None), "codes_sha256", None)
        if name == "autoencoder" or told is None or parts.get("autoencoder") is None:
            continue
        autoencoder, hashes = parts["autoencoder"], (told, getattr(prior.config, "rounded_codes_sha256", None))
        if hashes not in answers:
            answers[hashes] = makes_codes(autoencoder, *hashes)
        if answers[hashes] is False:
            identity = tokenizer_identity(autoencoder, rounded=False)
            raise ValueError(
                f"{name} was trained on the codes of another tokenizer: its codes_sha256 is {told}, that of the "
                f"autoencoder, a {identity['class']}, is {identity['codes_sha256']}. Where you know that the "
                f"codes mean the same, set codes_sha256 to None in the config of {name}"
            )


def split_keywords(name: str, prior: Any, keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of a call as what a prior declares.

    Args:
        name: of the component, for messages.
        prior: any `Prior`.
        keywords: by name; one of `OPTION_DEFAULTS` at its default is left out where the prior has no such option.

    Returns:
        Two dicts: options of `sample`, and conditions (without those that are None).

    Raises:
        TypeError: a keyword that the prior does not declare.
        ValueError: an option out of its range.
    """
    options: dict[str, Any] = {}
    conditions: dict[str, Any] = {}
    for keyword, value in keywords.items():
        if keyword in prior.sampling_options:
            options[keyword] = value
        elif keyword in prior.condition_names:
            conditions |= {} if value is None else {keyword: value}
        elif keyword not in OPTION_DEFAULTS or not _is_default(value, OPTION_DEFAULTS[keyword]):
            taken = ", ".join([*prior.sampling_options, *prior.condition_names]) or "no keywords"
            raise TypeError(f"{name}, a {type(prior).__name__}, does not take {keyword!r}; it takes {taken}")
    options = check_arguments(type(prior).sample, options)
    if isinstance(prior, AutoregressivePrior):
        check_sampling_options(**{name: options[name] for name in RANGED if name in options})
    return options, conditions


def move_known(options: dict[str, Any], request: dict[str, Any]) -> None:
    """Take what is known of each sample out of the options of `split_keywords`, to what has a row for each sample."""
    for name in ("known_codes", "known_mask"):
        if options.get(name) is not None:
            request[name] = options.pop(name)


def _is_default(value, default):
    return value is None if default is None else value == default


def check_grid_keywords(priors: Sequence[Any], keywords: dict[str, Any]) -> None:
    """Raise a ValueError for keywords of a hierarchy that no prior would take notice of.

    Args:
        priors: coarse to fine.
        keywords: by name, as of `for_each_grid`.
    """
    if keywords.get("context_codes") is not None:
        value = reprlib.repr(keywords["context_codes"])
        raise ValueError(f"context_codes={value} given, but each prior follows the codes drawn from the coarser ones")
    for name, value in keywords.items():
        declared = any(name in (*prior.sampling_options, *prior.condition_names) for prior in priors)
        if isinstance(value, Sequence) and not any(one is not None for one in value) and not declared:
            raise ValueError(f"{name}={value!r} given, but none of the priors takes it")


def for_each_grid(count: int, **options: Any) -> list[dict[str, Any]]:
    """Options, each one value for all grids or a sequence of one a grid, as a list of dicts, coarse to fine.

    None in a sequence leaves an option that pipelines do not name to that grid's prior.

    Raises:
        ValueError: a sequence of another length.
    """
    grids: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in options.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        if several and len(value) != count:
            raise ValueError(f"{name} must be one value or {count}, one for each grid, got {value!r}")
        for index, grid in enumerate(grids):
            if not several or value[index] is not None or name in OPTION_DEFAULTS:
                grid[name] = value[index] if several else value
    return grids

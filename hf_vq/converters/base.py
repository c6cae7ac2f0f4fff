"""What every converter shares: a source, a plan of where each tensor comes from, and the check that all are used."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_vq.quantizers.base import UNSTARTED
from hf_vq.weights import check_dtype, expect_keys, is_finite

FORMATS: dict[str, "Format"] = {}


class Config(dict):
    """The config file of an original; it remembers what was last read of it, for the message if that does not fit.

    Attributes:
        last: list of the name and the value of the entry that was last read; empty before.
    """

    def __init__(self, values: dict, path: str = "", last: list | None = None):
        self.path, self.last = path, [] if last is None else last
        super().__init__(
            {
                key: Config(one, f"{path}{key}.", self.last) if isinstance(one, dict) else one
                for key, one in values.items()
            }
        )

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self.last[:] = [f"{self.path}{key}", value]
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401  (it is what get is made of)


@dataclass
class Source:
    """A checkpoint of others, read but not understood.

    Attributes:
        path: of the file or folder, for messages.
        tensors: by name.
        rest: what the file holds around and among the tensors.
        config: the original's config file, parsed; empty where there is none.
        config_path: of that file.
        first_stage: the autoencoder whose codes a prior models, where the user gave one.
        told: sentences on what was unwrapped, chosen and left out before.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    rest: dict = field(default_factory=dict)
    config: Config = field(default_factory=lambda: Config({}))
    config_path: Path | None = None
    first_stage: Any = None
    told: list[str] = field(default_factory=list)

    def has(self, *names: str) -> bool:
        """Whether all of these tensors are there."""
        return all(name in self.tensors for name in names)

    def starts(self, prefix: str) -> bool:
        """Whether a tensor's name starts so."""
        return any(name.startswith(prefix) for name in self.tensors)

    def part(self, prefix: str) -> "Source":
        """The source of those tensors alone whose names start so, under the rest of their names."""
        part = copy.copy(self)
        part.tensors = {name[len(prefix) :]: one for name, one in self.tensors.items() if name.startswith(prefix)}
        return part


@dataclass
class Plan:
    """How a model is made from a source.

    Attributes:
        build: makes the model, with any weights.
        weight: from a name in the model's state dict and `take(name)`, which hands out a tensor of the source, to the
            tensor; None where the source has none and the model derives it.
        ignored: beginnings of the names of tensors that have no place in the model: losses, discriminators.
    """

    build: Callable
    weight: Callable
    ignored: tuple[str, ...] = ()


def as_before(model_class: Any, arguments: dict[str, Any]) -> Callable[[], Any]:
    """Makes an autoencoder whose quantizer has the earlier defaults where an original does not tell.

    Defaults that have changed since are for models that begin to learn.
    """
    return lambda: model_class(**model_class.with_written_options(arguments, earlier=True))


@dataclass
class PipelinePlan:
    """How a pipeline is made from one source that holds all its parts.

    Attributes:
        build: makes the pipeline from its parts, given by name.
        parts: the Plan of each part; what those ignore does not count.
        ignored: beginnings of the names of tensors that have no place in any part.
    """

    build: Callable
    parts: dict[str, Plan]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A kind of checkpoint.

    Attributes:
        name: for `--format`.
        origin: address of the project.
        recognises: from a Source to whether it is of this kind.
        plan: from a Source to a Plan or a PipelinePlan; a ValueError names the key where config and weights disagree.
        takes_first_stage: whether the plan reads the Source's `first_stage`.
        within: names of the formats whose files hold such a model as a part, which may be asked for alone.
        notes: what a user of the original must know of the model; sentences for the card.
    """

    name: str
    origin: str
    recognises: Callable
    plan: Callable
    takes_first_stage: bool = False
    within: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def add_format(
    name: str,
    origin: str,
    recognises: Callable[[Source], bool],
    takes_first_stage: bool = False,
    within: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Callable[[Callable], Callable]:
    """Function decorator: the plan of a format."""

    def add(plan):
        FORMATS[name] = Format(name, origin, recognises, plan, takes_first_stage, within, notes)
        return plan

    return add


class Probe(Source):
    """A Source that has every tensor that it is asked for by its whole name, and keeps the names that it lacks."""

    def __init__(self, source: Source):
        super().__init__(**vars(source))
        self.prefix = ""
        self.lacking: set[str] = set()

    def has(self, *names: str) -> bool:
        self.lacking |= {self.prefix + name for name in names if name not in self.tensors}
        return True

    def part(self, prefix: str) -> Source:
        part = super().part(prefix)
        vars(part)["prefix"] = self.prefix + prefix
        return part


def pick_format(source: Source, name: str | None = None) -> Format:
    """The format of a source.

    A format that is given decides where a source may be of several, or is of none that is known; it does not make a
    source into what its tensors or its config say that it is not.

    Raises:
        ValueError: an unknown name, one that contradicts the source, or a source that no format or several recognise.
    """
    if name is not None and name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(sorted(FORMATS))}, got {name!r}")
    found = [candidate for candidate in FORMATS.values() if candidate.recognises(source)]
    config = f"with the config {source.config_path}" if source.config_path else "without a config file beside it"
    known = ", ".join(one.name for one in found)
    if name is not None:
        chosen = FORMATS[name]
        if found and chosen not in found and not any(one.name in chosen.within for one in found):
            raise ValueError(f"format={name!r} contradicts {source.path}, {config}: it is {known}")
        return chosen
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{source.path}, {config}, may be any of {known}: give the format")
    near = nearly_recognised(source)
    if near:
        raise ValueError(
            f"{source.path}, {config}, lacks one of the tensors by which a format is known: {'; '.join(near)}"
        )
    seen = ", ".join(list(source.tensors)[:8])
    raise ValueError(
        f"{source.path} is of no known format, {config}: its {len(source.tensors)} tensors begin with {seen}; "
        f"known are {', '.join(sorted(FORMATS))}"
    )


def nearly_recognised(source: Source) -> list[str]:
    """Of every format that a source would be of with one tensor more: its name and that tensor."""
    near = []
    for candidate in FORMATS.values():
        probe = Probe(source)
        if candidate.recognises(probe) and len(probe.lacking) == 1:
            near.append(f"{candidate.name} has {probe.lacking.pop()!r}")
    return near


def fill(source: Source, plan: Plan | PipelinePlan) -> Any:
    """Builds the model or the pipeline of a plan and loads its weights, every tensor accounted for.

    Returns:
        The model, in evaluation mode, or the pipeline of such models.

    Raises:
        ValueError: a tensor that is missing, has another shape or is left over, naming file and key.
    """
    taken: set[str] = set()
    if isinstance(plan, PipelinePlan):
        model = plan.build(**{name: _fill_model(source, part, taken) for name, part in plan.parts.items()})
    else:
        model = _fill_model(source, plan, taken)
    left = [name for name in source.tensors if name not in taken and not name.startswith(plan.ignored)]
    if left:
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        raise ValueError(
            f"{source.path} has tensors that {type(model).__name__} has no place for: {', '.join(left[:8])}{more}"
        )
    return model


def _fill_model(source, plan, taken):
    """The model of a plan with its weights; adds the names of the source's tensors that it took."""
    model = plan.build()
    left_out = {name for name in model.state_dict() if name.endswith(f".{UNSTARTED}")} - source.tensors.keys()
    expect_keys(model, model.state_dict().keys() - left_out)
    weights, missing, latest = {}, [], set()

    def take(name):
        if name not in source.tensors:
            raise ValueError(f"{source.path} lacks the tensor {name!r}")
        latest.add(name)
        return source.tensors[name]

    for name, expected in model.state_dict().items():
        latest.clear()
        try:
            tensor = plan.weight(name, take)
        except (IndexError, RuntimeError) as error:  # of a tensor with another number of dimensions
            theirs = ", ".join(sorted(latest)) or "its tensors"
            raise ValueError(
                f"{source.path}: {theirs} cannot become {name} of {type(model).__name__}: {error}"
            ) from error
        taken |= latest
        if tensor is None:
            missing.append(name)
            continue
        if tensor.shape != expected.shape and drop_ones(tensor.shape) == drop_ones(expected.shape):
            tensor = tensor.reshape(expected.shape)  # a 1x1 convolution as a linear layer
        if tensor.shape != expected.shape:
            theirs = ", ".join(sorted(latest)) or name
            raise ValueError(
                f"{source.path}: {theirs} gives shape {tuple(tensor.shape)}, but {name} of {type(model).__name__} "
                f"needs {tuple(expected.shape)}"
            )
        check_dtype(", ".join(sorted(latest)) or name, tensor.dtype, expected, source.path)
        weights[name] = tensor.to(expected.dtype).contiguous()
        if not is_finite(weights[name]):
            raise ValueError(
                f"{source.path}: {', '.join(sorted(latest)) or name} holds NaN or infinity (in {tensor.dtype})"
            )
    model.load_state_dict(weights, strict=False)
    if missing:
        model.check_loaded(missing, source.path)
    return model.eval()


def drop_ones(shape: Sequence[int]) -> list[int]:
    """A shape without the ones at its end."""
    shape = list(shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return shape

"""What every converter shares: a source, a plan of where each tensor comes from, and the check that all are used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

FORMATS: dict[str, "Format"] = {}


class Tensors(dict[str, torch.Tensor]):
    """Tensors by name; one that is missing is named."""

    def __missing__(self, name):
        raise ValueError(f"the checkpoint has no tensor {name!r}")


@dataclass
class Source:
    """A checkpoint of others, read but not understood.

    Attributes:
        path: of the file or folder, for messages.
        tensors: by name.
        rest: what the file holds around and among the tensors.
        config: the original's config file, parsed; {} where there is none.
        config_path: of that file.
        first_stage: the autoencoder whose codes a prior models, where the user gave one.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    rest: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    config_path: Path | None = None
    first_stage: Any = None

    def __post_init__(self):
        self.tensors = Tensors(self.tensors)

    def has(self, *names: str) -> bool:
        """Whether all of these tensors are there."""
        return all(name in self.tensors for name in names)

    def starts(self, prefix: str) -> bool:
        """Whether a tensor's name starts so."""
        return any(name.startswith(prefix) for name in self.tensors)


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
    """

    name: str
    origin: str
    recognises: Callable
    plan: Callable
    takes_first_stage: bool = False


def add_format(
    name: str, origin: str, recognises: Callable[[Source], bool], takes_first_stage: bool = False
) -> Callable[[Callable], Callable]:
    """Function decorator: the plan of a format."""

    def add(plan):
        FORMATS[name] = Format(name, origin, recognises, plan, takes_first_stage)
        return plan

    return add


@dataclass
class _Asked(Source):
    """A source that notes what a format asks for: what is there, and what is not."""

    found: set = field(default_factory=set)
    missed: list = field(default_factory=list)

    def has(self, *names):
        return all([self._note(name, name in self.tensors) for name in names])  # noqa: C419  # each is noted

    def starts(self, prefix):
        return self._note(prefix, super().starts(prefix))

    def _note(self, name, there):
        if there:
            self.found.add(name)
        elif not name.endswith("."):  # of a whole part that is not there, no tensor is the one that lacks
            self.missed.append(name)
        return there


def pick_format(source: Source, name: str | None = None) -> Format:
    """The format of a source.

    Args:
        name: the user's choice, where several recognise the source; one that contradicts tensors or config is refused.

    Raises:
        ValueError: an unknown name, or a source that this format does not recognise, or no format or several; where
            a format lacks one tensor only, it names both.
    """
    if name is not None and name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(sorted(FORMATS))}, got {name!r}")
    found = [candidate for candidate in FORMATS.values() if candidate.recognises(source)]
    if name is not None:
        chosen = FORMATS[name]
        if chosen in found:
            return chosen
        what = f"format={name!r} contradicts {source.path}, {_config_words(source)}"
        if found:
            raise ValueError(f"{what}: it is of {' or '.join(one.name for one in found)}")
        raise ValueError(f"{what}: {_what_lacks(source, [chosen]) or _what_begins(source)}")
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{source.path}, {_config_words(source)}, may be any of {', '.join(one.name for one in found)}: give the "
            "format"
        )
    raise ValueError(
        f"{source.path} is of no known format, {_config_words(source)}: "
        f"{_what_lacks(source, FORMATS.values()) or _what_begins(source)}; known are {', '.join(sorted(FORMATS))}"
    )


def _config_words(source):
    return f"with the config {source.config_path}" if source.config_path else "without a config file beside it"


def _what_begins(source):
    return f"its {len(source.tensors)} tensors begin with {', '.join(list(source.tensors)[:8])}"


def _what_lacks(source, formats):
    """The formats whose marks are all there but one, and which; None where there is none."""

    def asked(candidate, tensors):
        noted = _Asked(source.path, tensors, source.rest, source.config, source.config_path)
        return noted, candidate.recognises(noted)

    best: list[tuple[int, str]] = []
    for candidate in formats:
        for name in dict.fromkeys(asked(candidate, source.tensors)[0].missed):
            noted, complete = asked(candidate, {**source.tensors, name: torch.zeros(())})
            if complete and len(noted.found) > 1:
                best.append((len(noted.found), f"for {candidate.name} it lacks the tensor {name!r}"))
    most = max((number for number, _ in best), default=0)
    return ", ".join(words for number, words in best if number == most) or None


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
        _check_numbers(tensor, expected, f"{source.path}: {', '.join(sorted(latest)) or name}", name)
        if tensor.shape != expected.shape and drop_ones(tensor.shape) == drop_ones(expected.shape):
            tensor = tensor.reshape(expected.shape)  # a 1x1 convolution as a linear layer
        if tensor.shape != expected.shape:
            theirs = ", ".join(sorted(latest)) or name
            raise ValueError(
                f"{source.path}: {theirs} gives shape {tuple(tensor.shape)}, but {name} of {type(model).__name__} "
                f"needs {tuple(expected.shape)}"
            )
        weights[name] = tensor.to(expected.dtype).contiguous()
    model.load_state_dict(weights, strict=False)
    if missing:
        model.finish_loading(missing)
    return model.eval()


def _check_numbers(tensor, expected, theirs, name):
    """Raise a ValueError unless a tensor's numbers are of the kind that ours are, and finite."""
    if expected.is_floating_point() and not tensor.is_floating_point():
        raise ValueError(f"{theirs} holds {tensor.dtype}, but {name} needs floats")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{theirs} holds NaN or infinity, of which {name} would be made")
    if not expected.is_floating_point() and (tensor.is_complex() or not torch.equal(tensor, tensor.to(torch.int64))):
        raise ValueError(f"{theirs} holds {tensor.dtype} with fractions, but {name} needs {expected.dtype}")


def drop_ones(shape: Sequence[int]) -> list[int]:
    """A shape without the ones at its end."""
    shape = list(shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return shape

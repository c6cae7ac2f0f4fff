"""Figures of several evaluations side by side, where they were measured alike; and why others were not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PROTOCOL, METRICS = "protocol", "metrics"
FOR_PEOPLE = "source"  # of a network of features: where it was found; its hash says what it is
MISSING = "not told"


@dataclass
class Comparison:
    """Figures of several evaluations.

    Attributes:
        rows: values, one for each evaluation, by the name of the figure, such as "autoencoder.psnr".
        refused: why figures that all evaluations have do not compare, a sentence each, by name.
        missing: names of figures that some evaluations lack.
    """

    rows: dict[str, list[float | None]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def compare_evaluations(
    evaluations: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None = None
) -> Comparison:
    """Compare what `hf-vq evaluate` wrote.

    A figure compares where all that it depends on is equal: what the protocol says of the data, of the metric itself
    (under `metrics`, with its network of features), and of the part that it is of (a key that is called like it, or
    the part's own protocol).

    Args:
        evaluations: contents of the files, at least two, by what messages call them.
        names: of the figures, in full or without their part: "psnr". None: all, and those that do not compare are
            told in `refused`.

    Raises:
        ValueError: fewer than two evaluations, a named figure that not all have, or that does not compare, or no
            figure that compares; it names the field of the protocol and both values.
    """
    if len(evaluations) < 2:
        raise ValueError(f"evaluations to compare must be two or more, got {', '.join(evaluations) or 'none'}")
    for label, evaluation in evaluations.items():
        if not isinstance(evaluation.get(PROTOCOL), Mapping):
            raise ValueError(f"{label} has no protocol: it is no evaluation, or one of an old version")
    every = {label: _figures(evaluation) for label, evaluation in evaluations.items()}
    found, known = Comparison(), list(dict.fromkeys(name for figures in every.values() for name in figures))
    for name in known:
        if names is not None and not {name, name.partition(".")[2]} & set(names):
            continue
        reason = None
        if all(name in figures for figures in every.values()):
            reason = _difference(name, evaluations)
            if reason is None:
                found.rows[name] = [figures[name] for figures in every.values()]
            else:
                found.refused[name] = reason
        else:
            found.missing.append(name)
    for wanted in names or ():
        ours = [name for name in known if wanted in (name, name.partition(".")[2])]
        if not set(ours) - set(found.missing):
            lacking = [label for label, figures in every.items() if not set(ours) & set(figures)] or list(evaluations)
            raise ValueError(f"figures: {wanted} is not in {', '.join(lacking)}; there are {', '.join(known)}")
    if found.refused and (names is not None or not found.rows):
        raise ValueError(next(iter(found.refused.values())))
    if not found.rows:
        raise ValueError(f"{' and '.join(evaluations)} have no figure in common")
    return found


def _figures(evaluation):
    """The figures of an evaluation by the name of their part and their own."""
    return {
        f"{part}.{name}": value
        for part, figures in _parts(evaluation).items()
        for name, value in figures.items()
        if not name.startswith("num_") and not isinstance(value, bool) and isinstance(value, int | float | None)
    }


def _parts(evaluation):
    return {name: part for name, part in evaluation.items() if name != PROTOCOL and isinstance(part, Mapping)}


def _difference(name, evaluations):
    """The first field in which the protocols of a figure differ, as a sentence; None where there is none."""
    protocols = {label: _protocol(name, evaluation) for label, evaluation in evaluations.items()}
    (first, one), *others = protocols.items()
    for label, other in others:
        for key in dict.fromkeys([*one, *other]):
            here, there = one.get(key, MISSING), other.get(key, MISSING)
            if here != there:
                return f"{name} does not compare: {key} is {here!r} in {first}, {there!r} in {label}"
    return None


def _protocol(name, evaluation):
    """Everything that a figure depends on, flat."""
    parts = _parts(evaluation)
    part, _, figure = name.partition(".")
    protocol = dict(parts[part].get(PROTOCOL) or evaluation[PROTOCOL])
    own = protocol.pop(METRICS, {}).get(figure)
    kept = {key: value for key, value in protocol.items() if key == part or key not in parts}
    return _flat(kept | ({} if own is None else {f"{METRICS}.{figure}": own}))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat({k: v for k, v in value.items() if k != FOR_PEOPLE}, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

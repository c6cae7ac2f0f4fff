"""`hf-vq compare`: files of `hf-vq evaluate` in, their figures side by side out."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.figures import is_defined
from hf_vq.hub.folders import EVALUATION
from hf_vq.metrics.comparison import Comparison, compare_evaluations
from hf_vq.saved import read_mapping

MANUAL = Manual(
    "compare",
    "Show figures of evaluations side by side, where they were measured alike.",
    """
hf-vq compare one/evaluation.json other/evaluation.json --figures psnr,ssim
""",
    ("evaluations",),
    closing="Give two files or more. A figure whose protocol differs is refused, with the field and both values.",
)


@dataclass
class CompareOptions:
    """What to compare."""

    evaluations: list[str] = field(
        metadata={"help": f"JSON files that `hf-vq evaluate` wrote, or folders of models with {EVALUATION}"}
    )
    figures: list[str] | None = field(
        default=None, metadata={"help": "such as psnr,rfid or autoencoder.psnr; default: all that compare"}
    )


def main(argv: list[str]) -> None:
    """Run the verb."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    given = ["--evaluations", *words] if words else []
    options, _ = parse_options([CompareOptions], [*given, *argv[len(words) :]], MANUAL)
    run(options)


def run(options: CompareOptions) -> None:
    """Compare, print a table, and tell on stderr which figures are left out."""
    paths = [Path(name, EVALUATION) if Path(name).is_dir() else Path(name) for name in options.evaluations]
    twice = [str(path) for path in paths if paths.count(path) > 1]
    if twice:
        raise ValueError(f"evaluations: {twice[0]} is given twice")
    names = None if options.figures is None else [name for name in ",".join(options.figures).split(",") if name]
    found = compare_evaluations({str(path): read_mapping(path) for path in paths}, names)
    print(table(found, [str(path) for path in paths]))
    for reason in found.refused.values():
        print(f"left out: {reason}", file=sys.stderr)
    if found.missing and names is None:
        print(f"left out: not in all files: {', '.join(found.missing)}", file=sys.stderr)


def table(found: Comparison, titles: Sequence[str]) -> str:
    """Figures in rows, evaluations in columns."""
    lines = [["", *titles]]
    for name, values in found.rows.items():
        lines.append([name, *(f"{value:.6g}" if is_defined(value) else "not defined" for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )

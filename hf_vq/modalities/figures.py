"""What all figures of a run share: colours, and how a file is written."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, ACCENT, SECOND = "#222222", "#8a8a8a", "#2b6cb0", "#dd6b20"


def save_figure(path: str | Path, figure: "Figure") -> None:
    """Write a PNG file, under a temporary name that is changed when it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.incomplete")
    figure.savefig(temporary, format="png", facecolor="white")
    os.replace(temporary, path)

"""What all figures of a run share: colours, and how a file is written."""

from pathlib import Path
from typing import TYPE_CHECKING

from hf_vq.writing import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, ACCENT, SECOND = "#222222", "#8a8a8a", "#2b6cb0", "#dd6b20"


def save_figure(path: str | Path, figure: "Figure") -> None:
    """Write a PNG file whole or not at all."""
    with whole(path) as partial:
        figure.savefig(partial, format="png", facecolor="white")

"""Pictures of a run: reconstructions and code maps by its modality, use of the codebook and losses as PNG files."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_vq.data.padding import is_stream, padding_of
from hf_vq.modalities.figures import ACCENT, INK, MUTED, SECOND, save_figure
from hf_vq.modes import evaluating

FEW = 8  # samples that are shown again and again during a training
MOST_BARS = 64  # more would touch each other, and take seconds to draw one by one


def save_usage_histogram(
    path: str | Path, counts: torch.Tensor | Sequence[int], codebook_size: int | None = None
) -> None:
    """How often each code occurs, most used first, against even use.

    Args:
        path: the PNG file to write.
        counts: (codebook_size,) ints; those of levels, one after the other or (levels, codebook_size), are shown
            together. Codes that never occur may be left out where `codebook_size` is given.
        codebook_size: number of codes, of all levels together; None: as many as counts.

    Raises:
        ValueError: no code occurs at all.
    """
    counts = torch.as_tensor(counts).double().cpu()
    if counts.ndim not in (1, 2) or counts.sum() == 0:
        raise ValueError(f"counts must be a positive count or more by code, got shape {tuple(counts.shape)}")
    counts = counts.flatten()
    share = counts.sort(descending=True).values / counts.sum()
    used, perplexity = int((counts > 0).sum()), torch.special.entr(share).sum().exp().item()
    size, shown = codebook_size or len(share), len(share)
    figure, axes = _new_axes(7.2, 3.6)
    percent = 100 * share.numpy()
    if shown <= MOST_BARS:
        axes.bar(np.arange(1, shown + 1), percent, width=0.85, color=ACCENT)
    else:
        axes.stairs(percent, np.arange(shown + 1) + 0.5, fill=True, color=ACCENT)
    axes.axhline(100 / size, color=SECOND, linewidth=1.2, linestyle="--", label=f"even use: {100 / size:.3g} %")
    axes.set_xlim(0.25, shown + 0.75)
    axes.set_xlabel("code, most used first")
    axes.set_ylabel("share of all codes (%)")
    axes.set_title(f"{used} of {size} codes in use, perplexity {perplexity:.1f}", loc="left")
    axes.legend(frameon=False, loc="upper right")
    save_figure(path, figure)


def save_loss_curve(path: str | Path, history: list[dict[str, Any]]) -> None:
    """Training and validation loss over the steps, from the `history` of a report.

    Args:
        path: the PNG file to write.
        history: list of dicts with `step`, and `loss`, `eval_loss` or both in some of them.

    Raises:
        ValueError: no entry has a loss.
    """
    curves = {}
    for name in ["loss", "eval_loss"]:
        found = {entry["step"]: entry[name] for entry in history if entry.get(name) is not None}
        if found:
            curves[name] = sorted(found.items())
    if not curves:
        raise ValueError("history has no entry with 'loss' or 'eval_loss'")
    figure, axes = _new_axes(7.2, 3.6)
    styles = {"loss": ("training", ACCENT, None), "eval_loss": ("validation", SECOND, "o")}
    for name, points in curves.items():
        label, colour, marker = styles[name]
        steps, losses = zip(*points, strict=True)
        marker = marker or ("o" if len(points) == 1 else None)
        axes.plot(steps, losses, label=label, color=colour, marker=marker, markersize=4, linewidth=1.6)
    values = [value for points in curves.values() for _, value in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.set_title("Loss", loc="left")
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    save_figure(path, figure)


def first_batch(dataset: Any, collate: Callable[[list], Any], count: int = FEW) -> dict[str, torch.Tensor]:
    """The first items of a data set, map-style or a stream, as a batch."""
    items = iter(dataset) if is_stream(dataset) else map(dataset.__getitem__, range(len(dataset)))
    return collate(list(itertools.islice(items, count)))


@torch.no_grad()
def draw_reconstructions(model: Any, modality: Any, batch: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    """Write reconstructions and code maps of a batch; the model is in evaluation mode for that.

    Args:
        model: an autoencoder.
        modality: its `Modality`.
        batch: `sample` (samples, channels, *space) in [-1, 1], with the mask of padding where they differ in length.
        folder: where the files go.

    Returns:
        The files, `reconstructions` and `code_maps` with the suffixes of the modality.
    """
    samples = batch["sample"]
    padding = {name: mask.to(model.device) for name, mask in padding_of(batch).items()}
    with evaluating(model):
        output = model(samples.to(model.device), **padding)
    files = [folder / name for name in shown_files(modality)]
    more = modality.file_options(model.processor) | lengths_of(padding)
    modality.save_reconstructions(files[0], samples, output.sample.cpu(), **more)
    modality.save_code_maps(files[1], samples, output.codes, model.codebook_size, **more)
    return files


def shown_files(modality: Any) -> tuple[str, str]:
    """Names of the files of reconstructions and of code maps."""
    return f"reconstructions{modality.suffix}", f"code_maps{modality.map_suffix or modality.suffix}"


def lengths_of(padding: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """What functions that show samples take besides where these are padded: real values along the first axis.

    Args:
        padding: as of `padding_of`.
    """
    if not padding:
        return {}
    mask = padding["padding_mask"]
    return {"lengths": mask.flatten(2).any(dim=2).sum(dim=1).tolist() if mask.ndim > 2 else mask.sum(dim=1).tolist()}


def _new_axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure with one pair of axes, open at the top and the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160)
    margins = {"left": 0.85 / width, "right": 1 - 0.1 / width, "bottom": 0.5 / height, "top": 1 - 0.35 / height}
    axes = figure.subplots(gridspec_kw=margins)  # a layout of matplotlib's measures them, for as long as it draws
    for side in ["top", "right"]:
        axes.spines[side].set_visible(False)
    for side in ["left", "bottom"]:
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=INK, labelsize=9)
    return figure, axes

"""The report of a run: `report.json`, with what was asked, on what machine, how long it took and what came out."""

import json
import math
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from hf_vq.figures import is_defined, plain_figures
from hf_vq.version import __version__
from hf_vq.writing import write_text

REPORT = "report.json"


def describe_machine(device: str | torch.device) -> dict[str, Any]:
    """The machine and the library versions of a run, as a dict of plain values."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
        "python": platform.python_version(),
        "hf_vq": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "diffusers": diffusers.__version__,
    }


def best_entry(history: list[dict[str, Any]], key: str, highest: bool = False) -> dict[str, Any] | None:
    """The entry of the history where `key` is lowest, or highest; None where it is defined in none."""
    entries = [entry for entry in history if is_defined(entry.get(key))]
    return (max if highest else min)(entries, key=lambda entry: entry[key]) if entries else None


def write_report(
    output_dir: str | Path,
    *,
    arguments: dict[str, Any],
    model_config: dict[str, Any],
    history: list[dict[str, Any]],
    metrics: dict[str, Any],
    best: dict[str, Any] | None,
    wall_time: float,
    device: str | torch.device,
) -> dict[str, Any]:
    """Write `report.json` into the folder of a run.

    Args:
        output_dir: folder of the run.
        arguments: the training arguments, a dict.
        model_config: the model's config, a dict.
        history: list of dicts, each with `step` and the figures of that step.
        metrics: the final figures, a dict; of those that are not defined the report says why, see `plain_figures`.
        best: the entry of the history that was best, or None.
        wall_time: seconds of training, those before a resume included.
        device: the torch device of the run.

    Returns:
        The report, a dict.
    """
    report = {
        "settings": {"arguments": arguments, "model": model_config},
        "command": shlex.join(sys.argv),
        "wall_time_seconds": round(wall_time, 3),
        "machine": describe_machine(device),
        "metrics": plain_figures(metrics),
        "best": best,
        "history": history,
    }
    report = _plain(report)
    write_text(Path(output_dir) / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")
    return report


def _plain(value: Any) -> Any:
    """JSON's own types only: NaN and infinity, which strict readers refuse, become None; other objects their text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)

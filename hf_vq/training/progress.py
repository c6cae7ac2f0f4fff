"""What a training shows while it runs: a bar, and above it a line for every log entry and every evaluation."""

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import is_in_notebook

HIDDEN = frozenset(  # in the history, and of no use in a line
    {
        *("epoch", "grad_norm", "loss_reconstruction", "mse", "num_codes", "num_samples"),
        *("runtime", "samples_per_second", "steps_per_second"),
    }
)
SECONDS = 30.0  # between the states of a bar in a log file
UNITS = {"psnr": " dB"}
SUMMARY = "train_runtime"  # in transformers' entry at the end, which repeats the others


logger = logging.getLogger("hf_vq")


class _Lines:
    """A stream on which each state of a bar is a line of its own."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        if text := text.strip():
            self.stream.write(f"{text}\n")

    def flush(self) -> None:
        self.stream.flush()


class _AboveTheBar(logging.Handler):
    """Writes warnings where a bar is shown."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class Progress(TrainerCallback):
    """Shows a training, of either kind; lines go to stdout, the bar to stderr, from the main process alone.

    On a terminal the bar stays below the lines, and below warnings. In a log file each of its states is a line.

    Args:
        name: before the bar, "autoencoder".
        shown: whether anything is shown at all.
        loss_unit: such as "nats per code"; "" where losses have none.
    """

    def __init__(self, name: str, shown: bool, loss_unit: str = ""):
        self.name, self.shown = name, shown
        self.units = {**UNITS, **({"loss": f" {loss_unit}"} if loss_unit else {})}
        self.bar: Any = None
        self.figures: dict[str, str] = {}  # behind the bar
        self.redrawn = sys.stderr.isatty() or is_in_notebook()
        self.line = ""  # the last one
        self.warnings = _AboveTheBar()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.shown and state.is_world_process_zero:
            seconds = float(os.environ.get("TQDM_MININTERVAL", SECONDS))
            plain = {} if self.redrawn else {"file": _Lines(sys.stderr), "mininterval": seconds}
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, **plain)
            if not logger.hasHandlers():  # Python's own way would write them into the bar
                logger.addHandler(self.warnings)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not self.shown or not state.is_world_process_zero or SUMMARY in logs:
            return
        line = f"step {state.global_step}/{state.max_steps}: {self.words(logs)}"
        if line != self.line:  # the last step may be evaluated twice
            self.line = line
            (tqdm.write if self.redrawn else print)(line)
            sys.stdout.flush()  # a log file is read while it grows
        if self.bar is not None:
            self.figures |= bar_figures(logs)
            self.bar.set_postfix(self.figures, refresh=self.redrawn)

    def words(self, logs: Mapping[str, Any]) -> str:
        """An entry of the history in words: "loss 0.1, learning_rate 0.001", "evaluation: loss 0.2, psnr 21.3 dB"."""
        evaluation = any(name.startswith("eval_") for name in logs)
        figures = {name.removeprefix("eval_"): value for name, value in logs.items()}
        told = [
            f"{name} {value:.4g}{self.units.get(name, '')}"
            for name, value in figures.items()
            if name not in HIDDEN and "_level_" not in name and not name.endswith("_grad_norm") and is_number(value)
        ]
        return ("evaluation: " if evaluation else "") + ", ".join(told)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is: what follows, such as an error, gets a line of its own."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
            logger.removeHandler(self.warnings)


def is_number(value: Any) -> bool:
    """Whether a figure of an entry is one that can be shown."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def bar_figures(logs: Mapping[str, Any]) -> dict[str, str]:
    """What of an entry stands behind the bar: the loss of training, the use of the codebook in evaluation."""
    found = {}
    if "loss" in logs:
        found["loss"] = f"{logs['loss']:.4f}"
    if "eval_usage" in logs:
        found["usage"] = f"{logs['eval_usage']:.0%}"
        found["perplexity"] = f"{logs['eval_perplexity']:.1f}"
    return found

"""What stops a training early, and what is saved then."""

import contextlib
import logging
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from hf_vq.training.checkpoints import how_to_go_on, why_incomplete
from hf_vq.training.divergence import DivergenceError as DivergenceError  # its first home
from hf_vq.training.divergence import find_nonfinite

logger = logging.getLogger(__name__)


class InterruptGuard:
    """Note Ctrl-C and SIGTERM instead of dying in the middle of a step; a second one has its usual effect.

    Outside the main thread, where Python allows no signal handlers, nothing is noted.

    Attributes:
        received: the signal number, or None while there was none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self._breaks = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "InterruptGuard":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._previous[signal.Signals(number)] or signal.SIG_DFL)
        if self._breaks:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Within the `with` block a signal is noted as always, and also a KeyboardInterrupt at once: for what may be
        left undone."""
        self._breaks = True
        try:
            yield
        finally:
            self._breaks = False

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def requested(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; all processes get the same answer in the same step."""
        if accelerator.num_processes == 1:
            return self.received is not None
        if self.received is not None:
            accelerator.set_trigger()
        return accelerator.check_trigger()

    def stop(self) -> NoReturn:
        """Raise what the signal means: SystemExit with the shell's code for SIGTERM, else KeyboardInterrupt."""
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


@dataclass
class StepStart:
    """Random numbers and position in the data before a step: a checkpoint of the step before holds them."""

    states: tuple[Any, ...]
    position: Any

    @classmethod
    def now(cls, position: Any) -> "StepStart":
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        numpy = np.random.get_state()  # noqa: NPY002  # what users' data sets draw from
        return cls((random.getstate(), numpy, torch.get_rng_state(), cuda), position)

    def restore(self) -> Any:
        """Set the generators back; return the position."""
        python, numpy, torch_state, cuda = self.states
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        return self.position


def save_before_stopping(
    model: nn.Module,
    output_dir: str | Path,
    step: int,
    last_step: int,
    save: Callable[[], Any] | None,
    reason: str,
) -> None:
    """Save the last finished step, unless that is done or the weights are no numbers, and say how to go on.

    Args:
        model: its weights must be finite to be saved, see `find_nonfinite`.
        output_dir: folder of the run.
        step: number of finished optimizer steps.
        last_step: number of optimizer steps the run was to have.
        save: writes the checkpoint of `step`, all processes together; None where this one alone has failed, or in the
            middle of a step.
        reason: why training stops, for the message.
    """
    finite = find_nonfinite(model) is None
    if save is not None and finite and step and why_incomplete(Path(output_dir) / f"checkpoint-{step}") is not None:
        try:
            save()
        except OSError as error:
            logger.error("The checkpoint of step %d could not be written: %s", step, error)
    message = "Training stopped after step %d of %d (%s); %s."
    logger.warning(message, step, last_step, reason, how_to_go_on(output_dir))

"""Who else is told of a training of either kind: TensorBoard, trackio, Weights & Biases, one or several."""

import contextlib
import importlib
import io
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from hf_vq.modalities.figures import tell_picture
from hf_vq.training.interruption import StepStart
from hf_vq.training.progress import is_number
from hf_vq.writing import as_write_error, write_text

logger = logging.getLogger(__name__)

TRACKERS = ("tensorboard", "trackio", "wandb")
PROJECT = "hf_vq"
LOGS = "logs"  # in the folder of a run: TensorBoard's files, and which run the others know it by
PLAIN = bool | int | float | str  # what all trackers take for an option
RUN = "run.json"


def tracker_names(report_to: Any, others: Collection[str] = (), installed: Iterable[str] = ()) -> list[str]:
    """The trackers that `report_to` names: a name, several in a list or with commas between, "all" or "none".

    Args:
        report_to: the option as it was given.
        others: names that are known besides `TRACKERS`.
        installed: those of `others` that "all" stands for too.

    Raises:
        ValueError: an unknown name, "none" beside another one, or a tracker whose package is not installed.
    """
    given = [report_to] if isinstance(report_to, str) else report_to
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in given):
        raise ValueError(f"report_to must be names of trackers, got {report_to!r}")
    names = list(dict.fromkeys(filter(None, (name.strip() for word in given for name in word.split(",")))))
    known = ("none", "all", *TRACKERS, *others)
    for name in names:
        if name not in known:
            raise ValueError(f"report_to must be one of {', '.join(known)}, or several of them, got {name!r}")
    if "none" in names and len(names) > 1:
        raise ValueError(f"report_to={names} names none and others")
    if "all" in names:
        return [*filter(find_spec, TRACKERS), *installed]
    names = [name for name in names if name != "none"]
    for name in names:
        if name in TRACKERS and find_spec(name) is None:
            raise ValueError(f"report_to={name!r} needs the package {name}: pip install 'hf_vq[{name}]'")
    return names


@contextlib.contextmanager
def costing_nothing_else(what: str, step: int, folder: str | Path) -> Iterator[None]:
    """Within the `with` block pictures of a training are drawn: random numbers stay, what goes wrong is a warning.

    What cannot be written is raised.

    Args:
        what: is drawn.
        step: finished optimizer steps.
        folder: where the pictures go.
    """
    before = StepStart.now(None)
    try:
        yield
    except Exception as error:
        if as_write_error(error, folder) is not None:
            raise
        logger.warning("Step %d: no %s: %s", step, what, " ".join(str(error).split()))
    finally:
        before.restore()


class Tracking(TrainerCallback):
    """Tells trackers of a training, from the main process; a resumed run goes on in the same run of theirs.

    Args:
        args: the training's arguments: `report_to` (a list), `output_dir`, `project`, `run_name`.
        settings: what the run was asked for, by name.
        resumed: whether a checkpoint is continued.
    """

    def __init__(self, args: Any, settings: Mapping[str, Any], resumed: bool):
        self.names = [name for name in args.report_to if name in TRACKERS]
        self.settings = {name: value for name, value in settings.items() if isinstance(value, PLAIN)}
        self.folder, self.resumed = Path(args.output_dir) / LOGS, resumed
        self.project, self.run_name = args.project, args.run_name
        self.silent = args.disable_tqdm
        self.trackers: list[GeneralTracker] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.names or not state.is_world_process_zero or self.trackers:
            return
        run = self._identity()
        start = {
            "tensorboard": {
                "logging_dir": os.environ.get("TENSORBOARD_LOGGING_DIR", str(self.folder)),
                "purge_step": state.global_step + 1 if self.resumed else None,  # what followed the checkpoint
            },
            "trackio": {"name": run["name"], "resume": "allow"},
            "wandb": {"name": run["name"], "id": run["id"], "resume": "allow", "dir": str(self.folder)},
        }
        for name in self.names:
            tracker = LOGGER_TYPE_TO_CLASS[name](self.project, **start[name])
            with self._said():
                tracker.start()
            self.trackers.append(tracker)
            if not self.resumed:
                tracker.store_init_configuration(self.settings)

    def _said(self):
        """Within: what a tracker prints of itself is seen where the training shows itself."""
        return contextlib.redirect_stdout(io.StringIO()) if self.silent else contextlib.nullcontext()

    def _identity(self):
        """`id` and `name` of the run, the same as before where it is resumed."""
        path = self.folder / RUN
        if self.resumed and path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        identity = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
        run = {"id": identity, "name": self.run_name or f"{self.folder.absolute().parent.name}-{identity}"}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(run))
        return run

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.log(logs, state.global_step)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Tell figures of a step; those of an evaluation are named `eval/...`, all others `train/...`."""
        figures = rewrite_logs({name: value for name, value in values.items() if is_number(value)})
        for tracker in self.trackers:
            tracker.log(figures, step=step)

    def show(self, draw: Callable[[Path], Sequence[Path]], step: int) -> None:
        """Tell pictures of a step, named by their files. They leave random numbers where they are.

        Args:
            draw: writes the pictures into a folder and returns their files; one that fails is told, and costs nothing
                else.
            step: finished optimizer steps.
        """
        if not self.trackers:
            return
        with tempfile.TemporaryDirectory() as folder, costing_nothing_else("pictures for the trackers", step, folder):
            paths = draw(Path(folder))
            self.show_files({path.stem: path for path in paths}, step)

    def show_files(self, pictures: Mapping[str, Path], step: int) -> None:
        """Tell pictures that are files, by name; files of samples that are no pictures are left out."""
        for name, path in pictures.items():
            for tracker in self.trackers:
                tell_picture(tracker, name, path, step)

    def close(self) -> None:
        """The end of the run, whole or broken off."""
        while self.trackers:
            tracker = self.trackers.pop()
            with self._said():
                if tracker.name == "trackio":  # else it ends a second time at exit
                    importlib.import_module("trackio").finish()
                else:
                    tracker.finish()

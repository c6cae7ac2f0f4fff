"""What `--resume` takes from the run that it continues: all options that are not given, as they are in force there."""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

from hf_vq.cli.reading import as_yaml
from hf_vq.training.checkpoints import resolve_checkpoint
from hf_vq.training.resuming import CHANGED, MAY_CHANGE, NO_MATTER, changed_since, changes
from hf_vq.writing import write_text

RECIPE = "recipe.yaml"  # in the folder of a run: what it was given when it began
NOT_REPEATED = {"output_dir", "overwrite", "resume", "resume_from_checkpoint", "hub_token"}  # recipes are published
RESUME = {
    "nargs": "?",
    "const": "true",
    "help": "continue from the last complete checkpoint of this folder, or of --output, by the options of its recipe",
}
SINCE = "# from step "  # first words of the lines below it, one for each resume that changed an option


def continued(
    given: Mapping[str, Any],
    fields: Mapping[str, dataclasses.Field],
    mappings: Collection[str],
    read: Callable[[Path], dict[str, Any]],
) -> dict[str, Any]:
    """The options of a resumed run; those given where none is resumed.

    Args:
        given: by recipe and flags. Their `resume` is a truth value, or the folder of the run.
        fields: all options by name.
        mappings: names of those that are mappings: their keys are compared when the model is built.
        read: reads the recipe of the folder.

    Raises:
        ValueError: no run to resume, a checkpoint that has changed, or an option that cannot change in a resume.
    """
    folder = resumed_folder(given)
    values = {name: value for name, value in given.items() if name != "resume"}
    if folder is None:
        return values
    if given.get("overwrite"):
        raise ValueError("overwrite and resume exclude each other")
    checkpoint, recipe = own_checkpoint(folder, given.get("resume_from_checkpoint")), folder / RECIPE
    then = {**read(recipe), **changed_since(str(checkpoint))} if recipe.is_file() else {}
    if then:
        defaults = {name: field.default for name, field in fields.items() if field.default is not dataclasses.MISSING}
        compared = {
            name: value for name, value in values.items() if name not in NO_MATTER | NOT_REPEATED | set(mappings)
        }
        changes(recipe, {**defaults, **then}, compared, MAY_CHANGE)
    for name in mappings & then.keys() & values.keys():
        earlier, today = then[name] or {}, values[name] or {}
        if isinstance(earlier, dict) and isinstance(today, dict):
            values[name] = {**earlier, **today}
    return {**then, **values, "output_dir": str(folder), "resume": "true"}


def resumed_folder(given: Mapping[str, Any]) -> Path | None:
    """The folder of the run that options ask to resume; None where they do not.

    Raises:
        ValueError: two folders, none, one that is not there, or a checkpoint.
    """
    resume, output = str(given.get("resume") or "false"), given.get("output_dir")
    if resume.lower() == "false":
        return None
    if resume.lower() == "true":
        if output is None:
            raise ValueError("resume: which run? Give its folder, as --resume FOLDER or --output FOLDER --resume")
        return Path(output)
    if not Path(resume).is_dir():
        raise ValueError(f"resume={resume!r} is no folder of a run (a recipe stands before --resume)")
    if re.fullmatch(r"checkpoint-\d+", Path(resume).resolve().name):
        raise ValueError(
            f"resume={resume!r} is a checkpoint: give the folder of its run, as --resume {Path(resume).parent}, and "
            f"--resume_from_checkpoint {resume} where it is not the last one"
        )
    if output is not None and Path(output).resolve() != Path(resume).resolve():
        raise ValueError(f"output_dir={output!r}, but resume={resume!r}: a run goes on in its own folder")
    return Path(resume)


def own_checkpoint(folder: str | Path, named: str | Path | bool | None) -> Path:
    """The checkpoint of a run that it goes on from: the one that `resume_from_checkpoint` names, else the latest.

    Raises:
        ValueError: nothing complete there, a checkpoint that has changed, or one of another run.
    """
    latest = str(named or False).lower() in ("true", "false")
    if not latest and Path(str(named)).resolve().parent != Path(folder).resolve():
        raise ValueError(f"resume_from_checkpoint={str(named)!r} is no checkpoint of the run in {folder}")
    return cast(Path, resolve_checkpoint(folder, latest or named))


def write_recipe(folder: Path, given: Mapping[str, Any]) -> None:
    """Write what a run is given as a recipe that repeats it; where it goes is left out."""
    values = {name: value for name, value in given.items() if name not in NOT_REPEATED}
    write_text(folder / RECIPE, as_yaml(values))


def tell_changes(folder: Path, history: list[dict[str, Any]]) -> None:
    """Say below the recipe of a finished run what resumes have changed, and from which step on."""
    path = folder / RECIPE
    if not path.is_file():
        return
    before = path.read_text(encoding="utf-8")
    lines = [line for line in before.splitlines() if not line.startswith(SINCE)]
    for entry in history:
        if CHANGED in entry:
            now = {name: change["to"] for name, change in entry[CHANGED].items()}
            words = as_yaml(now, default_flow_style=True, width=10**6).strip()
            lines.append(f"{SINCE}{entry['step']} on: {words}")
    text = "\n".join(lines) + "\n"
    if text != before:
        write_text(path, text)

"""From a checkpoint of others to a folder of ours, whole or not at all."""

import json
import tempfile
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import ModelCard

from hf_vq.auto import AutoVQModel
from hf_vq.converters.base import Format, Source, fill, pick_format
from hf_vq.converters.sources import read_config, read_source
from hf_vq.hub import (
    CONVERSION,
    LICENSES_PAGE,
    STOCK,
    check_license,
    describe,
    is_model_file,
    read_folder,
    write_card,
)
from hf_vq.saved import INDEX, folder_kind
from hf_vq.writing import writing

PIPELINE_FILES = (INDEX, "pipeline.py")


def load_checkpoint(
    source: str | Path,
    format: str | None = None,
    config: str | Path | None = None,
    first_stage: str | Path | None = None,
    weights: str | None = None,
) -> tuple[Any, Format, Source]:
    """The model or pipeline of a checkpoint, its Format and its Source.

    Args:
        source: a file of weights, or a folder with one.
        format: a key of `FORMATS`; None: recognised by tensors and config.
        config: the original's config file; None: the one beside the weights.
        first_stage: checkpoint or folder of the autoencoder of a prior that needs its code vectors.
        weights: of several state dicts or models in a file, the name of the one to take.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: anything else that is wrong with the checkpoint, naming file and key.
    """
    return load_read(read_source(source, config, weights), format, first_stage)


def load_read(read: Source, format: str | None, first_stage: str | Path | None = None) -> tuple[Any, Format, Source]:
    """`load_checkpoint` of a Source."""
    chosen = None
    try:
        chosen = pick_format(read, format)
        if first_stage is not None:
            if not chosen.takes_first_stage:
                raise ValueError(f"first_stage={str(first_stage)!r} given, but {chosen.name} takes none")
            read.first_stage = load_first_stage(first_stage)
        plan = chosen.plan(read)
        model = fill(read, plan)
    except Exception as error:  # whatever a broken tensor or config sets off in a plan or a constructor
        told = " ".join(str(error).split())
        if isinstance(error, KeyError):
            told = f"there is no {told}"
        elif not isinstance(error, ValueError):
            last = "{}={!r} of the config is".format(*read.config.last) if read.config.last else "its tensors are"
            told = f"{last} not what it must be ({told})"
        if str(read.path) not in told:
            told = f"{read.path} ({read.config_path or 'no config'}): {told}"
        raise ValueError(f"as {chosen.name}, {told}" if chosen else told) from error
    return model, chosen, read


def load_first_stage(path: str | Path) -> Any:
    """The autoencoder of a checkpoint of others, of a folder of ours, or of a pipeline in such a folder."""
    path = Path(path)
    folder = path / "autoencoder" if folder_kind(path) == "pipeline" else path
    if folder_kind(folder) == "autoencoder":
        return AutoVQModel.from_pretrained(folder).eval()
    model = load_checkpoint(path)[0]
    model = getattr(model, "autoencoder", model)  # of a pipeline
    if not isinstance(model, ModelMixin):
        raise ValueError(f"first_stage={str(path)!r} is a {type(model).__name__}, no autoencoder")
    return model


def load_single_file(
    model_class: type,
    path: str | Path,
    config: str | Path | None = None,
    format: str | None = None,
    first_stage: str | Path | None = None,
    weights: str | None = None,
) -> Any:
    """A checkpoint of others as a model of the given class; `from_single_file` of every class calls it.

    Of a checkpoint that holds a pipeline it is the part of that class.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`; or the checkpoint is a model of another class.
    """
    model, chosen, _ = load_checkpoint(path, format, config, first_stage, weights)
    if isinstance(model, DiffusionPipeline):
        parts = {type(part).__name__: part for part in model.components.values() if part is not None}
        for part in parts.values():
            if isinstance(part, model_class):
                return part
        raise ValueError(f"{path} ({chosen.name}) holds {' and '.join(parts)}, no {model_class.__name__}")
    if not isinstance(model, model_class):
        raise ValueError(
            f"{path} ({chosen.name}) becomes a {type(model).__name__}, not a {model_class.__name__}: call "
            f"{type(model).__name__}.from_single_file"
        )
    return model


def convert(
    source: str | Path,
    out: str | Path,
    format: str | None = None,
    license: str | None = None,
    *,
    config: str | Path | None = None,
    first_stage: str | Path | None = None,
    weights: str | None = None,
    overwrite: bool = False,
    require_license: bool = False,
) -> Any:
    """Convert a checkpoint of others into a folder that `from_pretrained` loads.

    The folder's card and `conversion.json` say where the weights come from and under which licence.

    Args:
        source: a file of weights, or a folder with one.
        out: the folder to write; it appears when everything is written.
        format: a key of `FORMATS`; None: recognised by tensors and config.
        license: of the weights, its id on the Hub, such as "mit"; None: that of a card beside the weights.
        config: the original's config file; None: the one beside the weights.
        first_stage: of a prior that needs its autoencoder's code vectors: the autoencoder's checkpoint, or a folder
            of ours with it.
        weights: of several state dicts or models in a file, the name of the one to take, such as "params_ema".
        overwrite: replace an existing folder of a model or pipeline; one that holds anything else is left alone.
        require_license: refuse where nobody says the licence.

    Returns:
        The model, in evaluation mode, or the pipeline, where the checkpoint holds autoencoder and prior.

    Raises:
        FileNotFoundError: no such source.
        ValueError: an existing folder without `overwrite`, a missing licence, or anything that is wrong with the
            checkpoint, naming file and key. Nothing is written then.
    """
    out, source = Path(out), Path(source)
    if out.is_file():
        raise ValueError(f"out must be a folder, but {out} is a file")
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"out={str(out)!r} exists and is not empty (overwrite replaces a model folder)")
        foreign = find_foreign(out)
        if foreign:
            raise ValueError(
                f"out={str(out)!r} holds {foreign[0]!r}, which is no file of a model: it is not overwritten"
            )
    license = _license_beside(source) if license is None else license
    if license is not None:
        check_license(license)
    if license is None and require_license:
        raise ValueError(
            f"license is missing: {source} does not say under which licence its weights may be used. Give the id that "
            f"its authors chose ({LICENSES_PAGE})"
        )
    model, chosen, read = load_checkpoint(source, format, config, first_stage, weights)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.absolute().parent) as temporary:
        folder = Path(temporary) / "model"
        with writing(out):
            model.save_pretrained(folder)
        facts = {"format": chosen.name, "origin": chosen.origin, "source": read.path.name, "license": license}
        facts |= {name: [*told] for name, told in (("notes", chosen.notes), ("read", read.told)) if told}
        if first_stage is not None:
            facts["first_stage"] = Path(first_stage).name
        (folder / CONVERSION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        found = read_folder(folder)
        card = write_card(found, out.name, describe(found, out.name, license))
        (folder / "README.md").write_text(str(card), encoding="utf-8")
        replaced = Path(temporary) / "replaced"
        if out.is_dir():
            out.rename(replaced)
        try:
            folder.rename(out)
        except BaseException:
            if replaced.is_dir():
                replaced.rename(out)
            raise
    return model


def find_foreign(folder: Path) -> list[str]:
    """Names in the folder of a model or pipeline that are no files of it."""
    index = folder / INDEX
    if not index.is_file():
        return [path.name for path in folder.iterdir() if not is_model_file(path.name)]
    parts, foreign = read_config(index), []
    for path in folder.iterdir():
        if path.name in parts and path.is_dir():
            told = parts[path.name]
            if not (isinstance(told, list) and told[0] in STOCK):  # whose components have files of their own
                foreign += [f"{path.name}/{name}" for name in find_foreign(path)]
        elif path.name not in PIPELINE_FILES and not is_model_file(path.name):
            foreign.append(path.name)
    return foreign


def _license_beside(source):
    """The licence in the card of a folder, or of the folder of a file."""
    card = (source if source.is_dir() else source.parent) / "README.md"
    if not card.is_file():
        return None
    try:
        license = ModelCard.load(card).data.get("license")
    except ValueError:  # a text without metadata, or a card whose metadata is broken
        return None
    return license if isinstance(license, str) else None

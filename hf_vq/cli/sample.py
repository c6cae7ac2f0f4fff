"""`hf-vq sample`: a pipeline in, new samples out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from hf_vq.cli.checks import (
    check_labels,
    check_output_file,
    check_weights,
    folder_modality,
    load_pipeline,
    local_folder,
    pick_device,
    pipeline_folders,
)
from hf_vq.cli.data_options import SUFFIXES
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import nearest, parse_options
from hf_vq.hub import PRIOR_SECTION, takes, takes_prompts
from hf_vq.pipelines.base import split_keywords
from hf_vq.pipelines.judging import load_judge
from hf_vq.priors.inputs import map_tensors
from hf_vq.quiet import is_quiet
from hf_vq.ranges import Positive, Samples, Seed, Size, TopP, Weight
from hf_vq.saved import CONFIG, read_index, read_json, saved_name

PLURALS = {"class": "classes", "speaker": "speakers"}
SOUND_OPTIONS = ("audio", "audio_length_in_s")

MANUAL = Manual(
    "sample",
    "Draw new samples from a pipeline.",
    """
hf-vq sample prior/pipeline samples.png --classes 0,1,2 --num 8 --temperature 0.9 --guidance_scale 2
hf-vq sample prior/pipeline longer.wav --audio beginning.wav --audio_length_in_s 10 --num 1
""",
    ("pipeline", "output"),
)


@dataclass
class SampleOptions:
    """What to draw, and how."""

    pipeline: str = field(metadata={"help": "folder or repo id of the pipeline"})
    output: str = field(metadata={"help": f"file to write, {SUFFIXES}: a row per class"})
    classes: list[str] | None = field(
        default=None, metadata={"help": "class labels or names, such as 0,1,2; default all"}
    )
    prompt: list[str] | None = field(
        default=None, metadata={"help": "of a pipeline of texts: what to draw, or several: a row for each"}
    )
    negative_prompt: str | None = field(default=None, metadata={"help": "text to guide away from; default: none"})
    truncate_prompt: bool = field(default=False, metadata={"help": "cut prompts that are too long"})
    speakers: list[str] | None = field(
        default=None, metadata={"help": "speaker labels or names, such as 0,1; default all"}
    )
    audio: str | None = field(default=None, metadata={"help": "of a pipeline of sounds: file that each continues"})
    audio_length_in_s: Positive | None = field(
        default=None, metadata={"help": "of sounds: seconds of each, with what it continues; default: the prior's"}
    )
    num: Size = field(
        default=8, metadata={"help": "samples per class, speaker or prompt, or in all where there are none"}
    )
    temperature: Weight = field(default=1.0, metadata={"help": "below 1: fewer surprises; 0: the likeliest codes"})
    top_k: Size | None = field(default=None, metadata={"help": "draw from the k likeliest codes only"})
    top_p: TopP | None = field(default=None, metadata={"help": "draw from the likeliest codes of this mass only"})
    guidance_scale: float | None = field(
        default=None, metadata={"help": "above 1: closer to the class or text; default: 1, of texts the pipeline's"}
    )
    num_inference_steps: Size | None = field(
        default=None, metadata={"help": "of a prior that draws all codes at once: passes of its network"}
    )
    truncation_rate: TopP = field(
        default=1.0, metadata={"help": "of such a prior: draw from the likeliest codes of this mass, as they are"}
    )
    judge: str | None = field(
        default=None,
        metadata={"help": "folder or repo id of a classifier of transformers that chooses; default: the pipeline's"},
    )
    acceptance_rate: TopP = field(
        default=1.0,
        metadata={"help": "below 1: draw more, keep this share, of which the judge is surest that it shows the class"},
    )
    batch_size: Samples = field(default=64, metadata={"help": "samples drawn at once"})
    seed: Seed = field(default=0, metadata={"help": "of the random generator"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the output file"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, _ = parse_options([SampleOptions], argv, MANUAL)
    run(options)


def run(options: SampleOptions) -> None:
    """Check everything, sample, and write the samples."""
    device = pick_device(options.device)
    folder = local_folder(options.pipeline)
    check_weights(folder, "pipeline")
    modality = folder_modality(folder)
    check_output_file(options.output, suffix=modality.suffix, overwrite=options.overwrite)
    index = read_index(folder)
    parts = [read_json(part / CONFIG) for part in pipeline_folders(folder).values()]
    configs = [config | config.get(PRIOR_SECTION, {}) for config in parts]
    classes = pick_labels("class", options.classes, index, configs)
    speakers = pick_labels("speaker", options.speakers, index, configs)
    of_sounds = {name: getattr(options, name) for name in SOUND_OPTIONS if getattr(options, name) is not None}
    for name, value in of_sounds.items():
        if not takes(saved_name(index) or "", name):
            raise ValueError(f"{name}={value!r} given, but a {saved_name(index)} draws {modality.plural} without it")
    conditions = read_conditions(options, index, classes, speakers)
    pipeline = load_pipeline(folder)
    take_judge(pipeline, options.judge, options.acceptance_rate)
    names = ("temperature", "top_k", "top_p", "guidance_scale", "num_inference_steps", "truncation_rate")
    sampling = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    check_sampling(pipeline, sampling)
    sampling |= of_sounds
    if options.acceptance_rate != 1:
        sampling["acceptance_rate"] = options.acceptance_rate
    if "prompt" in conditions:
        sampling |= {name: getattr(options, name) for name in ("negative_prompt", "truncate_prompt")}
    samples = draw(
        pipeline.to(device),
        conditions,
        options.num,
        options.batch_size,
        torch.Generator().manual_seed(options.seed),
        **sampling,
    )
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    columns = options.num if conditions else min(options.num, 8)
    modality.save_samples(
        options.output, samples, columns=columns, **modality.file_options(pipeline.autoencoder.processor)
    )
    print(f"Wrote {len(samples)} {modality.plural} to {options.output}.")


def take_judge(pipeline: Any, name: str | None, acceptance_rate: float) -> None:
    """Give a pipeline the judge of a folder or repo id, and check the one that it has, where it is to choose.

    Raises:
        ValueError: no judge where one is needed, a judge that has nothing to choose, or one that does not fit.
    """
    if name is not None and acceptance_rate == 1:
        raise ValueError(f"judge={name!r} given, but acceptance_rate=1 keeps all samples")
    if name is not None:
        if "judge" not in pipeline.components:
            raise ValueError(f"judge={name!r} given, but a {type(pipeline).__name__} takes none")
        judge, processor = load_judge(local_folder(name))
        pipeline.register_modules(judge=judge, judge_processor=processor)
    if acceptance_rate != 1 and (pipeline.components.get("judge") is None or pipeline.sample_judge is None):
        raise ValueError(f"acceptance_rate={acceptance_rate} needs a judge: give --judge")


def pick_labels(
    kind: str, words: Sequence[str] | None, index: dict[str, Any], configs: Sequence[dict[str, Any]]
) -> list[int]:
    """Labels that some words name, or all where there are none; a ValueError for what the priors do not have.

    Args:
        kind: "class" or "speaker".
        words: such as ["0,1", "2"] or ["rose"].
        index: of the pipeline.
        configs: of its models.
    """
    plural = PLURALS[kind]
    count = max(config.get(f"num_{plural}") or 0 for config in configs)
    named = index.get(f"{kind}_names") or {}
    labels = parse_labels(kind, words, [named[str(label)] for label in range(len(named))]) or list(range(count))
    check_labels(labels, count, kind, plural)
    return labels


def parse_labels(kind: str, words: Sequence[str] | None, names: Sequence[str]) -> list[int]:
    """Labels, as integers, from words such as ["0,1", "2"] or ["rose"]; a name goes before a number."""
    labels = []
    for word in filter(None, ",".join(words or ()).split(",")):
        if word in names:
            labels.append(names.index(word))
        elif word.lstrip("-").isdecimal():
            labels.append(int(word))
        else:
            raise ValueError(
                f"{PLURALS[kind]}: {word!r} is neither a {kind} label nor a {kind} name{nearest(word, names)}"
            )
    return labels


def check_sampling(pipeline: Any, sampling: dict[str, Any]) -> None:
    """Raise a ValueError for an option of sampling that a prior of the pipeline does not take."""
    for name, part in pipeline.components.items():
        if name.endswith("prior") and part is not None:
            try:
                split_keywords(name, part, sampling)
            except TypeError as error:
                raise ValueError(str(error)) from error


def read_conditions(
    options: SampleOptions, index: dict[str, Any], classes: Sequence[int], speakers: Sequence[int] = ()
) -> dict[str, list]:
    """What each sample is to show, as arguments of the pipeline; {} where there is nothing to say.

    Every class goes with every speaker.

    Raises:
        ValueError: no prompt for a pipeline of texts, or one for another pipeline.
    """
    name = saved_name(index) or ""
    if not takes_prompts(name):
        given = next(
            (each for each in ("prompt", "negative_prompt", "truncate_prompt") if getattr(options, each)), None
        )
        if given is not None:
            raise ValueError(f"{given}={getattr(options, given)!r} given, but a {name} draws nothing that a text says")
        asked = {name: each for name, each in (("class_labels", classes), ("speaker_labels", speakers)) if each}
        rows = [row for row in product(*asked.values()) for _ in range(options.num)]
        return {name: [row[place] for row in rows] for place, name in enumerate(asked)}
    if not options.prompt:
        raise ValueError(f"prompt is missing: a {name} draws what a text says, give --prompt")
    prompts = [prompt for prompt in options.prompt for _ in range(options.num)]
    if not classes:
        return {"prompt": prompts}
    if len(classes) not in (1, len(options.prompt)):
        raise ValueError(
            f"classes must be one, or one for each of {len(options.prompt)} prompts, got {len(classes)}: {classes}"
        )
    labels = [label for label in classes for _ in range(len(prompts) // len(classes))]
    return {"prompt": prompts, "class_labels": labels}


def draw(
    pipeline: Any,
    conditions: dict[str, list],
    num: int,
    batch_size: int,
    generator: torch.Generator,
    **options: Any,
) -> torch.Tensor:
    """Sample in batches from a pipeline.

    Args:
        pipeline: `VQPipeline` or another of ours.
        conditions: arguments of the pipeline with an item for each sample, such as `class_labels`; {}: none.
        num: number of samples without conditions.
        batch_size: samples drawn at once.
        generator: random numbers of all batches.
        options: passed to the pipeline. With an `acceptance_rate` it gets one request, as samples of a class share
            their candidates.

    Returns:
        (samples, channels, *space) float in [-1, 1].
    """
    judged = "acceptance_rate" in options
    if is_quiet():
        pipeline.set_progress_bar_config(disable=True)
    total, batches = next(map(len, conditions.values()), num), []
    step = batch_size
    if judged:
        step, options["candidate_batch_size"] = total, batch_size
    for start in range(0, total, step):
        stop = min(start + step, total)
        condition: dict[str, Any] = {name: items[start:stop] for name, items in conditions.items()}
        condition = condition or {"batch_size": stop - start}
        form = "codes" if judged else "sample"
        (drawn,) = pipeline(**condition, generator=generator, output_type=form, return_dict=False, **options)
        if not judged:
            batches.append(drawn.float().cpu())
            continue
        for rows in torch.arange(stop - start).split(batch_size):
            part = map_tensors(itemgetter(rows), drawn)
            batches.append(pipeline.autoencoder.detokenize(part).float().cpu())
    return torch.cat(batches)

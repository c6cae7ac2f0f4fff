"""`hf-vq train prior`: codes in, a prior out, and a pipeline where the autoencoder is given."""

import functools
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainingArguments

import hf_vq
from hf_vq.cli.checks import (
    alone,
    bars_of,
    check_disk_space,
    check_output_folder,
    check_same_config,
    check_weights,
    find_modality,
    is_main_process,
    local_folder,
    optional,
    say,
    say_start,
    start_output_folder,
    tell_push,
    training_bytes,
)
from hf_vq.cli.grids import load_coarser, pick_grid
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import as_mapping, check_names, nearest, parse_options
from hf_vq.cli.resuming import RECIPE, RESUME, continued, own_checkpoint, tell_changes, write_recipe
from hf_vq.cli.sample import draw
from hf_vq.data.codes import CodesDataset, check_tokenizer, load_codes
from hf_vq.data.shards import code_splits
from hf_vq.figures import figure_text
from hf_vq.hub import takes
from hf_vq.modalities import MODALITIES
from hf_vq.pipelines.base import CodesPipeline, pipeline_of
from hf_vq.quiet import without_bars
from hf_vq.ranges import Count
from hf_vq.registry import PRIORS, modality_of
from hf_vq.training.arguments import AutoencoderTrainingArguments, check_stopping_data
from hf_vq.training.callbacks import Announcement
from hf_vq.training.checkpoints import advising
from hf_vq.training.disk import module_footprint
from hf_vq.training.pictures import save_loss_curve
from hf_vq.training.prior import (
    PriorTrainingArguments,
    check_trainable,
    former_options,
    remember_tokenizer,
    train_prior,
)
from hf_vq.training.prior_trainer import SAMPLES
from hf_vq.training.pushing import push_result
from hf_vq.training.report import REPORT
from hf_vq.writing import whole

LABELED = {"num_classes": "classes", "num_speakers": "speakers"}  # in the config of a prior, and among codes
CONTEXT = "context_codebook_sizes"  # in the config of priors that take coarser codes
WEIGHTS = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
OUTPUTS = ("checkpoint-*", *WEIGHTS, "pipeline", SAMPLES, "loss_curve.png", "report.json", "recipe.yaml", "logs")


def trainable_priors() -> dict[str, Any]:
    """The registered priors over codes, by name."""
    return {name: prior for name, prior in PRIORS.items() if prior.models_codes}


NAME = attrgetter("name")
MANUAL = Manual(
    "train prior",
    "Train a prior on the codes of a tokenizer.",
    """
hf-vq train prior codes prior --autoencoder tokenizer --prior TransformerPrior \\
      --prior_config.num_layers 8 --num_train_epochs 20 --learning_rate 1e-3
hf-vq train prior recipe.yaml --output_dir prior
hf-vq train prior --resume prior
""",
    ("codes", "output_dir"),
    (),
    "All other options of transformers.TrainingArguments are options too: "
    "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments",
    {each.name: each.metadata["help"] for each in fields(AutoencoderTrainingArguments)}
    | {
        each.name: each.metadata["help"]
        for each in fields(PriorTrainingArguments)
        if each.name in vars(PriorTrainingArguments)["__annotations__"]
    },
    frozenset(map(NAME, fields(TrainingArguments))) - frozenset(map(NAME, fields(AutoencoderTrainingArguments))),
)


def options_of(prior_class: Any) -> list[str]:
    """Names of the options of a prior's config."""
    return list(map(NAME, fields(prior_class.config_class)))


@dataclass
class PriorOptions:
    """Which prior to train, on which codes."""

    codes: str = field(metadata={"help": "folder that `hf-vq tokenize` wrote, or repo id, or user/name@revision"})
    prior: str = field(default="PixelCNN", metadata={"help": f"class of the prior: {', '.join(trainable_priors())}"})
    prior_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "its config; --prior_config.hidden_channels 64 sets one; codebook_size, code_shape, "
            "num_levels, num_classes and num_speakers are the codes'"
        },
    )
    grid: str | None = field(
        default=None, metadata={"help": "of a hierarchy: top, middle, bottom, or a number, 0 the coarsest"}
    )
    autoencoder: str | None = field(
        default=None, metadata={"help": "folder or repo id of the tokenizer: also writes samples and a pipeline/"}
    )
    top_prior: str | None = field(
        default=None, metadata={"help": "trained prior of the top grid: with the bottom one it makes the pipeline"}
    )
    middle_prior: str | None = field(default=None, metadata={"help": "of three grids, that of the middle one"})
    init_from: str | None = field(
        default=None, metadata={"help": "start from the weights of this folder or repo id: its class and its config"}
    )
    num_samples: Count = field(
        default=16,
        metadata={"help": "with autoencoder: samples drawn at the end, and by sample_steps; 0: none"},
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an earlier run in the output folder"})
    resume: str | None = field(default=None, metadata=RESUME)


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, args, given = parse_options(
        [PriorOptions, PriorTrainingArguments],
        argv,
        MANUAL,
        renamed={"level": "grid"},
        known_keys={
            "prior_config": lambda: {name for prior in trainable_priors().values() for name in options_of(prior)}
        },
        continues=continued,
    )
    run(options, args, given)


def run(options: PriorOptions, args: PriorTrainingArguments, given: dict[str, Any]) -> dict[str, Any] | None:
    """Check everything, train, and write prior, report and pictures into `args.output_dir`; return the report."""
    folder = str(args.output_dir)
    check_output_folder(folder, overwrite=options.overwrite, resume=bool(options.resume))
    with bars_of(args), alone(folder, make=False), advising(folder):
        if options.resume:
            args.resume_from_checkpoint = str(own_checkpoint(folder, args.resume_from_checkpoint))
        tokenizer = None if options.autoencoder is None else local_folder(options.autoencoder)  # found once, at first
        prior, pipeline, train, validation = prepare(options, args, given, tokenizer)
        with alone(folder, make=True):
            return train_and_show(prior, pipeline, train, validation, options, args, given, tokenizer)


def prepare(
    options: PriorOptions, args: PriorTrainingArguments, given: dict[str, Any], tokenizer: Path | None
) -> tuple[Any, CodesPipeline | None, CodesDataset, CodesDataset | None]:
    """The prior to train, its pipeline where it gets one, codes to train and to evaluate on; nothing is written."""
    options = replace(options, codes=str(local_folder(options.codes, "dataset")))
    grid = pick_grid(options)
    train = load_codes(options.codes, "train", grid=grid, context=True)
    validation = None
    if "validation" in code_splits(options.codes):
        validation = load_codes(options.codes, "validation", grid=grid, context=True)
    check_stopping_data(args, validation)
    autoencoder = load_tokenizer(tokenizer, train, options.codes)
    coarser = load_coarser(options, grid, train)
    initial = load_initial(options, given, train) if options.init_from else None
    config = check_prior_config(options, train) if initial is None else initial.config.to_dict()
    if options.resume and initial is None:
        former = former_options(PRIORS[options.prior].config_class, str(args.resume_from_checkpoint))
        config = {**former, **config}
    for codes in filter(None, (train, validation)):
        codes.labels = codes.labels if config["num_classes"] else None
        codes.speaker_labels = codes.speaker_labels if config.get("num_speakers") else None
    transformers.set_seed(args.seed)
    try:
        vectors = take_code_vectors(options, config, autoencoder, grid) if initial is None else None
        prior_class = PRIORS[options.prior]
        prior = initial or prior_class(prior_class.config_class(**config))
    except TypeError as error:
        raise ValueError(f"prior_config does not fit {options.prior}: {error}") from error
    if vectors is not None:
        prior.set_code_vectors(vectors)
    check_trainable(prior, train, validation)
    needed, pipeline = training_bytes(prior, args, len(train)), None
    if autoencoder is not None and (grid is None or coarser):
        pipeline = make_pipeline(autoencoder, prior, coarser, train)  # tells now what does not fit
        needed += sum(module_footprint(part).published for part in (autoencoder, prior, *coarser))
    if args.sample_steps and (pipeline is None or not options.num_samples):
        raise ValueError(
            f"sample_steps={args.sample_steps} draws num_samples={options.num_samples} samples, for which it needs a "
            "pipeline: give autoencoder, and the priors of all coarser grids"
        )
    check_disk_space(str(args.output_dir), needed, "training")
    return prior, pipeline, train, validation


def train_and_show(
    prior: Any,
    pipeline: CodesPipeline | None,
    train: CodesDataset,
    validation: CodesDataset | None,
    options: PriorOptions,
    args: PriorTrainingArguments,
    given: dict[str, Any],
    tokenizer: Path | None,
) -> dict[str, Any] | None:
    """Write all that a training writes; return the report."""
    samples = [f"samples{modality.suffix}" for modality in MODALITIES.values()]
    folder = start_output_folder(str(args.output_dir), overwrite=options.overwrite, stale=[*OUTPUTS, *samples])
    if not options.resume and is_main_process():
        write_recipe(folder, given)
    speakers = getattr(prior.config, "num_speakers", 0)
    words = (
        f"Training {type(prior).__name__} ({prior.num_parameters():,} parameters) on {len(train):,} grids of "
        f"{'x'.join(map(str, train.code_shape))} codes out of {train.codebook_size}, "
        f"{prior.config.num_classes} classes" + (f", {speakers} speakers" if speakers else "")
    )
    announcement = Announcement(functools.partial(say_start, words))
    draw_samples = None
    if args.sample_steps:
        draw_samples = functools.partial(save_samples, pipeline, options.num_samples, args.seed, bar=False)
    report = train_prior(
        prior,
        train,
        args,
        eval_dataset=validation,
        callbacks=[announcement],
        draw_samples=draw_samples,
        push=False,
    )
    if report is not None:
        tell_changes(folder, report["history"])
        words, metrics = "nats per held-out code", report["metrics"]
        if prior.likelihood == "bound":
            words += " (upper bound)"
        nats = figure_text("nats_per_code", metrics.get("eval_nats_per_code"))
        result = f"Wrote {folder}" + (f": {nats} {words}." if "eval_nats_per_code" in metrics else ".")
        say(result, result=True)
        with optional("loss_curve.png"):
            save_loss_curve(folder / "loss_curve.png", report["history"])
        if pipeline is not None and tokenizer is not None:  # there is none without the other
            save_pipeline(pipeline, folder, tokenizer)
            if options.num_samples:
                draw_at_end(pipeline, options.num_samples, args, folder)
        tell_push(push_result(folder if pipeline is None else folder / "pipeline", args))
    return report


def load_tokenizer(folder: Path | None, codes: CodesDataset, source: str) -> Any:
    """The autoencoder that made the codes, None where none is given; a ValueError where it made others."""
    if folder is None:
        return None
    check_weights(folder, "autoencoder")
    autoencoder = hf_vq.AutoVQModel.from_pretrained(folder)
    check_tokenizer(codes.tokenizer, autoencoder, source)
    return autoencoder


def load_initial(options: PriorOptions, given: dict[str, Any], codes: CodesDataset) -> Any:
    """The prior to start from; from now on it samples grids of these codes' shape.

    Raises:
        ValueError: no prior there, one for other codes or classes, or the recipe or flags ask for another config.
    """
    folder = local_folder(str(options.init_from))
    check_weights(folder, "prior")
    prior = hf_vq.AutoVQPrior.from_pretrained(folder)
    if "prior" in given and options.prior != type(prior).__name__:
        raise ValueError(f"prior={options.prior!r}, but init_from={options.init_from} holds {type(prior).__name__}")
    wanted = as_mapping("prior_config", options.prior_config)
    check_same_config("prior_config", wanted, prior.config.to_dict(), str(options.init_from))
    for name in ("codebook_size", *LABELED):
        own, theirs = getattr(prior.config, name, 0), getattr(codes, name)
        if own != theirs and (own or name not in LABELED):
            raise ValueError(
                f"init_from={options.init_from} has {name}={own}, but the codes in {options.codes} have {theirs}"
            )
    prior.config.code_shape = tuple(codes.code_shape)
    before = getattr(prior.config, "codes_sha256", None)
    remember_tokenizer(prior, codes)
    if before not in (None, codes.tokenizer.get("codes_sha256")):
        say(f"note: init_from={options.init_from} was trained on the codes of another tokenizer; now it learns these.")
    return prior


def check_prior_config(options: PriorOptions, codes: CodesDataset) -> dict[str, Any]:
    """The config of the prior, completed from the codes; a ValueError where it contradicts them."""
    known_priors = trainable_priors()
    if options.prior in PRIORS and options.prior not in known_priors:
        raise ValueError(
            f"prior={options.prior!r} is no prior over codes: train it by hf_vq.training.prior.train_prior"
        )
    if options.prior not in known_priors:
        raise ValueError(f"prior={options.prior!r}: unknown class{nearest(options.prior, known_priors)}")
    config = as_mapping("prior_config", options.prior_config)
    known = options_of(PRIORS[options.prior])
    check_names(config, known, f"option of {options.prior} in prior_config:")
    facts = {"codebook_size": codes.codebook_size, "code_shape": tuple(codes.code_shape)}
    if codes.context_codebook_sizes:
        if CONTEXT not in known:
            takers = [name for name, taker in known_priors.items() if hasattr(taker.config_class, CONTEXT)]
            raise ValueError(
                f"prior={options.prior!r} takes no codes of coarser grids, which grid={options.grid} has: use "
                f"{' or '.join(takers)}"
            )
        facts[CONTEXT] = codes.context_codebook_sizes
    check_facts(config, facts, f"the codes in {options.codes}")
    labeled = {name: getattr(codes, name) for name in LABELED if name in known}
    for name, number in labeled.items():
        if config.get(name, number) not in (0, number):
            raise ValueError(
                f"prior_config has {name}={config[name]}, but the codes in {options.codes} have {number} "
                f"{LABELED[name]} (0 ignores them)"
            )
    has_levels = len(codes.code_shape) == len(codes.sample_shape)  # that axis instead of channels
    levels = {"num_levels": codes.code_shape[0]} if has_levels and "num_levels" in known else {}
    return {**labeled, **levels, **config, **facts}


def check_facts(config: dict[str, Any], facts: dict[str, Any], owners: str) -> None:
    """Raise a ValueError for the first option of a prior's config that is not as its owners have it."""
    for name, fact in facts.items():
        given = config.get(name, fact)
        if (tuple(given) if isinstance(fact, tuple) else given) != fact:
            raise ValueError(f"prior_config has {name}={given}, but {owners} have {fact}")


def take_code_vectors(
    options: PriorOptions, config: dict[str, Any], autoencoder: Any, grid: int | None
) -> torch.Tensor | None:
    """The autoencoder's code vectors for a prior that reads them, None for others; the config takes their shape.

    Raises:
        ValueError: no autoencoder given, one without levels, or vectors of another shape than the config's.
    """
    if not getattr(PRIORS[options.prior].config_class(**config), "uses_vectors", False):
        return None
    if autoencoder is None:
        raise ValueError(
            f"prior={options.prior!r} reads the code vectors of the tokenizer: give it as autoencoder, or take "
            "spatial_inputs and depth_inputs 'embeddings' in prior_config"
        )
    quantizer = autoencoder.quantizers[grid or 0]
    if not hasattr(quantizer, "code_vectors"):
        raise ValueError(
            f"prior={options.prior!r} draws codes of several levels, but autoencoder={options.autoencoder} has one "
            "code at a position"
        )
    vectors = quantizer.code_vectors()
    facts = {"code_vector_dim": vectors.shape[-1], "shared_code_vectors": len(vectors) == 1}
    check_facts(
        as_mapping("prior_config", options.prior_config), facts, f"the vectors of autoencoder={options.autoencoder}"
    )
    config.update(facts)
    return vectors


def make_pipeline(autoencoder: Any, prior: Any, coarser: Sequence[Any], codes: CodesDataset) -> CodesPipeline:
    """The pipeline of a prior and of those of the coarser grids, with the names that its codes have."""
    priors = [*coarser, prior]
    names = codes.class_names if any(each.config.num_classes for each in priors) else None
    if not coarser:
        pipeline_class = pipeline_of(autoencoder.modality) or hf_vq.VQPipeline
        spoken = getattr(prior.config, "num_speakers", 0) and takes(pipeline_class.__name__, "speaker_labels")
        return pipeline_class(autoencoder, prior, names, **({"speaker_names": codes.speaker_names} if spoken else {}))
    top, *middle, bottom = priors
    return hf_vq.VQVAE2Pipeline(autoencoder, top, bottom, middle[0] if middle else None, names)


def save_pipeline(pipeline: Any, folder: Path, tokenizer: Path) -> None:
    """Write pipeline/, and copy into it what a card shows of both trainings.

    Args:
        pipeline: of the prior.
        folder: of the run.
        tokenizer: folder of the autoencoder.
    """
    with whole(folder / "pipeline") as partial, without_bars():
        pipeline.save_pretrained(partial)
    copies = {"prior.yaml": folder / RECIPE, "autoencoder.yaml": tokenizer / RECIPE, REPORT: folder / REPORT}
    modality = modality_of(type(pipeline.autoencoder).__name__)
    if modality is not None:
        shown = tokenizer / f"reconstructions{modality.suffix}"
        copies[shown.name] = shown
    for name, path in copies.items():
        if path.is_file():
            copy_whole(path, folder / "pipeline" / name)


def copy_whole(path: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with whole(target) as copy:
        shutil.copyfile(path, copy)


def save_samples(pipeline: Any, num: int, seed: int, folder: Path, bar: bool) -> list[Path]:
    """Draw samples of all classes and speakers in turn, and write them as their modality does; return the file.

    Args:
        pipeline: its prior is where it samples.
        num: of samples.
        seed: of their random numbers, so that those of two steps differ by what was learnt between them.
        folder: where the file goes.
        bar: whether a progress bar is shown.
    """
    modality = find_modality(type(pipeline.autoencoder).__name__)
    classes, speakers = len(pipeline.config.class_names or ()), pipeline.num_speakers
    conditions = {"class_labels": sorted(index % classes for index in range(num))} if classes else {}
    conditions |= {"speaker_labels": [index % speakers for index in range(num)]} if speakers else {}
    device = next(part.device for name, part in pipeline.components.items() if name.endswith("prior"))
    pipeline.set_progress_bar_config(disable=not bar)
    samples = draw(pipeline.to(device), conditions, num, 64, torch.Generator().manual_seed(seed))
    file = folder / f"samples{modality.suffix}"
    modality.save_samples(file, samples, columns=8, **modality.file_options(pipeline.autoencoder.processor))
    return [file]


def draw_at_end(pipeline: Any, num: int, args: PriorTrainingArguments, folder: Path) -> None:
    """Write samples beside a finished run and into its pipeline/; Ctrl-C ends the drawing, and nothing else."""
    try:
        with optional("file of samples"):
            for file in save_samples(pipeline, num, args.seed, folder, bar=not args.disable_tqdm):
                copy_whole(file, folder / "pipeline" / file.name)
    except KeyboardInterrupt:
        print(
            f"warning: no file of samples: interrupted (hf-vq sample {folder / 'pipeline'} draws some)",
            file=sys.stderr,
        )

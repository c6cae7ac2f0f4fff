"""`hf-vq train autoencoder`: samples in, a tokenizer out."""

import functools
import inspect
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from hf_vq.auto import AutoVQModel
from hf_vq.autoencoders import AUTOENCODERS
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
    read_json,
    say,
    say_start,
    start_output_folder,
    tell_push,
    training_bytes,
)
from hf_vq.cli.data_options import data_options, sizes_of_samples
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import Keys, as_mapping, check_names, nearest, parse_options
from hf_vq.cli.resuming import RESUME, continued, own_checkpoint, tell_changes, write_recipe
from hf_vq.data.padding import collator_for, is_stream, padded_shape, padding_of
from hf_vq.figures import figure_text
from hf_vq.grids import as_grids
from hf_vq.hub import PROCESSOR
from hf_vq.modes import in_eval_mode
from hf_vq.saved import DISCRIMINATOR
from hf_vq.training.arguments import check_stopping_data
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, make_task, train_autoencoder
from hf_vq.training.callbacks import Announcement
from hf_vq.training.checkpoints import TRAINER_STATE, advising
from hf_vq.training.evaluation import batches, usage_metric
from hf_vq.training.pictures import (
    draw_reconstructions,
    first_batch,
    save_loss_curve,
    save_usage_histogram,
    shown_files,
)
from hf_vq.training.pushing import push_result
from hf_vq.training.reading import check_readable
from hf_vq.training.resuming import config_of_then

PICTURES = ("codebook_usage.png", "loss_curve.png")
WEIGHTS = (
    "config.json",
    PROCESSOR,
    "diffusion_pytorch_model*.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
OUTPUTS = ("checkpoint-*", *WEIGHTS, *PICTURES, "report.json", "recipe.yaml", "logs", DISCRIMINATOR)

NAMES = ("codebook_size", "num_vq_embeddings"), ("codebook_dim", "vq_embed_dim")  # by hf_vq and by diffusers
ALIKE = {other: own for pair in NAMES for other, own in (pair, pair[::-1])}
MANUAL = Manual(
    "train autoencoder",
    "Train an autoencoder with a vector-quantized bottleneck.",
    """
hf-vq train autoencoder path/to/data tokenizer --model VQVAE \\
      --model_config.codebook_size 512 --num_train_epochs 20 --learning_rate 3e-4
hf-vq train autoencoder recipe.yaml --output_dir tokenizer
hf-vq train autoencoder --resume tokenizer
""",
    ("data", "output_dir"),
    sizes_of_samples(),
)


@dataclass
class ModelOptions:
    """Which autoencoder to train."""

    model: str = field(default="VQVAE", metadata={"help": f"class of the autoencoder: {', '.join(AUTOENCODERS)}"})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "its constructor arguments; --model_config.codebook_size 64 sets one"}
    )
    init_from: str | None = field(
        default=None, metadata={"help": "start from the weights of this folder or repo id: its class and its config"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace an earlier run in the output folder"})
    resume: str | None = field(default=None, metadata=RESUME)


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, data, args, given = parse_options(
        [ModelOptions, data_options(training=True), AutoencoderTrainingArguments],
        argv,
        MANUAL,
        keys={"model_config": names_of_arguments},
        known_keys={"model_config": lambda: {name for model in AUTOENCODERS.values() for name in arguments_of(model)}},
        continues=continued,
    )
    run(options, data, args, given)


def names_of_arguments(given: dict[str, Any]) -> Keys:
    """The class that `model_config` is for, and other names of its arguments: older ones, and other models'."""
    name = given.get("model", ModelOptions.model)
    if given.get("init_from"):
        folder = local_folder(given["init_from"])
        check_weights(folder, "autoencoder")
        name = read_json(folder / "config.json")["_class_name"]
    if name not in AUTOENCODERS:
        return Keys(name, {}, {})
    known = arguments_of(AUTOENCODERS[name])
    alike = {other: own for other, own in ALIKE.items() if own in known and other not in known}
    return Keys(name, AUTOENCODERS[name].renamed_options(), alike)


def arguments_of(model_class: type) -> list[str]:
    """Names of the constructor's arguments."""
    return list(inspect.signature(model_class.__init__).parameters)[1:]  # type: ignore[misc]


def run(
    options: ModelOptions, data: Any, args: AutoencoderTrainingArguments, given: dict[str, Any]
) -> dict[str, Any] | None:
    """Check everything, train, and write model, report and pictures into `args.output_dir`; return the report."""
    check_output_folder(args.output_dir, overwrite=options.overwrite, resume=bool(options.resume))
    if args.freeze_codes and not options.init_from:
        raise ValueError("freeze_codes=True keeps the codes of a trained autoencoder: give it as init_from")
    with bars_of(args), alone(args.output_dir, make=False), advising(args.output_dir):
        if options.resume:
            args.resume_from_checkpoint = str(own_checkpoint(args.output_dir, args.resume_from_checkpoint))
        model, modality, train, validation = prepare(options, data, args, given)
        with alone(args.output_dir, make=True):
            return train_and_show(model, modality, train, validation, options, args, given)


def prepare(
    options: ModelOptions, data: Any, args: AutoencoderTrainingArguments, given: dict[str, Any]
) -> tuple[Any, Any, Any, Any]:
    """The model to train, its modality, training and validation data, all of which fit; nothing is written."""
    initial: Any = load_initial(options.init_from, options, given) if options.init_from else None
    if args.freeze_codes:
        initial.check_freezable()
    config = check_model_config(options) if initial is None else dict(initial.config)
    modality: Any = find_modality(options.model if initial is None else type(initial).__name__)
    data = data.fit(modality, config.get("in_channels"), initial, config)
    train, validation = data.load_train_and_validation()
    check_readable(train, args)
    check_stopping_data(args, validation)
    if options.resume and initial is None:
        config = with_options_of_then(
            options.model, config, told_by(train, modality), Path(str(args.resume_from_checkpoint))
        )
    transformers.set_seed(args.seed)
    model = initial or build_model(options.model, config, told_by(train, modality))
    model.processor = modality.processor.from_dataset(train)
    model.code_shapes(padded_shape(model, train))
    first = collator_for(model, train)([next(iter(train))])
    with torch.no_grad(), in_eval_mode(model):  # what a forward refuses is refused now
        model(first["sample"], **padding_of(first))
    task = make_task(model, args)
    task.check_sample(first["sample"])
    task.metric_of(args)
    needed = training_bytes(task, args, None if is_stream(train) else len(train))
    check_disk_space(args.output_dir, needed, "training")
    return model, modality, train, validation


def train_and_show(
    model: Any,
    modality: Any,
    train: Any,
    validation: Any,
    options: ModelOptions,
    args: AutoencoderTrainingArguments,
    given: dict[str, Any],
) -> dict[str, Any] | None:
    """Write all that a training writes; return the report."""
    folder = start_output_folder(
        args.output_dir, overwrite=options.overwrite, stale=[*OUTPUTS, *shown_files(modality)]
    )
    if not options.resume and is_main_process():
        write_recipe(folder, given)
    codes = describe_codes(model.code_shapes(padded_shape(model, train)), model.codebook_sizes)
    number = "a stream of" if is_stream(train) else f"{len(train):,}"
    words = (
        f"Training {type(model).__name__} ({model.num_parameters():,} parameters): {number} "
        f"{modality.plural} of {times(train.sample_shape)} to {codes}"
    )
    announcement = Announcement(functools.partial(say_start, words))
    report = train_autoencoder(model, train, args, eval_dataset=validation, callbacks=[announcement], push=False)
    if report is not None:
        tell_changes(folder, report["history"])
        metrics = report["metrics"]
        error = figure_text("error_over_variance", metrics.get("eval_error_over_variance"))
        result = f"Wrote {args.output_dir}" + ("." if validation is None else f": error over variance {error}.")
        say(result, result=True)
        shown = train if validation is None else validation
        save_pictures(
            model, modality, list(itertools.islice(shown, 1024)) if is_stream(shown) else shown, report, folder
        )
        tell_push(push_result(folder, args))
    return report


def load_initial(source: str, options: ModelOptions, given: dict[str, Any]) -> Any:
    """The autoencoder to start from, codebook and averages included; its reconstruction loss may change.

    Raises:
        ValueError: no autoencoder there, or the recipe or flags ask for another class or another config.
    """
    folder = local_folder(source)
    check_weights(folder, "autoencoder")
    model = AutoVQModel.from_pretrained(folder)
    if "model" in given and options.model != type(model).__name__:
        raise ValueError(f"model={options.model!r}, but init_from={source} holds {type(model).__name__}")
    config = as_mapping("model_config", options.model_config)
    if hasattr(model, "with_reconstruction_loss"):
        options_now = {name: model.config[name] for name in model.decoder_options}
        wanted = {name: config.get(name, value) for name, value in options_now.items()}
        if wanted != options_now:
            model = model.with_reconstruction_loss(**wanted)
    wanted = with_options_of(model.config, config) if "quantizer_config" in config else config
    check_same_config("model_config", wanted, model.config, source)
    return model


def check_model_config(options: ModelOptions) -> dict[str, Any]:
    """The constructor arguments of the model; a ValueError names an unknown one and the nearest that exists."""
    if options.model not in AUTOENCODERS:
        raise ValueError(f"model={options.model!r}: unknown class{nearest(options.model, AUTOENCODERS)}")
    config = as_mapping("model_config", options.model_config)
    check_names(config, arguments_of(AUTOENCODERS[options.model]), f"argument of {options.model} in model_config:")
    return config


def told_by(dataset: Any, modality: Any) -> dict[str, Any]:
    """What data say of the arguments of an autoencoder for them."""
    shared = {name: getattr(dataset, name) for name in modality.shared_options}
    return dict.fromkeys(("in_channels", "out_channels"), dataset.sample_shape[0]) | shared


def build_model(name: str, config: dict[str, Any], told: dict[str, Any]) -> Any:
    """Build an autoencoder; of what the config leaves open the data say their part, see `told_by`."""
    model_class = AUTOENCODERS[name]
    known = {key: value for key, value in told.items() if key in arguments_of(model_class)}
    try:
        return model_class(**{**known, **config})
    except TypeError as error:
        raise ValueError(f"model_config does not fit {name}: {error}") from error


def with_options_of_then(name: str, config: dict[str, Any], told: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The config by which a run began that is resumed, where a default of the quantizer's options has changed since.

    A checkpoint of a version that recorded no config tells it by its tensors.
    """
    earlier = AUTOENCODERS[name].with_written_options(config, earlier=True)
    if earlier == AUTOENCODERS[name].with_written_options(config, earlier=False):
        return config
    recorded = read_json(checkpoint / TRAINER_STATE).get("configs", {}).get("autoencoder")
    if recorded is not None:
        return with_options_of(config_of_then(AUTOENCODERS[name], recorded), config)
    weights = checkpoint / "model.safetensors"
    if not weights.is_file():
        return config
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    is_earlier = build_model(name, earlier, told).state_dict().keys() == stored
    return earlier if is_earlier else config


def with_options_of(then: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A config with those options of its quantizer that it leaves out as another one of the same type has them."""
    kind = then.get("quantizer_type")
    if kind is None or config.get("quantizer_type", kind) != kind:
        return config
    has, given = (each.get("quantizer_config") or {} for each in (then, config))
    return {**config, "quantizer_config": over(has, given) or then["quantizer_config"]}


def over(then: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options, and those within them, with those that are given in place of those of then."""
    both = {name for name, value in given.items() if isinstance(value, dict) and isinstance(then.get(name), dict)}
    return {**then, **given, **{name: over(then[name], given[name]) for name in both}}


@torch.no_grad()
def save_pictures(model: Any, modality: Any, dataset: Any, report: dict[str, Any], folder: Path) -> None:
    """Write reconstructions and code maps, codebook_usage.png and loss_curve.png."""
    model.eval()
    device = next(model.parameters()).device
    with optional(" and ".join(shown_files(modality))):
        draw_reconstructions(model, modality, first_batch(dataset, collator_for(model, dataset), 16), folder)
    with optional("codebook_usage.png"):
        usage = usage_metric(model).to(device)
        for batch in batches(dataset, 64, device, collator_for(model, dataset)):
            padding = padding_of(batch)
            masks = model.without_padding(batch["sample"], **padding)[1] if padding else None
            usage.update(as_grids(model.tokenize(batch["sample"], **padding)), masks)
        size = sum(model.codebook_sizes) * model.num_levels
        save_usage_histogram(folder / "codebook_usage.png", usage.compute().counts.cpu(), size)
    with optional("loss_curve.png"):
        save_loss_curve(folder / "loss_curve.png", report["history"])


def describe_codes(code_shapes: Iterable[Iterable[int]], codebook_sizes: Iterable[int]) -> str:
    """Such as "8x8 codes out of 512"; for a hierarchy all of its grids."""
    grids = [f"{times(shape)} codes out of {size}" for shape, size in zip(code_shapes, codebook_sizes, strict=True)]
    return " and ".join(grids)


def times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))

"""`hf-vq evaluate`: a model and held-out data in, figures out."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

import hf_vq
from hf_vq.cli.checks import check_output_file, check_weights, load_pipeline, local_folder, pick_device
from hf_vq.cli.data_options import DataOptions, data_options
from hf_vq.cli.grids import load_grid_of
from hf_vq.cli.options import parse_options
from hf_vq.data.sources import MissingSplitError
from hf_vq.figures import plain_figures
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior
from hf_vq.training.likelihood import FittedPixelLikelihood, OwnPixelLikelihood, evaluate_likelihood
from hf_vq.writing import write_text

PRIOR_NAMES = ("prior", "top_prior", "middle_prior", "bottom_prior")  # components of pipelines, coarse to fine


@dataclass
class EvaluateOptions:
    """What to evaluate, and where the figures go."""

    model: str = field(metadata={"help": "folder or repo id of an autoencoder, a pipeline or a prior"})
    codes: str | None = field(
        default=None, metadata={"help": "folder or repo id of codes, instead of --data, for a prior"}
    )
    split: str = field(
        default="validation",
        metadata={"help": "split of the data or of the codes, or rows of the data: train[45000:50000]"},
    )
    batch_size: int = field(default=64, metadata={"help": "items per forward pass"})
    output: str = field(default="evaluation.json", metadata={"help": "JSON file of the figures"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the output file"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, data, _ = parse_options(
        [EvaluateOptions, data_options()],
        argv,
        verb="evaluate",
        description="Measure an autoencoder, a prior or a pipeline on held-out data.",
        positional="model",
    )
    figures = run(options, data)
    print(json.dumps(figures, indent=2, allow_nan=False))


def run(options: EvaluateOptions, data: DataOptions) -> dict[str, Any]:
    """Check everything, evaluate, and write the figures; return them as `plain_figures`."""
    check_output_file(options.output, suffix=".json", overwrite=options.overwrite)
    if options.batch_size < 1:
        raise ValueError(f"batch_size={options.batch_size} must be positive")
    device = pick_device(options.device)
    folder = local_folder(options.model)
    kind = check_weights(folder, "autoencoder", "pipeline", "prior")
    if kind == "prior":
        figures = {"prior": _evaluate_prior_folder(folder, device, options)}
    elif options.codes is not None:
        raise ValueError(f"codes={options.codes!r}: only a prior is evaluated on codes; give --data")
    else:
        figures = _evaluate_on_data(folder, device, kind, options, data)
    figures = plain_figures(figures)
    facts = {"model": options.model, "data": data.data, "split": options.split}
    text = json.dumps({**facts, **figures}, indent=2, allow_nan=False)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    write_text(options.output, text + "\n")
    return figures


def _evaluate_prior_folder(folder, device, options):
    if options.codes is None:
        raise ValueError("codes is missing: a prior alone is evaluated on codes, give --codes")
    prior = hf_vq.AutoVQPrior.from_pretrained(folder).to(device)
    codes = load_grid_of(prior, local_folder(options.codes, "dataset"), options.split)
    for name, value in (("codebook_size", codes.codebook_size), ("num_classes", codes.num_classes)):
        if getattr(prior.config, name) not in (value, 0):
            raise ValueError(f"the prior has {name}={getattr(prior.config, name)}, the codes have {value}")
    return evaluate_prior(prior, codes, options.batch_size, sample_shape=codes.sample_shape)


def _evaluate_on_data(folder, device, kind, options, data):
    if kind == "pipeline":
        pipeline = load_pipeline(folder).to(device)
        autoencoder = pipeline.autoencoder
        priors = {name: pipeline.components[name] for name in PRIOR_NAMES if pipeline.components.get(name) is not None}
    else:
        autoencoder, priors = hf_vq.AutoVQModel.from_pretrained(folder).to(device), {}
    data = data.fit_model(autoencoder)
    dataset = data.load(options.split)
    for prior in priors.values():
        if prior.config.num_classes not in (0, dataset.num_classes):
            raise ValueError(f"the prior has {prior.config.num_classes} classes, the data has {dataset.num_classes}")
    figures = {"autoencoder": evaluate_autoencoder(autoencoder, dataset, options.batch_size)}
    has_own = getattr(autoencoder, "pixel_distribution", None) is not None
    if not priors and not has_own:
        return figures
    pixels, reason = _pixel_likelihood(autoencoder, has_own, dataset, options, data)
    given = list(priors.values()) or None
    codes, whole = evaluate_likelihood(autoencoder, given, dataset, pixels, options.batch_size)
    figures |= dict(zip(priors, codes, strict=False))
    if whole is None:
        print(f"no bits per dimension of the whole model: {reason}", file=sys.stderr)
        return {**figures, "likelihood": {"skipped": reason}}
    whole["protocol"] = {**_data_protocol(dataset, options, data), **whole["protocol"]}
    return {**figures, "likelihood": whole}


def _pixel_likelihood(autoencoder, has_own, dataset, options, data):
    """The likelihood of samples given codes, or None and the reason why there is none."""
    plural = data.modality.plural
    if has_own:
        if dataset.num_values != 256:
            return None, f"the decoder's distribution is over 256 values, those of the data are {dataset.num_values}"
        return OwnPixelLikelihood(autoencoder), None
    try:
        training = data.load("train", cache_bytes=0)
        rows = training.without(dataset)
    except MissingSplitError as error:
        return None, f"no {plural} to fit the scale of the decoder's likelihood on: {error}"
    if len(rows) == 0:
        return None, f"train_split={data.train_split!r} has no {plural} that are not evaluated, to fit a scale on"
    return FittedPixelLikelihood(autoencoder, Subset(training, rows), dataset.num_values, options.batch_size), None


def _data_protocol(dataset, options, data):
    """What a report must say of the data for its figures to compare; what warns is told on stderr too."""
    facts, warnings = data.modality.describe_data(dataset)
    for line in warnings:
        print(f"warning: {line}", file=sys.stderr)
    return {
        "data": data.data,
        "split": data.resolve(options.split),
        "validation_fraction": data.validation_fraction,
        **facts,
    }

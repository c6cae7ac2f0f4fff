"""`hf-vq evaluate`: a model and held-out data in, figures out."""

import dataclasses
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
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.cli.scoring import evaluate_samples, pick_metrics
from hf_vq.data.padding import has_variable_length
from hf_vq.data.sources import MissingSplitError
from hf_vq.features import load_features
from hf_vq.figures import plain_figures
from hf_vq.hub.folders import EVALUATION
from hf_vq.metrics.reconstruction import ReconstructionError
from hf_vq.modalities import MODALITIES
from hf_vq.ranges import Samples, Seed, Size
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior
from hf_vq.training.likelihood import FittedPixelLikelihood, OwnPixelLikelihood, evaluate_likelihood
from hf_vq.training.scores import BETWEEN_SETS, reconstruction_figures, reconstruction_metrics
from hf_vq.writing import write_text

PRIOR_NAMES = ("prior", "top_prior", "middle_prior", "bottom_prior")  # components of pipelines, coarse to fine

SIMILARITIES = "; ".join(
    f"{', '.join(each.name for each in modality.similarities)} ({modality.plural})"
    for modality in MODALITIES.values()
    if modality.similarities
)

MANUAL = Manual(
    "evaluate",
    "Measure an autoencoder, a prior or a pipeline on held-out data.",
    """
hf-vq evaluate tokenizer --data path/to/data --split validation
hf-vq evaluate prior --codes codes
""",
    ("model", "output"),
)


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
    metrics: list[str] | None = field(
        default=None,
        metadata={
            "help": f"of an autoencoder or a pipeline: {SIMILARITIES}; with --features feature_distance, lpips (of "
            "vgg and alex), fid and kid, these two of new samples of a pipeline too; default: those that cost little, "
            "and with --features all that need it"
        },
    )
    features: str | None = field(
        default=None,
        metadata={
            "help": "network of features: random, vgg, alex, a file of their weights, or folder or repo id of an "
            "autoencoder or of a classifier of transformers"
        },
    )
    num_samples: Size | None = field(
        default=None,
        metadata={"help": "of a pipeline: samples to draw for fid and kid; default: as many as the data has"},
    )
    seed: Seed = field(default=0, metadata={"help": "of these samples"})
    batch_size: Samples = field(default=64, metadata={"help": "items per forward pass"})
    output: str | None = field(
        default=None,
        metadata={"help": f"JSON file of the figures; default: {EVALUATION} in the model's folder, written anew"},
    )
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the output file"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, data, _ = parse_options(
        [EvaluateOptions, data_options()],
        argv,
        MANUAL,
    )
    figures = run(options, data)
    print(json.dumps(figures, indent=2, allow_nan=False))


def run(options: EvaluateOptions, data: DataOptions) -> dict[str, Any]:
    """Check everything, evaluate, and write the figures; return them as `plain_figures`."""
    output, overwrite = where_to(options)
    check_output_file(output, suffix=".json", overwrite=overwrite)
    device = pick_device(options.device)
    folder = local_folder(options.model)
    kind = check_weights(folder, "autoencoder", "pipeline", "prior")
    _check_options(kind, options)
    if kind == "prior":
        figures, protocol = _evaluate_prior_folder(folder, device, options)
    elif options.codes is not None:
        raise ValueError(f"codes={options.codes!r}: only a prior is evaluated on codes; give --data")
    else:
        figures, protocol = _evaluate_on_data(folder, device, kind, options, data)
    figures = plain_figures(figures)
    facts = {"model": options.model, "data": protocol["data"], "split": protocol["split"], "protocol": protocol}
    text = json.dumps({**facts, **figures}, indent=2, allow_nan=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text + "\n")
    print(f"Wrote {output}.", file=sys.stderr)
    return figures


def _check_options(kind, options):
    """Raise a ValueError for an option that a folder of this kind has no use for."""
    for name in ("metrics", "features") if kind == "prior" else ():
        if (value := getattr(options, name)) is not None:
            raise ValueError(f"{name}={value!r}: a prior alone makes no samples, give an autoencoder or a pipeline")
    if options.num_samples is not None and (kind != "pipeline" or options.features is None):
        need = "a pipeline" if kind != "pipeline" else "--features, a network that looks at them"
        raise ValueError(f"num_samples={options.num_samples}: samples to compare need {need}")


def where_to(options: EvaluateOptions) -> tuple[Path, bool]:
    """The file of the figures, and whether it may replace another.

    By default that is the one in the model's folder; of a model of the Hub, one here that has its name.
    """
    if options.output is not None:
        return Path(options.output), options.overwrite
    folder = Path(options.model)
    return folder / EVALUATION if folder.is_dir() else Path(f"{options.model.replace('/', '--')}-{EVALUATION}"), True


def _evaluate_prior_folder(folder, device, options):
    if options.codes is None:
        raise ValueError("codes is missing: a prior alone is evaluated on codes, give --codes")
    prior = hf_vq.AutoVQPrior.from_pretrained(folder).to(device)
    codes = load_grid_of(prior, local_folder(options.codes, "dataset"), options.split)
    for name in ("codebook_size", "num_classes", "num_speakers"):
        own, value = getattr(prior.config, name, 0), getattr(codes, name)
        if own not in (value, 0):
            raise ValueError(f"the prior has {name}={own}, the codes have {value}")
    figures = evaluate_prior(prior, codes, options.batch_size, sample_shape=codes.sample_shape)
    protocol = {
        "data": options.codes,
        "split": options.split,
        "num_grids": len(codes),
        "code_shape": list(codes.code_shape),
        "codes_sha256": codes.tokenizer.get("codes_sha256"),
    }
    return {"prior": figures}, protocol


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
        for kind in ("classes", "speakers"):
            own, value = getattr(prior.config, f"num_{kind}", 0), getattr(dataset, f"num_{kind}", 0)
            if own not in (0, value):
                raise ValueError(f"the prior has {own} {kind}, the data has {value}")
    extractor = None if options.features is None else load_features(options.features).to(device)
    names = pick_metrics(autoencoder, options.metrics, extractor, dataset.sample_shape)
    protocol, changes = _data_protocol(dataset, options, data)
    metrics = reconstruction_metrics(autoencoder, names, extractor)
    figures = {"autoencoder": evaluate_autoencoder(autoencoder, dataset, options.batch_size, metrics)}
    told = {**ReconstructionError.describe(), **reconstruction_figures(metrics, "describe")}
    facts = {"precision": str(autoencoder.dtype).removeprefix("torch."), "metrics": told}
    between = [name for name in BETWEEN_SETS if name in (names or ())]
    if priors and between:
        shape = (options.num_samples, options.batch_size, options.seed)
        figures["samples"], more, drawn = evaluate_samples(pipeline, dataset, extractor, between, *shape)
        facts |= {"metrics": told | more, "samples": drawn}
    has_own = getattr(autoencoder, "pixel_distribution", None) is not None
    if not priors and not has_own:
        return figures, protocol | facts
    if has_variable_length(dataset):
        sizes = " or ".join(entry.name for entry in dataclasses.fields(data.modality.size_options))
        reason = f"{data.modality.plural} differ in length, give {sizes}; a prior alone is evaluated on --codes"
        print(f"no bits per dimension: {reason}", file=sys.stderr)
        return {**figures, "likelihood": {"skipped": reason}}, protocol | facts
    pixels, reason = _pixel_likelihood(autoencoder, has_own, dataset, options, data)
    given = list(priors.values()) or None
    codes, whole = evaluate_likelihood(autoencoder, given, dataset, pixels, options.batch_size)
    figures |= dict(zip(priors, codes, strict=False))
    if whole is None:
        print(f"no bits per dimension of the whole model: {reason}", file=sys.stderr)
        return {**figures, "likelihood": {"skipped": reason}}, protocol | facts
    for line in changes:
        print(f"warning: {line}", file=sys.stderr)
    whole["protocol"] = {**protocol, **whole["protocol"]}
    return {**figures, "likelihood": whole}, protocol | facts


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
    """What a report must say of the data for its figures to compare, and how likelihoods are none of the originals."""
    facts, changes = data.modality.describe_data(dataset)
    protocol = {
        "data": data.data,
        "split": data.resolve(options.split),
        "validation_fraction": data.validation_fraction,
        "sample_shape": list(dataset.sample_shape),
        **facts,
    }
    return protocol, changes

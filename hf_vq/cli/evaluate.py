"""`hf-vq evaluate`: a model and held-out data in, figures out."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import hf_vq
from hf_vq.cli.checks import check_output_file, check_weights, local_folder, pick_device
from hf_vq.cli.data_options import DataOptions
from hf_vq.cli.options import parse_options
from hf_vq.data.codes import load_codes
from hf_vq.data.tokenizing import tokenize_in_memory
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior


@dataclass
class EvaluateOptions:
    """What to evaluate, and where the figures go."""

    model: str = field(metadata={"help": "folder or repo id of an autoencoder, a pipeline or a prior"})
    codes: str | None = field(default=None, metadata={"help": "folder of codes, instead of --data, for a prior"})
    split: str = field(default="validation", metadata={"help": "split of the data or of the codes"})
    batch_size: int = field(default=64, metadata={"help": "items per forward pass"})
    output: str = field(default="evaluation.json", metadata={"help": "JSON file of the figures"})
    device: str | None = field(
        default=None, metadata={"help": "such as cpu or cuda; default: a GPU where there is one"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace the output file"})


def main(argv):
    """Run the verb."""
    options, data, _ = parse_options(
        [EvaluateOptions, DataOptions],
        argv,
        verb="evaluate",
        description="Measure an autoencoder, a prior or a pipeline on held-out data.",
        positional="model",
    )
    figures = run(options, data)
    print(json.dumps(figures, indent=2))


def run(options, data):
    """Check everything, evaluate, and write the figures; return them."""
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
        figures = _evaluate_on_images(folder, device, kind, options, data)
    text = json.dumps({"model": options.model, "data": data.data, "split": options.split, **figures}, indent=2)
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    Path(options.output).write_text(text + "\n", encoding="utf-8")
    return figures


def _evaluate_prior_folder(folder, device, options):
    if options.codes is None:
        raise ValueError("codes is missing: a prior alone is evaluated on codes, give --codes")
    codes = load_codes(options.codes, options.split)
    prior = hf_vq.AutoVQPrior.from_pretrained(folder).to(device)
    for name, value in (("codebook_size", codes.codebook_size), ("num_classes", codes.num_classes)):
        if getattr(prior.config, name) not in (value, 0):
            raise ValueError(f"the prior has {name}={getattr(prior.config, name)}, the codes have {value}")
    return evaluate_prior(prior, codes, options.batch_size, sample_shape=codes.sample_shape)


def _evaluate_on_images(folder, device, kind, options, data):
    if kind == "pipeline":
        pipeline = hf_vq.VQPipeline.from_pretrained(folder).to(device)
        autoencoder, prior = pipeline.autoencoder, pipeline.prior
    else:
        autoencoder, prior = hf_vq.AutoVQModel.from_pretrained(folder).to(device), None
    images = data.load(options.split, autoencoder.config.in_channels)
    autoencoder.code_shape(images.sample_shape)
    figures = {"autoencoder": evaluate_autoencoder(autoencoder, images, options.batch_size)}
    if prior is not None:
        if prior.config.num_classes not in (0, images.num_classes):
            raise ValueError(f"the prior has {prior.config.num_classes} classes, the data has {images.num_classes}")
        codes = tokenize_in_memory(autoencoder, images, batch_size=options.batch_size)
        figures["prior"] = evaluate_prior(prior, codes, options.batch_size, sample_shape=images.sample_shape)
    return figures

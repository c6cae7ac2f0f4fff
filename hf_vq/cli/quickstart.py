"""`hf-vq quickstart`: the whole road on the digits that come with scikit-learn, by the same functions as the verbs."""

import contextlib
import io
import json
import os
import time
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch

from hf_vq.cli import evaluate, sample, tokenize, train_autoencoder, train_prior
from hf_vq.cli.checks import check_output_folder, folder_modality, start_output_folder
from hf_vq.cli.data_options import data_options
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.cli.reading import read_recipe
from hf_vq.figures import figure_text
from hf_vq.quiet import is_quiet
from hf_vq.ranges import Seed

OUTPUTS = ("autoencoder", "codes", "prior", "pipeline", "samples.png")

MANUAL = Manual(
    "quickstart",
    "Train a VQ-VAE and a PixelCNN on bundled digits, and sample every class.",
    """
hf-vq quickstart quickstart --seed 0
""",
    ("output",),
)


@dataclass
class QuickstartOptions:
    """Where to, and which random numbers."""

    output: str = field(default="quickstart", metadata={"help": "folder of the models and pictures"})
    seed: Seed = field(default=0, metadata={"help": "of both trainings and of the samples"})
    autoencoder_recipe: str | None = field(default=None, metadata={"help": "recipe instead of the built-in one"})
    prior_recipe: str | None = field(default=None, metadata={"help": "recipe instead of the built-in one"})
    overwrite: bool = field(default=False, metadata={"help": "replace an earlier quickstart"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, _ = parse_options(
        [QuickstartOptions],
        argv,
        MANUAL,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small gain nothing by more, and lose much where another program is busy
    try:
        run(options)
    finally:
        torch.set_num_threads(threads)


def run(options: QuickstartOptions) -> None:
    """Train both models, tokenize in between, sample every class, and say what came out."""
    started = time.monotonic()
    check_output_folder(options.output, overwrite=options.overwrite)
    recipes = {
        "autoencoder": options.autoencoder_recipe or str(built_in_recipe("quickstart-autoencoder.yaml")),
        "prior": options.prior_recipe or str(built_in_recipe("quickstart-prior.yaml")),
    }
    for recipe in recipes.values():
        read_recipe(recipe)
    folder = start_output_folder(options.output, overwrite=options.overwrite, stale=OUTPUTS)
    autoencoder, codes, prior = (str(folder / name) for name in ("autoencoder", "codes", "prior"))
    pipeline = str(folder / "pipeline")
    seed = ["--seed", str(options.seed)]

    with contextlib.redirect_stdout(io.StringIO()) if is_quiet() else contextlib.nullcontext():
        train_autoencoder.main([recipes["autoencoder"], "--output_dir", autoencoder, *seed])
        tokenize.main([autoencoder, "--data", "digits", "--output", codes])
        train_prior.main(
            [recipes["prior"], "--codes", codes, "--autoencoder", autoencoder, "--output_dir", prior, *seed]
        )
        os.replace(folder / "prior" / "pipeline", pipeline)
        sample.main([pipeline, "--output", str(folder / "samples.png"), *seed])
        figures = evaluate.run(evaluate.EvaluateOptions(model=pipeline), data_options()(data="digits"))
    told = summary(figures, folder, pipeline, time.monotonic() - started)
    print(f"Wrote {folder}." if is_quiet() else told)


def built_in_recipe(name: str) -> Traversable:
    """Path of a recipe that comes with the package."""
    return resources.files("hf_vq.cli") / "recipes" / name


def summary(figures: dict[str, Any], folder: str | Path, pipeline: str | Path, seconds: float) -> str:
    """What the quickstart prints at its end."""
    tokenizer, prior = figures["autoencoder"], figures["prior"]
    error, nats = (
        figure_text(name, part.get(name), ".3f")
        for part, name in ((tokenizer, "error_over_variance"), (prior, "nats_per_code"))
    )
    nats += " nats per code" + ("" if prior["likelihood_is_exact"] else " (upper bound)")
    draw = folder_modality(pipeline).show_sample.format(call="pipe(class_labels=[3])").replace("\n", "\n  ")
    return f"""
Done in {seconds:.0f} s, on {tokenizer["num_samples"]} digits that neither model was trained on:
  tokenizer  error over variance {error}, {tokenizer["usage"]:.0%} of the codes in use
  prior      {nats} ({prior["unigram_entropy"]:.3f} without a model)
Pictures: {folder}/samples.png (a row per digit, all new), {folder}/autoencoder/*.png, {folder}/prior/*.png

Use it:
  from hf_vq import VQPipeline
  pipe = VQPipeline.from_pretrained({json.dumps(Path(pipeline).as_posix())})
  {draw}
or, enlarged:
  hf-vq sample {pipeline} --classes 3 --output threes.png"""

"""Model cards: what a saved folder tells about itself, as huggingface_hub writes it."""

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from hf_vq.figures import figure_text, is_defined
from hf_vq.hub.codes import describe_codes, write_codes_card
from hf_vq.hub.folders import CONVERSION, EVALUATION, PICTURES, PROCESSOR, ModelFolder, takes_prompts
from hf_vq.saved import read_mapping

AUTOMATIC = (  # ours, diffusers' and transformers', Trainer's
    "Written by hf_vq from the files of this repository",
    "This model card has been automatically generated",
    "This model card has been generated automatically",
)
FIGURES = {
    "error_over_variance": "Reconstruction error over data variance",
    "mse": "Mean squared error, {plural} in [-1, 1]",
    "l1": "Mean absolute error, {plural} in [-1, 1]",
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "feature_distance": "Distance of features",
    "rfid": "rFID",
    "rkid": "rKID",
    "usage": "Share of the codes in use",
    "perplexity": "Codebook perplexity",
    "dead_codes": "Codes never used",
    "nats_per_code": "Nats per code, held out",
    "unigram_entropy": "Unigram entropy of the same codes in nats",
    "ratio": "Nats per code over unigram entropy",
    "bits_per_dim": "Bits per dimension of the codes",
}
LIKELIHOODS = ("nats_per_code", "ratio", "bits_per_dim")  # figures that are bounds where the prior's likelihood is one


@dataclass
class Measurements:
    """Figures of a model and where they come from.

    Attributes:
        figures: value by name, names as in `FIGURES`.
        missing: names of those that are not defined.
        bound: whether the `LIKELIHOODS` among them are upper bounds.
        dataset: name or Hub id of the data; None where the files do not tell.
        split: of the data.
        extractors: of figures of features, whose they are: figures of others do not compare.
    """

    figures: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    bound: bool = False
    dataset: str | None = None
    split: str | None = None
    extractors: dict[str, str] = field(default_factory=dict)

    def take(self, metrics: dict[str, Any]) -> None:
        """Take the known ones of some figures."""
        self.figures.update({name: metrics[name] for name in FIGURES if is_defined(metrics.get(name))})
        self.missing += [name for name in FIGURES if name in metrics and not is_defined(metrics[name])]
        self.bound = self.bound or metrics.get("likelihood_is_exact") is False

    def title(self, name: str, plural: str) -> str:
        """What a card calls a figure, of samples of which several are called `plural`."""
        bound = " (upper bound)" if self.bound and name in LIKELIHOODS else ""
        features = f" (features of {self.extractors[name]})" if name in self.extractors else ""
        return FIGURES[name].format(plural=plural) + bound + features


def is_automatic(text: str) -> bool:
    """Whether a card was generated, by us or by another library, rather than written."""
    return any(words in text for words in AUTOMATIC)


def read_measurements(files: dict[str, Path], dataset: str | None = None) -> "Measurements":
    """The figures of evaluation.json, or else the held-out figures of a training's report.json.

    Args:
        files: Path by path in the repository.
        dataset: name or Hub id of the data; by default what evaluation.json or recipe.yaml says.
    """
    found = Measurements()
    if EVALUATION in files:
        evaluation = read_mapping(files[EVALUATION])
        for part in ("autoencoder", "prior"):
            found.take(evaluation.get(part, {}))
        found.dataset, found.split = evaluation.get("data"), evaluation.get("split")
        for name, metric in evaluation.get("protocol", {}).get("metrics", {}).items():
            if "extractor" in metric:
                network = metric["extractor"]
                found.extractors[name] = f"{network['extractor']} {network['sha256'][:8]}"
    elif "report.json" in files:
        metrics = read_mapping(files["report.json"]).get("metrics", {})
        found.take({name.removeprefix("eval_"): value for name, value in metrics.items()})
        found.split = "validation"
    source = dataset or found.dataset or _data_of_recipe(files)
    found.dataset = Path(source).name if source and Path(source).is_absolute() else source
    return found


def describe(
    folder: ModelFolder,
    repo_id: str,
    license: str | None = None,
    files: dict[str, Path] | None = None,
    dataset: str | None = None,
) -> ModelCardData | DatasetCardData:
    """The metadata of a card.

    Args:
        folder: ModelFolder.
        repo_id: "user/repo".
        license: the licence's id on the Hub.
        files: Path by path in the repository.
        dataset: name or Hub id of the data behind the figures.

    Returns:
        ModelCardData; of codes DatasetCardData.
    """
    if folder.kind == "codes":
        return describe_codes(folder, repo_id, license)
    measured = read_measurements(files or folder.files, dataset)
    modality = folder.modality
    kind = "pipeline of texts" if takes_prompts(folder.class_name) else folder.kind
    task = modality and modality.tasks.get(kind)
    plural = modality.plural if modality else "samples"
    results = [
        EvalResult(
            task_type=task or "other",
            dataset_type=measured.dataset or "unknown",
            dataset_name=measured.dataset or "held-out data",
            dataset_split=measured.split,
            metric_type=name,
            metric_name=measured.title(name, plural),
            metric_value=value,
        )
        for name, value in measured.figures.items()
    ]
    tags = ["hf_vq", "vector-quantization", folder.class_name.lower()]
    return ModelCardData(
        license=license,
        library_name="transformers" if folder.kind == "prior" else "diffusers",
        pipeline_tag=task,
        tags=tags + [part.class_name.lower() for part in folder.components.values()],
        metrics=list(measured.figures) or None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def write_card(
    folder: ModelFolder,
    repo_id: str,
    data: Any,
    files: dict[str, Path] | None = None,
    dataset: str | None = None,
) -> ModelCard | DatasetCard:
    """A generated card.

    Args:
        folder: ModelFolder.
        repo_id: "user/repo".
        data: its metadata, from `describe`.
        files: Path by path in the repository.
        dataset: of codes, name or Hub id of what was tokenized.

    Returns:
        ModelCard; of codes DatasetCard.
    """
    if folder.kind == "codes":
        return write_codes_card(folder, repo_id, data, dataset)
    files, results = files or folder.files, data.eval_results or []
    measured, plural = read_measurements(files), folder.modality.plural if folder.modality else "samples"
    words, stock_usage = _stock(folder, repo_id)
    split = f", split `{results[0].dataset_split}`" if results and results[0].dataset_split else ""
    return ModelCard.from_template(
        data,
        template_str=resources.files("hf_vq.hub").joinpath("template.md").read_text(encoding="utf-8"),
        title=repo_id.split("/")[-1],
        summary=_summary(folder),
        previews=_previews(folder, files),
        packages=" ".join(folder.packages),
        usage=_with_imports(folder, _usage(folder, repo_id)),
        stock_words=words,
        stock_usage=stock_usage,
        dataset=(results[0].dataset_name if results else measured.dataset or "held-out data") + split,
        figures=[
            {"title": measured.title(name, plural), "text": figure_text(name, measured.figures.get(name), ".4g")}
            for name in [*measured.figures, *measured.missing]
        ],
        training=_training(files),
        recipes=[
            {"file": name, "text": path.read_text(encoding="utf-8").strip()}
            for name, path in sorted(files.items())
            if name.endswith(".yaml")
        ],
        license_words=f"`{data.license}`" if data.license else None,
        conversion=read_mapping(files[CONVERSION]) if CONVERSION in files else None,
    )


def complete_card(card: ModelCard | DatasetCard, data: ModelCardData | DatasetCardData) -> None:
    """Add to a card that somebody wrote the metadata that it lacks; its text stays.

    Args:
        card: changed in place.
        data: its metadata, from `describe`.
    """
    written: Any = card.data
    for name in ("license", "library_name", "pipeline_tag", "metrics", "task_categories", "size_categories"):
        if getattr(written, name, None) is None and getattr(data, name, None) is not None:
            setattr(written, name, getattr(data, name))
    if isinstance(data, DatasetCardData):
        written.pop("dataset_info", None)  # numbers of rows and bytes of files that this push replaces
    elif not written.eval_results and data.eval_results:
        written.eval_results, written.model_name = data.eval_results, data.model_name
    tags = getattr(written, "tags", None) or []
    written.tags = tags + [tag for tag in data.to_dict().get("tags") or () if tag not in tags]


def _data_of_recipe(files):
    for name, path in sorted(files.items()):
        if name.endswith(".yaml"):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("data:"):
                    return line.removeprefix("data:").split(" #")[0].strip(" '\"") or None
    return None


def _training(files):
    if "report.json" not in files:
        return None
    report = read_mapping(files["report.json"])
    machine = report.get("machine", {})
    return (
        f"Trained in {report.get('wall_time_seconds', 0):.0f} s on {machine.get('device')} "
        f"({machine.get('cpu_count')} cores; torch {machine.get('torch')}, hf_vq {machine.get('hf_vq')}). "
        "`report.json` has the settings and the history."
    )


def _previews(folder, files):
    """Markdown for every picture, and for every file of samples of another kind."""
    embeds = dict.fromkeys(PICTURES, "![{title}]({file})")
    if folder.modality:
        embeds[f"*{folder.modality.suffix}"] = folder.modality.embed
    return [
        embed.format(title=Path(name).stem.replace("_", " "), file=name)
        for name in sorted(files)
        for pattern, embed in embeds.items()
        if Path(name).match(pattern)
    ]


def _summary(folder):
    config, modality = folder.config, folder.modality
    plural = modality.plural if modality else "samples"
    if folder.kind == "pipeline":
        parts = " ".join(_summary(part) for part in folder.components.values())
        what = f"{plural} of what a text says" if takes_prompts(folder.class_name) else f"new {plural}"
        others = ", ".join(f"`{class_name}` ({name})" for name, class_name in folder.others.items())
        return f"A `{folder.class_name}` of hf_vq, which draws {what}. {parts}" + (
            f" With {others}." if others else ""
        )
    size = config.get("num_vq_embeddings", config.get("codebook_size"))  # transformers leaves out what is default
    codes = "codes" if size is None else f"codes out of {size}"
    if folder.kind == "autoencoder":
        channels = f" of {config['in_channels']} channels" if "in_channels" in config else ""
        return f"`{folder.class_name}`: turns {plural}{channels} into {codes}, and back."
    classes = f"{config['num_classes']} classes" if config.get("num_classes") else "no classes"
    shape = config.get("code_shape")
    grid = "x".join(map(str, shape)) + " grids of" if shape else "grids of"
    return f"`{folder.class_name}`: a prior over {grid} {codes}, with {classes}."


def _usage(folder, repo_id):
    modality = folder.modality
    if folder.kind == "pipeline":
        request = _request(folder.components.values())
        request = '"a red dog"' if takes_prompts(folder.class_name) else request
        call = f"pipe({request})"
        return (
            f"from hf_vq import {folder.class_name}\n\n"
            f'pipe = {folder.class_name}.from_pretrained("{repo_id}")\n'
            + (modality.show_sample.format(call=call) if modality else call)
        )
    if folder.kind == "autoencoder":
        load = f'from hf_vq import AutoVQModel\n\nmodel = AutoVQModel.from_pretrained("{repo_id}")'
        if modality is None:
            return load
        channels = folder.config.get("in_channels", "model.in_channels")
        shape = ", ".join(map(str, (1, channels, *_space(folder, modality))))
        return (
            f"import torch\n\n{load}\n"
            f"sample = torch.rand({shape}) * 2 - 1  # one {modality.name}, in [-1, 1]\n"
            "codes = model.tokenize(sample)\n"
            "reconstruction = model.detokenize(codes)"
        )
    shape = "" if folder.config.get("code_shape") else ", code_shape=(8, 8)"
    return (
        "from hf_vq import AutoVQPrior\n\n"
        f'prior = AutoVQPrior.from_pretrained("{repo_id}")\n'
        f"codes = prior.sample({_request([folder])}{shape})"
    )


def _request(models):
    """Arguments that ask for one of what some models draw."""
    kinds = {"class_labels": "num_classes", "speaker_labels": "num_speakers"}
    taken = [f"{name}=[0]" for name, number in kinds.items() if any(each.config.get(number) for each in models)]
    return ", ".join(taken) or "batch_size=1"


def _space(folder, modality):
    """Of the samples that the model was trained on, as its processor knows it; a usual one where it does not."""
    if PROCESSOR not in folder.files:
        return modality.example_space
    return modality.processor.from_pretrained(folder.path).size or modality.example_space


def _with_imports(folder, usage):
    """Code for our classes, after the import of a user's package that registers its own."""
    lines = "".join(f"import {module}  # registers its classes with hf_vq\n" for module in folder.modules)
    return f"{lines}\n{usage}" if lines else usage


def _stock(folder, repo_id):
    installed = " and ".join(["hf_vq", *folder.packages])
    if folder.kind == "pipeline":
        return f"In stock diffusers, with {installed} installed:", (
            "from diffusers import DiffusionPipeline\n\n"
            f'pipe = DiffusionPipeline.from_pretrained("{repo_id}", trust_remote_code=True)'
        )
    if folder.class_name == "VQModel":
        return "In stock diffusers, without hf_vq:", (
            f'from diffusers import VQModel\n\nmodel = VQModel.from_pretrained("{repo_id}")'
        )
    if folder.class_name == "TransformerPrior":
        unasked = not folder.config.get("num_classes") and not folder.config.get("num_text_tokens")
        return "In stock transformers, without hf_vq:", (
            "from transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{repo_id}")'
            + ("\nids = model.generate()  # a token to begin with, then codes" if unasked else "")
        )
    return f"In stock transformers, with {installed} installed:", (
        f'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)'
    )

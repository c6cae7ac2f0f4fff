"""Cards of codes: what a data set of them tells about itself, as huggingface_hub writes it."""

from bisect import bisect_right
from importlib import resources
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from hf_vq.data.shards import column_names
from hf_vq.hub.folders import ModelFolder

SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
TOKENIZED = "Every shard has a hash of each column as it was tokenized, and hf_vq refuses one that differs."
REWRITTEN = (
    "The rows went through `datasets` after they were tokenized. Every shard has a hash of each column as it was then "
    "found, and hf_vq refuses one that differs."
)


def describe_codes(folder: ModelFolder, repo_id: str, license: str | None) -> DatasetCardData:
    """The metadata of a card.

    Args:
        folder: of kind "codes".
        repo_id: "user/repo".
        license: the licence's id on the Hub.
    """
    rows, modality = sum(folder.config["splits"].values()), folder.modality
    return DatasetCardData(
        license=license,
        pretty_name=repo_id.split("/")[-1],
        task_categories=[modality.tasks["pipeline"]] if modality else None,
        size_categories=[SIZES[min(bisect_right([10**power for power in range(3, 10)], rows), len(SIZES) - 1)]],
        tags=["hf_vq", "vector-quantization", "codes", folder.class_name.lower()],
    )


def write_codes_card(folder: ModelFolder, repo_id: str, data: DatasetCardData, dataset: str | None) -> DatasetCard:
    """A generated card.

    Args:
        folder: of kind "codes".
        repo_id: "user/repo".
        data: its metadata.
        dataset: name or Hub id of what was tokenized.
    """
    plan, modality = folder.config, folder.modality
    plural = modality.plural if modality else "samples"
    identity, source = plan["tokenizer"], f" of `{dataset}`" if dataset else ""
    repository = identity["path"]  # empty where nobody knows
    link = f" [{repository}](https://huggingface.co/{repository.partition('@')[0]})" if repository else ""
    facts = {
        "tokenizer": f"`{identity['class']}`{link}",
        **{name: f"`{identity[name]}`" for name in ("codes_sha256", "weights_sha256") if name in identity},
        **{name: f"`{plan[name]}`" for name in ("codebook_size", "code_shape", "sample_shape")},
        "classes": len(plan["class_names"] or ()) or "none",
        **({"speakers": len(plan["speaker_names"])} if plan.get("speaker_names") else {}),
    }
    return DatasetCard.from_template(
        data,
        template_str=resources.files("hf_vq.hub").joinpath("codes.md").read_text(encoding="utf-8"),
        title=repo_id.split("/")[-1],
        repo_id=repo_id,
        summary=f"Codes of {plural}{source}, made by a tokenizer of hf_vq.",
        splits=plan["splits"],
        facts=facts,
        seals=REWRITTEN if "rewritten" in plan else TOKENIZED,
        usage=_usage(plan, repo_id, repository),
        license_words=f"`{data.license}`" if data.license else None,
    )


def _usage(plan: dict[str, Any], repo_id: str, repository: str) -> str:
    name, _, revision = (repository or "path/to/tokenizer").partition("@")
    pinned = f', revision="{revision}"' if revision else ""
    comment = "" if repository else "  # the one with this codes_sha256"
    columns = [f'rows["{column}"]' for column in column_names(plan)]
    codes = columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
    return (
        "from datasets import load_dataset\nfrom hf_vq import AutoVQModel\n\n"
        f'model = AutoVQModel.from_pretrained("{name}"{pinned}){comment}\n'
        f'rows = load_dataset("{repo_id}", split="{next(iter(plan["splits"]))}").with_format("torch")[:4]\n'
        f"sample = model.detokenize({codes})  # (4, {', '.join(map(str, plan['sample_shape']))})"
    )

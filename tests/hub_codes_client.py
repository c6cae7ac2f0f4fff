"""What a user of codes on the Hub does: tasks of `python -m tests.hub_codes_client`, as those of tests/hub_client.py.

hf_vq is imported before the tasks.
"""

from pathlib import Path

import datasets
import huggingface_hub
import torch

import hf_vq
from hf_vq.cli.checks import local_folder
from hf_vq.data.codes import load_codes
from hf_vq.data.seals import read_shard
from hf_vq.data.shards import find_shards

from .hub_client import command, main, run_card  # noqa: F401


def build_tokenizers(work):
    """Two tokenizers of pictures, work/vqvae and work/other."""
    for seed, name in enumerate(("vqvae", "other")):
        torch.manual_seed(seed)
        model = hf_vq.VQVAE(hidden_channels=8, codebook_size=12, codebook_dim=4, stage_channels=(8,))
        model.initialize_codebook(torch.rand(4, 3, 16, 16) * 2 - 1)
        model.eval().save_pretrained(Path(work) / name)


def commands(lines, folder):
    """`command` of several, one after the other; those that begin with "offline" where the Hub cannot be reached."""
    said = []
    for first, *rest in lines:
        huggingface_hub.constants.HF_HUB_OFFLINE = first == "offline"
        said.append(command(rest if first == "offline" else [first, *rest], folder))
    return said


def take_through_datasets(work):
    """me/codes loaded, filtered and given a column; written by `to_parquet`, `save_to_disk` and `push_to_hub`."""
    work = Path(work)
    rows = datasets.load_dataset("me/codes")
    rows["train"] = rows["train"].filter(lambda row: row["class_labels"] == 1).add_column("caption", ["a rose"] * 4)
    rows["validation"] = rows["validation"].add_column("caption", ["?"] * 2)
    (work / "again/data").mkdir(parents=True)
    for split, part in rows.items():
        part.to_parquet(work / f"again/data/{split}-00000-of-00001.parquet")
    rows.save_to_disk(work / "on disk")
    rows.push_to_hub("me/stock", num_shards={"train": 3, "validation": 1})
    again = datasets.load_dataset("me/stock")["train"]  # by the features in its card
    (work / "twice/data").mkdir(parents=True)
    again.to_parquet(work / "twice/data/train-00000-of-00001.parquet")
    lost = datasets.Dataset.from_dict(again.to_dict())
    (work / "lost/data").mkdir(parents=True)
    lost.to_parquet(work / "lost/data/train-00000-of-00001.parquet")
    return rows["train"].to_dict()


def codes_in(names):
    """The codes of folders or repositories: rows, columns, tokenizer, and what each shard says."""
    return [codes_of(name) for name in names]


def codes_of(name):
    folder = local_folder(name, "dataset")
    codes = load_codes(folder)
    shards = [read_shard(path) for path in find_shards(folder, "train")]
    repo_id, _, revision = name.partition("@")
    where = {"path": str(folder)} if Path(name).is_dir() else {"path": repo_id, "revision": revision or None}
    table = datasets.load_dataset(**where, split="train")
    return {
        "codes": codes.codes.tolist(),
        "columns": table.column_names,
        "tokenizer": codes.tokenizer,
        "class_names": codes.class_names,
        "sealed": [shard.facts is not None for shard in shards],
        "rewritten": ["rewritten" in shard.plan for shard in shards],
    }


if __name__ == "__main__":
    main(globals(), fresh=())

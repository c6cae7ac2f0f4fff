"""`hf-vq push`: a saved folder in, a repository of the Hub out."""

from dataclasses import dataclass, field
from pathlib import Path

import hf_vq
from hf_vq.cli.checks import check_weights, local_folder, pinned
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.data.codes import check_tokenizer
from hf_vq.hub import push_folder, read_folder

MANUAL = Manual(
    "push",
    "Publish a folder on the Hugging Face Hub: weights, card and what stock libraries need, or codes.",
    """
hf-vq push prior/pipeline user/name --license apache-2.0
hf-vq push codes user/name --license cc-by-4.0 --tokenizer user/tokenizer
""",
    ("folder", "repo_id"),
)


@dataclass
class PushOptions:
    """What to publish, where, and under which licence."""

    folder: str = field(metadata={"help": "folder of an autoencoder, a prior, a pipeline or codes"})
    repo_id: str = field(metadata={"help": "user/repo; created where it does not exist"})
    license: str | None = field(
        default=None, metadata={"help": "its id on the Hub, such as apache-2.0; default: that of the card"}
    )
    card: str | None = field(
        default=None, metadata={"help": "folder with README.md, recipes and pictures, such as model_cards/NAME"}
    )
    evaluation: str | None = field(
        default=None, metadata={"help": "file that `hf-vq evaluate` wrote; default: evaluation.json of the folder"}
    )
    dataset: str | None = field(default=None, metadata={"help": "name or Hub id of the data"})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "of codes: repo id of their tokenizer, for the card; default: the one they know"},
    )
    private: bool = field(default=False, metadata={"help": "make a new repository private"})
    create_pr: bool = field(default=False, metadata={"help": "open a pull request instead of writing to main"})
    revision: str | None = field(default=None, metadata={"help": "branch to write to"})
    commit_message: str | None = field(default=None, metadata={"help": "title of the commit"})


def main(argv: list[str]) -> None:
    """Run the verb."""
    options, _ = parse_options(
        [PushOptions],
        argv,
        MANUAL,
    )
    if options.tokenizer is not None:
        options.tokenizer = find_tokenizer(options.folder, options.tokenizer)
    arguments = {**vars(options), "private": options.private or None}  # None: as the organisation has it
    commit = push_folder(arguments.pop("folder"), arguments.pop("repo_id"), **arguments)
    print(f"Pushed: {commit.commit_url}")


def find_tokenizer(codes: str, name: str) -> str:
    """The repository of the tokenizer of some codes, with its commit; a ValueError where it makes others."""
    if Path(name).exists():
        raise ValueError(f"tokenizer={name!r} must be a repository of the Hub: others have no such folder")
    folder = local_folder(name)
    check_weights(folder, "autoencoder")
    found = read_folder(codes)
    if found.kind != "codes":
        raise ValueError(f"tokenizer={name!r}: {codes} holds a model")
    check_tokenizer(found.config["tokenizer"], hf_vq.AutoVQModel.from_pretrained(folder), codes)
    return pinned(name, folder)

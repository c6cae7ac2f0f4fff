"""`hf-vq push`: a saved folder in, a repository of the Hub out."""

from dataclasses import dataclass, field

from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.hub import push_folder

MANUAL = Manual(
    "push",
    "Publish a folder on the Hugging Face Hub: weights, card and what stock libraries need.",
    """
hf-vq push prior/pipeline user/name --license apache-2.0
""",
    ("folder", "repo_id"),
)


@dataclass
class PushOptions:
    """What to publish, where, and under which licence."""

    folder: str = field(metadata={"help": "folder of an autoencoder, a prior or a pipeline"})
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
    dataset: str | None = field(default=None, metadata={"help": "name or Hub id of the data behind the figures"})
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
    arguments = {**vars(options), "private": options.private or None}  # None: as the organisation has it
    commit = push_folder(arguments.pop("folder"), arguments.pop("repo_id"), **arguments)
    print(f"Pushed: {commit.commit_url}")

"""A saved folder to the Hub: weights, card and shims in one commit."""

import contextlib
import inspect
import re
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi, ModelCard
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id

from hf_vq.data.features import REPOSITORY
from hf_vq.data.sealing import seal_again
from hf_vq.data.seals import read_shard
from hf_vq.data.shards import SHARD_NAME
from hf_vq.hub.cards import complete_card, describe, is_automatic, write_card
from hf_vq.hub.folders import CONVERSION, read_folder
from hf_vq.hub.licenses import LICENSES_PAGE, check_license
from hf_vq.saved import CONFIG, DISCRIMINATOR, check_links, read_mapping, shard_names
from hf_vq.weights import PUSH_OPTIONS

README = "README.md"


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    license: str | None = None,
    card: str | Path | None = None,
    evaluation: str | Path | None = None,
    dataset: str | None = None,
    tokenizer: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Publish a folder that hf_vq wrote, in one commit: cut in the middle, it changes nothing.

    Codes become a data set. Shards that went through `datasets`, which takes their seals off, are sealed again, and
    no path of this machine travels with them.

    The card is that of `card` or of the folder, else the one that somebody wrote in the repository; its text stays
    and the metadata that it lacks is added. Where there is none, or a generated one, the card is generated. Repeated,
    a push sends only what has changed.

    Args:
        folder: of an autoencoder, a prior, a pipeline or codes.
        repo_id: "user/repo"; created where it does not exist.
        license: its id on the Hub, one of `hf_vq.hub.LICENSES` such as "apache-2.0"; by default that of the card, or
            of the checkpoint that was converted.
        card: folder with a README.md, recipes and pictures, which travel too.
        evaluation: evaluation.json to publish, by default that of the folder.
        dataset: name or Hub id of the data behind the figures, or of what was tokenized.
        tokenizer: of codes, the repository of their tokenizer, "user/name" or "user/name@commit", which shards and
            card then tell; by default the one that they were made with, where it was one.
        private: whether a new repository is private.
        token, create_pr, revision, commit_message: as in huggingface_hub.

    Returns:
        CommitInfo of huggingface_hub.

    Raises:
        ValueError: no licence, two licences, one that the Hub does not list, a folder that is not whole, or names and
            links that leave it or that of the card; before anything is sent.
        ConnectionError: the connection broke; run it again.
        OSError: the Hub refused (an error of `huggingface_hub.errors`).
    """
    found = read_folder(folder)
    validate_repo_id(repo_id)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as work:
        files = _collect(found, card, evaluation, tokenizer, Path(work))
        local = _load_card(files.pop(README, None), found)
        license = _pick_license(found, files, license, local)
        describe(found, repo_id, license, files, dataset)  # reads all that it will tell of
        with _telling_what_broke(repo_id):
            kind = "dataset" if found.kind == "codes" else "model"
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind).repo_id
            if revision is not None and not revision.startswith("refs/pr"):
                api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=kind)
            remote = api.list_repo_files(repo_id, revision=revision, repo_type=kind)
            if local is None and README in remote:
                local = _load_card(api.hf_hub_download(repo_id, README, revision=revision, repo_type=kind), found)
                license = _agree(license, local)
            data = describe(found, repo_id, license, files, dataset)
            if local is None:
                local = write_card(found, repo_id, data, files, dataset)
            else:
                complete_card(local, data)
            operations: list[CommitOperationAdd | CommitOperationDelete]
            operations = [CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())]
            operations.append(CommitOperationAdd(README, str(local).encode()))
            operations += [CommitOperationDelete(name) for name in stale_files(remote, files)]
            message = commit_message or f"Upload {'codes' if found.kind == 'codes' else found.class_name}"
            return api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr, repo_type=kind
            )


def _pick_license(found, files, license, card):
    """The licence that the argument, the card or the converted checkpoint names; a ValueError where none does."""
    license = _agree(license, card)
    if license is None and CONVERSION in files:
        license = read_mapping(files[CONVERSION]).get("license")
    check_request(license, "codes" if found.kind == "codes" else "weights")
    return license


def check_request(license: str | None, what: str = "weights") -> None:
    """Raise a ValueError for a licence that is missing, or none of the Hub's; `what`: that it is for."""
    if license is None:
        raise ValueError(
            f"license is missing: say under which licence the {what} may be used, by license='apache-2.0', on the "
            f"command line --license apache-2.0, (or another id of {LICENSES_PAGE}) or in the card"
        )
    check_license(license)


@contextlib.contextmanager
def _telling_what_broke(repo_id):
    """Within the `with` block: a broken connection becomes a ConnectionError, and what the Hub answered an OSError."""
    try:
        yield
    except (HTTPError, RuntimeError) as error:  # of the connection, or of an upload that huggingface_hub gave up
        reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        if isinstance(reason, OSError):  # what the Hub answered
            raise reason from None
        raise ConnectionError(
            f"the push to {repo_id} broke off ({reason!r}): the repository is as it was before. "
            "Run it again, what has been uploaded is not sent twice"
        ) from error


def _collect(found, card, evaluation, tokenizer, work):
    """What to publish, path by path in the repository, with the README.md of the card where there is one.

    Shards that cannot travel as they are, see `seal_again`, are in the empty folder `work`.
    """
    for name, value, wanted in (("tokenizer", tokenizer, True), ("evaluation", evaluation, False)):
        if value is not None and wanted != (found.kind == "codes"):
            raise ValueError(f"{name}={str(value)!r}: {found.path} holds {'a model' if wanted else 'codes'}")
    files = dict(found.files)
    if found.kind == "codes":
        if tokenizer is not None and not REPOSITORY.fullmatch(tokenizer):
            raise ValueError(f"tokenizer must be a repository, 'user/name' or 'user/name@commit', got {tokenizer!r}")
        files.update(seal_again(found.path, work, tokenizer))
        found.config["tokenizer"] = read_shard(next(iter(files.values()))).plan["tokenizer"]
    if card is not None:
        files.update(_card_files(card))
    elif (found.path / README).is_file():
        files[README] = found.path / README
    if evaluation is not None:
        files["evaluation.json"] = Path(evaluation)
    return files


def stale_files(remote: list[str], files: dict[str, Path]) -> list[str]:
    """Files in the repository that a push replaces under other names: weights in shards by one file, other codes.

    The discriminator of a model that was there before goes with it.

    Args:
        remote: paths in the repository.
        files: paths that the push writes.
    """
    replaced = {_unsharded(name) for name in files if _unsharded(name)}
    codes = any(_is_shard(name) for name in files)
    gone = [name for name in remote if name not in files]
    others = {name for name in gone if name.startswith(f"{DISCRIMINATOR}/") and CONFIG in files}
    others |= {name for name in gone if codes and _is_shard(name)}
    return [name for name in gone if _unsharded(name) in replaced or name in others]


def _is_shard(name):
    """Whether a path in a repository is that of a shard of codes."""
    path = PurePosixPath(name)
    return str(path.parent) == "data" and SHARD_NAME.fullmatch(path.name) is not None


def _remove_replaced(folder):
    """Removes what would be loaded in place of the weights that a library just saved, which removes old shards alone.

    Of weights in one file that is an index of shards before them, of shards one file before them.
    """
    for index in folder.glob("*.safetensors.index*.json"):
        whole = all((folder / name).exists() for name in shard_names(index, read_mapping(index)))
        stale = folder / f"{_unsharded(index.name)}.safetensors" if whole else index
        stale.unlink(missing_ok=True)


def _unsharded(name):
    """The name of a weight file or of its index without the number of the shard; None for other files."""
    path = PurePosixPath(name)
    shard = re.fullmatch(r"(.+?)(-\d{5}-of-\d{5})?\.safetensors(\.index(\.\w+)?\.json)?", path.name)
    return str(path.with_name(shard[1] + (shard[4] or ""))) if shard else None


def _card_files(card):
    card = Path(card)
    if not (card / README).is_file():
        raise ValueError(f"card={str(card)!r} must be a folder with a {README}")
    check_links(card)
    files = [path for path in sorted(card.rglob("*")) if path.is_file()]
    names = {path.relative_to(card).as_posix(): path for path in files}
    return {name: path for name, path in names.items() if not any(part[0] == "." for part in name.split("/"))}


def _load_card(path, found):
    """The card of a file, or None where there is none or a generated one."""
    card_class = DatasetCard if found.kind == "codes" else ModelCard
    if path is None:
        return None
    try:
        text = Path(path).read_text(encoding="utf-8")
        card = card_class(text)
        bare = "dataset_info" in card.data.to_dict() and not card.text.strip()  # by `push_to_hub` of datasets
        return None if bare or is_automatic(text) else card
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the card {path}: {error}") from error


def _agree(license, card):
    """The licence that the argument or the card names; a ValueError where they name two."""
    of_card = None if card is None else card.data.license
    if license is not None and of_card is not None and license != of_card:
        raise ValueError(f"license={license!r}, but the card says {of_card!r}")
    return of_card if license is None else license


class PushMixin:
    """`push_to_hub` of models and pipelines: what `save_pretrained` writes goes through `push_folder`."""

    save_pretrained: Callable

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        max_shard_size: str = "10GB",
        **save_options: Any,
    ) -> CommitInfo:
        """Save and publish, with a generated card where nobody wrote one.

        Args:
            repo_id: "user/repo"; created where it does not exist.
            license: its id on the Hub, such as "apache-2.0".
            commit_message, private, token, create_pr, revision: as in huggingface_hub.
            max_shard_size: of one weight file.
            save_options: `variant` and `safe_serialization`, passed to `save_pretrained`.

        Returns:
            CommitInfo of huggingface_hub.
        """
        for name in save_options.keys() - {"variant", "safe_serialization"}:  # save_pretrained would ignore others
            raise TypeError(f"push_to_hub has no argument {name!r}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size=max_shard_size, **save_options)
            return push_folder(
                folder,
                repo_id,
                license=license,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
                revision=revision,
            )

    def save_and_push(self, save: Callable, save_directory: Any, *args: Any, **options: Any) -> None:
        """`save_pretrained` of a library, which pushes by `push_folder` where it is told `push_to_hub=True`.

        Weights that were saved there before do not stay beside the new ones, in one file or in shards.

        Args:
            save: the library's, bound.
            save_directory: a folder.
            args, options: of it, and of the push `repo_id` (the folder's name by default), `license` and others.
        """
        given = inspect.signature(save).bind(save_directory, *args, **options).arguments
        given |= given.pop("kwargs", {})
        request = {name: given.pop(name) for name in PUSH_OPTIONS if name in given}
        pushes = given.pop("push_to_hub", False) and given.get("is_main_process", True)
        save(**given)
        if given.get("is_main_process", True):
            _remove_replaced(Path(save_directory))
        if pushes:
            push_folder(save_directory, request.pop("repo_id", Path(save_directory).name), **request)

    @staticmethod
    def check_push_of_config(push_to_hub: bool) -> None:
        """Raise a ValueError where a config alone would be pushed, which the libraries do without `push_folder`."""
        if push_to_hub:
            raise ValueError(f"push_to_hub={push_to_hub!r}: a config is pushed with its weights, by save_pretrained")

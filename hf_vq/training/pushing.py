"""The push at the end of a training: what it would refuse is refused before, and what it breaks is no run."""

import os
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.utils import validate_repo_id

from hf_vq.hub.push import check_request, push_folder


def repo_of(args: Any) -> str:
    """The repository that a training pushes to: by default it is called like the output folder, as in transformers."""
    return args.hub_model_id or Path(args.output_dir).absolute().name


def check_push_options(args: Any) -> None:
    """Raise a ValueError, before any work, where the push at the end of a training would be refused.

    Args:
        args: the training's arguments.
    """
    if not args.push_to_hub:
        return
    validate_repo_id(repo_of(args))
    try:
        check_request(args.license)
    except ValueError as error:
        raise ValueError(f"push_to_hub={args.push_to_hub}: {error}") from error
    if getattr(args, "hub_token", None) is None and get_token() is None:
        raise ValueError("push_to_hub=True needs a token of the Hub: `hf auth login`, or the variable HF_TOKEN")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError("push_to_hub=True, but HF_HUB_OFFLINE says that the Hub is not to be asked")


def push_result(folder: str | Path, args: Any) -> str | None:
    """Publish what a training wrote, where its arguments say so, by `push_folder`.

    Args:
        folder: of the autoencoder, the prior or the pipeline.
        args: the training's arguments.

    Returns:
        The address of the commit; None where nothing is to be pushed.

    Raises:
        ConnectionError: the push failed; the message has the command that repeats it. The run is whole.
    """
    if not args.push_to_hub:
        return None
    repo_id = repo_of(args)
    try:
        commit = push_folder(
            folder,
            repo_id,
            license=args.license,
            private=args.hub_private_repo,
            token=getattr(args, "hub_token", None),
        )
    except (OSError, ValueError) as error:
        again = ["hf-vq", "push", str(folder), repo_id, "--license", args.license]
        again += ["--private"] if args.hub_private_repo else []
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(
            f"the run in {args.output_dir} is whole, but not pushed: {reason} (again: {shlex.join(again)})"
        ) from error
    return str(commit.commit_url)

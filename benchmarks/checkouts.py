"""Scripts of this folder with the hf_vq of another checkout: what comparisons of two builds share."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "TQDM_DISABLE": "1"}


def add_arguments(parser):
    """The two checkouts, as options of a parser."""
    parser.add_argument("--before", type=Path, required=True, help="checkout of the build to compare with")
    parser.add_argument("--after", type=Path, default=HERE.parent, help="the other one; by default this")


def start(checkout, script, *arguments, **options):
    """A process of one thread that runs a script of this folder with the hf_vq of a checkout.

    Args:
        checkout: folder that holds `hf_vq`; the script gets it as its first argument, for `check_origin`.
        script: name of the script.
        arguments: its further arguments.
        options: of `subprocess.Popen`.
    """
    checkout = Path(checkout).resolve()
    command = [sys.executable, HERE / script, checkout, *arguments]
    return subprocess.Popen(
        list(map(str, command)), env={**os.environ, **QUIET, "PYTHONPATH": str(checkout)}, text=True, **options
    )


def check_origin(checkout):
    """Raise a ValueError unless the hf_vq of this process is that of the checkout, and not an installed one."""
    import hf_vq

    found = Path(hf_vq.__file__).resolve().parent
    if found != Path(checkout).resolve() / "hf_vq":
        raise ValueError(f"checkout={str(checkout)!r}, but hf_vq was imported from {found}")

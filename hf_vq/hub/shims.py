"""The few lines of Python that travel with a checkpoint, so that stock libraries find hf_vq."""

import re
from functools import cache
from importlib import metadata

SHIM = "hf_vq_remote"  # not "hf_vq": diffusers prefers `<component>/<library>.py` and would demand trust for it
PIPELINE = "pipeline"  # the file name that diffusers looks for

SHIM_TEXT = '''"""For `trust_remote_code=True`: the classes of this checkpoint, from hf_vq (`pip install hf_vq`)."""

from hf_vq import *  # noqa: F403
'''


def shim_text(owner: type | None = None, *names: str) -> str:
    """The text of a model's hf_vq_remote.py.

    Args:
        owner: its class; one of a package of a user's is imported by name, so that it registers itself.
        names: of further classes that configs name, such as its config's.
    """
    module = user_module(owner)
    if owner is None or module is None:
        return SHIM_TEXT
    package = distribution(module)
    return f'''"""For `trust_remote_code=True`: the classes of this checkpoint, from hf_vq and {package}.

They must be installed (`pip install hf_vq {package}`).
"""

import {module}  # registers them with hf_vq
from hf_vq import *  # noqa: F403
from hf_vq import {", ".join(dict.fromkeys((owner.__name__, *names)))}  # noqa: F401
'''


def pipeline_text(class_name: str, owner: type | None = None) -> str:
    """The text of a repository's pipeline.py; `owner` is the class, where it may be a user's."""
    module = user_module(owner)
    packages, line = "hf_vq", ""
    if module is not None:
        packages, line = f"hf_vq {distribution(module)}", f"import {module}  # registers it with hf_vq\n"
    words = f"the pipeline of this repository, from hf_vq (`pip install {packages}`)"
    return f'''"""For `trust_remote_code=True`: {words}."""

{line}from hf_vq import {class_name}  # noqa: F401
'''


def needed_packages(text: str) -> list[str]:
    """What must be installed beside hf_vq, by the text of a shim."""
    found = re.search(r"`pip install hf_vq ([^`]+)`", text)
    return found[1].split() if found else []


def needed_modules(text: str) -> list[str]:
    """Modules of a user's that a shim imports."""
    return re.findall(r"^import (\S+)  # registers", text, re.M)


def user_module(owner: type | None) -> str | None:
    """The module of a class that is not ours; None for ours, and for one of a script, which nobody can import."""
    module = "hf_vq" if owner is None else owner.__module__
    return None if module.split(".")[0] in ("hf_vq", "__main__") else module


@cache  # it reads what every installed distribution holds
def distribution(module: str) -> str:
    """The name under which the package of a module is installed; that of the package where it is not."""
    package = module.split(".")[0]
    return metadata.packages_distributions().get(package, [package])[0]


def modeling_files() -> dict[str, str]:
    """What the top-level folder `modeling/` holds, by file name."""
    return {f"{SHIM}.py": SHIM_TEXT, f"{PIPELINE}.py": pipeline_text("VQPipeline")}

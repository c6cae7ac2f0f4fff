"""The few lines of Python that travel with a checkpoint, so that stock libraries find hf_vq."""

SHIM = "hf_vq_remote"  # not "hf_vq": diffusers prefers `<component>/<library>.py` and would demand trust for it
PIPELINE = "pipeline"  # the file name that diffusers looks for

SHIM_TEXT = '''"""For `trust_remote_code=True`: the classes of this checkpoint, from hf_vq (`pip install hf_vq`)."""

from hf_vq import *  # noqa: F403
'''


def pipeline_text(class_name):
    """The text of a repository's pipeline.py."""
    return f'''"""For `trust_remote_code=True`: the pipeline of this repository, from hf_vq (`pip install hf_vq`)."""

from hf_vq import {class_name}  # noqa: F401
'''


def modeling_files():
    """What the top-level folder `modeling/` holds, by file name."""
    return {f"{SHIM}.py": SHIM_TEXT, f"{PIPELINE}.py": pipeline_text("VQPipeline")}

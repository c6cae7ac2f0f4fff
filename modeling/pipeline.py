"""For `trust_remote_code=True`: the pipeline of this repository, from hf_vq (`pip install hf_vq`)."""

from hf_vq import VQPipeline  # noqa: F401

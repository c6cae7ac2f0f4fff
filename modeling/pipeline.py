"""For `trust_remote_code=True`: the pipeline of this repository is hf_vq's (`pip install hf_vq`)."""

from hf_vq import VQPipeline  # noqa: F401

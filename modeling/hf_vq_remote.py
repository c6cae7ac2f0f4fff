"""For `trust_remote_code=True`: the classes of this checkpoint are those of hf_vq (`pip install hf_vq`)."""

from hf_vq import *  # noqa: F403

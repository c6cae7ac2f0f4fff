"""For `trust_remote_code=True`: the classes of this checkpoint, from hf_vq (`pip install hf_vq`)."""

from hf_vq import *  # noqa: F403

"""Text and files of the Hugging Face Hub: what travels with a checkpoint, its card, and the push itself."""

from hf_vq.hub.dressing import HubConfigMixin, HubPipelineMixin, auto_map, write_shim
from hf_vq.hub.push import PushMixin, push_folder

__all__ = ["HubConfigMixin", "HubPipelineMixin", "PushMixin", "auto_map", "push_folder", "write_shim"]

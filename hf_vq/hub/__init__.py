"""Text and files of the Hugging Face Hub: what travels with a checkpoint, its card, and the push itself."""

from hf_vq.hub.cards import describe, write_card
from hf_vq.hub.dressing import STOCK, HubConfigMixin, HubPipelineMixin, auto_map, write_shim
from hf_vq.hub.folders import CONVERSION, PROCESSOR, is_model_file, read_folder, takes, takes_prompts
from hf_vq.hub.licenses import LICENSES, LICENSES_PAGE, check_license
from hf_vq.hub.push import PushMixin, push_folder
from hf_vq.saved import PRIOR_SECTION

__all__ = [
    "CONVERSION",
    "HubConfigMixin",
    "HubPipelineMixin",
    "LICENSES",
    "LICENSES_PAGE",
    "PRIOR_SECTION",
    "PROCESSOR",
    "PushMixin",
    "STOCK",
    "auto_map",
    "check_license",
    "describe",
    "is_model_file",
    "push_folder",
    "read_folder",
    "takes",
    "takes_prompts",
    "write_card",
    "write_shim",
]

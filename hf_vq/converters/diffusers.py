"""diffusers' VQModel, also with the names that attention had in its first years."""

import inspect
import warnings

from hf_vq.autoencoders import VQModel
from hf_vq.converters.base import Plan, Source, add_format, as_before

LEGACY = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def _recognises(source):
    return source.has("encoder.down_blocks.0.resnets.0.conv1.weight", "quantize.embedding.weight")


@add_format("diffusers-vqmodel", "https://github.com/huggingface/diffusers", _recognises)
def plan_diffusers(source: Source) -> Plan:
    if not source.config:
        raise ValueError(f"{source.path} needs its config.json beside it")
    known = inspect.signature(VQModel.__init__).parameters
    arguments = {key: value for key, value in source.config.items() if key in known}
    unknown = [key for key in source.config if key not in known and not key.startswith("_")]
    if unknown:
        warnings.warn(f"{source.config_path}: unknown to VQModel and left out: {', '.join(unknown)}", stacklevel=2)

    def weight(name, take):
        old = name
        for ours, theirs in LEGACY.items():
            old = old.replace(ours, theirs)
        return take(old if old in source.tensors else name)

    return Plan(as_before(VQModel, arguments), weight)

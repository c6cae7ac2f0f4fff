"""The discriminator in a checkpoint of adversarial training: taming-transformers' and those with its layout."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hf_vq.converters.files import read_file
from hf_vq.converters.prefixes import peel_torchs
from hf_vq.converters.wrappers import find_tensors
from hf_vq.losses.patch_discriminator import PatchDiscriminator

FIRST = re.compile(r"((?:.*\.)?discriminator\.)?main\.0\.(?:weight|weight_orig|parametrizations\.weight\.original)")
RENAMED = {  # torch's older spectral norm and its names today
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def load_discriminator(path: str | Path) -> PatchDiscriminator:
    """The PatchGAN of a checkpoint, such as the `loss.discriminator.*` of taming-transformers'.

    Args:
        path: a file of weights in any format that is read here; or the state dict of a discriminator alone.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is broken or not safe, without a discriminator, or with one of another layout.
    """
    read = read_file(path)
    content: Any = read.content
    if isinstance(content, Mapping) and isinstance(content.get("discriminator"), Mapping):
        content = content["discriminator"]  # a state dict beside the model's
    tensors = peel_torchs(find_tensors(content, path)[0])[0]
    tensors = _named_as_ours(_own_tensors(tensors, path))
    model = PatchDiscriminator(**_arguments(tensors, path))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ValueError(f"{path}: its discriminator is no PatchGAN of this layout: {first}") from error
    return model.eval()


def _own_tensors(tensors, path):
    """Those of the discriminator, as it names them."""
    prefix = next((match[1] or "" for match in map(FIRST.fullmatch, tensors) if match), None)
    if prefix is None:
        raise ValueError(f"{path} holds no discriminator: no tensor is named such as loss.discriminator.main.0.weight")
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(f"{prefix}main.")}


def _named_as_ours(tensors):
    named = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        named[f"{layer}.{RENAMED.get(end, end)}"] = tensor
    return named


def _arguments(tensors: Mapping[str, torch.Tensor], path: str | Path) -> dict[str, Any]:
    """The constructor's arguments by the names and shapes of the tensors."""
    spectral = "main.0.parametrizations.weight.original" in tensors
    first = tensors["main.0.parametrizations.weight.original" if spectral else "main.0.weight"]
    last = max(int(name.split(".")[1]) for name in tensors)
    num_layers, rest = divmod(last - 2, 3)
    if rest or num_layers < 1 or first.ndim != 4:
        raise ValueError(f"{path}: a discriminator of main.0 to main.{last} is no PatchGAN of this layout")
    norms = {"main.3.running_mean": "batch", "main.3.loc": "act", "main.3.weight": "group"}
    norm = next((norm for name, norm in norms.items() if name in tensors), "none")
    return {
        "in_channels": first.shape[1],
        "hidden_channels": first.shape[0],
        "num_layers": num_layers,
        "norm": norm,
        "spectral_norm": spectral,
    }

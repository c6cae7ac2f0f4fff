"""Which tokenizer made some codes: hashes of the options and weights that codes depend on."""

import hashlib
import inspect
import json
from pathlib import Path

import torch

from hf_vq.data.tokenizer import Tokenizer


def tokenizer_identity(autoencoder: Tokenizer, path: str | Path | None = None) -> dict[str, str]:
    """Tell which tokenizer made some codes.

    Args:
        autoencoder: the model; its state is hashed tensor by tensor, so that saving it again changes nothing.
        path: where it came from, for people; default the path it was loaded from.

    Returns:
        dict with `class`, `path`, `config_sha256` (of the options that are not at their defaults), `weights_sha256`
        and `codes_sha256`, of those options and weights that codes depend on.
    """
    defaults = {name: option.default for name, option in inspect.signature(type(autoencoder)).parameters.items()}
    former = {new: old for old, new in autoencoder.renamed_options().items()}  # a new name makes no other tokenizer
    config = {
        former.get(key, key): value
        for key, value in dict(autoencoder.config).items()
        if not key.startswith("_") and value != defaults.get(key, inspect.Parameter.empty)
    }  # an option that a later version adds changes nothing where it is at its default
    weights = hashlib.sha256()
    encoding = {name: value for name, value in config.items() if name not in autoencoder.decoder_options}
    codes = hashlib.sha256(json.dumps(encoding, sort_keys=True, default=str).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        described = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for digest in [weights] if autoencoder.only_decodes(name) else [weights, codes]:
            digest.update(described)
            digest.update(content)
    return {
        "class": type(autoencoder).__name__,
        "path": str(path or autoencoder.config.get("_name_or_path") or ""),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
        "codes_sha256": codes.hexdigest(),
    }


def differing_hash(one: dict[str, str], other: dict[str, str]) -> str | None:
    """Which entry shows that two `tokenizer_identity` are of tokenizers that make different codes; None: none does.

    Where one of them has no `codes_sha256`, as older files have not, decoders count too.
    """
    hashes = ["codes_sha256"] if {"codes_sha256"} <= one.keys() & other.keys() else ["config_sha256", "weights_sha256"]
    return next((key for key in ["class", *hashes] if one[key] != other[key]), None)

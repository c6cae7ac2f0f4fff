"""Which tokenizer made some codes: hashes of the options and weights that codes depend on."""

import hashlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from hf_vq.data.tokenizer import Tokenizer
from hf_vq.weights import hash_tensor, tensor_bytes

COMPILED = "_orig_mod."  # in the names of what torch.compile wraps
HALVES = (torch.float16, torch.bfloat16)
# what a model goes through that is saved or loaded in half precision, and perhaps in the other one later
CASTS = [(), *[(one,) for one in HALVES], HALVES, HALVES[::-1]]


def tokenizer_identity(autoencoder: Tokenizer, path: str | Path | None = None, rounded: bool = True) -> dict[str, str]:
    """Tell which tokenizer made some codes.

    Args:
        autoencoder: the model; its state is hashed tensor by tensor, so that saving it again changes nothing.
        path: where it came from, for people; default the path it was loaded from.
        rounded: also hash what the weights are in half precision, which takes several times as long.

    Returns:
        dict with `class`, `path`, `config_sha256` (of the options that are not at their defaults), `weights_sha256`
        and `codes_sha256`, of those options and weights that codes depend on; and with `rounded`, `rounded_sha256`, by
        which `makes_codes` knows the tokenizer again in half precision.
    """
    autoencoder = _plain(autoencoder)
    config = _options(autoencoder)
    weights, codes = hashlib.sha256(), _start(autoencoder, config)
    for name, tensor in _tensors(autoencoder):
        for digest in [weights] if autoencoder.only_decodes(name) else [weights, codes]:
            hash_tensor(digest, name, tensor)
    return {
        "class": type(autoencoder).__name__,
        "path": str(path or autoencoder.config.get("_name_or_path") or ""),
        "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest(),
        "weights_sha256": weights.hexdigest(),
        "codes_sha256": codes.hexdigest(),
        **({"rounded_sha256": " ".join(_rounded(autoencoder, [config]))} if rounded else {}),
    }


def makes_codes(autoencoder: Tokenizer, codes_sha256: str, rounded_sha256: str | None = None) -> bool | None:
    """Whether an autoencoder is the tokenizer of these hashes, in the precision of then or in another.

    The same model in half precision is that tokenizer too, wherever it was cast, then or now: the weights of one are
    those of the other, rounded, so that some codes may differ, but all mean the same. Quantizers stay in float32.

    Args:
        autoencoder: the model.
        codes_sha256, rounded_sha256: of a `tokenizer_identity`.

    Returns:
        None where that cannot be told: weights that are not here (offloaded), or rounded ones of a tokenizer whose
        identity an older version wrote, without `rounded_sha256`.
    """
    autoencoder = _plain(autoencoder)
    tensors = {name: each for name, each in _tensors(autoencoder) if not autoencoder.only_decodes(name)}
    if any(tensor.is_meta for tensor in tensors.values()):
        return None
    configs = [_options(autoencoder)]
    if "quantizer_config" not in configs[0] and autoencoder.config.get("quantizer_config"):
        configs.append({**configs[0], "quantizer_config": {}})  # what an earlier version kept that got no options
    for config in configs:
        exact = _start(autoencoder, config)
        for name, tensor in tensors.items():
            hash_tensor(exact, name, tensor)
        if exact.hexdigest() == codes_sha256:
            return True
    if rounded_sha256 is not None:
        return not {*_rounded(autoencoder, configs)}.isdisjoint(rounded_sha256.split())
    stays = _prefixes_of_quantizers(autoencoder)
    floats = [
        each.float() for name, each in tensors.items() if each.is_floating_point() and not name.startswith(stays)
    ]
    halved = any(all(torch.equal(each.to(half).float(), each) for each in floats) for half in HALVES)
    return None if halved else False


def tokenizer_of(dataset: Any) -> dict[str, str]:
    """The `tokenizer_identity` that a data set of codes, or the one that it is part of, tells; {} where none does."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "tokenizer", None) or {}


def _rounded(autoencoder, configs):
    """Hashes, each once, of the values that codes depend on after each of `CASTS`, whatever their types are.

    First with the quantizers as they are, as our models are cast, then with theirs cast too; for each of some ways to
    write the config.
    """
    stays = _prefixes_of_quantizers(autoencoder)
    others, quantizers = ({casts: hashlib.sha256() for casts in [(), *CASTS]} for _ in range(2))
    for name, tensor in _tensors(autoencoder):
        if autoencoder.only_decodes(name):
            continue
        for casts, digest in (quantizers if name.startswith(stays) else others).items():
            values = tensor
            if tensor.is_floating_point():
                for dtype in casts:
                    values = values.to(dtype)
                values = values.float()
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(tensor_bytes(values))
    found = [
        hashlib.sha256(start.digest() + others[casts].digest() + quantizers[theirs].digest()).hexdigest()[:16]
        for start in [_start(autoencoder, config) for config in configs]
        for all_of_it in (False, True)
        for casts in CASTS
        for theirs in [casts if all_of_it else ()]
    ]
    return list(dict.fromkeys(found))  # 16 digits are enough to tell models apart


def _plain(autoencoder: Any) -> Any:
    """What torch.compile wrapped."""
    return getattr(autoencoder, COMPILED.rstrip("."), autoencoder)


def _options(autoencoder):
    """The config without what is at its default: an option that a later version adds changes nothing there."""
    defaults = {name: option.default for name, option in inspect.signature(type(autoencoder)).parameters.items()}
    former = {new: old for old, new in autoencoder.renamed_options().items()}  # a new name makes no other tokenizer
    config = {key: _as_saved(value) for key, value in autoencoder.as_saved_config(dict(autoencoder.config)).items()}
    return {
        former.get(key, key): value
        for key, value in config.items()
        if not key.startswith("_") and value != defaults.get(key, inspect.Parameter.empty)
    }


def _as_saved(value):
    """As a folder has it, where tuples are lists: a model is the same tokenizer before it is saved and after."""
    if isinstance(value, dict):
        return {key: _as_saved(each) for key, each in value.items()}
    return [_as_saved(each) for each in value] if isinstance(value, tuple | list) else value


def _start(autoencoder, config):
    """A digest of the options that codes depend on."""
    encoding = {name: value for name, value in config.items() if name not in autoencoder.decoder_options}
    return hashlib.sha256(json.dumps(encoding, sort_keys=True, default=str).encode())


def _tensors(autoencoder: Tokenizer) -> Iterator[tuple[str, torch.Tensor]]:
    """The state by name, in order; a part that torch.compile wraps has the names that it had before."""
    state = {name.replace(COMPILED, ""): tensor for name, tensor in autoencoder.state_dict().items()}
    return iter(sorted(state.items(), key=lambda item: item[0]))


def _prefixes_of_quantizers(autoencoder):
    """What the names of their tensors begin with."""
    modules, quantizers = autoencoder.named_modules(), list(autoencoder.quantizers)
    return tuple(f"{name.replace(COMPILED, '')}." for name, each in modules if any(each is one for one in quantizers))


def differing_hash(one: dict[str, str], other: dict[str, str]) -> str | None:
    """Which entry shows that two `tokenizer_identity` are of tokenizers that make different codes; None: none does.

    Where one of them has no `codes_sha256`, as older files have not, decoders count too.
    """
    hashes = ["codes_sha256"] if {"codes_sha256"} <= one.keys() & other.keys() else ["config_sha256", "weights_sha256"]
    return next((key for key in ["class", *hashes] if one[key] != other[key]), None)

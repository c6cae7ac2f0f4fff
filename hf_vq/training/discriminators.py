"""The discriminator that a training starts with."""

from pathlib import Path
from typing import Any

import torch

from hf_vq.arguments import build
from hf_vq.losses import DISCRIMINATORS, PatchDiscriminator
from hf_vq.saved import DISCRIMINATOR, below
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.sample_terms import check_space_dims

DEFAULTS = {1: "multi_scale_stft", 2: "patch"}  # by axes of space


def make_discriminator(args: AutoencoderTrainingArguments, model: Any) -> Any:
    """A discriminator of an autoencoder's samples: new, its weights hang on the training's seed alone, or trained.

    Raises:
        ValueError: one for other samples, of another type than asked for, or options that it does not have.
    """
    kind = args.discriminator_type or DEFAULTS.get(model.space_dims)
    if kind is None:
        raise ValueError(
            f"adversarial_weight={args.adversarial_weight!r} is for samples with one or two axes of space, those of "
            f"{type(model).__name__} have {model.space_dims}"
        )
    if args.discriminator_init is not None:
        return _trained(args, model)
    check_space_dims("discriminator_type", kind, model, DISCRIMINATORS[kind].space_dims)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        given: Any = args.discriminator_config or {}
        return build(DISCRIMINATORS[kind], "discriminator_config", {"in_channels": model.in_channels, **given})


def _trained(args, model):
    source, kind = args.discriminator_init, args.discriminator_type
    found = load_discriminator(source)
    if kind is not None and not isinstance(found, DISCRIMINATORS[kind]):
        raise ValueError(
            f"discriminator_init={source!r} holds a {type(found).__name__}, not discriminator_type={kind!r}"
        )
    check_space_dims("discriminator_init", source, model, found.space_dims)
    if found.config.in_channels != model.in_channels:
        raise ValueError(
            f"discriminator_init={source!r} takes {found.config.in_channels} channels, the autoencoder has "
            f"{model.in_channels}"
        )
    return found


def load_discriminator(source: str) -> Any:
    """The discriminator in a folder or repo of its own or beside an autoencoder, or in a checkpoint.

    Raises:
        FileNotFoundError: an autoencoder without one.
        ValueError: something else, or broken weights.
    """
    if Path(source).is_file():
        return PatchDiscriminator.from_single_file(source)
    classes = {each.__name__: each for each in DISCRIMINATORS.values()}
    path: Any = source
    options: dict[str, Any] = {}
    owner = PatchDiscriminator.load_config(source).get("_class_name")
    if owner is not None and owner not in classes:  # of a training
        path, options = below(source, {"subfolder": DISCRIMINATOR})
        owner = PatchDiscriminator.load_config(path, **options).get("_class_name")
    return classes.get(owner, PatchDiscriminator).from_pretrained(path, **options)

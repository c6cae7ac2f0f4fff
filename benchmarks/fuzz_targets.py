"""What `fuzz_arguments.py` calls with wrong values: every public constructor, config and call, small, and its use."""

import functools
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from behaviour_models import (
    DIFFUSION,
    GPT,
    LLAMA,
    MASKED,
    PIXELCNN,
    PIXELSNAIL,
    RQ,
    RQVAE,
    TRANSFORMER,
    VQMODEL,
    WAVENET,
    make_conditions,
    small_hierarchy,
    small_pipeline,
)

import hf_vq
from hf_vq.autoencoders.pretrained import make_face
from hf_vq.data.codes import load_codes
from hf_vq.data.images import load_images
from hf_vq.data.padding import SampleCollator
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.priors.sampling import check_sampling_options
from hf_vq.quantizers import make_quantizer
from hf_vq.quantizers.checks import constructor_arguments
from hf_vq.registry import AUTOENCODERS, MODALITIES, PIPELINES, PRIORS, QUANTIZERS
from hf_vq.training.arguments import TEXTS, AutoencoderTrainingArguments
from hf_vq.training.autoencoder import train_autoencoder
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior
from hf_vq.training.prior import OPTIONS, PriorTrainingArguments, train_prior

TIMES = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in TRANSFORMER.items()}
SMALL_AUTOENCODERS = {
    "DVAE": {"in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1, "codebook_size": 8,
             "codebook_dim": 4},
    "MAGVIT2Model": {"in_channels": 1, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4,
                     "codebook_size": 16},
    "RQVAE": {**RQVAE, "attention_stages": None, "quantizer_config": {"num_levels": 2}},
    "ViTVQModel": {"in_channels": 1, "image_size": 16, "patch_size": 4, **TIMES, "codebook_size": 8,
                   "codebook_dim": 4},
    "VQModel": {**VQMODEL, "sample_size": 16},
    "VQVAE": {"in_channels": 1, "hidden_channels": 8, "num_residual_layers": 1, "codebook_size": 8, "codebook_dim": 4},
    "VQVAE2": {"in_channels": 1, "hidden_channels": 8, "num_residual_layers": 1, "residual_channels": 4,
               "codebook_size": 8, "codebook_dim": 4},
}  # fmt: skip
SMALL_PRIORS = {
    "DelayedTransformerPrior": {**LLAMA, "num_levels": 2, "code_shape": (2, 3, 4)},
    "DiscreteDiffusionPrior": DIFFUSION,
    "GPTPrior": GPT,
    "LlamaGenPrior": {**LLAMA, "num_classes": 3},
    "MaskedPrior": MASKED,
    "MixtureWaveNet": {**WAVENET, "num_mixtures": 3},
    "PixelCNN": PIXELCNN,
    "PixelSNAIL": PIXELSNAIL,
    "RQTransformer": RQ,
    "TransformerPrior": LLAMA,
    "WaveNet": {**WAVENET, "codebook_size": 11},
}
SMALL_QUANTIZERS = {  # codebook_size, and options
    "finite_scalar": (16, {"levels_per_dim": [4, 4], "fit_latents": False}),
    "lookup_free": (64, {}),
    "remapped": (12, {"num_used": 4}),
    "residual": (12, {"num_levels": 2}),
}
PARTS = {("residual", "level_config"): ("level_type", ("ema", "vector")),
         ("product", "group_config"): ("group_type", ("ema", "vector", "residual")),
         ("remapped", "base_config"): (None, ("vector",))}  # fmt: skip


@dataclass
class Target:
    """Something that takes arguments.

    Attributes:
        name: of it.
        kinds: annotations by argument.
        build: makes or calls it with one argument by name, the others small.
        use: what is done with what was made; where it is a call, nothing.
        late: whether what it takes may also be refused when it meets model and data, before any step.
    """

    name: str
    kinds: dict[str, Any]
    build: Callable[..., Any]
    use: Callable[[Any], Any] = lambda made: None
    late: bool = False


def annotations(function: Callable, *left_out: str) -> dict[str, Any]:
    """Annotations of the named parameters of a function, with their ranges."""
    hints = get_type_hints(inspect.unwrap(function), include_extras=True)
    named = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) and each.name not in ("self", *left_out)
    ]
    return {name: hints.get(name, Any) for name in named}


def config_annotations(config_class: type) -> dict[str, Any]:
    """Annotations of our fields of a config class."""
    found: dict[str, Any] = {}
    for base in reversed(config_class.__mro__):
        if base.__module__.startswith("hf_vq"):
            found |= vars(base).get("__annotations__", {})
    return {entry.name: found[entry.name] for entry in fields(config_class) if entry.name in found and entry.init}


def use_autoencoder(model: Any) -> None:
    """Training and its gradient, codes and back, saved and loaded."""
    model = getattr(model, "autoencoder", model)  # of a face
    side = model.config.get("image_size", 32)
    space = (side, side) if isinstance(side, int) else tuple(side)
    sample = torch.rand(2, model.in_channels, *space) * 2 - 1
    model.train()(sample).loss.backward()
    codes = model.eval().tokenize(sample)
    model.detokenize(codes)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        type(model).from_pretrained(folder)


def use_quantizer(quantizer: Any) -> None:
    """Training and its gradient, codes and back."""
    latents = torch.randn(2, quantizer.dim, 4, 4, requires_grad=True)
    output = quantizer.train()(latents)
    (output.loss + output.latents.sum()).backward()
    quantizer.eval().detokenize(quantizer.tokenize(latents.detach()))


def use_prior(prior: Any) -> None:
    """Training and its gradient, sampling, saved and loaded."""
    shape = prior.config.code_shape
    if shape is None:
        shape = {1: (12,), 2: (3, 4), 3: (getattr(prior.config, "num_levels", 2), 2, 3)}[prior.grid_dims]
    if hasattr(prior, "set_code_vectors"):
        prior.set_code_vectors(torch.randn_like(prior.code_vectors))
    codes = torch.randint(prior.config.codebook_size, (2, *shape)) if prior.models_codes else torch.zeros(2, *shape)
    conditions = make_conditions(prior, 2, shape)
    if getattr(prior.config, "use_global_features", False):
        conditions["global_features"] = torch.randn(2, prior.config.global_channels)
    prior.train()(codes, **conditions).loss.backward()
    small = {} if conditions else {"batch_size": 2}
    prior.eval().sample(code_shape=shape, **conditions, **small)
    with tempfile.TemporaryDirectory() as folder:
        prior.save_pretrained(folder)
        type(prior).from_pretrained(folder)


def autoencoders() -> list[Target]:
    found = []
    for name, small in SMALL_AUTOENCODERS.items():
        model_class = AUTOENCODERS[name]
        config_class, face = make_face(model_class)
        kinds = annotations(model_class.__init__)
        found.append(Target(name, kinds, _with(model_class, small), use_autoencoder))
        found.append(Target(face.__name__, kinds, _with(_made(face, config_class), small), use_autoencoder))
    return found


def quantizers() -> list[Target]:
    found = []
    for name in QUANTIZERS:
        size, options = SMALL_QUANTIZERS.get(name, (12, {}))
        facts = {"codebook_size": size, "dim": 6, **options}
        found.append(
            Target(name, option_annotations(name), _with(functools.partial(_quantizer, name), facts), use_quantizer)
        )
        nested = {**SMALL_AUTOENCODERS["VQVAE"], "quantizer_type": name, "codebook_size": size}
        kinds = option_annotations(name)
        within = {option: kind for option, kind in kinds.items() if option not in ("codebook_size", "dim")}
        build = functools.partial(_within, hf_vq.VQVAE, nested, "quantizer_config", options)
        found.append(Target(f"VQVAE.quantizer_config of {name}", within, build, use_autoencoder))
    for (name, part), (chooser, types) in PARTS.items():
        for part_type in types:
            size, options = SMALL_QUANTIZERS.get(name, (12, {}))
            facts = {"codebook_size": size, "dim": 6, **options, **({chooser: part_type} if chooser else {})}
            kinds = {k: v for k, v in option_annotations(part_type).items() if k not in ("codebook_size", "dim")}
            build = functools.partial(_within, functools.partial(_quantizer, name), facts, part, {})
            found.append(Target(f"{name}.{part} of {part_type}", kinds, build, use_quantizer))
    return found


def option_annotations(quantizer_type: str) -> dict[str, Any]:
    """Annotations of the constructor's arguments, of those too that it hands on to a base class."""
    owner, found = QUANTIZERS[quantizer_type], {}
    for base in reversed(owner.__mro__):
        if "__init__" in vars(base) and base.__module__.startswith("hf_vq"):
            found |= annotations(vars(base)["__init__"])
    return {name: found[name] for name in constructor_arguments(owner)}


def priors() -> list[Target]:
    found = []
    for name, small in SMALL_PRIORS.items():
        prior_class, config_class = PRIORS[name], PRIORS[name].config_class
        found.append(
            Target(name, config_annotations(config_class), _with(_made(prior_class, config_class), small), use_prior)
        )
        found.append(
            Target(f"{name}.sample", annotations(prior_class.sample, "progress_bar"), functools.partial(_sample, name))
        )
    found.append(Target("check_sampling_options", annotations(check_sampling_options), check_sampling_options))
    return found


def pipelines() -> list[Target]:
    found = []
    for name in ("VQPipeline", "VQVAE2Pipeline"):
        owner = PIPELINES[name]
        found.append(Target(f"{name}.__call__", annotations(owner.__call__), functools.partial(_call, name)))
        found.append(
            Target(
                name,
                {"class_names": annotations(owner.__init__)["class_names"]},
                functools.partial(_repiped, name),
                _piped,
            )
        )
    return found


def processors() -> list[Target]:
    found = []
    for modality in MODALITIES.values():
        owner = modality.processor
        found.append(Target(owner.__name__, annotations(owner.__init__), owner, _processed))
        call = functools.partial(owner(channels=1).postprocess, torch.zeros(1, 1, 8, 8))
        found.append(Target(f"{owner.__name__}.postprocess", annotations(owner.postprocess, "sample"), call))
    return found


def training() -> list[Target]:
    small = {
        "output_dir": None,
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    evaluations = {"autoencoder": evaluate_autoencoder, "prior": evaluate_prior}
    ours = set(get_type_hints(AutoencoderTrainingArguments)) | {"ddp_find_unused_parameters"}
    found = [
        Target(owner.__name__, {name: kind for name, kind in _field_annotations(owner).items() if name in ours},
               functools.partial(_arguments, owner, small), use, late=True)
        for owner, use in ((AutoencoderTrainingArguments, _train_autoencoder), (PriorTrainingArguments, _train_prior))
    ]  # fmt: skip
    for kind, evaluate in evaluations.items():
        call = functools.partial(
            evaluate, _pipe("VQPipeline").components[kind], _images() if kind == "autoencoder" else _Codes()
        )
        found.append(Target(evaluate.__name__, {"batch_size": annotations(evaluate)["batch_size"]}, call))
    return found


def readers() -> list[Target]:
    kinds = annotations(load_images, "source")
    return [
        Target("load_images", kinds, functools.partial(load_images, "digits"), lambda found: (found[0], found[-1])),
        Target("tokenize_dataset", annotations(tokenize_dataset, "autoencoder", "dataset", "output_dir"), _tokenize),
        Target("load_codes", annotations(load_codes, "folder", "tokenizer", "level"),  # level: an older name of grid
               functools.partial(load_codes, _codes_folder()), lambda found: found[0]),
        Target("SampleCollator", annotations(SampleCollator.__init__), SampleCollator, _collate, late=True),
    ]  # fmt: skip


def targets() -> list[Target]:
    """Everything that is called."""
    return [*autoencoders(), *quantizers(), *priors(), *pipelines(), *processors(), *training(), *readers()]


def _with(make, small):
    return lambda **one: make(**{**small, **one})


def _made(model_class, config_class):
    return lambda **options: model_class(config_class(**options))


def _quantizer(name, codebook_size, dim, **options):
    return make_quantizer(name, codebook_size, dim, options)


def _within(make, facts, section, options, **one):
    return (
        make(**facts, **{section: {**options, **one}})
        if section not in facts
        else make(**{**facts, section: {**facts[section], **options, **one}})
    )


@functools.cache
def _prior(name):
    torch.manual_seed(0)
    prior = PRIORS[name](PRIORS[name].config_class(**SMALL_PRIORS[name])).eval()
    if hasattr(prior, "set_code_vectors"):
        prior.set_code_vectors(torch.randn_like(prior.code_vectors))
    return prior


def _sample(name, **one):
    prior = _prior(name)
    conditions = make_conditions(prior, 1)
    return prior.sample(**{**conditions, **({} if conditions else {"batch_size": 1}), **one})


@functools.cache
def _pipe(name):
    pipe = small_pipeline(None if name == "VQPipeline" else small_hierarchy())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call(name, **one):
    pair = {}
    if one.keys() & {"image", "mask_image"}:  # they go together
        pair = {"image": np.zeros((1, 16, 16, 1), dtype=np.uint8), "mask_image": np.zeros((1, 16, 16))}
    return _pipe(name)(**{"class_labels": [0], **pair, **one})


def _repiped(name, **one):
    return PIPELINES[name](**{**_pipe(name).components, **one})


def _piped(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe(class_labels=[0])
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        type(pipe).from_pretrained(folder)


def _processed(processor):
    picture = np.zeros(
        (1, 10, 12, processor.channels), dtype=np.uint8 if processor.value_range is None else np.float32
    )
    processor.postprocess(processor(picture))
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        assert type(processor).from_pretrained(folder) == processor


class _Samples(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"sample": torch.full((1, 16, 16), index / 4)}


class _Codes(torch.utils.data.Dataset):
    codebook_size = 11

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"codes": torch.full((4, 4), index), "class_labels": torch.tensor(index % 3)}


def _images():
    return _Samples()


def _field_annotations(owner):
    hints = get_type_hints(owner, include_extras=True)
    if owner is PriorTrainingArguments:
        hints |= OPTIONS
    hints |= TEXTS
    return {entry.name: hints[entry.name] for entry in fields(owner) if entry.init}


def _arguments(owner, small, **one):
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    return owner(**{**small, "output_dir": str(folder), **one})


def _shortened(args):
    """Of one step, not compiled: how long a training is asked to be is not the question."""
    args.max_steps, args.torch_compile = 1, False
    return args


def _train_autoencoder(args):
    args = _shortened(args)
    train_autoencoder(hf_vq.VQVAE(**SMALL_AUTOENCODERS["VQVAE"]), _Samples(), args, _Samples())


def _train_prior(args):
    if args.torch_compile:
        return  # inductor alone takes longer than a case may
    args = _shortened(args)
    config = hf_vq.PixelCNNConfig(**{**PIXELCNN, "num_classes": 3, "code_shape": (4, 4)})
    train_prior(hf_vq.PixelCNN(config), _Codes(), args, _Codes())


def _tokenize(**one):
    with tempfile.TemporaryDirectory() as folder:
        tokenize_dataset(_pipe("VQPipeline").autoencoder, _Samples(), Path(folder) / "codes", **one)


@functools.cache
def _codes_folder():
    folder = Path(tempfile.mkdtemp(prefix="fuzz-codes-"))
    tokenize_dataset(_pipe("VQPipeline").autoencoder, _Samples(), folder / "codes")
    return folder / "codes"


def _collate(collator):
    collator([_Samples()[0], _Samples()[1]])

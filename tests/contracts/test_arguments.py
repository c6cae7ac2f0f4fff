"""Every number that a registered class takes is a number: what is none is refused with its name, before any work."""

import inspect
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Annotated, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch

import hf_vq
from hf_vq.arguments import check_argument, checked
from hf_vq.autoencoders.pretrained import make_face
from hf_vq.priors.sampling import check_sampling_options
from hf_vq.quantizers import make_quantizer
from hf_vq.quantizers.registry import option_names
from hf_vq.registry import AUTOENCODERS, PIPELINES, PRIORS, QUANTIZERS
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.autoencoder import train_autoencoder
from hf_vq.training.prior import PriorTrainingArguments

from ..quantizer_variants import VARIANTS
from ..tiny_models import Images
from .test_autoencoders import SMALL as TINY

OURS = {kind: [name for name, found in table.items() if found.__module__.startswith("hf_vq")]
        for kind, table in (("autoencoder", AUTOENCODERS), ("pipeline", PIPELINES), ("prior", PRIORS))}  # fmt: skip
SEQUENCES = {tuple, list, Sequence}
SMALL = {
    "RQVAE": {"block_out_channels": (32,), "attention_stages": None},
    "ViTVQModel": {"encoder_depth": 1},
    "VQModel": {"latent_channels": 4},
}
NEEDED = {"LlamaGenPrior": {"num_classes": 2}, "DelayedTransformerPrior": {"num_levels": 2}}
BAD = (math.nan, math.inf, -math.inf, 1e400, True, "3", None, [])


def leaves(annotation):
    """The types that a value of an annotation may have; sequences by their own."""
    if get_origin(annotation) is Annotated:
        return leaves(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {leaf for part in get_args(annotation) for leaf in leaves(part)}
    return {get_origin(annotation) or annotation}


def refused(annotation):
    """The bad values that an annotation with a number in it has no room for."""
    kinds = leaves(annotation)
    room = {type(None): type(None) in kinds, bool: bool in kinds, str: str in kinds, list: bool(kinds & SEQUENCES)}
    return [value for value in BAD if not room.get(type(value), False)]


def numbers(function):
    """Annotations of the parameters that are numbers, by name."""
    hints = get_type_hints(inspect.unwrap(function))
    return {name: hint for name, hint in hints.items() if name != "return" and leaves(hint) & {int, float}}


def cases(function):
    return [(name, value) for name, hint in numbers(function).items() for value in refused(hint)]


def told(name, value, message):
    assert "\n" not in message
    assert name in message
    assert repr(value) in message


def every_refusal(make, found):
    for name, value in found:
        with pytest.raises(ValueError, match=name) as error:
            make(**{name: value})
        told(name, value, str(error.value))
    return len(found)


@pytest.mark.parametrize("name", OURS["autoencoder"])
def test_autoencoders_refuse_what_is_no_number(name):
    model_class = AUTOENCODERS[name]
    found = cases(model_class.__init__)
    assert every_refusal(model_class, found) > 50
    every_refusal(make_face(model_class)[0], found)  # the config of transformers alone


@pytest.mark.parametrize("name", [name for name in OURS["autoencoder"] if name != "MAGVIT2Model"])
def test_options_within_options_are_looked_at_too(name):
    generator = random.Random(name)
    for quantizer_type, config, option in (
        ("vector", {}, "beta"),
        ("residual", {"level_type": "ema"}, "level_config.decay"),
        ("product", {"group_type": "ema"}, "group_config.epsilon"),
        ("remapped", {"num_used": 4}, "base_config.restart_threshold"),
    ):
        value = generator.choice([math.nan, True, "3", None])
        *outer, option = option.split(".")
        own = {outer[0]: {option: value}} if outer else {option: value}
        with pytest.raises(ValueError, match=f"{option} must be a finite number, got {value!r}"):
            AUTOENCODERS[name](quantizer_type=quantizer_type, quantizer_config=config | own, **SMALL.get(name, {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantizers_refuse_what_is_no_number(variant):
    quantizer_type, size, config = VARIANTS[variant]
    names = option_names(QUANTIZERS[quantizer_type])
    found, seen = [], set()
    for base in QUANTIZERS[quantizer_type].__mro__:  # what a class declares anew counts as it says
        if "__init__" in vars(base) and base.__module__.startswith("hf_vq"):
            own = [(name, value) for name, value in cases(base.__init__) if name in names - seen]
            found += own
            seen |= set(inspect.signature(base.__init__).parameters)
    every_refusal(lambda **one: make_quantizer(quantizer_type, size, 6, {**config, **one}), found)
    for value in BAD:
        for name, arguments in (("codebook_size", (value, 6)), ("dim", (size, value))):
            with pytest.raises(ValueError, match=name) as error:
                make_quantizer(quantizer_type, *arguments, config)
            told(name, value, str(error.value))


@pytest.mark.parametrize("name", OURS["prior"])
def test_configs_of_priors_refuse_what_is_no_number(name):
    config_class = PRIORS[name].config_class
    ours = [base for base in config_class.__mro__ if base.__module__.startswith("hf_vq")]
    hints = {field: hint for base in reversed(ours) for field, hint in base.__annotations__.items()}
    own = [field for field, hint in hints.items() if leaves(hint) & {int, float}]
    found = [(field, value) for field in own for value in refused(hints[field])]
    assert every_refusal(config_class, found) > 50
    config = config_class(**NEEDED.get(name, {}))
    with pytest.raises(ValueError, match="codebook_size must be an integer, got nan"):
        config.codebook_size = math.nan  # set later
    with pytest.raises(ValueError, match=r"code_shape\[1\] must be an integer, got nan"):
        config_class(code_shape=(2, math.nan))


@pytest.mark.parametrize("arguments_class", [AutoencoderTrainingArguments, PriorTrainingArguments])
def test_training_arguments_refuse_what_is_no_number(arguments_class, tmp_path):
    hints = get_type_hints(arguments_class)
    found = [
        (entry.name, value)
        for entry in fields(arguments_class)
        if entry.init and leaves(hints[entry.name]) & {int, float}
        for value in refused(hints[entry.name])
    ]
    assert every_refusal(lambda **one: arguments_class(output_dir=str(tmp_path), **one), found) > 100


@pytest.mark.parametrize("name", OURS["pipeline"])
def test_calls_of_pipelines_refuse_what_is_no_number(name):
    call = PIPELINES[name].__call__
    found = [case for case in cases(call) if case[0] not in ("class_labels", "generator")]
    assert every_refusal(lambda **one: call(None, **one), found) > 20  # nothing of the pipeline is looked at before


@pytest.mark.parametrize("name", OURS["prior"])
def test_calls_of_sample_refuse_what_is_no_number(name):
    sample = PRIORS[name].sample
    assert every_refusal(lambda **one: sample(None, **one), cases(sample)) > 10


def test_sampling_options_refuse_what_is_no_number():
    assert every_refusal(check_sampling_options, cases(check_sampling_options)) > 20
    with pytest.raises(ValueError, match="temperature must be a finite number, got '3'"):
        check_sampling_options("3")


def test_a_users_classes_are_looked_at_by_their_annotations_alone():
    class Untold(hf_vq.quantizers.VectorQuantizer):
        quantizer_type = "untold"

        def __init__(self, codebook_size, dim, *, sharpness=1, width: int = None, **options):  # noqa: RUF013
            super().__init__(codebook_size, dim, **options)

    Untold(8, 4, sharpness=0.5)
    with pytest.raises(ValueError, match="sharpness must be finite, got nan"):
        Untold(8, 4, sharpness=math.nan)
    with pytest.raises(ValueError, match="width must be an integer, got 'wide'"):
        Untold(8, 4, width="wide")
    with pytest.raises(ValueError, match="dim must be an integer, got True"):
        Untold(8, True)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (int | tuple[int, ...], (3, math.nan), r"sizes\[1\] must be an integer, got nan"),
        (float, 10**400, "sizes must be a finite number, got 1000"),
        (float | None, "x", "sizes must be a finite number or None, got 'x'"),
        (bool, "false", "sizes must be True or False, got 'false'"),
        (dict | None, [1], r"sizes must be a mapping or None, got \[1\]"),
        (torch.Tensor | None, math.nan, "sizes must be a Tensor or None, got nan"),
        (str, ["mse"], r"sizes must be a string, got \['mse'\]"),
    ],
)
def test_a_value_against_its_annotation(annotation, value, words):
    with pytest.raises(ValueError, match=words):
        check_argument("sizes", value, annotation)


def test_what_fits_passes():
    for annotation, value in (
        (float, 3), (float, np.float32(0.5)), (int, np.int64(3)), (bool, np.bool_(True)), (bool, 0),
        (int | tuple[int, ...], [3, 4]), (int | str, "nearest"), (torch.Tensor | None, np.zeros(2)), (dict, {}),
    ):  # fmt: skip
        check_argument("value", value, annotation)

    @checked
    def call(count: int, *more, **others):
        return count

    assert call(3, math.nan, other="x") == 3
    with pytest.raises(TypeError, match="missing"):
        call()


class Settings(Mapping):
    """A mapping that is no dict, as OmegaConf's."""

    def __init__(self, values):
        self.values_ = values

    def __getitem__(self, name):
        value = self.values_[name]
        return Settings(value) if isinstance(value, dict) else Items(value) if isinstance(value, list) else value

    def __iter__(self):
        return iter(self.values_)

    def __len__(self):
        return len(self.values_)


class Items(Sequence):
    """A sequence that is neither list nor tuple."""

    def __init__(self, values):
        self.values = values

    def __getitem__(self, index):
        return self.values[index]

    def __len__(self):
        return len(self.values)


def as_numpy(value):
    """The value with every number in it one of NumPy."""
    if isinstance(value, bool | int | float):
        return {bool: np.bool_, int: np.int64, float: np.float64}[type(value)](value)
    if isinstance(value, list | tuple):
        return type(value)(map(as_numpy, value))
    return {name: as_numpy(item) for name, item in value.items()} if isinstance(value, dict) else value


def options_of(function):
    """Its defaults by name."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {each.name: each.default for each in parameters if each.default is not each.empty}


@pytest.mark.parametrize("name", OURS["autoencoder"])
def test_numbers_of_numpy_and_other_mappings_make_the_same_autoencoder_and_are_saved(name, tmp_path):
    model_class = AUTOENCODERS[name]
    options = {**options_of(model_class.__init__), **TINY[name]}
    torch.manual_seed(0)
    wanted = model_class(**options)
    torch.manual_seed(0)
    model = model_class(**as_numpy(options))

    def named(config):
        return json.loads(json.dumps({name: config[name] for name in options}))

    assert named(model.config) == named(wanted.config)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in wanted.state_dict().items())
    model.save_config(tmp_path)
    assert named(model_class.from_config(model_class.load_config(tmp_path)).config) == named(wanted.config)


@pytest.mark.parametrize("name", OURS["prior"])
def test_numbers_of_numpy_make_the_same_config_of_a_prior_and_are_saved(name, tmp_path):
    config_class = PRIORS[name].config_class
    prior = object.__new__(PRIORS[name])
    prior.config = config_class(**NEEDED.get(name, {}))
    shape = (getattr(prior.config, "num_levels", 4), 4, 4)[: prior.grid_dims]
    wanted = config_class(**{"code_shape": shape, **NEEDED.get(name, {})})
    options = {entry.name: getattr(wanted, entry.name) for entry in fields(config_class)}
    own = {key: value for key, value in options.items() if isinstance(value, bool | int | float | tuple | list)}
    config = config_class(**{**as_numpy(own), "code_shape": np.array(shape)})
    config.save_pretrained(tmp_path)
    saved = config_class.from_pretrained(tmp_path)
    assert tuple(saved.code_shape) == tuple(shape)
    assert all(json.dumps(getattr(saved, key)) == json.dumps(value) for key, value in own.items())


@pytest.mark.parametrize("options", [
    {"beta": np.float32(0.5), "kmeans_init": np.bool_(False), "decay": np.array(0.5), "restart_threshold": 0},
    Settings({"beta": torch.tensor(0.5)}),
    {"level_config": Settings({"beta": np.float32(0.5)}), "num_levels": np.int8(2)},
    Settings({"level_type": "finite_scalar", "level_config": {"levels_per_dim": [2, 2, 2, 2]}}),
    {"levels_per_dim": np.array([2, 4, 2])}, {"levels_per_dim": Items([4, np.int64(4)])}, {"num_used": np.int64(5)},
], ids=["numpy", "tensor", "levels", "grids", "array", "sequence", "integer"])  # fmt: skip
def test_options_of_quantizers_from_numpy_and_other_mappings_are_taken_and_saved(options, tmp_path):
    kinds = {"level_config": "residual", "levels_per_dim": "finite_scalar", "num_used": "remapped", "beta": "ema"}
    quantizer_type = next(kind for name, kind in kinds.items() if name in options)
    size = {"codebook_size": np.int64(16), "codebook_dim": np.array(4)}
    make_quantizer(quantizer_type, np.int64(16), np.int32(4), options)
    model = hf_vq.VQVAE(1, 8, **size, quantizer_type=quantizer_type, quantizer_config=options).train()
    model(torch.rand(2, 1, 16, 16))
    model.save_pretrained(tmp_path)
    found = hf_vq.VQVAE.from_pretrained(tmp_path)
    assert dict(found.config)["quantizer_config"] == json.loads(json.dumps(dict(model.config)["quantizer_config"]))


def test_a_training_with_numbers_of_numpy_writes_what_it_was_given(tmp_path):
    options = {"max_steps": 2, "learning_rate": 0.5**10, "seed": 3, "logging_steps": 1, "weight_ema_decay": 0.5}
    args = AutoencoderTrainingArguments(
        str(tmp_path / "run"), disable_tqdm=np.bool_(True), use_cpu=np.bool_(True), **as_numpy(options)
    )
    report = train_autoencoder(hf_vq.VQVAE(1, 8, codebook_size=8, codebook_dim=4), Images(8), args)
    assert options.items() <= report["settings"]["arguments"].items()
    args = PriorTrainingArguments(str(tmp_path), use_cpu=True, learning_rate=np.float32(0.5), seed=np.int64(3))
    assert json.loads(args.to_json_string())["learning_rate"] == 0.5

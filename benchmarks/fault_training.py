"""Cases of training: precisions, data and options that are no numbers, checkpoints that were damaged."""

import inspect
import json
import math
import shutil
import typing
from dataclasses import fields
from pathlib import Path

import torch
from behaviour_models import PRIORS, Rows
from fault_kinds import Case, Wrong, check, kind
from fault_models import (
    FAMILIES,
    OPTIONS,
    SAMPLE,
    described,
    draw_quantizer,
    make_autoencoder,
    make_prior,
    make_rows,
    pictures,
    prior_batch,
)
from PIL import Image

import hf_vq_cli
from hf_vq.registry import QUANTIZERS
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.autoencoder import train_autoencoder
from hf_vq.training.checkpoints import MANIFEST
from hf_vq.training.prior import PriorTrainingArguments, train_prior

FILES = 8
UNCOUNTED = (MANIFEST, "README.md")
NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def fit(model, folder="run", data=None, evaluate=False, **options):
    """A report of two steps of eight samples."""
    options = {"max_steps": 2, "logging_steps": 1, "save_steps": 0, **options}
    args = AutoencoderTrainingArguments(folder, 8, use_cpu=True, disable_tqdm=True, **options)
    data = Rows({"sample": pictures(32)} if data is None else {"sample": data}, sample_shape=SAMPLE)
    return train_autoencoder(model, data, args, data if evaluate else None)


def fit_prior(prior, folder="run", **options):
    """A report of two steps of four grids."""
    options = {"max_steps": 2, "save_strategy": "no", "per_device_train_batch_size": 4, **options}
    args = PriorTrainingArguments(folder, use_cpu=True, disable_tqdm=True, report_to="none", **options)
    codes, conditions = prior_batch(prior, 16)
    data = Rows({prior.main_input_name: codes, **conditions}, codebook_size=prior.config.codebook_size)
    return train_prior(prior, data, args)


@kind("mixed precision", "every family trains in bfloat16; float16 on a CPU is refused")
def mixed_precision(random):
    for family in FAMILIES:
        quantizer = draw_quantizer(random, random.choice(list(OPTIONS)))
        options = {"gradient_accumulation_steps": random.choice([1, 2])}
        case = lambda pair=(family, quantizer), options=options: _learns(*pair, bf16=True, **options)  # noqa: E731
        yield Case(f"{family} {described(*quantizer)} bf16", case, "works")
    codes = [name for name, _ in PRIORS if not name.startswith("Mixture")]  # whose training is a user's own
    for name in random.sample(codes, 4):
        yield Case(f"{name} bf16", lambda name=name: fit_prior(make_prior(name), bf16=True), "works")
        yield Case(f"{name} fp16", lambda name=name: fit_prior(make_prior(name), fp16=True), "refuses")
    for family in random.sample(list(FAMILIES), 3):
        yield Case(f"{family} fp16", lambda family=family: _learns(family, ("ema", 9, {}), fp16=True), "refuses")


def _learns(family, quantizer, **options):
    model = make_autoencoder(family, quantizer)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fit(model, evaluate=True, **options)
    moved = [not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()]
    check(any(moved), "nothing moved")
    check(all(parameter.dtype == torch.float32 for parameter in model.parameters()), "weights lost their precision")


def float_options(function):
    """Names of the arguments of a function that are floats."""
    hints = typing.get_type_hints(function)
    return [name for name in inspect.signature(function).parameters if hints.get(name) in (float, float | None)]


@kind("no numbers", "options that are NaN or infinite")
def options_without_number(random):
    drawn = []
    for name, found in sorted(QUANTIZERS.items()):
        owners = [base for base in found.__mro__ if base.__module__.startswith("hf_vq") and "__init__" in vars(base)]
        for option in sorted({option for base in owners for option in float_options(vars(base)["__init__"])}):
            if option in OPTIONS[name][2] or option in float_options(found.__init__):
                drawn.append(("quantizer", name, option))
    for family in FAMILIES:
        for option in float_options(type(make_autoencoder(family, ("ema", 9, {}))).__init__):
            drawn.append(("autoencoder", family, option))
    training = typing.get_type_hints(AutoencoderTrainingArguments)
    for entry in fields(AutoencoderTrainingArguments):
        if training[entry.name] in (float, float | None):
            drawn.append(("training", "autoencoder", entry.name))
    drawn += [("training", "prior", option) for option in ("learning_rate", "weight_decay", "weight_ema_decay")]
    for name, make in PRIORS:
        options = [key for key, value in make().config.to_dict().items() if type(value) is float and "drop" in key]
        drawn += [("prior", name, option) for option in options]
    for what in random.sample(drawn, min(50, len(drawn))):
        number = random.choice(list(NUMBERS))
        yield Case(f"{' '.join(what)}={number}", lambda what=what, n=number: _build(*what, NUMBERS[n]), "refuses")


def _build(what, name, option, value):
    if what == "quantizer":
        sizes, needed, _ = OPTIONS[name]
        config = {key: values[0] for key, values in needed.items()} | {option: value}
        config |= {"levels_per_dim": [5, 3]} if sizes is None else {}
        make_rows((name, 15 if sizes is None else 16, config))
    elif what == "autoencoder":
        make_autoencoder(name, ("ema", 9, {}), **{option: value})
    elif what == "prior":
        make_prior(name, **{option: value})
    elif name == "prior":
        fit_prior(make_prior("PixelCNN plain"), **{option: value})
    else:
        AutoencoderTrainingArguments("run", **{option: value})


@kind("divergence", "constant data train; NaN in the data and absurd steps say where they diverged")
def divergence(random):
    for family in random.sample(list(FAMILIES), 4):
        quantizer, value = draw_quantizer(random, random.choice(list(OPTIONS))), random.choice([-1.0, 0.0, 0.3, 1.0])
        case = (family, quantizer, value)
        yield Case(f"{family} {described(*quantizer)}, all {value}", lambda case=case: _constant(*case), "works")
    for family in random.sample(["VQVAE", "VQVAE2", "DVAE", "RQVAE"], 2):
        grey = random.choice([0, 77, 255])
        yield Case(f"{family} by the command, all {grey}", lambda case=(family, grey): _constant_files(*case), "works")
    for family in random.sample(list(FAMILIES), 5):
        quantizer, number = draw_quantizer(random, random.choice(list(OPTIONS))), random.choice(list(NUMBERS))
        case = (family, quantizer, NUMBERS[number])
        yield Case(f"{family} {described(*quantizer)}, {number} in the data", lambda case=case: _broken(*case))
    for family in random.sample(list(FAMILIES), 3):
        case = (family, random.choice([1e12, 1e25, 1e38]))
        yield Case(f"{family} learning_rate={case[1]}", lambda case=case: _absurd(*case))


def _constant(family, quantizer, value):
    report = fit(make_autoencoder(family, quantizer), data=torch.full((32, *SAMPLE), value), evaluate=True)
    json.dumps(report)
    check(Path("run/report.json").is_file(), "no report")


def _constant_files(family, grey):
    Path("images").mkdir()
    for index in range(12):
        Image.new("L", (16, 16), grey).save(f"images/{index}.png")
    name, options = FAMILIES[family]
    words = ["--model_config", json.dumps({**options, name: 9, "quantizer_type": "ema"})]
    command = ["train", "autoencoder", "--data", "images", "--model", family, *words, "--output", "run", "--max_steps"]
    command += ["2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--disable_tqdm", "true"]
    check(hf_vq_cli.main(command) == 0, "the command failed")
    check(Path("run/report.json").is_file(), "no report")


def _broken(family, quantizer, number):
    data = pictures(32)
    data[:, 0, 3, 5] = number
    fit(make_autoencoder(family, quantizer), data=data)
    raise Wrong("trained on it")


def _absurd(family, learning_rate):
    model = make_autoencoder(family, ("ema", 9, {}))
    fit(model, learning_rate=learning_rate, max_steps=6)
    finite = all(parameter.isfinite().all() for parameter in model.parameters())
    check(finite, "ended with weights that are no numbers")


@kind("checkpoints", "a flipped bit in any file of a checkpoint is noticed, or changes nothing")
def checkpoints(random):
    for trainer in ("autoencoder", "prior"):
        for part in range(FILES):  # one bit in each of so many parts of the list of files
            which, where = (part + random.random()) / FILES, random.random()
            case = (trainer, which, where)
            yield Case(f"{trainer}, file at {which:.2f}, bit at {where:.3f}", lambda case=case: _flipped(*case))


def _run(trainer, folder, **options):
    options |= {"max_steps": 4, "weight_ema_decay": 0.9}
    if trainer == "autoencoder":
        model = make_autoencoder("VQVAE", ("ema", 9, {"restart_threshold": 0.3}))
        fit(model, folder, **options)
    else:
        model = make_prior("PixelCNN gated")
        fit_prior(model, folder, save_strategy="steps", **options)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _flipped(trainer, which, where):
    reference = _run(trainer, Path("whole"), save_steps=2)
    folder = Path("damaged", "checkpoint-2")
    shutil.copytree(Path("whole", "checkpoint-2"), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNCOUNTED)
    damaged = files[int(which * len(files))]
    flip(damaged, where)
    found = _run(trainer, folder.parent, save_steps=100, resume_from_checkpoint=str(folder))
    other = [key for key, tensor in found.items() if not torch.equal(tensor, reference[key])]
    check(not other, f"resumed with a bit of {damaged.name} flipped: {len(other)} of {len(found)} tensors are others")


def flip(path, where):
    """Flip a bit of a file; `where` is a share of its length."""
    content = bytearray(Path(path).read_bytes())
    if content:
        place = int(where * len(content))
        content[place] ^= 1 << int(where * 1e6) % 8
        Path(path).write_bytes(content)

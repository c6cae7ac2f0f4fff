"""Cases of loading: wrong classes, forced formats, files that lack a tensor, options of stock libraries."""

import itertools
import re
import shutil
from pathlib import Path

import torch
from behaviour_models import CONVERTED, PRIORS
from fault_files import SPOILED, told
from fault_kinds import Case, Wrong, check, kind
from fault_models import (
    FAMILIES,
    FIXTURES,
    OPTIONS,
    described,
    draw_quantizer,
    make_autoencoder,
    make_prior,
    pictures,
    train,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import hf_vq
from hf_vq.autoencoders.pretrained import make_face
from hf_vq.converters.base import FORMATS
from hf_vq.converters.convert import load_checkpoint
from hf_vq.converters.sources import read_source
from hf_vq.registry import AUTOENCODERS
from hf_vq.registry import PRIORS as REGISTERED


@kind("wrong class", "a folder of another class is refused, and the right door is named")
def wrong_class(random):
    for _ in range(10):
        own, other = random.sample(list(FAMILIES), 2)
        door = random.choice(["class", "face"])
        yield Case(f"{own} by the {door} of {other}", lambda case=(own, other, door): _wrong_class(*case), "refuses")
    for _ in range(6):
        (name, _), other = random.choice(PRIORS), random.choice(sorted(REGISTERED))
        if not name.startswith(other):
            yield Case(f"{name} by {other}", lambda case=(name, other): _wrong_prior(*case), "refuses")


def _wrong_class(own, other, door):
    make_autoencoder(own, ("vector", 9, {"kmeans_init": False})).save_pretrained("model")
    loader = AUTOENCODERS[other] if door == "class" else make_face(AUTOENCODERS[other])[1]
    _refused_by_name(loader, "model", "AutoVQModel", "AutoModel", own)


def _wrong_prior(name, other):
    make_prior(name).save_pretrained("model")
    _refused_by_name(REGISTERED[other], "model", "AutoVQPrior", name.split()[0])


def _refused_by_name(loader, folder, *names):
    try:
        loader.from_pretrained(folder)
    except ValueError as error:
        check(any(name in str(error) for name in names), f"refused without naming {names[0]}: {error}")
        raise
    raise Wrong("loaded")


SOURCES = sorted({source for source, stage in CONVERTED if stage is None and not source.startswith("wavenet")})
ALIKE = {  # sources whose tensors have nearly the same names, and their formats
    "ibq/model.ckpt": "ibq", "open_magvit2/model.ckpt": "open-magvit2", "taming_gumbel/last.ckpt": "taming-gumbel",
    "taming_vqgan/last.ckpt": "taming-vqgan", "llamagen_vq/vq_model.pt": "llamagen-vq", "rqvae/stage1": "rqvae",
    "diffusers_vqmodel/attention_blocks": "diffusers-vqmodel", "vitvqgan": "vitvqgan",
}  # fmt: skip
NAMED = ("ibq/model.ckpt", "taming-vqgan")  # known already


@kind("forced formats", "a forced format never contradicts what a file is")
def forced_formats(random):
    alike = [pair for pair in itertools.product(ALIKE, ALIKE.values()) if ALIKE[pair[0]] != pair[1] and pair != NAMED]
    drawn = random.sample(alike, 16)
    for group in random.sample(sorted({source.split("/")[0] for source in SOURCES}), 10):
        source = random.choice([source for source in SOURCES if source.startswith(group)])
        drawn.append((source, random.choice(sorted(FORMATS))))
    for source, forced in drawn:
        yield Case(f"{source} as {forced}", lambda case=(source, forced): _forced(*case))


def _forced(source, forced):
    own, chosen, _ = load_checkpoint(FIXTURES / source)
    if chosen.name == forced:
        return
    model, _, _ = load_checkpoint(FIXTURES / source, format=forced)
    states = [getattr(each, "autoencoder", each).state_dict() for each in (own, model)]
    same = type(own) is type(model) and states[0].keys() == states[1].keys()
    same = same and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    check(same, f"{chosen.name} becomes another model as {forced}")


@kind("checkpoints of others", "a tensor short, of another kind of number, or not finite: refused by format and name")
def foreign_tensors(random):
    for _ in range(20):
        source, damage = random.choice(SOURCES), random.choice(["missing", "missing", "int32", "bool", "complex64"])
        case = (source, damage, random.random())
        yield Case(f"{damage} at {case[2]:.2f} of {source}", lambda case=case: _short(*case), "refuses")
    for folder in ("diffusers_ldm_pipeline", "diffusers_amused_pipeline"):
        yield Case(folder, lambda folder=folder: _pipeline_folder(folder), "refuses")


def _short(source, damage, where):
    read = read_source(FIXTURES / source)
    _, chosen, _ = load_checkpoint(FIXTURES / source)
    tensors = {name: tensor.clone().contiguous() for name, tensor in read.tensors.items()}
    names = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel() > 1)
    name = names[int(where * len(names))]
    tensor = tensors.pop(name)
    if damage != "missing":
        tensors[name] = SPOILED[damage](tensor)
    Path("source").mkdir()
    if read.config_path:
        shutil.copy(read.config_path, "source")
    save_file(tensors, "source/model.safetensors")
    try:
        load_checkpoint("source")
    except ValueError as error:
        parts = [part for part in re.split("[./]", name) if 3 * sum(part in other for other in names) < len(names)]
        known = chosen.name in str(error) or damage != "missing"
        known = known and any(part in str(error) for part in [name, *parts] if len(part) > 2)
        check(known, f"refused without format {chosen.name} and tensor {name}: {error}")
        raise
    raise Wrong(f"{damage} of {name} converts")


def _pipeline_folder(folder):
    try:
        load_checkpoint(FIXTURES / folder)
    except (ValueError, OSError) as error:
        check("vqvae" in str(error), f"refused without naming its vqvae: {error}")
        raise


@kind("missing buffers", "a persistent buffer that a file lacks is derived or refused by name, by every door")
def missing_buffers(random):
    for _ in range(14):
        kept = (  # quantizers with buffers
            "ema", "vector", "index_backpropagation", "gumbel", "remapped", "residual", "product",
        )  # fmt: skip
        quantizer = draw_quantizer(random, random.choice(kept))
        family = random.choice([*FAMILIES, "ViTVQModel", "ViTVQModel"])  # whose positions are buffers too
        case = (family, quantizer, random.random(), random.choice(["AutoModel", "AutoVQModel"]))
        yield Case(f"{case[3]}, {family} {described(*quantizer)}, buffer at {case[2]:.2f}",
                   lambda case=case: _without_buffer(*case))  # fmt: skip
    for name, make in PRIORS:
        if _saved_buffers(make()):
            case = (name, random.random())
            yield Case(f"{name}, buffer at {case[1]:.2f}", lambda case=case: _prior_without_buffer(*case))


def _saved_buffers(model):
    saved = model.state_dict()
    return sorted(name for name, _ in model.named_buffers() if name in saved)


def _drop(folder, name):
    path = next(Path(folder).glob("*.safetensors"))
    tensors = load_file(path)
    if name in tensors:
        del tensors[name]
        save_file(tensors, path, {"format": "pt"})


def _poisoned():
    """Fill memory that is about to be free: what is left uninitialised then shows."""
    parts = [
        torch.full((size,), torch.nan) for size in (1, 2, 4, 6, 8, 9, 16, 33, 54, 64, 96, 256, 1024) for _ in range(99)
    ]
    del parts


def _without_buffer(family, quantizer, where, door):
    model = make_autoencoder(family, quantizer)
    train(model, 2)
    names = _saved_buffers(model)
    if not names:
        return
    name = names[int(where * len(names))]
    model.eval().save_pretrained("model")
    _drop("model", name)
    _poisoned()
    loaded = (AutoModel if door == "AutoModel" else hf_vq.AutoVQModel).from_pretrained("model").eval()
    _sane(loaded, name, model)
    codes, others = (each.tokenize(pictures(4)) for each in (model, loaded))
    codes, others = (each if isinstance(each, tuple) else (each,) for each in (codes, others))
    same = all(torch.equal(*pair) for pair in zip(codes, others, strict=True))
    check(same, f"{name} is missing: other codes")


def _sane(loaded, name, model):
    found = loaded.state_dict()
    value, wanted = found.get(name, found.get(f"autoencoder.{name}")), model.state_dict()[name]
    if value is None:
        raise Wrong(f"{name} is not there after loading")
    finite = value.double().isfinite().all() and value.double().abs().max() < 1e6
    check(finite and value.dtype == wanted.dtype, f"{name} is missing: {value.flatten()[:3].tolist()} {value.dtype}")


def _prior_without_buffer(prior_name, where):
    prior = make_prior(prior_name)
    names = _saved_buffers(prior)
    name = names[int(where * len(names))]
    prior.save_pretrained("prior")
    _drop("prior", name)
    _poisoned()
    loaded = AutoModel.from_pretrained("prior").eval()
    _sane(loaded, name, prior)
    check(torch.equal(loaded.state_dict()[name], prior.state_dict()[name]), f"{name} is missing: it is another")


STOCK = {  # options of saving, of loading
    "safe_serialization=False": ({"safe_serialization": False}, {"use_safetensors": False}),
    "safe_serialization=False in shards": (
        {"safe_serialization": False, "max_shard_size": "4KB"}, {"use_safetensors": False},
    ),
    "safe_serialization=False, a variant": (
        {"safe_serialization": False, "variant": "half"}, {"use_safetensors": False, "variant": "half"},
    ),
    "low_cpu_mem_usage=False": ({}, {"low_cpu_mem_usage": False}),
    "low_cpu_mem_usage=False of shards": ({"max_shard_size": "4KB"}, {"low_cpu_mem_usage": False}),
    "a variant": ({"variant": "half"}, {"variant": "half"}),
}  # fmt: skip


@kind("stock options", "safe_serialization, low_cpu_mem_usage and others, as stock classes take them")
def stock_options(random):
    for option in [*STOCK, *STOCK]:
        family, door = random.choice(list(FAMILIES)), random.choice(["class", "face"])
        quantizer = draw_quantizer(random, random.choice(list(OPTIONS)))
        case = (family, quantizer, option, door)
        words = f"{option}, {family} {described(*quantizer)}, saved by its {door}"
        pickled = STOCK[option][0].get("safe_serialization") is False  # a clear refusal will do
        yield Case(words, lambda case=case: _stock(*case), "honest" if pickled else "works")


def _stock(family, quantizer, option, door):
    model = make_autoencoder(family, quantizer)
    train(model, 2)
    model.eval()
    faced = make_face(type(model))[1].from_autoencoder(model) if door == "face" else model
    saving, loading = STOCK[option]
    faced.save_pretrained("model", **saving)
    check(saving.get("safe_serialization", True) or not list(Path("model").glob("*.safetensors")), "it is safetensors")
    _, loaded = told(lambda: hf_vq.AutoVQModel.from_pretrained("model", **loading).eval())
    names = model.state_dict()
    check(all(torch.equal(loaded.state_dict()[name], names[name]) for name in names), "other weights after loading")

"""Cases of saved folders, tokenized data and checkpoints of others that are not what they say."""

import shutil
import warnings
from pathlib import Path

import torch
from behaviour_models import PRIORS, Rows
from diffusers.training_utils import EMAModel
from fault_kinds import Case, Wrong, check, kind
from fault_models import (
    FAMILIES,
    OPTIONS,
    SAMPLE,
    described,
    draw_quantizer,
    make_autoencoder,
    make_prior,
    pictures,
    train,
)
from fault_training import flip
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import hf_vq
import hf_vq_cli
from hf_vq.data.codes import load_codes
from hf_vq.data.tokenizing import tokenize_dataset

TOKENIZER = ("ema", 9, {})
DAMAGES = ("other tokenizer", "truncated", "other labels", "fewer rows", "rows of another split", "other sizes")


def told(action):
    """Whether anything is said, as a warning, while something is done, and its result."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = action()
    return [str(each.message) for each in said if each.category is not DeprecationWarning], result


def _data(seed=0, count=30, names=("a", "b"), model=None):
    labels = torch.arange(count) % len(names)
    columns = {"sample": pictures(count, seed=seed), "class_labels": labels}
    return Rows(columns, sample_shape=SAMPLE, labels=labels, class_names=list(names), num_classes=len(names))


def _tokenizer(steps=3, **options):
    model = make_autoencoder("VQVAE", TOKENIZER, **options)
    train(model, steps)
    return model.eval()


@kind("shards", "damaged, swapped or foreign shards are refused, or read as they were written")
def shards(random):
    for damage in DAMAGES:
        case = (damage, random.choice([1, 2]), 0)
        yield Case(f"{damage}, shard {case[1]}", lambda case=case: _shard(*case), "refuses")
    for _ in range(14):
        case = ("bit", random.randrange(3), random.random())
        yield Case(f"bit at {case[2]:.3f} of shard {case[1]}", lambda case=case: _shard(*case))
    for damage in DAMAGES[:4]:
        yield Case(f"{damage}, inspect", lambda damage=damage: _inspected(damage), "works")


def _shards(damage, shard, where):
    model = _tokenizer()
    tokenize_dataset(model, _data(), "codes", shard_size=10)
    before, other = _rows("codes"), model
    target = Path(f"codes/data/train-0000{shard}-of-00003.parquet")
    data = _data(names=("b", "a", "c")) if damage == "other labels" else _data(count=30)
    if damage == "other tokenizer":
        other = _tokenizer(steps=9)
    elif damage == "fewer rows":
        data = _data(count=25)
    elif damage == "rows of another split":
        data = _data(seed=5)
    elif damage == "other sizes":
        data = Rows({"sample": pictures(30, side=32)}, sample_shape=(1, 32, 32))
    if damage == "truncated":
        target.write_bytes(target.read_bytes()[:-9])
    elif damage == "bit":
        flip(target, where)
    else:
        tokenize_dataset(other, data, "foreign", shard_size=10)
        shutil.copy(Path("foreign/data/train-00002-of-00003.parquet" if damage == "fewer rows" else
                         f"foreign/data/{target.name}"), target)  # fmt: skip
    return before


def _shard(damage, shard, where):
    before = _shards(damage, shard, where)
    found = _rows("codes")
    same = all(torch.equal(found[name], before[name]) for name in before)
    check(same and damage == "bit", "loaded, as if nothing were wrong" + ("" if same else ", with other rows"))


def _rows(folder):
    loaded = load_codes(folder)
    items = [loaded[index] for index in range(len(loaded))]
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def _inspected(damage):
    _shards(damage, 1, 0)
    if hf_vq_cli.main(["inspect", "codes"]) == 0:
        raise Wrong("inspect shows the first shard and says nothing")


@kind("priors' tokenizers", "a prior beside another tokenizer than its own is refused or told")
def tokenizers_of_priors(random):
    for way in ("pipeline", "swapped on disk"):
        for name in random.sample(["PixelCNN plain", "PixelSNAIL top", "TransformerPrior alone", "GPTPrior"], 2):
            steps = random.randint(5, 9)
            yield Case(f"{way}, {name}", lambda case=(way, name, steps): _mismatched(*case))


def _mismatched(way, name, steps):
    own, other = _tokenizer(), _tokenizer(steps)
    tokenize_dataset(own, _data(), "codes")
    more = {"block_size": 20} if name == "GPTPrior" else {}
    prior = make_prior(name, codebook_size=9, code_shape=(4, 4), num_classes=0, class_dropout_prob=0.0, **more)
    from hf_vq.training.prior import PriorTrainingArguments, train_prior

    args = PriorTrainingArguments("run", max_steps=1, save_strategy="no", use_cpu=True, report_to="none")
    train_prior(prior, load_codes("codes"), args)
    prior.save_pretrained("prior")
    prior = hf_vq.AutoVQPrior.from_pretrained("prior")
    fine, pipe = told(lambda: hf_vq.VQPipeline(own, prior))
    check(not [words for words in fine if "token" in words], f"its own tokenizer is suspected: {fine}")
    if way == "pipeline":
        said, _ = told(lambda: hf_vq.VQPipeline(other, prior))
    else:
        pipe.save_pretrained("pipe")
        other.save_pretrained("pipe/autoencoder")
        said, _ = told(lambda: hf_vq.VQPipeline.from_pretrained("pipe"))
    check([words for words in said if "tokenizer" in words], "nothing said")


SPOILED = {
    "nan": lambda tensor: tensor.flatten().index_fill(0, torch.tensor([0]), torch.nan).view_as(tensor),
    "inf": lambda tensor: tensor.flatten().index_fill(0, torch.tensor([0]), torch.inf).view_as(tensor),
    "bool": lambda tensor: tensor > 0,
    "int32": lambda tensor: (tensor * 100).to(torch.int32),
    "complex64": lambda tensor: tensor.to(torch.complex64),
    "missing": None,
}


@kind("weights", "weights that are NaN, of another kind of number or missing are refused by name")
def weights(random):
    for _ in range(12):
        family, quantizer = random.choice(list(FAMILIES)), draw_quantizer(random, random.choice(list(OPTIONS)))
        case = (family, quantizer, random.choice(list(SPOILED)), random.choice(["class", "face"]), random.random())
        yield Case(
            f"{case[2]} in {family} {described(*quantizer)}, by its {case[3]}",
            lambda case=case: _spoiled_autoencoder(*case),
            "honest",
        )
    for name, _ in random.sample(PRIORS, 5):
        case = (name, random.choice(["nan", "inf", "bool", "int32", "complex64"]), random.random())
        yield Case(f"{case[1]} in {name}", lambda case=case: _spoiled_prior(*case), "refuses")
    for family in random.sample(list(FAMILIES), 3):
        yield Case(f"no codebook in {family}", lambda family=family: _without_codebook(family), "refuses")
        yield Case(f"EMAModel of {family}", lambda family=family: _averaged(family))
        yield Case(f"unstarted codebook of {family}", lambda family=family: _unstarted(family), "works")


def spoil(folder, damage, where, only=""):
    """Damage one floating-point tensor of a saved folder; its name."""
    path = next(Path(folder).glob("*.safetensors"))
    tensors = load_file(path)
    names = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() and only in name)
    name = names[int(where * len(names))]
    tensor = tensors.pop(name)
    if damage != "missing":
        tensors[name] = SPOILED[damage](tensor)
    save_file(tensors, path, {"format": "pt"})
    return name


def _spoiled_autoencoder(family, quantizer, damage, door, where):
    model = make_autoencoder(family, quantizer)
    train(model, 2)
    model.eval().save_pretrained("model")
    name = spoil("model", damage, where)
    loader = hf_vq.AutoVQModel if door == "class" else AutoModel
    said, loaded = told(lambda: loader.from_pretrained("model").eval())
    if damage == "missing":  # what an average stands for may be derived
        found = loaded.state_dict()
        found = found.get(name, found.get(f"autoencoder.{name}"))
        if torch.equal(found, model.state_dict()[name]) or "cluster_size" in name:
            return
    raise Wrong(f"{damage} of {name} loads" + (f", saying {said[0][:80]}" if said else ""))


def _spoiled_prior(name, damage, where):
    make_prior(name).save_pretrained("prior")
    named = spoil("prior", damage, where)
    hf_vq.AutoVQPrior.from_pretrained("prior")
    raise Wrong(f"{damage} of {named} loads")


def _without_codebook(family):
    _trained_ema(family).save_pretrained("model")
    spoil("model", "missing", 0, "embedding.weight")
    hf_vq.AutoVQModel.from_pretrained("model").eval().tokenize(pictures(2))


def _trained_ema(family):
    model = make_autoencoder(family, TOKENIZER)
    train(model, 2)
    return model


def _averaged(family):
    model = _trained_ema(family)
    averages = EMAModel(model.parameters(), model_cls=type(model), model_config=model.config)
    said, loaded = told(lambda: _through_averages(averages))
    codebooks = [name for name in model.state_dict() if name.endswith("embedding.weight")]
    same = all(torch.equal(loaded.state_dict()[name], model.state_dict()[name]) for name in codebooks)
    check(same or said, "another codebook comes back, and nothing is said")


def _through_averages(averages):
    averages.save_pretrained("averages")
    loaded = hf_vq.AutoVQModel.from_pretrained("averages").eval()
    loaded.tokenize(pictures(2))
    return loaded


def _unstarted(family):
    model = make_autoencoder(family, TOKENIZER).eval()
    said, _ = told(lambda: model.save_pretrained("model"))
    check(said, "saved without a word")
    said, loaded = told(lambda: hf_vq.AutoVQModel.from_pretrained("model").eval())
    check(said, "loaded without a word")
    said, _ = told(lambda: loaded.tokenize(pictures(2)))
    check(said, "tokenized without a word")

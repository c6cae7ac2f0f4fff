"""A prior knows the tokenizer of its codes: pipelines, evaluation and swapped components take no other."""

import copy
import json
import shutil

import pytest
import torch
from torch.utils.data import Subset

from hf_vq import AutoVQPrior, VQPipeline, VQVAE2Pipeline
from hf_vq.data.codes import load_codes, tokenizer_identity
from hf_vq.data.identity import makes_codes
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.priors import PRIORS
from hf_vq.registry import AUTOENCODERS
from hf_vq.training.evaluation import evaluate_prior
from hf_vq.training.likelihood import evaluate_likelihood
from hf_vq.training.prior import PriorTrainingArguments, remember_tokenizer, train_prior
from hf_vq_cli import main

from .contracts import test_autoencoders
from .prior_families import FAMILIES
from .test_data import own_cache  # noqa: F401
from .test_hierarchical_pipelines import build
from .tiny_codecs import register_codecs, started
from .tiny_models import Images, tiny_autoencoder, tiny_prior

ANOTHER = "prior was trained on the codes of another tokenizer: its codes_sha256 is [0-9a-f]{64}, that of the"
HALVES = (torch.float16, torch.bfloat16)
names = pytest.mark.parametrize("name", [*sorted(test_autoencoders.SMALL), *test_autoencoders.CODEC_NAMES])


@pytest.fixture(autouse=True)
def codecs(monkeypatch):
    register_codecs(monkeypatch)


def tokenizer(seed=0, **options):
    torch.manual_seed(seed)
    return started(tiny_autoencoder(**options)).eval()


def codes_of(folder, model):
    tokenize_dataset(model, {"train": Images(16), "validation": Images(16)}, folder)
    return load_codes(folder), load_codes(folder, "validation")


def arguments(folder, **options):
    options = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none", **options}
    return PriorTrainingArguments(output_dir=str(folder), **options)


@pytest.fixture
def trained(tmp_path):
    """A tokenizer, its codes and a prior that learned them, loaded from its folder."""
    model = tokenizer()
    train, validation = codes_of(tmp_path / "codes", model)
    train_prior(tiny_prior(num_classes=0), Subset(train, range(12)), arguments(tmp_path / "prior"), validation)
    return model, validation, AutoVQPrior.from_pretrained(tmp_path / "prior")


def moved(model):
    """A copy whose codes have another meaning."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.quantizers[-1].embedding.weight[0, 0] += 1e-3
    return other


def finer(model):
    """A copy with another decoder."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if other.only_decodes(name):
                parameter.add_(0.1)
    return other


def test_a_trained_prior_knows_its_tokenizer_and_pipelines_take_no_other(trained, tmp_path):
    model, validation, prior = trained
    assert prior.config.codes_sha256 == tokenizer_identity(model)["codes_sha256"]
    assert prior.config.codes_sha256 == validation.tokenizer["codes_sha256"]
    pipe = VQPipeline(finer(model), prior)
    for other in (tokenizer(1), moved(model), tokenizer(dropout=0.2)):
        with pytest.raises(ValueError, match=ANOTHER):
            VQPipeline(other, prior)
        before = pipe.autoencoder
        with pytest.raises(ValueError, match=ANOTHER):
            pipe.autoencoder = other
        with pytest.raises(ValueError, match=ANOTHER):
            pipe.register_modules(autoencoder=other)
        with pytest.raises(ValueError, match=ANOTHER):
            VQPipeline.from_pipe(pipe, autoencoder=other)
        with pytest.raises(ValueError, match=r"priors\[0\], " + ANOTHER):
            evaluate_likelihood(other, [prior], Images(4))
        assert pipe.autoencoder is before
        free = tiny_prior(num_classes=0)
        pipe.register_modules(autoencoder=other, prior=free)  # both at once
        with pytest.raises(ValueError, match=ANOTHER):
            pipe.prior = prior
        pipe.register_modules(prior=prior, autoencoder=model)
    evaluate_likelihood(model, [prior], Images(4))
    # told that the codes mean the same
    prior.config.codes_sha256 = None
    VQPipeline(moved(model), prior).save_pretrained(tmp_path / "told")
    VQPipeline.from_pretrained(tmp_path / "told")


def test_a_component_swapped_on_disk_is_noticed(tmp_path, capsys):
    model = test_autoencoders.make("VQVAE")[0].eval()
    prior = tiny_prior(num_classes=0)
    identity = tokenizer_identity(model)
    prior.config.codes_sha256, prior.config.rounded_codes_sha256 = identity["codes_sha256"], identity["rounded_sha256"]
    folder = tmp_path / "pipeline"
    VQPipeline(model, prior).save_pretrained(folder)
    finer(model).save_pretrained(folder / "autoencoder")
    VQPipeline.from_pretrained(folder)
    shutil.rmtree(folder / "autoencoder")
    moved(model).save_pretrained(folder / "autoencoder")
    for options in ({}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}):
        with pytest.raises(ValueError, match=ANOTHER):
            VQPipeline.from_pretrained(folder, **options)
    commands = (
        ["sample", str(folder), "--output", str(tmp_path / "samples.png")],
        ["evaluate", str(folder), "--data", "digits", "--output", str(tmp_path / "figures.json")],
    )
    for command in commands:
        assert main(command) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-vq: error:")]
        assert "prior was trained on the codes of another tokenizer" in line
    assert not (tmp_path / "figures.json").exists()
    config = json.loads((folder / "prior/config.json").read_text())
    (folder / "prior/config.json").write_text(json.dumps({**config, "codes_sha256": None}))
    VQPipeline.from_pretrained(folder)


def test_codes_of_another_tokenizer_are_neither_learned_beside_its_own_nor_evaluated(trained, tmp_path, capsys):
    _, validation, prior = trained
    other_train, other = codes_of(tmp_path / "other", tokenizer(1))
    evaluate_prior(prior, validation)
    for wrong in (other, Subset(other, range(4))):
        with pytest.raises(ValueError, match="prior was trained on the codes of another tokenizer"):
            evaluate_prior(prior, wrong)
    assert main(["evaluate", str(tmp_path / "prior"), "--codes", str(tmp_path / "other"), "--output",
                 str(tmp_path / "figures.json")]) == 2  # fmt: skip
    assert "prior was trained on the codes of another tokenizer" in capsys.readouterr().err
    with pytest.raises(ValueError, match="to evaluate on were made by another tokenizer than those to train on"):
        train_prior(prior, validation, arguments(tmp_path / "again"), other)
    # a prior that goes on with other codes is theirs from then on
    train_prior(prior, other_train, arguments(tmp_path / "again"), other)
    assert prior.config.codes_sha256 == other.tokenizer["codes_sha256"]
    assert AutoVQPrior.from_pretrained(tmp_path / "again").config.codes_sha256 == prior.config.codes_sha256


def test_a_prior_that_starts_from_another_by_the_command_line_learns_its_own_codes(trained, tmp_path, capsys):
    other = tokenizer(1)
    codes_of(tmp_path / "other", other)
    other.save_pretrained(tmp_path / "tokenizer")
    command = ["train", "prior", "--codes", tmp_path / "other", "--init_from", tmp_path / "prior", "--max_steps", 1]
    command += ["--output", tmp_path / "out", "--autoencoder", tmp_path / "tokenizer", "--use_cpu", "true"]
    assert main([str(word) for word in command]) == 0
    assert "was trained on the codes of another tokenizer; now it learns these" in capsys.readouterr().out
    pipe = VQPipeline.from_pretrained(tmp_path / "out/pipeline")
    assert pipe.prior.config.codes_sha256 == tokenizer_identity(pipe.autoencoder)["codes_sha256"]


@names
def test_every_tokenizer_is_known_again_in_every_precision_and_no_other_is(name, tmp_path):
    model, _ = test_autoencoders.make(name)
    identity = tokenizer_identity(model.eval())
    hashes = identity["codes_sha256"], identity["rounded_sha256"]
    model.save_pretrained(tmp_path / "saved")
    load = AUTOENCODERS[name].from_pretrained
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(parameter for key, parameter in other.named_parameters() if not other.only_decodes(key)).mul_(1.1)
    assert tokenizer_identity(load(tmp_path / "saved"))["codes_sha256"] == hashes[0]
    assert makes_codes(model, *hashes) is True
    assert makes_codes(finer(model), *hashes) is True
    assert makes_codes(other, *hashes) is False
    assert makes_codes(copy.deepcopy(model).double(), *hashes) is True
    for dtype in HALVES:
        loaded = load(tmp_path / "saved", dtype=dtype)
        assert makes_codes(copy.deepcopy(model).to(dtype), *hashes) is True
        assert makes_codes(loaded, hashes[0]) is None  # of an identity that an older version wrote
        for then in (dtype, *(each for each in (*HALVES, torch.float32) if each != dtype)):
            assert makes_codes(copy.deepcopy(loaded).to(then), *hashes) is True
            assert makes_codes(copy.deepcopy(other).to(dtype).to(then), *hashes) is False
    loaded = load(tmp_path / "saved", dtype=torch.float16)
    loaded.save_pretrained(tmp_path / "half")
    for options in ({}, {"dtype": torch.bfloat16}, {"dtype": torch.float32}):
        assert makes_codes(load(tmp_path / "half", **options), *hashes) is True
    assert makes_codes(copy.deepcopy(model).to("meta"), *hashes) is None
    for dtype in HALVES:  # which made the codes
        identity = tokenizer_identity(copy.deepcopy(model).to(dtype))
        hashes = identity["codes_sha256"], identity["rounded_sha256"]
        assert makes_codes(model, *hashes) is True
        assert makes_codes(load(tmp_path / "saved"), *hashes) is True
        assert makes_codes(other, *hashes) is False


def test_a_compiled_autoencoder_is_the_one_that_it_was(trained):
    model, _, prior = trained
    pipe = VQPipeline(model, prior)
    pipe.autoencoder = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=ANOTHER):
        pipe.autoencoder = torch.compile(moved(model), backend="eager")
    part = copy.deepcopy(model)
    part.to_latents = torch.compile(part.to_latents, backend="eager")
    pipe.autoencoder = part


@pytest.mark.parametrize("number", [2, 3])
def test_every_prior_of_a_hierarchy_knows_it(number, tmp_path):
    pipe = build(levels=number)
    identity = tokenizer_identity(pipe.autoencoder)
    for prior in pipe.priors:
        prior.config.codes_sha256 = identity["codes_sha256"]
        prior.config.rounded_codes_sha256 = identity["rounded_sha256"]
    pipe.save_pretrained(tmp_path)
    VQVAE2Pipeline.from_pretrained(tmp_path)
    VQVAE2Pipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for kept in pipe.priors:
        for prior in pipe.priors:
            prior.config.codes_sha256 = identity["codes_sha256"] if prior is kept else None
        with pytest.raises(ValueError, match=r"(top|middle|bottom)_" + ANOTHER):
            pipe.autoencoder = moved(pipe.autoencoder)
    pipe.priors[-1].config.codes_sha256 = None
    pipe.autoencoder = moved(pipe.autoencoder)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_prior_keeps_what_it_knows_in_its_folder_and_writes_nothing_of_what_it_does_not(name, tmp_path):
    prior = FAMILIES[name][0]
    prior.save_pretrained(tmp_path / "old")
    assert "codes_sha256" not in (tmp_path / "old/config.json").read_text()
    dataset = Images(1)
    dataset.tokenizer = {"class": "VQVAE", "codes_sha256": "a" * 64, "rounded_sha256": "b c"}
    remember_tokenizer(prior, dataset)
    remember_tokenizer(prior, Images(1))  # which tells nothing
    prior.save_pretrained(tmp_path / "new")
    config = AutoVQPrior.from_pretrained(tmp_path / "new").config
    assert (config.codes_sha256, config.rounded_codes_sha256) == ("a" * 64, "b c")
    assert AutoVQPrior.from_pretrained(tmp_path / "old").config.codes_sha256 is None


def test_the_families_are_all_priors():
    assert {type(prior) for prior, *_ in FAMILIES.values()} == set(PRIORS.values())

"""What every registered pipeline answers, a user's too: codes, samples, folders by each way of loading them."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModel

import hf_vq_cli
from hf_vq import AutoVQModel, AutoVQPrior, VQPipeline, as_grids
from hf_vq.cli.checks import load_pipeline
from hf_vq.hub import read_folder
from hf_vq.registry import PIPELINES, find_class

from .. import test_audio_pipeline, test_hierarchical_pipelines, test_pipelines, test_text_to_image
from ..conftest import no_complaints
from ..registering import register_for_now
from ..tiny_codecs import CODECS, SignalCodec, make_codec
from ..tiny_priors import RasterConvPrior


class SignalPipeline(VQPipeline):
    """A user's pipeline, of a user's autoencoder and prior: its samples are tensors."""


def signals(classes):
    torch.manual_seed(0)
    codec, space = make_codec(SignalCodec), CODECS[SignalCodec][1]
    codec.train()(torch.randn(4, 2, *space))
    config = RasterConvPrior.config_class(
        codebook_size=16, num_classes=classes, code_shape=(6,), class_dropout_prob=0.1 if classes else 0.0
    )
    names = ["ant", "bee", "cat"] if classes else None
    pipe = SignalPipeline(codec.eval(), RasterConvPrior(config).eval(), names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


BUILD = {
    "VQPipeline": lambda: test_pipelines.build(classes=0),
    "VQPipeline with classes": test_pipelines.build,
    "VQVAE2Pipeline": lambda: test_hierarchical_pipelines.build(classes=0),
    "VQVAE2Pipeline with classes": test_hierarchical_pipelines.build,
    "VQVAE2Pipeline of three grids": lambda: test_hierarchical_pipelines.build(levels=3),
    "VQTextToImagePipeline": test_text_to_image.build,
    "VQAudioPipeline": lambda: test_audio_pipeline.build(0),
    "VQAudioPipeline with classes": test_audio_pipeline.build,
    "SignalPipeline": lambda: signals(0),
    "SignalPipeline with classes": lambda: signals(3),
}
OTHERS = ("text_encoder", "tokenizer", "scheduler")  # the first two of transformers
every = pytest.mark.parametrize("name", BUILD)


@pytest.fixture(autouse=True)
def classes_of_the_users(monkeypatch):
    register_for_now(monkeypatch, SignalCodec, RasterConvPrior, SignalPipeline)


def draw(pipe, *seeds, output_type="pt", rows=(1, 0), **options):
    """Samples or grids of codes of two items, or of some rows of three."""
    classes = pipe.config.class_names is not None
    request = {"class_labels": [["ant", 1, "cat"][row] for row in rows]} if classes else {"batch_size": len(rows)}
    request = {"prompt": [["red dog", "a cat", "the"][row] for row in rows]} if of_texts(pipe) else request
    guidance = {"guidance_scale": 1.5} if classes else {}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or (3,)]
    generators = generators if len(seeds) > 1 or len(rows) == 1 else generators[0]
    (drawn,) = pipe(**request, **guidance, **options, generator=generators, output_type=output_type, return_dict=False)
    return drawn


def of_texts(pipe):
    return "tokenizer" in pipe.components


def priors_of(pipe):
    return {name: part for name, part in pipe.components.items() if name.endswith("prior") and part is not None}


def test_every_registered_pipeline_is_tried():
    assert {type(build()) for build in BUILD.values()} == set(PIPELINES.values())


@every
def test_samples_are_what_the_drawn_codes_stand_for(name):
    pipe = BUILD[name]()
    codes = draw(pipe, output_type="codes")
    sizes = pipe.autoencoder.codebook_sizes
    for grid, prior, size in zip(as_grids(codes), sorted_priors(pipe), sizes, strict=True):
        assert grid.dtype == torch.int64
        assert tuple(grid.shape) == (2, *prior.config.code_shape)
        assert 0 <= grid.min() <= grid.max() < size
    expected, samples = pipe.autoencoder.detokenize(codes), draw(pipe)
    if pipe.modality is not None:
        expected = expected.clamp(-1, 1) if pipe.modality.name == "audio" else (expected / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(samples, expected)
    one = {"prompt": "a cat"} if of_texts(pipe) else {}
    output = pipe(**({"class_labels": [0]} if pipe.config.class_names else one))
    assert len(output) == len(output[0]) == 1


def sorted_priors(pipe):
    return getattr(pipe, "priors", None) or [pipe.prior]


@every
def test_one_generator_an_item_makes_each_independent_of_the_batch(name):
    pipe = BUILD[name]()
    together = as_grids(draw(pipe, 5, 6, 7, rows=(0, 1, 2), output_type="codes"))
    alone = as_grids(draw(pipe, 6, rows=(1,), output_type="codes"))
    assert all(torch.equal(grid[1:2], own) for grid, own in zip(together, alone, strict=True))
    assert not all(map(torch.equal, together, as_grids(draw(pipe, 8, 9, 7, rows=(0, 1, 2), output_type="codes"))))


@every
def test_a_folder_gives_the_same_samples_by_every_way_of_loading_it(name, tmp_path):
    pipe = BUILD[name]()
    expected = draw(pipe)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", type(pipe).__name__]
    assert all(
        index[part] == ["hf_vq_remote", type(model).__name__]
        for part, model in pipe.components.items()
        if model is not None and part not in OTHERS[:2]
    )
    with no_complaints():
        loaded = type(pipe).from_pretrained(tmp_path)
        swapped = type(pipe).from_pretrained(tmp_path, autoencoder=pipe.autoencoder)
        parts = type(pipe)(
            AutoVQModel.from_pretrained(tmp_path, subfolder="autoencoder"),
            **{part: AutoVQPrior.from_pretrained(tmp_path, subfolder=part) for part in priors_of(pipe)},
            **{name: getattr(loaded, name) for name in OTHERS if name in loaded.components},
            **({"normalize_text_embeddings": True} if of_texts(pipe) else {}),
            class_names=loaded.config.class_names,
        )
    assert loaded.config.class_names == pipe.config.class_names
    stock = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    for other in (loaded, swapped, parts, load_pipeline(tmp_path), stock):
        other.set_progress_bar_config(disable=True)
        assert type(other) is type(pipe)
        torch.testing.assert_close(draw(other), expected, rtol=0, atol=1e-6)  # places in memory move the last bit
    for part, prior in priors_of(pipe).items():
        assert type(AutoModel.from_pretrained(tmp_path / part)) is type(prior)
    folder = read_folder(tmp_path)  # what push checks
    assert find_class(folder.class_name) is type(pipe)
    assert folder.components.keys() == {"autoencoder", *priors_of(pipe)}
    if pipe.modality is not None:
        rows = tmp_path / f"rows{pipe.modality.suffix}"
        prompt = ["--prompt", "a cat", "the dog"] if of_texts(pipe) else []
        assert hf_vq_cli.main(["sample", str(tmp_path), "--output", str(rows), "--num", "2", *prompt]) == 0
        assert rows.stat().st_size > 0


@every
def test_labels_that_the_priors_do_not_have_are_refused(name):
    pipe = BUILD[name]()
    request = {"prompt": "a cat"} if of_texts(pipe) else {"batch_size": 1}
    if pipe.config.class_names is None:
        with pytest.raises(ValueError, match=r"class_labels=\[0\] given, but the prior has no classes"):
            pipe(class_labels=[0], **({"prompt": "a cat"} if of_texts(pipe) else {}))
    else:
        with pytest.raises(ValueError, match="class_labels missing: the prior has 3 classes"):
            pipe()
        with pytest.raises(ValueError, match="'dog' is none of the class names"):
            pipe(class_labels=["dog"])
    with pytest.raises(ValueError, match=r"output_type must be one of \[.*'codes'\], got 'smell'"):
        pipe(**request, output_type="smell")
    with pytest.raises(TypeError, match="does not take 'mood'"):
        draw(pipe, mood=1)

"""The whole road in one, two and three dimensions: train, save, tokenize, prior, pipeline, resume."""

import json

import pytest
import torch
from safetensors.torch import load_file

import hf_vq
from hf_vq import VQPipeline
from hf_vq.data.codes import load_codes
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.priors import TransformerPrior, TransformerPriorConfig
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.evaluation import evaluate_autoencoder, evaluate_prior
from hf_vq.training.likelihood import evaluate_likelihood
from hf_vq.training.prior import PriorTrainingArguments, train_prior

from ..registering import register_for_now
from ..tiny_codecs import CODECS, ClipCodec, PictureCodec, SignalCodec, Waves, make_codec, register_codecs
from ..tiny_priors import RasterConvPrior, RasterConvPriorConfig

SHORT = {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True, "seed": 0}
codecs = pytest.mark.parametrize("codec_class", CODECS, ids=[codec.__name__ for codec in CODECS])
LEVELS = {"quantizer_type": "residual", "quantizer_config": {"num_levels": 2}}
ROADS = [  # codec, its options, whether samples differ in length
    (SignalCodec, {"dropout": 0.1}, True),
    (SignalCodec, LEVELS, True),
    (PictureCodec, {}, False),
    (ClipCodec, {"quantizer_type": "finite_scalar", "codebook_size": 15, "codebook_dim": 2,
                 "quantizer_config": {"levels_per_dim": [3, 5]}}, True),
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache_and_classes(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    register_codecs(monkeypatch)
    register_for_now(monkeypatch, RasterConvPrior)


def train(codec_class, options, variable, folder, steps=12, **more):
    torch.manual_seed(0)
    args = AutoencoderTrainingArguments(output_dir=str(folder), max_steps=steps, **SHORT, **more)
    model, data = make_codec(codec_class, **options), Waves(codec_class, 40, variable)
    return train_autoencoder(model, data, args, Waves(codec_class, 12, variable))


def make_prior(kind, codes):
    torch.manual_seed(0)
    facts = {"codebook_size": codes.codebook_size, "num_classes": 2, "code_shape": codes.code_shape}
    facts["class_dropout_prob"] = 0.1
    levels = codes.code_shape[0] if len(codes.code_shape) > len(codes.sample_shape) - 1 else 1
    if kind == "convolutional":
        return RasterConvPrior(RasterConvPriorConfig(**facts, num_levels=levels))
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_levels": levels}
    return TransformerPrior(TransformerPriorConfig(**facts, **sizes))


@pytest.mark.parametrize("kind", ["transformer", "convolutional"])
@pytest.mark.parametrize(
    ("codec_class", "options", "variable"), ROADS, ids=lambda value: getattr(value, "__name__", "")
)
def test_samples_become_codes_and_new_codes_become_samples(codec_class, options, variable, kind, tmp_path):
    report = train(codec_class, options, variable, tmp_path / "codec")
    model = hf_vq.AutoVQModel.from_pretrained(tmp_path / "codec").eval()
    assert type(model) is codec_class
    held_out = Waves(codec_class, 12, variable)
    found = evaluate_autoencoder(model, held_out, batch_size=5)
    assert found["mse"] == pytest.approx(report["metrics"]["eval_mse"])
    singles = [item["sample"][None] for item in held_out]
    squares = sum((model(single).sample - single).square().sum().item() for single in singles)
    assert found["mse"] == pytest.approx(squares / sum(single.numel() for single in singles), rel=1e-5)
    assert found["num_codes"] == sum(model.tokenize(single).numel() for single in singles)

    tokenize_dataset(model, {"train": Waves(codec_class, 40, variable), "validation": held_out}, tmp_path / "codes")
    train_codes, codes = (load_codes(tmp_path / "codes", s, tokenizer=model) for s in ("train", "validation"))
    assert (codes.lengths is not None) == variable
    for item, single in zip(codes, singles, strict=True):
        cells = tuple(slice(side) for side in model.code_shape(single.shape[1:]))
        assert torch.equal(item["codes"][cells], model.tokenize(single)[0])
        if variable:
            assert item["lengths"] == single.shape[2] // model.grid_strides[0][0]

    prior = make_prior(kind, codes)
    args = PriorTrainingArguments(output_dir=str(tmp_path / "prior"), max_steps=8, report_to="none", **SHORT)
    train_prior(prior, train_codes, args, eval_dataset=codes)
    loaded = hf_vq.AutoVQPrior.from_pretrained(tmp_path / "prior").eval()
    assert type(loaded) is type(prior)
    likelihood = evaluate_prior(loaded, codes, batch_size=5)
    alone = 0
    for index, single in enumerate(singles):
        alone -= loaded.log_prob(model.tokenize(single), class_labels=codes.labels[index : index + 1]).item()
    assert likelihood["likelihood_is_exact"]
    assert likelihood["nats_per_code"] == pytest.approx(alone / found["num_codes"], rel=1e-5)
    if variable:
        with pytest.raises(ValueError, match="variable_length=True"):
            evaluate_likelihood(model, [loaded], held_out)
    else:
        ((figures,), whole) = evaluate_likelihood(model, [loaded], held_out)
        assert figures["nats_per_code"] == pytest.approx(likelihood["nats_per_code"], rel=1e-5)
        assert whole is None

    VQPipeline(model, loaded, held_out.class_names).save_pretrained(tmp_path / "pipeline")
    pipe = VQPipeline.from_pretrained(tmp_path / "pipeline")
    assert type(pipe.autoencoder) is codec_class
    assert type(pipe.prior) is type(prior)
    pipe.set_progress_bar_config(disable=True)
    source = {"guidance_scale": 1.5, "class_labels": ["low", 1, 1]}
    drawn = pipe(**source, generator=torch.Generator().manual_seed(1), output_type="codes").samples
    assert drawn.shape == (3, *codes.code_shape)
    samples = pipe(**source, generator=torch.Generator().manual_seed(1)).samples
    assert torch.equal(samples, model.detokenize(drawn))
    assert tuple(samples.shape[1:]) == codes.sample_shape
    with pytest.raises(ValueError, match=f"height given, but {codec_class.__name__} is no autoencoder of images"):
        pipe(class_labels=[0], height=8, width=8)


@codecs
@pytest.mark.parametrize("variable", [False, True])
def test_a_resumed_training_ends_as_one_that_never_stopped(codec_class, variable, tmp_path):
    options = {"dropout": 0.2}
    train(codec_class, options, variable, tmp_path / "whole", steps=10, save_steps=4)
    train(codec_class, options, variable, tmp_path / "parts", steps=4, save_steps=4)
    train(codec_class, options, variable, tmp_path / "parts", steps=10, save_steps=4, resume_from_checkpoint=True)
    whole, parts = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    histories = [json.loads((tmp_path / name / "report.json").read_text())["history"] for name in ("whole", "parts")]
    assert histories[0][-1] == histories[1][-1]


class Uneven(Waves):
    """Every second sample is shorter along its last axis; `variable_length` may keep silent about it."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "sample": item["sample"][..., :4] if index % 2 else item["sample"]}


def test_samples_that_differ_in_length_without_a_word_are_refused(tmp_path):
    args = AutoencoderTrainingArguments(output_dir=str(tmp_path), max_steps=1, **SHORT)
    with pytest.raises(ValueError, match=r"samples differ in shape, \(\d+,\) and \(\d+,\).*variable_length"):
        train_autoencoder(make_codec(SignalCodec), Uneven(SignalCodec, 40), args)


def test_mapped_codes_are_those_in_memory_and_follow_the_shards(tmp_path):
    model = make_codec(SignalCodec).eval()
    model.initialize_codebook(Waves(SignalCodec, 1)[0]["sample"][None])
    tokenize_dataset(model, Waves(SignalCodec, 40, True), tmp_path / "codes", shard_size=7)
    memory, mapped = (load_codes(tmp_path / "codes", memory_map=way) for way in (False, True))
    assert type(mapped.codes).__name__ == "memmap"
    assert (memory.codes == mapped.codes).all()
    assert all(torch.equal(one["codes"], other["codes"]) for one, other in zip(memory, mapped, strict=True))
    tokenize_dataset(model, Waves(SignalCodec, 21, True), tmp_path / "codes", shard_size=7, overwrite=True)
    assert len(load_codes(tmp_path / "codes", memory_map=True)) == 21


def test_images_of_two_widths_have_no_one_length(tmp_path):
    model = make_codec(PictureCodec).eval()
    with pytest.raises(ValueError, match="differ along more than their first axis"):
        tokenize_dataset(model, Uneven(PictureCodec, 6, True), tmp_path / "codes")

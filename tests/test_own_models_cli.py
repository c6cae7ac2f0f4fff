"""The command line with models of a user's own: a codec without a modality, a prior with a bound and few options."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import hf_vq
import hf_vq_cli
from hf_vq.cli import checks
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.hub import describe, read_folder, write_card
from hf_vq.training.disk import module_footprint
from hf_vq.training.likelihood import FittedPixelLikelihood

from .contracts.toy_masked_prior import ToyMaskedPrior, ToyMaskedPriorConfig
from .registering import register_for_now
from .signal_modality import SIGNAL, TextCodec
from .tiny_codecs import PictureCodec, Waves, make_codec, register_codecs, started

QUICK = {"use_cpu": True, "disable_tqdm": True, "max_steps": 2}
PIXELCNN = {"prior": "PixelCNN", "prior_config": {"hidden_channels": 8, "num_layers": 1, "head_channels": 8}}
TOY = {"prior": "ToyMaskedPrior", "prior_config": {"num_places": 16}}


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A codec of pictures without a modality, its codes, and the toy prior in the tables; the folder is a new one."""
    register_codecs(monkeypatch)
    register_for_now(monkeypatch, ToyMaskedPrior)
    monkeypatch.chdir(tmp_path)
    codec = started(make_codec(PictureCodec)).eval()
    codec.save_pretrained("codec")
    tokenize_dataset(codec, {"train": Waves(PictureCodec, 12), "validation": Waves(PictureCodec, 4)}, "codes")
    return tmp_path


@pytest.fixture
def pictures(own):
    """The folder of a pipeline of images whose prior is the toy."""
    autoencoder = started(hf_vq.VQVAE(1, 8, 0, stage_channels=(4,), codebook_size=8)).eval()
    prior = ToyMaskedPrior(ToyMaskedPriorConfig(codebook_size=8, num_classes=2, code_shape=(4, 4), num_places=16))
    hf_vq.VQPipeline(autoencoder, prior.eval()).save_pretrained("pipeline")


def train(recipe, *flags):
    Path("p.yaml").write_text(yaml.safe_dump({"codes": "codes", **QUICK, **recipe}))
    return run("train", "prior", "p.yaml", "--output", "prior", *flags)


# Bounds


def test_a_bound_is_called_one_on_the_line_the_card_and_in_the_model_index(own, capsys):
    for recipe, words in ((PIXELCNN, ""), (TOY, " (upper bound)")):
        assert train(recipe, "--overwrite") == 0
        nats = json.loads(Path("prior/report.json").read_text())["metrics"]["eval_nats_per_code"]
        assert f"Wrote prior: {nats:.4f} nats per held-out code{words}.\n" in capsys.readouterr().out
        for evaluated in (False, True):
            if evaluated:
                assert run("evaluate", "prior", "--codes", "codes", "--output", "prior/evaluation.json") == 0
                assert json.loads(capsys.readouterr().out)["prior"]["likelihood_is_exact"] is (not words)
            folder = read_folder("prior")
            data = describe(folder, "me/prior", "mit")
            names = {result.metric_type: result.metric_name for result in data.eval_results}
            assert names["nats_per_code"] == f"Nats per code, held out{words}"
            assert names["ratio"] == f"Nats per code over unigram entropy{words}"
            assert names.get("bits_per_dim") == (f"Bits per dimension of the codes{words}" if evaluated else None)
            assert names["unigram_entropy"] == "Unigram entropy of the same codes in nats"  # no matter of the prior
            assert f"| Nats per code, held out{words} |" in str(write_card(folder, "me/prior", data))
        Path("prior/evaluation.json").unlink()


# Nothing is lost after a training


def test_a_codec_without_modality_gets_its_pipeline_and_no_file_of_samples(own, capsys):
    assert train(PIXELCNN, "--autoencoder", "codec") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    reason = "PictureCodec belongs to no modality that hf_vq can load and show samples of"
    assert lines == [f"warning: no file of samples: {reason}"]
    pipe = hf_vq.VQPipeline.from_pretrained("prior/pipeline")
    assert pipe([0, "high"]).samples.shape == (2, 2, 16, 8)
    trained = hf_vq.AutoVQPrior.from_pretrained("prior").state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in pipe.prior.state_dict().items())
    assert not list(Path("prior").glob("samples*"))


def test_a_run_too_short_for_a_loss_curve_keeps_its_pipeline(own, capsys):
    tokenize_dataset(hf_vq.AutoVQModel.from_pretrained("codec"), {"train": Waves(PictureCodec, 12)}, "few")
    assert train(PIXELCNN, "--codes", "few", "--autoencoder", "codec") == 0
    assert "warning: no loss_curve.png: history has no entry" in capsys.readouterr().err
    assert hf_vq.VQPipeline.from_pretrained("prior/pipeline").prior.config.code_shape == (4, 4)


def test_a_picture_that_fails_costs_neither_the_others_nor_the_model(own, monkeypatch, capsys):
    def fail(*arguments):
        raise RuntimeError("no\nfont")

    register_for_now(monkeypatch, dataclasses.replace(SIGNAL, save_reconstructions=fail), TextCodec)
    np.save("signals.npy", np.sin(np.arange(40 * 2 * 32).reshape(40, 2, 32) / 3).astype(np.float32))
    Path("a.yaml").write_text(yaml.safe_dump({**QUICK, "model": "TextCodec", "model_config": {"strides": [4]}}))
    assert run("train", "autoencoder", "a.yaml", "--data", "signals.npy", "--output", "out") == 0
    assert "warning: no reconstructions.txt and code_maps.txt: no font\n" in capsys.readouterr().err
    assert {"codebook_usage.png", "loss_curve.png", "report.json"} <= {path.name for path in Path("out").iterdir()}


def test_priors_that_make_no_pipeline_are_refused_before_the_training(own, capsys):
    hierarchy = started(hf_vq.VQVAE2(2, 8, 0, 4, 8, 4, strides=(2, 2))).eval()
    hierarchy.save_pretrained("hierarchy")
    tokenize_dataset(hierarchy, {"train": Waves(PictureCodec, 12)}, "grids")
    config = {"codebook_size": 8, "hidden_channels": 8, "num_layers": 1, "head_channels": 8, "code_shape": (4, 2)}
    hf_vq.PixelCNN(hf_vq.PixelCNNConfig(num_classes=3, **config)).save_pretrained("top")
    flags = ["--codes", "grids", "--grid", "bottom", "--autoencoder", "hierarchy", "--top_prior", "top"]
    assert (
        train({"prior": "PixelSNAIL", "prior_config": {"hidden_channels": 8, "num_attention_heads": 1}}, *flags) == 2
    )
    assert "the priors must have the same classes, got num_classes [2, 3]" in capsys.readouterr().err
    assert not Path("prior").exists()


def test_the_disk_must_hold_the_pipeline_too(own, monkeypatch, capsys):
    prior = ToyMaskedPrior(ToyMaskedPriorConfig(codebook_size=16, num_classes=2, code_shape=(4, 4), num_places=16))
    free = 4 * module_footprint(prior).published  # weights, and a checkpoint with two averages of the gradient
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, free))
    assert train(TOY, "--autoencoder", "codec") == 2
    assert "no disk space" in capsys.readouterr().err
    assert train(TOY) == 0


# Options of sampling


@pytest.mark.parametrize(
    ("option", "value", "default"),
    [("temperature", 0.9, 1.0), ("top_k", 3, None), ("top_p", 0.5, None), ("guidance_scale", 2.0, 1.0)],
)
def test_an_option_that_the_prior_does_not_take_is_refused_by_flag_and_by_recipe(
    option, value, default, pictures, capsys
):
    Path("sampling.yaml").write_text(yaml.safe_dump({option: value}))
    for given in ([f"--{option}", value], ["--recipe", "sampling.yaml"]):
        assert run("sample", "pipeline", "--output", "new/out.png", *given) == 2
        errors = capsys.readouterr().err.splitlines()
        assert errors[-1] == (
            f"hf-vq: error: prior, a ToyMaskedPrior, does not take {option!r}; it takes num_steps, class_labels"
        )
    assert not Path("new").exists()
    Path("sampling.yaml").write_text(yaml.safe_dump({option: default}))
    assert run("sample", "pipeline", "--output", "new/out.png", "--recipe", "sampling.yaml") == 0
    assert Path("new/out.png").is_file()


def test_an_option_must_be_one_of_every_prior_of_a_hierarchy(own, capsys):
    hierarchy = started(hf_vq.VQVAE2(1, 8, 0, 4, 8, 4, strides=(2, 2))).eval()
    top = ToyMaskedPrior(ToyMaskedPriorConfig(codebook_size=8, code_shape=(4, 4), num_places=16))
    config = {"hidden_channels": 8, "num_attention_heads": 1, "context_codebook_sizes": (8,), "code_shape": (8, 8)}
    bottom = hf_vq.PixelSNAIL(hf_vq.PixelSNAILConfig(codebook_size=8, **config))
    hf_vq.VQVAE2Pipeline(hierarchy, top, bottom).save_pretrained("pipeline")
    assert run("sample", "pipeline", "--output", "out.png", "--temperature", 0.5) == 2
    assert "top_prior, a ToyMaskedPrior, does not take 'temperature'" in capsys.readouterr().err


# Words


def test_inspect_names_no_modality_that_it_was_not_told(own, monkeypatch, capsys):
    prior = ToyMaskedPrior(ToyMaskedPriorConfig(codebook_size=16, code_shape=(4, 4)))
    prior.save_pretrained("prior")
    register_for_now(monkeypatch, SIGNAL)
    told = {"signal": ["--modality", "signal"], "image": ["--image_size", 16], "sample": []}
    for name, flags in told.items():
        capsys.readouterr()
        assert run("inspect", "prior", "--json", *flags) == 0
        rates = {key: value for key, value in json.loads(capsys.readouterr().out).items() if key.startswith("bits")}
        assert rates == {f"bits_per_{name}": 64}  # 16 codes of 4 bits


def test_the_fit_of_a_likelihood_speaks_of_samples_where_there_is_no_modality(own):
    pixels = FittedPixelLikelihood(make_codec(PictureCodec).eval(), Waves(PictureCodec, 4))
    assert pixels.protocol["decoder_scale_fitted_on"] == "4 samples, none of them evaluated"
    with pytest.raises(ValueError, match="there are no samples to fit"):
        FittedPixelLikelihood(make_codec(PictureCodec), Waves(PictureCodec, 0))

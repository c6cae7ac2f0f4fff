"""The command line with models of a user's own: a codec without a modality, a prior with a bound and few options."""

import json
from pathlib import Path

import pytest
import yaml

import hf_vq
import hf_vq_cli
from hf_vq.cli import train_prior
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.hub import describe, read_folder, write_card
from hf_vq.registry import PRIORS

from .contracts.toy_masked_prior import ToyMaskedPrior, ToyMaskedPriorConfig
from .tiny_codecs import PictureCodec, Waves, make_codec, register_codecs

QUICK = {"use_cpu": True, "disable_tqdm": True, "max_steps": 2}
PIXELCNN = {"prior": "PixelCNN", "prior_config": {"hidden_channels": 8, "num_layers": 1, "head_channels": 8}}
TOY = {"prior": "ToyMaskedPrior", "prior_config": {"num_places": 16}}


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


@pytest.fixture
def own(monkeypatch, tmp_path):
    """A codec of pictures without a modality, its codes, and the toy prior in the tables; the folder is a new one."""
    register_codecs(monkeypatch)
    monkeypatch.setitem(PRIORS, "ToyMaskedPrior", (ToyMaskedPriorConfig, ToyMaskedPrior))
    monkeypatch.setitem(train_prior.PRIORS, "ToyMaskedPrior", ToyMaskedPrior)
    hf_vq.auto.register()
    monkeypatch.chdir(tmp_path)
    codec = make_codec(PictureCodec).eval()
    codec.save_pretrained("codec")
    tokenize_dataset(codec, {"train": Waves(PictureCodec, 12), "validation": Waves(PictureCodec, 4)}, "codes")
    return tmp_path


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

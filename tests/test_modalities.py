"""Facts about modalities: commands, cards and pipelines ask them; one of a user's own needs no change elsewhere."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hf_vq
import hf_vq_cli
from hf_vq.cli.sample import draw
from hf_vq.data.codes import load_codes
from hf_vq.data.images import load_images
from hf_vq.hub import describe, read_folder, write_card
from hf_vq.modalities import Modality
from hf_vq.priors import TransformerPrior, TransformerPriorConfig
from hf_vq.registry import AUTOENCODERS, MODALITIES, PIPELINES, modality_of

from .registering import register_for_now
from .signal_modality import SIGNAL, SignalPipelineOutput, SignalProcessor, TextCodec
from .test_image_processor import photo
from .tiny_codecs import SignalCodec, register_codecs, started

ROOT = Path(__file__).parent.parent
TRAINING = ["--max_steps", 2, "--use_cpu", "true", "--disable_tqdm", "true", "--save_steps", 0]
TINY = {"hidden_channels": 8, "stage_channels": (4,), "num_residual_layers": 0, "codebook_size": 8}


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


@pytest.fixture
def signals(monkeypatch, tmp_path):
    """The modality of signals, registered, and a file of them; the working folder is a new one."""
    register_for_now(monkeypatch, SIGNAL, TextCodec)
    monkeypatch.chdir(tmp_path)
    np.save("signals.npy", np.sin(np.arange(40 * 2 * 32).reshape(40, 2, 32) / 3).astype(np.float32))
    return tmp_path


@pytest.fixture
def photos(monkeypatch, tmp_path):
    """A working folder with a tokenizer that was trained on photos of 8 pixels, and photos of other sizes."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for index in range(10):
        photo((20 + index, 23), seed=index).save(f"photos/{index}.png")
    flags = ["--image_size", 8, "--model_config", json.dumps(TINY), *TRAINING]
    assert run("train", "autoencoder", "--data", "photos", "--output", "tokenizer", *flags) == 0
    return tmp_path


def test_every_autoencoder_of_ours_has_a_modality_and_other_classes_have_none():
    for name in ("DVAE", "MAGVIT2Model", "RQVAE", "ViTVQModel", "VQModel", "VQVAE", "VQVAE2"):
        assert modality_of(name) is MODALITIES["image"]
    assert modality_of("PixelCNN") is modality_of("Nothing") is modality_of(SignalCodec.__name__) is None
    assert hf_vq.pipelines.PIPELINES is PIPELINES
    assert hf_vq.autoencoders.AUTOENCODERS is AUTOENCODERS


def test_rooms_around_the_modalities_do_not_speak_of_images():
    rooms = ("cli/*.py", "hub/*", "training/*.py")
    for path in [*(path for room in rooms for path in ROOT.glob(f"hf_vq/{room}")), ROOT / "hf_vq_cli.py"]:
        assert path.is_dir() or "image" not in path.read_text().lower(), path


def test_every_field_of_a_modality_has_a_caller():
    texts = "".join(path.read_text() for path in ROOT.glob("hf_vq/**/*.py") if path.parent.name != "modalities")
    for entry in fields(Modality):
        assert f".{entry.name}" in texts, entry.name


# -- images: the processor of a model


def test_training_saves_the_processor_and_tokenizing_takes_its_size(photos, capsys):
    model = hf_vq.AutoVQModel.from_pretrained("tokenizer")
    assert model.processor == hf_vq.ImageProcessor(size=(8, 8))
    capsys.readouterr()
    assert run("tokenize", "tokenizer", "--data", "photos", "--output", "codes") == 0
    assert run("tokenize", "tokenizer", "--data", "photos", "--image_size", 8, "--output", "again") == 0
    assert "warning" not in capsys.readouterr().err
    codes, again = (torch.stack([item["codes"] for item in load_codes(folder)]) for folder in ("codes", "again"))
    assert torch.equal(codes, again)
    images = load_images("photos", image_size=8)
    assert torch.equal(codes, torch.stack([model.tokenize(item["sample"][None])[0] for item in images]))
    with images.source.open(3) as picture:
        assert torch.equal(model.tokenize(picture)[0], codes[3])
    assert run("reconstruct", "tokenizer", "--files", "photos/1.png", "photos/2.png", "--output", "files.png") == 0
    assert run("reconstruct", "tokenizer", "--images", "photos/1.png", "photos/2.png", "--output", "old.png") == 0
    assert Path("files.png").read_bytes() == Path("old.png").read_bytes()
    assert run("evaluate", "tokenizer", "--data", "photos") == 0
    assert json.loads(Path("tokenizer/evaluation.json").read_text())["autoencoder"]["num_samples"] == 1


def test_data_unlike_those_of_the_model_are_told_once(photos, capsys):
    model = hf_vq.AutoVQModel.from_pretrained("tokenizer")
    for verb in (["tokenize"], ["evaluate"], ["train", "autoencoder", *TRAINING, "--init_from"]):
        capsys.readouterr()
        assert run(*verb, "tokenizer", "--data", "photos", "--image_size", 12, "--output", f"{verb[0]}.json") == 0
        assert capsys.readouterr().err.count("warning: images are 12x12, those of the model 8x8\n") == 1
    assert hf_vq.AutoVQModel.from_pretrained("train.json").processor.size == (12, 12)  # what it was trained on since
    assert load_codes("tokenize.json").code_shape == tuple(model.code_shape((3, 12, 12)))
    assert run("train", "autoencoder", *TRAINING, "--data", "photos", "--init_from", "tokenizer", "--output", "b") == 0
    assert hf_vq.AutoVQModel.from_pretrained("b").processor.size == (8, 8)


def test_a_model_trained_on_images_as_they_come_takes_them_as_they_come(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "digits", "--model_config", json.dumps(TINY), *TRAINING]
    assert run("train", "autoencoder", "--output", "tokenizer", *flags) == 0
    assert hf_vq.AutoVQModel.from_pretrained("tokenizer").processor == hf_vq.ImageProcessor((8, 8), "none", 1, 16)
    Image.new("L", (12, 20), 9).save("grey.png")
    assert run("reconstruct", "tokenizer", "--files", "grey.png", "--output", "out.png") == 0


def test_inspect_counts_by_the_size_of_the_processor(photos, capsys):
    facts = {}
    for flags in ([], ["--image_size", 8], ["--image_size", 16]):
        capsys.readouterr()
        assert run("inspect", "tokenizer", "--json", *flags) == 0
        facts[tuple(flags)] = json.loads(capsys.readouterr().out)
    assert facts[()] == facts["--image_size", 8]
    assert facts[()]["bits_per_image"] * 4 == facts["--image_size", 16]["bits_per_image"]
    assert facts[()]["bits_per_pixel"] == facts[()]["bits_per_image"] / 64


# -- another modality


def test_another_modality_trains_tokenizes_and_is_shown_by_the_same_commands(signals, capsys):
    flags = ["--data", "signals.npy", "--signal_length", 24, "--model_config", "{strides: [4]}"]
    assert run("train", "autoencoder", "--model", "TextCodec", *flags, *TRAINING, "--output", "codec") == 0
    assert "36 signals of 2x24 to 6 codes out of 16" in capsys.readouterr().out
    assert Path("codec/reconstructions.txt").read_text() == "samples: (4, 2, 24)\nagain: (4, 2, 24)"
    assert Path("codec/code_maps.txt").read_text() == "samples: (4, 2, 24)\ncodes: (4, 6)"
    assert hf_vq.AutoVQModel.from_pretrained("codec").processor == SignalProcessor(size=(24,))

    assert run("tokenize", "codec", "--data", "signals.npy", "--output", "codes") == 0
    assert "36 train, 4 validation signals" in capsys.readouterr().out
    assert load_codes("codes").code_shape == (6,)
    assert run("reconstruct", "codec", "--signals", "signals.npy", "--output", "out.txt") == 0
    assert Path("out.txt").read_text() == "samples: (16, 2, 24)\nagain: (16, 2, 24)"
    assert run("reconstruct", "codec", "--data", "signals.npy", "--output", "out.png") == 2
    assert "must be a .txt file" in capsys.readouterr().err
    assert run("evaluate", "codec", "--data", "signals.npy", "--signal_length", 16) == 0
    assert "warning: signals have 16 values, not 24" in capsys.readouterr().err

    facts = {}
    for folder in ("codec", "codes"):
        assert run("inspect", folder, "--json") == 0
        facts[folder] = json.loads(capsys.readouterr().out)
    assert facts["codec"]["bits_per_step"] == 1  # 4 bits every 4 steps
    assert facts["codec"]["bits_per_signal"] == facts["codes"]["bits_per_signal"] == 24
    assert run("inspect", "codec", "--json", "--signal_length", 12) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_signal"] == 12


def test_another_modality_has_its_own_words_on_a_card(signals):
    codec = TextCodec(strides=(4,))
    codec.processor = SignalProcessor()
    codec.save_pretrained("codec")
    Path("codec/reconstructions.txt").write_text("a signal")
    Path("codec/evaluation.json").write_text(json.dumps({"autoencoder": {"mse": 0.5}, "data": "waves"}))
    folder = read_folder("codec")
    assert {"reconstructions.txt", "preprocessor_config.json"} <= set(folder.files)
    data = describe(folder, "me/codec", "mit")
    card = str(write_card(folder, "me/codec", data))
    assert data.pipeline_tag == "feature-extraction"
    assert data.eval_results[0].metric_name == "Mean squared error, signals in [-1, 1]"
    assert "turns signals into codes out of 16, and back" in card
    assert "sample = torch.rand(1, model.in_channels, 24) * 2 - 1  # one signal, in [-1, 1]" in card
    assert "[reconstructions](reconstructions.txt)" in card
    assert "image" not in card


def test_a_card_and_inspect_do_without_a_modality(tmp_path, capsys, monkeypatch):
    register_codecs(monkeypatch)
    started(SignalCodec(strides=(4,))).save_pretrained(tmp_path / "codec")
    (tmp_path / "codec" / "evaluation.json").write_text(json.dumps({"autoencoder": {"mse": 0.5}}))
    folder = read_folder(tmp_path / "codec")
    data = describe(folder, "me/codec", "mit")
    assert data.pipeline_tag is None
    assert data.eval_results[0].metric_name == "Mean squared error, samples in [-1, 1]"
    assert "turns samples into codes out of 16" in str(write_card(folder, "me/codec", data))
    assert run("inspect", tmp_path / "codec", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bits_per_position"] == 1
    assert run("tokenize", tmp_path / "codec", "--data", "digits", "--output", tmp_path / "out") == 2
    assert "SignalCodec belongs to no modality" in capsys.readouterr().err


@pytest.mark.parametrize("codec_class", [TextCodec, SignalCodec])
def test_a_pipeline_gives_what_the_modality_of_its_autoencoder_does(signals, codec_class):
    config = TransformerPriorConfig(codebook_size=16, code_shape=(6,), hidden_size=8, num_layers=1, num_heads=1)
    pipe = hf_vq.VQPipeline(codec_class(strides=(4,)).eval(), TransformerPrior(config).eval())
    pipe.set_progress_bar_config(disable=True)
    first, again = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    output = pipe(batch_size=2, generator=first, output_type="pt")
    if codec_class is TextCodec:
        assert type(output) is SignalPipelineOutput
        assert pipe(output_type="np").signals[0].shape == (2, 24)
    (samples,) = output.to_tuple()
    assert torch.equal(samples, draw(pipe, {}, 2, 2, again))
    with pytest.raises(ValueError, match="output_type must be one of"):
        pipe(output_type="pil")


# -- old spellings


def test_an_old_spelling_works_and_is_told(photos, capsys):
    assert run("tokenize", "tokenizer", "--data", "photos", "--output", "codes") == 0
    capsys.readouterr()
    Path("old.yaml").write_text("codes: codes\nlevel: top\n")
    for arguments in (["--codes", "codes", "--level", "top"], ["--codes", "codes", "--level=top"], ["old.yaml"]):
        assert run("train", "prior", *arguments, "--output", "prior") == 2
        error = capsys.readouterr().err
        assert error.count("is now") == 1
        assert "grid='top': codes holds codes of one grid" in error

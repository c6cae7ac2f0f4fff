"""Facts about speakers on the whole road: columns, codes, priors, pipelines, commands."""

import json
from pathlib import Path

import datasets
import pytest
import soundfile
import torch

import hf_vq
import hf_vq_cli
from hf_vq.cli.inspect import describe
from hf_vq.data.audio import load_audio
from hf_vq.data.codes import load_codes
from hf_vq.data.tokenizing import tokenize_dataset

from .sound_codec import sound_bytes, tone
from .test_audio_codecs import make as make_codec
from .test_audio_data import write_parquet
from .test_audio_pipeline import DECODER, RATE, generator

WHO = [["eve", "bob"][index % 3 == 0] for index in range(12)]
WORDS = [("no", "yes")[index % 2] for index in range(12)]


def write(folder, who=tuple(WHO), **columns):
    """Sounds of two speakers, each of an own pitch, in a folder of a table."""
    folder.mkdir()
    pitches = {"bob": 50, "eve": 130}
    files = [sound_bytes(tone(60 + 5 * row, RATE, pitch=pitches.get(one, 90)), RATE) for row, one in enumerate(who)]
    write_parquet(folder / "train.parquet", files, speaker=list(who), label=WORDS[: len(who)], **columns)
    return folder


def load(folder, split="train", **options):
    return load_audio(folder, split=split, **{"speaker_column": "speaker", "validation_fraction": 0, **options})


@pytest.mark.parametrize("kind", ["strings", "class labels", "integers"])
def test_speakers_are_read_as_classes_are_and_only_when_asked_for(kind, tmp_path):
    files = [sound_bytes(tone(60, RATE), RATE)] * 4
    write_parquet(tmp_path / "a.parquet", files, speaker=["b", "a", "b", "c"] if kind == "strings" else [1, 0, 1, 2])
    names = ["0", "1", "2"] if kind == "integers" else ["a", "b", "c"]
    if kind == "class labels":
        table = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"))
        table.cast_column("speaker", datasets.ClassLabel(names=names)).save_to_disk(tmp_path / "saved")
    source = tmp_path / ("saved" if kind == "class labels" else "a.parquet")
    sounds, silent = load(source), load(source, speaker_column=None)
    assert (sounds.speaker_names, sounds.num_speakers) == (names, 3)
    assert [int(sounds[row]["speaker_labels"]) for row in range(4)] == [1, 0, 1, 2]
    assert (silent.speaker_names, silent.speaker_labels, silent.num_speakers) == (None, None, 0)
    assert "speaker_labels" not in silent[0]


def test_speakers_of_a_split_are_those_of_training(tmp_path):
    write(tmp_path / "sounds")
    files = [sound_bytes(tone(60, RATE), RATE)] * 2
    write_parquet(tmp_path / "sounds/validation.parquet", files, speaker=["eve"] * 2, label=["yes"] * 2)
    held_out = load(tmp_path / "sounds", "validation")
    assert held_out.speaker_names == ["bob", "eve"]
    assert held_out.speaker_labels.tolist() == [1, 1]
    write_parquet(tmp_path / "sounds/validation.parquet", files, speaker=["eve", "dan"], label=["yes"] * 2)
    with pytest.raises(ValueError, match=r"row 1: speaker=dan is out of range for 2 speakers \(bob, eve\)"):
        load(tmp_path / "sounds", "validation")


def test_columns_that_hold_no_speakers_are_named(tmp_path):
    write(tmp_path / "sounds", loudness=[0.5] * 12)
    with pytest.raises(ValueError, match=r"speaker_column='who': .* has columns"):
        load(tmp_path / "sounds", speaker_column="who")
    with pytest.raises(ValueError, match=r"speaker_column='loudness' holds neither .* speaker_column none leaves"):
        load(tmp_path / "sounds", speaker_column="loudness")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/a.wav").write_bytes(sound_bytes(tone(60, RATE), RATE))
    with pytest.raises(ValueError, match=r"speaker_column='speaker': .* has no table"):
        load(tmp_path / "bare")


def test_codes_keep_speakers_through_resumes_and_datasets(tmp_path):
    codec, sounds, codes = make_codec("encodec"), load(write(tmp_path / "sounds")), tmp_path / "codes"
    tokenize_dataset(codec, sounds, codes, shard_size=5)
    whole = {path.name: path.read_bytes() for path in (codes / "data").iterdir()}
    found = load_codes(codes)
    assert [found.speaker_names[item["speaker_labels"]] for item in found] == WHO
    assert [found.class_names[item["class_labels"]] for item in found] == WORDS
    min((codes / "data").iterdir()).unlink()
    tokenize_dataset(codec, sounds, codes, shard_size=5, resume=True)
    assert {path.name: path.read_bytes() for path in (codes / "data").iterdir()} == whole
    with pytest.raises(ValueError, match=r"was made with speaker_names=\['bob', 'eve'\], this run has None"):
        tokenize_dataset(codec, load(tmp_path / "sounds", speaker_column=None), codes, shard_size=5, resume=True)
    rows = datasets.Dataset.from_parquet([str(path) for path in sorted((codes / "data").iterdir())])
    (tmp_path / "few/data").mkdir(parents=True)
    rows.filter(lambda row: row["speaker_labels"] == 1).to_parquet(tmp_path / "few/data/train-00000-of-00001.parquet")
    few = load_codes(tmp_path / "few")
    assert (few.speaker_names, set(few.speaker_labels.tolist()), len(few)) == (["bob", "eve"], {1}, WHO.count("eve"))
    assert describe(str(codes))["num_speakers"] == 2


def run(*words):
    assert hf_vq_cli.main(list(map(str, words))) == 0


def test_from_a_column_to_a_voice_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(Path("sounds"))
    make_codec("encodec").save_pretrained("codec")
    run("tokenize", "codec", "codes", "--data", "sounds", "--speaker_column", "speaker")
    train = ["train", "prior", "codes", "prior", "--autoencoder", "codec", "--prior", "DelayedTransformerPrior"]
    sizes = [word for name, value in DECODER.items() for word in (f"--prior_config.{name}", value)]
    options = ["--use_cpu", "true", "--num_samples", "4", "--disable_tqdm", "true", *sizes]
    run(*train, *options, "--max_steps", "40", "--learning_rate", "0.02", "--per_device_train_batch_size", "10")
    assert "2 classes, 2 speakers" in capsys.readouterr().out
    pipe = hf_vq.VQAudioPipeline.from_pretrained("prior/pipeline")
    assert (pipe.prior.config.num_classes, pipe.prior.config.num_speakers) == (2, 2)
    assert pipe.config.speaker_names == {"0": "bob", "1": "eve"}
    codes, last = load_codes("codes"), pipe.prior.config.code_shape[-1]
    assert soundfile.info("prior/samples.wav").frames == 4 * last * 8 + 3 * RATE // 2  # and pauses

    batch = {name: torch.stack([item[name] for item in codes]) for name in ("codes", "lengths", "class_labels")}
    right, wrong = (
        pipe.prior.log_prob(**batch, speaker_labels=who).sum()
        for who in (codes.speaker_labels, 1 - codes.speaker_labels)
    )
    assert right > wrong + 10  # nats: who speaks has a say
    run("sample", "prior/pipeline", "new.wav", "--num", "1", "--classes", "no", "--speakers", "bob")
    (heard,) = pipe("no", speaker_labels="bob", generator=generator(0), output_type="pt", return_dict=False)
    written = torch.from_numpy(soundfile.read("new.wav")[0]).float()
    torch.testing.assert_close(written, heard[0, 0].cpu(), atol=1e-4, rtol=0)
    run("evaluate", "prior", "--codes", "codes", "--split", "validation")
    assert json.loads(Path("prior/evaluation.json").read_text())["prior"]["num_samples"] == 1

    ignoring = ["--max_steps", "1", "--prior_config.num_speakers", "0", "--overwrite", "true"]
    run(*train, *options, *ignoring)
    assert hf_vq.AutoVQPrior.from_pretrained("prior").config.num_speakers == 0
    assert hf_vq_cli.main([*map(str, train[:3]), "other", *map(str, sizes), "--prior_config.num_speakers", "3",
                           "--prior", "DelayedTransformerPrior"]) == 2  # fmt: skip
    assert "num_speakers=3, but the codes in codes have 2 speakers (0 ignores them)" in capsys.readouterr().err

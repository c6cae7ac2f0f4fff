"""Facts about sounds as data: files of any format, rate and length, and what of them is bad."""

import io
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch

from hf_vq.data.audio import load_audio
from hf_vq.data.padding import collator_for
from hf_vq.data.sound_files import Sound
from hf_vq.data.sound_rules import SoundRules, resampled_length, wav_bytes
from hf_vq.training.autoencoder import AutoencoderTrainingArguments
from hf_vq.training.reading import make_reader

from .sound_codec import SoundCodec, sound_bytes, tone, write_sounds

COMPRESSED = {"FLAC": "a.flac", "OGG": "a.ogg", "MP3": "a.mp3"}


def write_parquet(path, files, feature=None, **columns):
    """A Parquet file with a column of sounds, as `datasets` writes it."""
    cells = [{"bytes": content, "path": None} for content in files]
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    table = datasets.Dataset.from_dict({"audio": cells}, features=datasets.Features({"audio": struct}))
    for name, values in columns.items():
        table = table.add_column(name, values)
    table.cast_column("audio", feature or datasets.Audio()).to_parquet(path)


def wave(dataset, index=0):
    return dataset[index]["sample"]


def test_a_folder_is_read_by_classes_and_held_out_alike_in_every_call(tmp_path):
    write_sounds(tmp_path)
    train, validation = (
        load_audio(tmp_path, split=split, validation_fraction=0.25) for split in ("train", "validation")
    )
    assert (len(train), len(validation), train.class_names) == (9, 3, ["high", "low"])
    assert len(train.without(validation)) == 9
    assert train.variable_length
    assert train.sample_shape == (1, 300 + 17 * 11)
    for row, name in enumerate(train.source.names):
        values, rate = soundfile.read(name, dtype="float32")
        assert (rate, train.sampling_rate) == (8000, 8000)
        assert torch.equal(wave(train, row)[0], torch.from_numpy(values))
        assert train[row]["class_labels"] == ["high", "low"].index(Path(name).parent.name)
    batch = collator_for(SoundCodec(), train)([train[0], train[5]])
    assert batch["sample"].shape[-1] % 8 == 0
    assert batch["padding_mask"].sum(dim=1).tolist() == [wave(train, 0).shape[1], wave(train, 5).shape[1]]


def test_columns_of_datasets_are_read_without_ffmpeg(tmp_path):
    files = [sound_bytes(tone(100 + index)) for index in range(6)]
    write_parquet(tmp_path / "a.parquet", files, label=[index % 3 for index in range(6)], text=list("abcdef"))
    for cache_bytes in (0, 2**20):
        sounds = load_audio(tmp_path / "a.parquet", validation_fraction=0, cache_bytes=cache_bytes)
        assert sounds.sample_shape == (1, 105)
        assert sounds.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert sounds.captions == list("abcdef")
        assert [wave(sounds, row).shape[1] for row in range(6)] == list(range(100, 106))
        values = soundfile.read(io.BytesIO(files[4]), dtype="float32")[0]
        assert torch.equal(wave(sounds, 4)[0], torch.from_numpy(values))


def test_tables_beside_sounds_tell_labels_and_texts(tmp_path):
    write_sounds(tmp_path, count=4)
    Path(tmp_path, "low/metadata.csv").write_text("file_name,text,label\n03.wav,three,7\n01.wav,one,7\n")
    Path(tmp_path, "metadata.jsonl").write_text('{"file_name": "high/02.wav", "text": "two"}\n')
    low = load_audio(tmp_path / "low", validation_fraction=0)
    assert low.captions == ["three", "one"]
    assert low.labels.tolist() == [7, 7]
    Path(tmp_path, "low/metadata.csv").unlink()
    with pytest.warns(UserWarning, match="sounds of .* that metadata.jsonl does not name are left out: 3"):
        assert load_audio(tmp_path, validation_fraction=0).captions == ["two"]


@pytest.mark.parametrize("form", COMPRESSED)
@pytest.mark.parametrize("channels", [1, 2])
def test_compressed_files_keep_length_and_sound(tmp_path, form, channels):
    values = tone(12345, 44100, channels)
    path = tmp_path / COMPRESSED[form]
    path.write_bytes(sound_bytes(values, 44100, format=form))
    sounds = load_audio([path])
    assert sounds.sample_shape == (channels, 12345)
    assert sounds.sampling_rate == 44100
    assert np.corrcoef(wave(sounds).numpy().ravel(), values.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "GSM610", "ULAW", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("length", [100, 320, 4001])  # 320: one block of GSM, an odd number
def test_wav_files_have_the_length_that_they_tell(subtype, length):
    with Sound(io.BytesIO(sound_bytes(tone(length), subtype=subtype))) as sound:
        assert sound.read().shape == (1, length)
        assert sound.lossless == (subtype in ("PCM_24", "FLOAT"))


@pytest.mark.parametrize(("old", "new", "length"), [(8000, 24000, 1001), (44100, 16000, 1001), (48000, 44100, 7)])
def test_a_resampled_sound_has_all_samples_that_begin_before_it_ends(old, new, length):
    rules = SoundRules(new, 1)
    wanted = -(-length * new // old)
    assert resampled_length(length, old, new) == rules.length(length, old) == wanted
    found = rules.to_sample(tone(length, old).astype(np.float32), old)[0].numpy()
    assert found.shape == (wanted,)
    if length > 1000:
        middle = slice(wanted // 4, -wanted // 4)
        np.testing.assert_allclose(found[middle], tone(wanted, new)[0][middle], atol=2e-3)


def test_channels_are_mixed_by_mean_and_made_by_copies(tmp_path):
    for channels in (1, 2):
        (tmp_path / f"{channels}.wav").write_bytes(sound_bytes(tone(50, channels=channels)))
    mono, stereo = (load_audio(tmp_path, validation_fraction=0, channels=channels) for channels in (1, 2))
    assert load_audio(tmp_path, validation_fraction=0).sample_shape == (2, 50)
    assert torch.equal(wave(stereo, 0)[0], wave(stereo, 0)[1])
    torch.testing.assert_close(wave(mono, 1)[0], wave(stereo, 1).mean(dim=0))
    (tmp_path / "4.wav").write_bytes(sound_bytes(tone(50, channels=4)))
    with pytest.raises(ValueError, match=r"4\.wav: it has 4 channels, of which channels=2 cannot be made"):
        load_audio(tmp_path, validation_fraction=0, channels=2, skip_bad=True)


def test_rates_that_differ_need_one(tmp_path):
    for rate in (8000, 11025):
        (tmp_path / f"{rate}.wav").write_bytes(sound_bytes(tone(rate), rate))
    with pytest.raises(ValueError, match=r"give sampling_rate: .*11025\.wav has 11025 Hz, .*8000\.wav 8000"):
        load_audio(tmp_path, validation_fraction=0)
    sounds = load_audio(tmp_path, validation_fraction=0, sampling_rate=16000)
    assert [wave(sounds, row).shape[1] for row in (0, 1)] == [16000, 16000]


def bad_sounds():
    whole = sound_bytes(tone(2000))
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 40000))
    yield "empty", b"", "not a sound"
    yield "words", b"hello world" * 9, "not a sound"
    yield "nothing", sound_bytes(np.zeros((1, 0))), "no samples"
    yield "short", whole[:900], "ends after 856 of 4,000 bytes"
    yield "flac", sound_bytes(noise, format="FLAC")[:20000], "cannot be decoded|ends after"
    yield "mp3", sound_bytes(noise, format="MP3")[:4000], "ends after"
    yield "nan", sound_bytes(np.full((1, 9), np.nan), subtype="FLOAT"), "NaN"
    yield "loud", sound_bytes(tone(90, loudness=20000), subtype="FLOAT"), "another scale"


@pytest.mark.parametrize(("name", "content", "message"), list(bad_sounds()), ids=[name for name, _, _ in bad_sounds()])
def test_a_bad_file_is_named_or_left_out(tmp_path, name, content, message):
    write_sounds(tmp_path, count=2)
    (tmp_path / "high" / f"{name}.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad audio .*{name}\.wav: .*({message})"):
        load_audio(tmp_path, validation_fraction=0)
    for cache_bytes in (0, 2**20):
        sounds = load_audio(tmp_path, validation_fraction=0, skip_bad=True, cache_bytes=cache_bytes)
        assert len(sounds) == 2
        assert f"{name}.wav" in sounds.skipped[0]


def test_peaks_beyond_full_scale_are_cut_and_told(tmp_path):
    square = np.sign(tone(8000, pitch=500)) * 0.999
    (tmp_path / "square.ogg").write_bytes(sound_bytes(square, format="OGG"))
    for cache_bytes in (0, 2**20):
        with pytest.warns(UserWarning, match="beyond full scale, up to 1"):
            sample = wave(load_audio([tmp_path / "square.ogg"], cache_bytes=cache_bytes))
        assert sample.abs().max() == 1
        assert np.mean(np.sign(sample.numpy()) == np.sign(square)) > 0.9  # integers would wrap


def test_written_files_are_rounded_and_cut():
    steps = torch.arange(-(2**15), 2**15, dtype=torch.float64)[None] / 2**15
    read = soundfile.read(io.BytesIO(wav_bytes(steps, 8000)), dtype="float64")[0]
    assert np.array_equal(read, steps[0].numpy())
    ramp = torch.linspace(-1.2, 1.2, 9999)[None]
    read = soundfile.read(io.BytesIO(wav_bytes(ramp, 8000)), dtype="float64")[0]
    error = read - ramp[0].double().clamp(-1, 1 - 2**-15).numpy()
    assert np.abs(error).max() <= 2**-16 + 1e-9
    assert abs(error.mean()) < 1e-7  # rounded down, they would be half a step lower


def test_silent_ends_are_cut_off_where_that_is_asked_for(tmp_path):
    values = np.concatenate([np.zeros((1, 500)), tone(800, loudness=0.5), np.full((1, 300), 0.001)], axis=1)
    (tmp_path / "a.wav").write_bytes(sound_bytes(values))
    assert wave(load_audio([tmp_path / "a.wav"])).shape[1] == 1600
    for cache_bytes in (0, 2**20):
        sounds = load_audio([tmp_path / "a.wav"], trim_silence=40, cache_bytes=cache_bytes)
        assert 790 <= sounds.sample_shape[1] <= 800
        assert wave(sounds).shape == sounds.sample_shape


def test_crops_are_drawn_by_seed_and_position_and_a_resumed_run_draws_the_same(tmp_path):
    write_sounds(tmp_path, count=6)
    sounds = load_audio(tmp_path, validation_fraction=0, audio_length=320, random_crop=True)
    assert not sounds.variable_length
    assert sounds.sample_shape == (1, 320)
    assert not wave(sounds, 0)[:, 300:].any()  # it has 300 samples: silence follows
    args = AutoencoderTrainingArguments(str(tmp_path / "out"), per_device_train_batch_size=3, seed=5)
    collate = collator_for(SoundCodec(), sounds)

    def batches(start, count):
        steps = make_reader(sounds, collate, args).steps(start, False)
        return [next(steps)[0]["sample"] for _ in range(count)]

    once, resumed = batches(0, 6), batches(4, 2)
    assert all(torch.equal(one, other) for one, other in zip(once[4:], resumed, strict=True))
    seen = {tuple(part[0, :8].tolist()) for batch in once for part in batch}
    assert len(seen) > 6  # more than there are sounds: passes differ
    for options in ({}, {"sampling_rate": 11025}, {"trim_silence": 50}):  # read alone, or cut out of the whole
        one, other = (
            load_audio(
                tmp_path, validation_fraction=0, audio_length=320, random_crop=True, cache_bytes=size, **options
            )
            for size in (0, 2**20)
        )
        for row in range(6):
            places = [np.random.default_rng((3, row)) for _ in range(2)]
            assert torch.equal(one.draw(row, places[0])["sample"], other.draw(row, places[1])["sample"])
            assert torch.equal(wave(one, row), wave(other, row))
    with pytest.raises(ValueError, match="random_crop=True needs audio_length"):
        load_audio(tmp_path, random_crop=True)


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, library):
    write_sounds(tmp_path, count=2)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library}: pip install 'hf_vq\[audio\]'"):
        load_audio(tmp_path)


@pytest.mark.data
@pytest.mark.skipif("HF_VQ_DATA" not in os.environ, reason="HF_VQ_DATA does not name the folder of the data sets")
def test_spoken_digits_are_read_whole():
    train = load_audio(f"{os.environ['HF_VQ_DATA']}/fsdd", validation_fraction=0)
    test = load_audio(f"{os.environ['HF_VQ_DATA']}/fsdd", split="test", sampling_rate=24000)
    assert (len(train), train.num_classes, train.sampling_rate, train.sample_shape) == (2700, 10, 8000, (1, 18262))
    assert round(train.seconds) == 1183
    assert round(test.seconds) == 129
    assert train.labels.bincount().tolist() == [270] * 10

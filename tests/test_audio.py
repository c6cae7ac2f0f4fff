"""Facts about the modality of sounds: its processor, metrics, pictures, and the commands."""

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AudioPipelineOutput
from PIL import Image
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
from transformers import AutoFeatureExtractor

import hf_vq
import hf_vq_cli
from hf_vq import AudioProcessor
from hf_vq.data.audio import load_audio
from hf_vq.data.codes import load_codes
from hf_vq.metrics.sounds import LogSpectralDistance, ScaleInvariantDistortion
from hf_vq.modalities import AUDIO

from .registering import tables_as_they_were
from .sound_codec import SoundCodec, sound_bytes, tone, write_sounds

TRAINING = ["--max_steps", 3, "--use_cpu", "true", "--disable_tqdm", "true", "--save_steps", 0]


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


# -- the processor


def test_the_processor_makes_the_samples_of_a_data_set_of_all_forms_of_a_sound(tmp_path):
    content = sound_bytes(tone(1008, 16000, channels=2), 16000)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    sounds = load_audio([path], sampling_rate=8000, channels=1)
    processor, wanted = AudioProcessor.from_dataset(sounds), sounds[0]["sample"][None]
    integers, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    floats = integers.T / np.float32(2**15)
    decoded = SimpleNamespace(data=torch.from_numpy(floats), sample_rate=rate)  # of torchcodec
    forms = [
        path, str(path), content, {"bytes": content, "path": None}, {"bytes": None, "path": str(path)},
        {"array": floats, "sampling_rate": rate}, {"array": integers.T, "sampling_rate": rate},
        SimpleNamespace(get_all_samples=lambda: decoded),
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(processor(form), wanted)
        assert torch.equal(processor([form, form]), torch.cat([wanted, wanted]))
    assert torch.equal(processor(floats, sampling_rate=rate), wanted)
    assert torch.equal(processor(torch.from_numpy(integers.T.copy()), sampling_rate=rate), wanted)
    assert torch.equal(processor(np.stack([floats, floats]), sampling_rate=rate)[1:], wanted)
    assert processor.differences(sounds) == []
    model = SoundCodec(sampling_rate=8000).eval()
    assert torch.equal(model.tokenize(path), model.tokenize(wanted))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(9, np.float32), "sampling_rate is missing"),
        ({"array": np.zeros(9, np.float32)}, "sampling_rate is missing"),
        ({"array": np.zeros((900, 2)), "sampling_rate": 8000}, r"got shape \(900, 2\): transpose it"),
        ({"array": np.zeros((1, 0)), "sampling_rate": 8000}, r"got shape \(1, 0\)"),
        ({"array": np.zeros(9, np.int64), "sampling_rate": 8000}, "type int64"),
        ({"array": np.full(9, np.nan), "sampling_rate": 8000}, "NaN or another scale"),
        ({"array": np.full(9, 3e4), "sampling_rate": 8000}, "reach 30000, which is NaN or another scale"),
        ({"array": np.zeros((4, 99)), "sampling_rate": 8000}, "has 4 channels, of which channels=2 cannot be made"),
        ([], "empty list"),
        ("nowhere.wav", "no such audio file: nowhere.wav"),
        (b"words", "bad audio 5 bytes"),
        (
            [{"array": np.zeros(9), "sampling_rate": 8000}, {"array": np.zeros(8), "sampling_rate": 8000}],
            "return_mask",
        ),
    ],
)
def test_what_is_no_sound_is_refused(audio, message):
    with pytest.raises(ValueError, match=message):
        AudioProcessor(8000, 2)(audio)


def test_sounds_of_several_lengths_are_padded_and_decode_to_their_own():
    processor, model = AudioProcessor(8000), SoundCodec(sampling_rate=8000).eval()
    batch = processor([tone(64)[0].tolist(), tone(40)], sampling_rate=8000, return_mask=True)
    assert batch["padding_mask"].sum(dim=1).tolist() == [64, 40]
    assert not batch["sample"][1, :, 40:].any()
    assert model(**batch).sample.shape == (2, 1, 64)


def test_transformers_reads_the_saved_processor(tmp_path):
    for processor in (AudioProcessor(16000, 1), AudioProcessor(24000, 2, 35.0)):
        processor.save_pretrained(tmp_path)
        assert AudioProcessor.from_pretrained(tmp_path) == processor
        stock = AutoFeatureExtractor.from_pretrained(tmp_path)
        wave = tone(500, processor.sampling_rate, processor.channels, loudness=0.4).astype(np.float32)
        given = wave[0] if processor.channels == 1 else wave
        values = stock(given, sampling_rate=processor.sampling_rate, return_tensors="pt")["input_values"]
        loud = AudioProcessor(processor.sampling_rate, processor.channels)
        torch.testing.assert_close(loud(given, sampling_rate=processor.sampling_rate), values)
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true, "feature_size": 1}')
    with pytest.warns(UserWarning, match="nothing that an AudioProcessor can do"):
        assert AudioProcessor.from_pretrained(tmp_path) is None


def test_a_model_has_the_processor_of_its_rate_and_takes_no_other(tmp_path):
    model = SoundCodec(sampling_rate=16000)
    assert model.processor == AudioProcessor(16000, 1)
    with pytest.raises(ValueError, match="sampling_rate=8000, but the model has sampling_rate=16000"):
        model.processor = AudioProcessor(8000)
    model.processor.save_wav(tmp_path / "a.wav", np.zeros((1, 30), np.float32))
    assert soundfile.info(tmp_path / "a.wav").samplerate == 16000


# -- metrics


def figure(metric, *batches, **options):
    metric.update(*batches, **options)
    return metric.compute()[metric.name]


def test_distortion_is_that_of_torchmetrics_but_no_matter_of_loudness():
    sounds = torch.randn(3, 2, 500) * 0.1
    noisy = sounds + 0.03 * torch.randn_like(sounds)
    wanted = scale_invariant_signal_distortion_ratio(noisy.double(), sounds.double(), zero_mean=True).mean()
    assert figure(ScaleInvariantDistortion(), sounds, noisy) == pytest.approx(wanted.item())
    assert figure(ScaleInvariantDistortion(), sounds, 7 * noisy + 0.1) == pytest.approx(wanted.item(), abs=1e-3)
    for loudness in (1, 1e-3, 1e-6):
        assert figure(ScaleInvariantDistortion(), loudness * sounds, loudness * sounds) == 100
    assert figure(ScaleInvariantDistortion(), sounds, torch.zeros_like(sounds)) == -100
    silent = torch.cat([sounds, torch.zeros_like(sounds)])
    assert figure(ScaleInvariantDistortion(), silent, torch.cat([noisy, noisy])) == pytest.approx(wanted.item())
    assert math.isnan(figure(ScaleInvariantDistortion(), 0 * sounds, noisy))


@pytest.mark.parametrize("metric_class", [ScaleInvariantDistortion, LogSpectralDistance])
def test_padding_does_not_enter_metrics_of_sounds(metric_class):
    sounds = torch.randn(2, 1, 700) * 0.1
    noisy, mask = sounds + 0.1 * torch.randn_like(sounds), torch.ones(2, 700, dtype=torch.bool)
    mask[1, 300:] = False
    alone = [
        figure(metric_class(), sounds[i : i + 1, :, :n], noisy[i : i + 1, :, :n]) for i, n in ((0, 700), (1, 300))
    ]
    assert figure(metric_class(), sounds, noisy, padding_mask=mask) == pytest.approx(sum(alone) / 2)


def test_the_spectral_distance_of_half_the_loudness_is_six_decibels():
    sounds = torch.randn(2, 1, 9000) * 0.1
    assert figure(LogSpectralDistance(), sounds, sounds) == 0
    assert figure(LogSpectralDistance(), sounds, sounds / 2) == pytest.approx(20 * math.log10(2), abs=1e-4)
    assert not LogSpectralDistance.more_is_better


# -- pictures


def test_files_of_several_sounds_hold_them_in_turn_without_their_padding(tmp_path):
    samples = torch.rand(2, 1, 400) - 0.5
    AUDIO.save_reconstructions(tmp_path / "a.wav", samples, -samples, sampling_rate=8000, lengths=[400, 300])
    values = soundfile.read(tmp_path / "a.wav")[0]
    pause = 4000
    assert len(values) == 2 * 400 + 2 * 300 + 3 * pause
    np.testing.assert_allclose(values[400 + pause :][:400], -samples[0, 0], atol=2**-16)
    np.testing.assert_allclose(values[800 + 2 * pause :][:300], samples[1, 0, :300], atol=2**-16)
    assert not values[400 : 400 + pause].any()
    AUDIO.save_samples(tmp_path / "b.wav", samples, columns=8, sampling_rate=8000)
    assert soundfile.info(tmp_path / "b.wav").frames == 800 + pause
    codes = torch.randint(0, 16, (2, 3, 50))
    AUDIO.save_code_maps(tmp_path / "c.png", samples, codes, 16, sampling_rate=8000, lengths=[400, 300])
    for name in ("a.png", "c.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    with pytest.raises(ValueError, match=r"codes must be in \[0, 9\)"):
        AUDIO.save_code_maps(tmp_path / "d.png", samples, codes.fill_(9), 9, sampling_rate=8000)
    with pytest.raises(ValueError, match="sampling_rate is None"):
        AUDIO.save_samples(tmp_path / "e.wav", samples, columns=8, sampling_rate=None)


# -- commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of sounds at 11,025 Hz, and a codec of 8,000 Hz that was trained on crops of them."""
    folder = tmp_path_factory.mktemp("trained")
    write_sounds(folder / "sounds", count=6, rate=11025)
    with tables_as_they_were():
        hf_vq.register(SoundCodec)
        flags = ["--model_config.sampling_rate", 8000, "--audio_length", 160, "--random_crop", *TRAINING]
        codec = ["--model", "SoundCodec", "--output", folder / "codec"]
        assert run("train", "autoencoder", *codec, "--data", folder / "sounds", *flags) == 0
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    with tables_as_they_were():
        hf_vq.register(SoundCodec)
        monkeypatch.chdir(tmp_path)
        yield trained


def test_training_writes_a_codec_with_its_processor_sounds_and_pictures(workplace):
    model = hf_vq.AutoVQModel.from_pretrained(workplace / "codec")
    assert model.processor == AudioProcessor(8000, 1)
    names = {path.name for path in (workplace / "codec").iterdir()}
    assert {"reconstructions.wav", "reconstructions.png", "code_maps.png", "codebook_usage.png"} <= names
    history = json.loads((workplace / "codec" / "report.json").read_text())["metrics"]
    assert {"eval_si_sdr", "eval_log_spectral_distance"} <= history.keys()


def test_codes_are_those_of_whole_sounds_with_their_lengths(workplace):
    data = ["--data", workplace / "sounds", "--validation_fraction", 0]
    assert run("tokenize", workplace / "codec", "codes", *data) == 0
    codes, model = load_codes("codes"), hf_vq.AutoVQModel.from_pretrained(workplace / "codec")
    files = sorted((workplace / "sounds").rglob("*.wav"))
    lengths = [-(-soundfile.info(path).frames * 8000 // 11025) for path in files]
    assert codes.lengths.tolist() == [-(-length // 8) for length in lengths]
    for item, path, length in zip(codes, files, lengths, strict=True):
        sample = model.processor(path)
        assert sample.shape[-1] == length
        cells = item["lengths"]
        alone = model.tokenize(torch.nn.functional.pad(sample, (0, -length % 8)))
        assert torch.equal(item["codes"][:, :cells], alone[0])


def test_reconstruct_takes_files_and_folders_of_any_length(workplace, capsys):
    one, low = workplace / "sounds/high/00.wav", workplace / "sounds/low"
    assert run("reconstruct", workplace / "codec", one, "--output", "one.wav") == 0
    told = capsys.readouterr().out
    info = soundfile.info("one.wav")
    assert (info.frames, info.samplerate, info.channels) == (-(-300 * 8000 // 11025), 8000, 1)
    assert Path("one.png").is_file()
    model = hf_vq.AutoVQModel.from_pretrained(workplace / "codec")
    sample = model.processor(one)
    again = model.detokenize(model.tokenize(torch.nn.functional.pad(sample, (0, -sample.shape[-1] % 8))))
    error = torch.nn.functional.mse_loss(again[..., : sample.shape[-1]], sample)
    assert f"mean squared error {error:.5f}" in told
    assert run("reconstruct", workplace / "codec", one, low, "--output", "all") == 0
    assert len(list(Path("all").glob("*.wav"))) == len(list(Path("all").glob("*.png"))) == 4
    assert Path("all/00.wav").read_bytes() == Path("one.wav").read_bytes()
    Path("two.png").write_text("mine")
    assert run("reconstruct", workplace / "codec", one, "--output", "two.wav") == 2
    assert "two.png exists" in capsys.readouterr().err
    assert run("reconstruct", workplace / "codec", one, one, "--output", "same") == 2
    assert "would both become 00.wav" in capsys.readouterr().err


def test_evaluate_measures_whole_sounds_and_says_what_changed_them(workplace):
    assert (
        run("evaluate", workplace / "codec", "figures.json", "--data", workplace / "sounds", "--split", "train") == 0
    )
    report = json.loads(Path("figures.json").read_text())
    assert report["autoencoder"]["num_samples"] == 5
    assert -100 <= report["autoencoder"]["si_sdr"] <= 100
    assert report["protocol"]["changed_samples"] == ["5 of 5 sounds were resampled"]
    assert report["protocol"]["sampling_rate"] == 8000


def test_a_pipeline_draws_sounds_and_is_measured_where_they_have_one_length(workplace):
    model = hf_vq.AutoVQModel.from_pretrained(workplace / "codec")
    config = hf_vq.DelayedTransformerPriorConfig(
        codebook_size=16,
        code_shape=(2, 20),
        num_levels=2,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        intermediate_size=8,
    )
    pipe = hf_vq.VQAudioPipeline(model.eval(), hf_vq.DelayedTransformerPrior(config).eval())
    pipe.set_progress_bar_config(disable=True)
    output = pipe(batch_size=2)
    assert type(output) is AudioPipelineOutput
    assert output.audios.shape == (2, 1, 160)
    assert np.abs(output.audios).max() <= 1
    pipe.save_pretrained("pipeline")
    assert run("sample", "pipeline", "--num", 2, "--output", "drawn.wav") == 0
    assert soundfile.info("drawn.wav").frames == 2 * 160 + 4000
    for flags, skipped in ([], True), (["--audio_length", 160], False):
        data = ["--data", workplace / "sounds", "--output", "figures.json", "--overwrite"]
        assert run("evaluate", "pipeline", *data, *flags) == 0
        assert ("skipped" in json.loads(Path("figures.json").read_text())["likelihood"]) == skipped


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image_size", 8], "image_size='8' is for images, and the model takes sounds"),
        (["--sampling_rate", 16000], "sampling_rate=16000, but the model has 8000"),
        (["--channels", 2], "channels=2, but the model takes 1"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(workplace, capsys, flags, message):
    assert run("tokenize", workplace / "codec", "codes", "--data", workplace / "sounds", *flags) == 2
    assert message in capsys.readouterr().err

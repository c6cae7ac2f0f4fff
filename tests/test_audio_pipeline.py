"""Facts about priors over codes of sounds and their pipeline: lengths, levels, continuation, scales, commands."""

import json

import pytest
import soundfile
import torch
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput

import hf_vq
import hf_vq_cli
from hf_vq import VQAudioPipeline

from .sound_codec import sound_bytes, tone, write_sounds
from .test_audio_codecs import make as make_codec

RATE, HOP, LEVELS, FRAMES = 800, 8, 3, 10
DECODER = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16, "initializer_range": 0.5}
SIZES = {
    "DelayedTransformerPrior": DECODER,
    "TransformerPrior": DECODER,
    "RQTransformer": {
        "hidden_size": 16, "num_spatial_layers": 1, "num_spatial_heads": 2, "num_depth_layers": 1,
        "num_depth_heads": 2, "block_size": 30, "code_vector_dim": 6, "shared_code_vectors": False,
    },
    "WaveNet": {"residual_channels": 8, "gate_channels": 8, "skip_channels": 8, "num_layers": 4, "num_cycles": 2},
}  # fmt: skip
every = pytest.mark.parametrize("name", ["DelayedTransformerPrior", "RQTransformer", "WaveNet"])


def make_prior(name, codec, levels=LEVELS, **options):
    torch.manual_seed(0)
    several = name != "WaveNet"
    shape = {"code_shape": (levels, FRAMES), "num_levels": levels} if several else {"code_shape": (FRAMES,)}
    prior_class = getattr(hf_vq, name)
    prior = prior_class(prior_class.config_class(codebook_size=16, **shape, **SIZES[name], **options))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # labels must have a say
    if name == "RQTransformer":
        prior.set_code_vectors(codec.quantizer.code_vectors())
    return prior.eval()


def build(classes=3, speakers=0, name="DelayedTransformerPrior", family="encodec", levels=LEVELS, **options):
    codec = make_codec(family)
    if classes:
        options |= {"num_classes": classes, "class_dropout_prob": 0.1}
    if speakers:
        options |= {"num_speakers": speakers, "speaker_dropout_prob": 0.1}
    pipe = VQAudioPipeline(
        codec,
        make_prior(name, codec, levels, **options),
        ["ant", "bee", "cat"] if classes else None,
        ["eve", "bob"] if speakers else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def sound(length, channels=1, pitch=60):
    return tone(length, RATE, channels, pitch, 0.3)


# Priors over (levels, length) and over (length,)


@every
def test_priors_learn_rate_and_draw_codes_of_any_length(name):
    prior = make_prior(name, make_codec("encodec"), num_classes=2, num_speakers=3)
    levels = prior.config.code_shape[:-1]
    labels = {"class_labels": torch.tensor([0, 1]), "speaker_labels": torch.tensor([2, 0])}
    for length in (1, 25):  # shorter and longer than the 10 of its code_shape
        drawn = prior.sample(code_shape=(*levels, length), temperature=0, **labels)
        output = prior(drawn, **labels)
        assert drawn.shape == (2, *levels, length)
        assert torch.equal(output.logits.argmax(-1), drawn)
        torch.testing.assert_close(prior.log_prob(drawn, **labels).sum(), -output.loss * drawn.numel())
    lengths = torch.tensor([25, 9])
    alone = prior.log_prob(drawn[1:, ..., :9], **{label: value[1:] for label, value in labels.items()})
    torch.testing.assert_close(prior.log_prob(drawn, lengths, **labels)[1:], alone)
    other = {"class_labels": labels["class_labels"], "speaker_labels": torch.tensor([1, 1])}
    assert not torch.equal(prior.log_prob(drawn, **labels), prior.log_prob(drawn, **other))

    prior.train()
    optimizer, losses = torch.optim.Adam(prior.parameters(), lr=0.01), []
    for _ in range(25):
        loss = prior(drawn, lengths=lengths, **labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_learned_positions_end_and_say_so():
    pipe = build(0, name="RQTransformer")
    with pytest.raises(ValueError, match="code_shape must have at most block_size=30 positions"):
        pipe(audio_length_in_s=31 * HOP / RATE)
    assert pipe(audio_length_in_s=30 * HOP / RATE).audios.shape == (1, 1, 30 * HOP)


# New sounds


@pytest.mark.parametrize(
    ("name", "family"), [("DelayedTransformerPrior", "stereo"), ("RQTransformer", "encodec"), ("WaveNet", "dac")]
)
def test_a_sound_is_of_just_the_asked_length(name, family):
    pipe = build(0, name=name, family=family)
    channels = pipe.autoencoder.in_channels
    for length in (1, HOP, 97):
        output = pipe(batch_size=2, audio_length_in_s=length / RATE, output_type="pt", generator=generator())
        assert isinstance(output, AudioPipelineOutput)
        assert output.audios.shape == (2, channels, length)
    codes = pipe(generator=generator(), output_type="codes").audios
    expected = pipe.autoencoder.detokenize(
        codes if codes.ndim == 3 else codes[:, None],
        **({"scales": torch.full((1, 2), 0.1)} if family == "stereo" else {}),
    )
    assert torch.equal(pipe(generator=generator(), output_type="sample").audios, expected)
    (array,) = pipe(generator=generator(), return_dict=False)
    torch.testing.assert_close(torch.from_numpy(array), expected.clamp(-1, 1))


def test_a_prior_may_model_the_first_levels_alone():
    pipe = build(0, levels=2)
    codes = pipe(output_type="codes", generator=generator()).audios
    assert codes.shape == (1, 2, FRAMES)
    assert torch.equal(pipe(output_type="sample", generator=generator()).audios, pipe.autoencoder.detokenize(codes))
    beginning = pipe.autoencoder.tokenize(torch.from_numpy(sound(24))[None].float())
    assert torch.equal(
        pipe(audio=sound(24), sampling_rate=RATE, output_type="codes").audios[..., :3], beginning[:, :2]
    )
    codec = make_codec("encodec", quantizer_config={"num_levels": 2})
    with pytest.raises(ValueError, match="prior models 3 levels, but the codes of the autoencoder have 2"):
        VQAudioPipeline(codec, make_prior("DelayedTransformerPrior", codec))


def test_classes_speakers_and_copies_in_a_row():
    pipe = build(speakers=2)
    ids = {"class_labels": torch.tensor([2, 2, 0, 0]), "speaker_labels": torch.tensor([1, 1, 0, 0])}
    expected = pipe.prior.sample(**ids, generator=generator(), guidance_scale=1.5)
    request = {"guidance_scale": 1.5, "num_waveforms_per_prompt": 2, "output_type": "codes"}
    codes = pipe(["cat", 0], speaker_labels=["bob", "eve"], **request, generator=generator()).audios
    assert torch.equal(codes, expected)
    for other in ({"speaker_labels": ["eve", "eve"]}, {"class_labels": ["bee", 0]}):
        arguments = {"class_labels": ["cat", 0], "speaker_labels": ["bob", "eve"], **request, **other}
        assert not torch.equal(pipe(**arguments, generator=generator()).audios, expected)


def test_prompts_and_copies_in_a_row():
    pipe, prompts = build(0, num_text_tokens=9, prompt_length=3), torch.tensor([[1, 2], [8, 5]])
    expected = pipe.prior.sample(prompt_ids=prompts.repeat_interleave(2, 0), generator=generator())
    request = {"num_waveforms_per_prompt": 2, "output_type": "codes", "generator": generator()}
    assert torch.equal(pipe(prompt_ids=prompts.tolist(), **request).audios, expected)


# Given sounds


@every
def test_a_continuation_begins_with_the_codes_of_the_sound(name):
    pipe = build(0, name=name)
    sounds = [sound(29), sound(64, pitch=90)]  # one ends within a frame
    alone = [pipe.autoencoder.tokenize(torch.from_numpy(one)[None].float())[0] for one in sounds]
    alone = [codes if name != "WaveNet" else codes[0] for codes in alone]
    length = {"audio_length_in_s": 150 / RATE, "generator": generator()}
    codes = pipe(audio=sounds, sampling_rate=RATE, num_waveforms_per_prompt=2, output_type="codes", **length).audios
    assert codes.shape[0] == 4
    for row, first in enumerate([alone[0], alone[0], alone[1], alone[1]]):
        assert torch.equal(codes[row, ..., : first.shape[-1]], first)
    assert not torch.equal(codes[0], codes[1])
    one = {"array": sounds[1], "sampling_rate": RATE}
    assert pipe(audio=one, batch_size=3, **length).audios.shape == (3, 1, 150)
    default = pipe(audio=one, output_type="codes").audios  # as long as code_shape says
    assert default.shape[-1] == FRAMES
    assert torch.equal(default[0, ..., :8], alone[1])


def test_a_continuation_sounds_as_the_codec_gives_the_sound_back():
    pipe = build(0, family="soundstream")  # causal, also in how it pads: what comes later changes nothing before
    codec, given = pipe.autoencoder, torch.from_numpy(sound(40))[None].float()
    heard = pipe(audio=given[0], sampling_rate=RATE, output_type="pt").audios
    torch.testing.assert_close(heard[..., :40], codec.detokenize(codec.tokenize(given)), rtol=1e-4, atol=1e-5)


def test_a_normalising_codec_goes_on_with_the_last_scale():
    pipe = build(0, family="stereo")  # chunks of 40 samples, one every 36
    codec, given = pipe.autoencoder, torch.from_numpy(sound(50, channels=2)).float()
    given[:, 40:] *= 3
    found = codec.tokenize(given[None], return_dict=True)
    assert found.scales.shape == (1, 2)
    request = {"audio": given, "sampling_rate": RATE, "audio_length_in_s": 120 / RATE, "batch_size": 2}
    codes = pipe(**request, output_type="codes", generator=generator()).audios
    assert torch.equal(codes[0, :, : found.codes.shape[-1]], found.codes[0])
    scales = torch.cat([found.scales, found.scales[:, 1:], found.scales[:, 1:]], dim=1).expand(2, -1)
    expected = codec.detokenize(codes, scales, 120)
    assert torch.equal(pipe(**request, output_type="sample", generator=generator()).audios, expected)
    quiet, loud = (pipe(loudness=value, output_type="sample", generator=generator()).audios for value in (0.05, 0.1))
    torch.testing.assert_close(2 * quiet, loud)
    with pytest.raises(ValueError, match=r"loudness=0\.1 given beside audio"):
        pipe(**request, loudness=0.1)


REFUSED = {
    "of the whole result: it must be above that of audio, 0.05": {"audio": sound(40), "audio_length_in_s": 0.05},
    "audio has 13 frames of codes, all that the prior draws by default": {"audio": sound(97)},
    "no such audio file: nowhere.wav": {"audio": "nowhere.wav", "sampling_rate": None},
    "sampling_rate is missing": {"audio": sound(40), "sampling_rate": None},
    "sampling_rate=800 given without audio": {},
    "audio and known_codes exclude each other": {"audio": sound(40), "known_codes": torch.zeros(1, 3, 10)},
    "audio must be one sound, or one for each of 4 waveforms, got 3": {"audio": [sound(40)] * 3, "batch_size": 4},
    "audio_length_in_s must be": {"audio_length_in_s": 0.0, "sampling_rate": None},
    "num_waveforms_per_prompt must be": {"num_waveforms_per_prompt": 0, "sampling_rate": None},
    "speaker_labels given, but this prior has no speakers": {"speaker_labels": [0], "sampling_rate": None},
    "loudness=0.1 given, but this AudioCodec does not normalise": {"loudness": 0.1, "sampling_rate": None},
}


def test_what_does_not_fit_is_named():
    pipe = build(0)
    for message, arguments in REFUSED.items():
        with pytest.raises(ValueError, match=message):
            pipe(**{"sampling_rate": RATE, **arguments})
    with pytest.raises(TypeError, match="does not take 'mood'"):
        pipe(mood=1)
    spoken = build(0, speakers=2)
    with pytest.raises(ValueError, match="speaker_labels missing: this prior has num_speakers=2"):
        spoken()
    with pytest.raises(ValueError, match="'dog' is none of the speaker names"):
        spoken(speaker_labels="dog")
    with pytest.raises(ValueError, match="speaker_names must be 2, one for each speaker"):
        VQAudioPipeline(spoken.autoencoder, spoken.prior, speaker_names=["eve"])
    with pytest.raises(ValueError, match="a AudioCodec of the modality 'audio', whose samples VQAudioPipeline draws"):
        hf_vq.VQPipeline(pipe.autoencoder, pipe.prior)
    with pytest.raises(ValueError, match="a hierarchy, which needs a prior for each: VQVAE2Pipeline"):
        VQAudioPipeline(make_codec("snac"), pipe.prior)
    with pytest.raises(ValueError, match="autoencoder must be one of sounds, got VQVAE"):
        VQAudioPipeline(hf_vq.VQVAE(), pipe.prior)


# Folders and commands


def test_a_folder_with_speakers_draws_a_wav_file_of_the_asked_rate_and_length(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pipe = build(speakers=2)
    pipe.save_pretrained("pipe")
    loaded = VQAudioPipeline.from_pretrained("pipe")
    loaded.set_progress_bar_config(disable=True)
    request = {"class_labels": "cat", "speaker_labels": "bob", "audio_length_in_s": 0.1}
    assert loaded.config.speaker_names == {"0": "eve", "1": "bob"}
    kept, again = (torch.from_numpy(one(**request, generator=generator()).audios) for one in (pipe, loaded))
    torch.testing.assert_close(again, kept, rtol=0, atol=1e-6)  # where the weights lie in memory moves the last bit
    (tmp_path / "given.wav").write_bytes(sound_bytes(sound(40), RATE))
    command = ["sample", "pipe", "new.wav", "--num", "1", "--classes", "cat"]
    words = ["--speakers", "bob", "--audio", "given.wav", "--audio_length_in_s", "0.2"]
    assert hf_vq_cli.main([*command, *words]) == 0
    heard, rate = soundfile.read("new.wav")
    assert (rate, heard.shape) == (RATE, (160,))
    (samples,) = pipe(
        ["cat"], speaker_labels=["bob"], audio="given.wav", audio_length_in_s=0.2, return_dict=False,
        generator=generator(0), output_type="pt",
    )  # fmt: skip
    torch.testing.assert_close(torch.from_numpy(heard).float(), samples[0, 0], atol=1e-4, rtol=0)
    assert hf_vq_cli.main([*command, "--overwrite", "true"]) == 0  # every speaker, and a pause of half a second
    assert soundfile.info("new.wav").frames == 2 * FRAMES * HOP + RATE // 2
    assert hf_vq_cli.main([*command, "--overwrite", "true", "--speakers", "dog"]) == 2
    assert "speakers: 'dog' is neither a speaker label nor a speaker name" in capsys.readouterr().err


def test_a_prior_that_was_trained_on_codes_of_sounds_is_in_a_pipeline_of_sounds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sounds("sounds", rate=RATE, first=60)
    make_codec("encodec").save_pretrained("codec")
    assert hf_vq_cli.main(["tokenize", "codec", "--data", "sounds", "--output", "codes"]) == 0
    sizes = [word for name, value in DECODER.items() for word in (f"--prior_config.{name}", str(value))]
    command = ["train", "prior", "codes", "prior", "--autoencoder", "codec", "--prior", "DelayedTransformerPrior"]
    options = ["--max_steps", "1", "--use_cpu", "true", "--num_samples", "2", "--disable_tqdm", "true"]
    assert hf_vq_cli.main([*command, *options, *sizes]) == 0
    assert (
        json.loads((tmp_path / "prior/pipeline/model_index.json").read_text())["_class_name"][1] == "VQAudioPipeline"
    )
    pipe = VQAudioPipeline.from_pretrained("prior/pipeline")
    assert pipe.config.class_names == {"0": "high", "1": "low"}
    assert soundfile.info("prior/samples.wav").samplerate == RATE


def test_a_hierarchy_of_sounds_has_a_prior_for_each_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_sounds("sounds", rate=RATE, first=60)
    make_codec("snac").save_pretrained("codec")
    assert hf_vq_cli.main(["tokenize", "codec", "--data", "sounds", "--output", "codes"]) == 0
    options = ["--prior", "MaskedPrior", "--max_steps", "1", "--use_cpu", "true", "--disable_tqdm", "true"]
    for name, value in {"hidden_size": 8, "num_layers": 1, "num_heads": 2}.items():
        options += [f"--prior_config.{name}", str(value)]
    coarser: list[str] = []
    for grid in ("top", "middle", "bottom"):
        given = [*coarser, "--autoencoder", "codec", "--num_samples", "2"] if grid == "bottom" else []
        assert hf_vq_cli.main(["train", "prior", "codes", grid, "--grid", grid, *options, *given]) == 0
        coarser += [f"--{grid}_prior", grid]
    pipe = hf_vq.VQVAE2Pipeline.from_pretrained("bottom/pipeline")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(["low", "high"], generator=generator(), output_type="pt")
    assert isinstance(output, AudioPipelineOutput)
    frames = pipe.bottom_prior.config.code_shape[0]
    assert output.audios.shape == (2, 1, frames * HOP)
    codes = pipe(["low", "high"], generator=generator(), output_type="codes").audios
    assert [grid.shape for grid in codes] == [(2, frames // 4), (2, frames // 2), (2, frames)]
    torch.testing.assert_close(output.audios, pipe.autoencoder.detokenize(codes).clamp(-1, 1))
    assert hf_vq_cli.main(["sample", "bottom/pipeline", "new.wav", "--num", "1", "--classes", "low"]) == 0
    assert (soundfile.info("new.wav").samplerate, soundfile.info("new.wav").frames) == (RATE, frames * HOP)


def test_coarser_codes_stand_over_the_times_that_they_cover():
    torch.manual_seed(0)
    config = hf_vq.MaskedPriorConfig(
        codebook_size=16, code_shape=(16,), context_codebook_sizes=[5, 7], hidden_size=16, num_layers=1, num_heads=2
    )
    prior = hf_vq.MaskedPrior(config).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    codes, coarse = torch.randint(16, (2, 16)), (torch.randint(5, (2, 4)), torch.randint(7, (2, 8)))
    spread = prior.spread_context(coarse, (16,))
    first, second = (embedding.weight for embedding in prior.context_embeddings)
    assert torch.equal(spread[1, 13], first[coarse[0][1, 3]] + second[coarse[1][1, 6]])
    both = prior.log_prob(codes, torch.tensor([8, 16]), context_codes=coarse)
    alone = prior.log_prob(codes[:1, :8], context_codes=(coarse[0][:1, :2], coarse[1][:1, :4]))
    torch.testing.assert_close(both[:1], alone)
    with pytest.raises(ValueError, match=r"context_codes\[0\] must be \(batch, length\), got \(2, 4, 1\)"):
        prior(codes, context_codes=(coarse[0][..., None], coarse[1]))

"""Facts about audio codecs: the originals' numbers, any length, batches, chunks, levels, transformers' models."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from scipy.fft import dct
from torch.utils.data import Dataset
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

import hf_vq
from hf_vq.autoencoders import AudioCodec, SpectralCodec
from hf_vq.autoencoders.audio.lapped import GAIN, LappedFrames, LappedSynthesis
from hf_vq.cli.inspect import describe
from hf_vq.converters import convert
from hf_vq.data.tokenizing import tokenize_dataset

from .conftest import FIXTURES

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SMALL = {"sampling_rate": 800, "hidden_channels": 4, "strides": (2, 4), "codebook_size": 16, "codebook_dim": 6,
         "quantizer_config": {"num_levels": 3}}  # fmt: skip
DAC = {"causal": False, "activation": "snake", "pad_mode": "constant", "pad_input": True, "num_residual_layers": 3,
       "residual_kernel_size": 7, "dilation_growth": 3, "residual_compress": 1, "residual_shortcut": False,
       "latent_kernel_size": 3, "lstm_layers": 0, "output_activation": "tanh"}  # fmt: skip
FAMILIES = {
    "encodec": {},
    "soundstream": {**DAC, "causal": True, "activation": "elu", "output_activation": "none", "pad_input": False},
    "dac": {**DAC, "quantizer_config": {"num_levels": 3, "level_type": "vector",
                                        "level_config": {"code_dim": 2, "normalize": "search"}}},
    "snac": {**DAC, "depthwise": True, "attention_layers": 1, "attention_heads": 2, "attention_window": 3,
             "code_strides": (4, 2, 1), "quantizer_type": "vector", "quantizer_config": {"code_dim": 2}},
    "stereo": {"in_channels": 2, "norm": "time_group", "causal": False, "normalize": True, "chunk_length_s": 0.05,
               "overlap": 0.1},
    "odd": {"strides": (3, 5), "trim_right_ratio": 0.5, "pad_mode": "replicate", "lstm_layers": 1,
            "attention_layers": 2, "attention_heads": 2, "attention_window": 4},
}  # fmt: skip
SPECTRAL = {"sampling_rate": 800, "hop_length": 8, "subframes": 2, "hidden_channels": 8,
            "encoder_layers": 1, "decoder_layers": 1, "codebook_size": 16, "codebook_dim": 6,
            "quantizer_config": {"num_levels": 3}, "in_channels": 2, "normalize": True}  # fmt: skip
families = pytest.mark.parametrize("family", [*FAMILIES, "spectral"])


def make(family, **options):
    """A small codec with codes near its latents, in evaluation mode."""
    torch.manual_seed(0)
    spectral = family == "spectral"
    codec = SpectralCodec(**SPECTRAL) if spectral else AudioCodec(**{**SMALL, **FAMILIES[family], **options})
    codec.initialize_codebook(torch.randn(2, codec.config.in_channels, 400) * 0.3)
    return codec.eval()


@families
def test_every_length_comes_back_and_a_padded_batch_gives_each_what_it_has_alone(family):
    codec = make(family)
    lengths = [1, 2, codec.hop - 1, codec.hop, codec.hop + 1, 3 * codec.hop, 97]
    sounds = [torch.randn(codec.config.in_channels, length) * 0.3 for length in lengths]
    batch, mask = torch.randn(len(lengths), codec.config.in_channels, 97), torch.zeros(len(lengths), 97) > 0
    for row, sound in enumerate(sounds):
        batch[row, :, : lengths[row]], mask[row, : lengths[row]] = sound, True
    together = codec.tokenize(batch, mask, return_dict=True)
    assert together.length.tolist() == lengths
    decoded = codec.detokenize(together.codes, together.scales, together.length)
    cells = codec.grid_lengths(together.length)
    for row, sound in enumerate(sounds):
        alone = codec.tokenize(sound[None], return_dict=True)
        shapes = codec.code_shapes(sound.shape)
        for grid, one, shape, real in zip(
            hf_vq.as_grids(together.codes), hf_vq.as_grids(alone.codes), shapes, cells, strict=True
        ):
            assert tuple(one.shape[1:]) == shape
            assert shape[-1] == real[row]
            assert torch.equal(grid[row, ..., : shape[-1]], one[0])
        output = codec(sound[None])
        torch.testing.assert_close(codec.detokenize(alone.codes, alone.scales, alone.length), output.sample, **CLOSE)
        assert output.sample.shape[1:] == sound.shape
        torch.testing.assert_close(decoded[row, :, : lengths[row]], output.sample[0], **CLOSE)
        assert not decoded[row, :, lengths[row] :].any()
    codec.detokenize(codec.tokenize(sounds[-1][None]))  # without scales and length: of scale 1, in whole frames


@families
def test_padding_changes_no_loss_and_no_statistic_and_every_parameter_learns(family):
    outcomes = []
    for junk in (0.0, 1.0):
        codec = make(family).train()
        sample, mask = (
            torch.linspace(-1, 1, 4 * codec.config.in_channels * 97).sin().view(4, -1, 97),
            torch.ones(4, 97) > 0,
        )
        mask[1, 50:] = False
        torch.manual_seed(1)
        output = codec(sample.masked_fill(~mask[:, None], junk), mask)
        outcomes.append([output.loss, *output.losses.values(), *codec.state_dict().values()])
        output.loss.backward()
        levels = codec.quantizers[0]
        silent = [name for name, one in codec.named_parameters() if one.grad is None or not one.grad.any()]
        assert all("quantizer" in name for name in silent), silent  # a level may have no code in use
        assert levels.num_levels in (1, 3)
    assert all(map(torch.equal, *outcomes))


@pytest.mark.parametrize(("step", "subframes"), [(8, 1), (4, 2), (2, 4), (6, 3)])
def test_lapped_spectra_of_a_signal_give_it_back(step, subframes):
    signal = torch.randn(2, 2, 6 * step * subframes, dtype=torch.float64)
    analysis, synthesis = LappedFrames(step, subframes).double(), LappedSynthesis(2, step, subframes).double()
    frames = analysis(signal)
    assert frames.shape == (2, 2 * subframes * step, 6)
    torch.testing.assert_close(synthesis(frames), signal, rtol=0, atol=1e-6)
    window = torch.sin(torch.pi * (torch.arange(2 * step, dtype=torch.float64) + 0.5) / (2 * step))
    first, second, third, fourth = (window * signal[1, 1, step // 2 :][: 2 * step]).split(step // 2)
    folded = torch.cat([-third.flip(0) - fourth, first - second.flip(0)])  # the spectrum is its DCT of type 4
    found = frames.view(2, 2, subframes, step, 6).permute(0, 1, 4, 2, 3).flatten(2, 3)[1, 1, 1]
    wanted = torch.from_numpy(dct(folded.numpy(), type=4, norm="ortho"))
    torch.testing.assert_close(found, GAIN * wanted, rtol=1e-5, atol=1e-5)


def test_a_new_spectral_codec_is_near_a_transform_coder():
    torch.manual_seed(0)
    codec = SpectralCodec(sampling_rate=800, hop_length=16, subframes=2, hidden_channels=8, codebook_dim=12,
                          encoder_layers=1, decoder_layers=1)  # fmt: skip
    low = torch.sin(torch.arange(640) * torch.pi / 40)[None, None] * 0.5  # within the lowest 6 of 8 coefficients
    back = codec.decode(codec.encode(low).latents).sample
    assert (back - low).square().mean() < 0.1 * low.square().mean()


def encodec(**options):
    config = EncodecConfig(**{
        "sampling_rate": 800, "num_filters": 4, "hidden_size": 6, "upsampling_ratios": [4, 2], "codebook_size": 16,
        "target_bandwidths": [0.4, 0.8, 1.2], **options,
    })  # fmt: skip
    return EncodecModel(config)


def dac(**options):
    return DacModel(DacConfig(**{
        "encoder_hidden_size": 4, "downsampling_ratios": [2, 4], "decoder_hidden_size": 20, "n_codebooks": 3,
        "codebook_size": 16, "codebook_dim": 2, "sampling_rate": 800, **options,
    }))  # fmt: skip


STOCK = {
    "causal": lambda: encodec(num_residual_layers=2, dilation_growth_rate=3, compress=3, trim_right_ratio=0.5),
    "chunks": lambda: encodec(audio_channels=2, norm_type="time_group_norm", use_causal_conv=False, normalize=True,
                              chunk_length_s=0.1, overlap=0.1, num_lstm_layers=1, upsampling_ratios=[5, 2]),
    "no shortcut": lambda: encodec(use_conv_shortcut=False, pad_mode="constant", kernel_size=5, last_kernel_size=3,
                                   residual_kernel_size=5, upsampling_ratios=[3, 3, 2]),
    "dac": dac,
    "dac of odd strides": lambda: dac(downsampling_ratios=[3, 5, 2], decoder_hidden_size=50),
}  # fmt: skip


@torch.no_grad()
def give_codes(stock):
    """Codes that lie among the latents of a sound, and other weights than those that a new model has."""
    for name, value in stock.named_parameters():
        if value.ndim == 1 or "alpha" in name:
            value.add_(torch.randn_like(value) * 0.1)
    latents = stock.encoder(torch.randn(1, getattr(stock.config, "audio_channels", 1), 80) * 0.3)
    if isinstance(stock, EncodecModel):
        for layer in stock.quantizer.layers:
            rows = latents[0].T[torch.randint(latents.shape[-1], (16,))]
            layer.codebook.embed.copy_(rows + 0.1 * latents.std() * torch.randn_like(rows))
            latents = latents - layer.decode(layer.encode(latents))
        return
    for quantizer in stock.quantizer.quantizers:
        rows = quantizer.in_proj(latents)[0].T
        rows = (rows - rows.mean(dim=0))[torch.randint(len(rows), (16,))]
        quantizer.in_proj.bias.sub_(quantizer.in_proj(latents).mean(dim=(0, 2)))
        quantizer.codebook.weight.copy_(rows + 0.1 * rows.std() * torch.randn_like(rows))
        latents = latents - quantizer(latents)[0]


@pytest.mark.parametrize("name", STOCK)
def test_transformers_codecs_come_and_go_with_their_codes_and_their_sound(name, tmp_path):
    torch.manual_seed(0)
    stock = STOCK[name]().eval()
    give_codes(stock)
    stock.save_pretrained(tmp_path / "stock")
    convert(tmp_path / "stock", tmp_path / "ours", license="mit")
    codec = hf_vq.AutoVQModel.from_pretrained(tmp_path / "ours").eval()
    sound = torch.randn(2, codec.config.in_channels, codec.hop * 31 + (0 if isinstance(stock, DacModel) else 3)) * 0.3
    ours = codec.tokenize(sound, return_dict=True)
    for model in (stock, codec.to_transformers()):
        with torch.no_grad():
            if isinstance(stock, DacModel):
                codes = model.encode(sound).audio_codes
                decoded = model.decode(audio_codes=codes).audio_values[:, None]
            else:
                frames = model.encode(sound, bandwidth=stock.config.target_bandwidths[-1])
                rest = frames.last_frame_pad_length
                codes = torch.cat(list(frames.audio_codes), dim=-1)
                codes = codes[..., : codes.shape[-1] - rest]
                decoded = model.decode(
                    frames.audio_codes, frames.audio_scales, last_frame_pad_length=rest
                ).audio_values
        assert len(codes.unique()) > 6
        assert torch.equal(ours.codes, codes)
        mine = codec.detokenize(codes, ours.scales)
        torch.testing.assert_close(mine[..., : decoded.shape[-1]], decoded, **CLOSE)
        assert mine.shape[-1] >= sound.shape[-1]  # of which an odd stride of stock's DAC loses some
    assert codec.levels_for(bandwidth=codec.bandwidth) == codec.num_levels


ORIGINALS = ["encodec_original/orig_causal", "encodec_original/orig_chunked_stereo", "dac_original/orig"]


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_originals_files(name):
    folder = FIXTURES / name
    io, told = load_file(folder / "io.safetensors"), json.loads((folder / "meta.json").read_text())
    codec, sound = AudioCodec.from_single_file(folder).eval(), io["in.audio"]
    if "out.codes" in io:
        asked = {"num_levels=None": ({}, [io["out.codes"]], io["out.decoded"]),
                 "partial": ({"num_levels": told["partial_quantizers"]}, [io["out.codes_partial"]],
                             io["out.decoded_partial"])}  # fmt: skip
    else:
        asked = {rate: ({"bandwidth": rate},
                        [io[key] for key in sorted(io) if key.startswith(f"out.codes_bw{rate:g}_")],
                        io[f"out.decoded_bw{rate:g}"])
                 for rate in told["bandwidths_tested"]}  # fmt: skip
    for options, codes, decoded in asked.values():
        found = codec.tokenize(sound, return_dict=True, **options)
        assert torch.equal(found.codes, torch.cat(codes, dim=-1))
        torch.testing.assert_close(codec.detokenize(found.codes, found.scales), decoded, **CLOSE)
        assert codec.detokenize(found.codes, found.scales, found.length).shape == sound.shape
    random = io["in.random_codes"]
    random = random[0] if random.ndim == 4 else random
    torch.testing.assert_close(codec.detokenize(random), io["out.decoded_random_codes"], **CLOSE)


def test_a_chunk_is_coded_once_and_chunks_stand_one_after_another():
    codec = make("stereo")
    chunks = codec.chunks
    assert (chunks.length, chunks.stride, codec.hop) == (40, 36, 8)
    assert chunks.spans(40) == [(0, 40)]
    assert chunks.spans(41) == [(0, 40), (36, 41)]
    assert chunks.spans(1) == [(0, 1)]
    for samples in range(1, 200):
        spans = chunks.spans(samples)
        assert spans[-1][1] == samples
        assert all(end - start == 40 for start, end in spans[:-1])
        frames = chunks.frames(samples)
        assert [end - start for start, end in chunks.frame_spans(frames)] == [-(-(b - a) // 8) for a, b in spans]
        assert samples <= chunks.samples(frames) < samples + 8
    sound = torch.randn(1, 2, 100) * torch.linspace(0.1, 1, 100)
    found = codec.tokenize(sound, return_dict=True)
    parts = [codec.tokenize(sound[..., start:end], return_dict=True) for start, end in chunks.spans(100)]
    assert torch.equal(found.codes, torch.cat([part.codes for part in parts], dim=-1))
    torch.testing.assert_close(found.scales, torch.cat([part.scales for part in parts], dim=-1))
    assert found.scales[0, 0] < found.scales[0, -1]
    once, twice = codec.detokenize(found.codes, found.scales), codec.detokenize(found.codes, 2 * found.scales)
    torch.testing.assert_close(twice, 2 * once)


def test_levels_of_a_bandwidth_count_the_true_bits_and_the_true_rate():
    codec = AudioCodec(**{**SMALL, "sampling_rate": 1000, "strides": (3, 5), "codebook_size": 100})
    each = math.log2(100) * (1000 / 15) / 1000
    assert codec.bandwidth == pytest.approx(3 * each)
    assert [codec.levels_for(bandwidth=each * levels) for levels in (1, 2.9, 3.5)] == [1, 2, 3]
    for bandwidth in (0.9 * each, 4.1 * each):
        with pytest.raises(ValueError, match=rf"bandwidth must be .* kbit/s.*got {bandwidth}"):
            codec.levels_for(bandwidth=bandwidth)
    offered = AudioCodec(**{**SMALL, "target_bandwidths": (0.01, 90.0)})
    assert [offered.levels_for(bandwidth=bandwidth) for bandwidth in (0.01, 90.0)] == [1, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder_strides": (2, 2)}, r"decoder_strides.*\(2, 4\).*\(2, 2\)"),
        ({"norm": "time_group"}, "norm='time_group'.*causal=False"),
        ({"causal": False, "trim_right_ratio": 0.5}, "trim_right_ratio=0.5"),
        ({"code_strides": (4, 3)}, r"code_strides.*\(4, 3\)"),
        ({"code_strides": (2, 1)}, r"code_strides=\(2, 1\).*one level"),
        ({"chunk_length_s": 0.0001}, "chunk_length_s=0.0001"),
        ({"attention_layers": 1, "attention_heads": 3}, "attention_heads=3"),
        ({"decoder_channels": 3}, "decoder_channels.*3"),
    ],
)
def test_options_that_do_not_fit_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        AudioCodec(**{**SMALL, **options})


@pytest.mark.parametrize(
    ("family", "words", "call"),
    [
        ("encodec", "1 channels", lambda codec: codec.tokenize(torch.zeros(1, 2, 9))),
        ("encodec", "at least 1", lambda codec: codec.tokenize(torch.zeros(1, 1, 0))),
        ("encodec", "num_levels must be at most 3, got 4", lambda c: c.tokenize(torch.zeros(1, 1, 9), num_levels=4)),
        ("encodec", "give one", lambda c: c.tokenize(torch.zeros(1, 1, 9), num_levels=2, bandwidth=0.4)),
        ("snac", "num_levels=1 needs", lambda c: c.tokenize(torch.zeros(1, 1, 9), num_levels=1)),
        ("encodec", "scales given", lambda c: c.detokenize(torch.zeros(1, 3, 2).long(), torch.ones(1, 1))),
        ("stereo", r"\(1, 2\), got", lambda c: c.detokenize(torch.zeros(1, 3, 6).long(), torch.ones(1, 1))),
        ("encodec", "at most 16, .* got 17", lambda c: c.detokenize(torch.zeros(1, 3, 2).long(), length=17)),
        ("dac", "causal=False", lambda c: c.tokenize_chunk(torch.zeros(1, 1, 9))),
        ("snac", "only 'residual'", lambda c: c.to_transformers()),
        ("soundstream", "LSTM", lambda c: c.to_transformers()),
        ("odd", "pad_mode|attention_layers", lambda c: c.to_transformers()),
    ],
)  # fmt: skip
def test_wrong_input_is_named(family, words, call):
    with pytest.raises(ValueError, match=words):
        call(make(family))


def test_folded_weights_give_the_same_codes_and_the_same_sound(tmp_path):
    codec, sound = make("encodec"), torch.randn(1, 1, 97) * 0.3
    codes = codec.tokenize(sound)
    sample = codec.detokenize(codes)
    assert codec.fold_weight_norm() is codec
    assert not any("parametrizations" in name for name in codec.state_dict())
    codec.save_pretrained(tmp_path)
    for one in (codec, AudioCodec.from_pretrained(tmp_path)):
        assert torch.equal(one.tokenize(sound), codes)
        torch.testing.assert_close(one.detokenize(codes), sample, **CLOSE)
    assert codec.last_layer.requires_grad


def test_a_hierarchy_decodes_without_its_finer_grids():
    codec = make("snac")
    codes = codec.tokenize(torch.randn(1, 1, 64) * 0.3)
    assert [grid.shape[-1] for grid in codes] == [2, 4, 8]
    whole, coarse = codec.detokenize(codes), codec.detokenize((codes[0], None, None))
    assert coarse.shape == whole.shape
    assert not torch.equal(coarse, whole)
    assert codec.grid_names == ("every_4", "every_2", "every_1")


@pytest.mark.parametrize("family", ["encodec", "odd", "soundstream"])
def test_any_cutting_of_a_sound_gives_the_codes_and_the_sound_of_the_whole(family):
    codec = make(family, **({"output_activation": "tanh"} if family == "odd" else {}))
    generator = torch.Generator().manual_seed(0)
    for length in (1, codec.hop - 1, codec.hop, 2 * codec.hop + 3, 301):
        sound = torch.randn(2, 1, length, generator=generator) * 0.3
        codes = codec.tokenize(sound, num_levels=2)
        sample = codec.detokenize(codes)
        for longest in (1, 40) if length < 100 else (100,):
            pieces, cache, start = [], None, 0
            while start < length:
                size = int(torch.randint(0, longest + 1, (), generator=generator))
                end = start + size >= length and longest != 40
                piece, cache = codec.tokenize_chunk(sound[..., start : start + size], cache, end, num_levels=2)
                pieces.append(piece)
                start += size
            if not end:
                pieces.append(codec.tokenize_chunk(sound[..., :0], cache, True, num_levels=2)[0])
            assert torch.equal(torch.cat(pieces, dim=-1), codes)
            samples, cache = [], None
            for index, piece in enumerate(codes.split(max(1, longest // 3), dim=-1)):
                assert index >= 0
                one, cache = codec.detokenize_chunk(piece, cache)
                samples.append(one)
            samples.append(codec.detokenize_chunk(codes[..., :0], cache, True)[0])
            torch.testing.assert_close(torch.cat(samples, dim=-1), sample, **CLOSE)


def test_a_cache_is_not_changed_by_the_call_that_takes_it():
    codec, sound = make("encodec"), torch.randn(1, 1, 90) * 0.3
    _, cache = codec.tokenize_chunk(sound[..., :50])
    one, other = (codec.tokenize_chunk(sound[..., 50:], cache, True)[0] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["encodec", "odd"])
def test_after_the_start_a_frame_comes_out_when_its_latency_has_come_in(family):
    codec = make(family)
    tokenizer = hf_vq.autoencoders.StreamingTokenizer(codec)
    detokenizer = hf_vq.autoencoders.StreamingDetokenizer(codec)
    sound, out, seen = torch.randn(1, 400).clamp(-3, 3) * 0.3, 0, 0
    pieces = []
    for piece in sound.split(11, dim=-1):
        seen += piece.shape[-1]
        pieces.append(detokenizer.push(tokenizer.push(piece)))
        out += pieces[-1].shape[-1]
        if seen > 200:  # the mirrored start is behind
            assert seen - out < codec.latency
    pieces += [detokenizer.push(tokenizer.finish()), detokenizer.finish()]
    expected = codec.detokenize(codec.tokenize(sound[None]))[0]
    torch.testing.assert_close(torch.cat(pieces, dim=-1), expected, **CLOSE)
    again = [tokenizer.push((sound * 2**15).round().to(torch.int16).numpy()), tokenizer.finish()]
    levels = torch.cat(again, dim=-1)[0] == codec.tokenize(sound[None])[0, 0]
    assert levels.float().mean() > 0.9


@families
def test_inspect_tells_frames_a_second_and_kbit_a_second_of_levels_and_of_all(family, tmp_path):
    codec = make(family)
    codec.save_pretrained(tmp_path / "codec")
    facts, seconds = describe(str(tmp_path / "codec")), 30
    grids = hf_vq.as_grids(codec.tokenize(torch.zeros(1, codec.config.in_channels, seconds * 800)))
    frames = [grid.shape[-1] for grid in grids]
    overlap = 1.12 if family == "stereo" else 1.01  # chunks share some frames
    assert max(frames) / seconds / overlap <= facts["frame_rate"] <= max(frames) / seconds * 1.01
    each, levels = facts["kbit_per_second_of_levels"], codec.num_levels
    wanted = [facts["frame_rate"] * size / max(frames) * 4 / 1000 for size in frames for _ in range(levels)]
    assert each == pytest.approx(wanted, rel=0.01)  # 16 codes: 4 bits
    assert facts["kbit_per_second"] == pytest.approx(sum(each), abs=1e-3)


class Sounds(Dataset):
    """Sounds of many lengths, with texts and labels."""

    variable_length, class_names = True, ["even", "odd"]

    def __init__(self, channels):
        generator = torch.Generator().manual_seed(0)
        self.lengths = [3, 297, 40, 8, 297, 1, 52, 40, 16, 9, 297, 4, 220, 5, 97, 40, 60, 2]
        self.samples = [torch.randn(channels, length, generator=generator) * 0.3 for length in self.lengths]
        self.sample_shape, self.labels = (channels, 297), torch.arange(18) % 2
        self.captions = [f"sound {row}" for row in range(18)]

    def __len__(self):
        return 18

    def __getitem__(self, index):
        return {
            "sample": self.samples[index], "caption": self.captions[index], "class_labels": self.labels[index],
        }  # fmt: skip


@families
def test_sounds_are_tokenized_by_length_into_the_files_of_the_order_that_they_have(family, tmp_path, monkeypatch):
    codec, sizes = make(family), []
    sounds, tokenize = Sounds(codec.config.in_channels), codec.tokenize
    monkeypatch.setattr(
        codec, "tokenize", lambda sample, **masks: (sizes.append(sample.shape[-1]), tokenize(sample, **masks))[1]
    )
    tokenize_dataset(codec, sounds, tmp_path / "sorted", batch_size=4, shard_size=15)
    by_length, sizes[:] = sizes[:], []
    monkeypatch.setattr(type(codec), "lengths_alone", False)
    tokenize_dataset(codec, sounds, tmp_path / "whole", batch_size=4, shard_size=15)
    assert sum(by_length) < sum(sizes)
    for path in (tmp_path / "whole/data").iterdir():
        assert (tmp_path / "sorted/data" / path.name).read_bytes() == path.read_bytes()

"""What every autoencoder answers, in one, two and three dimensions: codes, losses, padding, folders."""

import copy
import json
import re

import numpy as np
import pytest
import torch

import hf_vq
from hf_vq import as_grids
from hf_vq.registry import AUTOENCODERS

from ..tiny_codecs import CODECS, SignalCodec, make_codec, register_codecs

SMALL = {
    "SpectralCodec": {"sampling_rate": 100, "hop_length": 8, "subframes": 2, "hidden_channels": 8,
                      "encoder_layers": 1, "decoder_layers": 1, "codebook_size": 8, "codebook_dim": 4,
                      "quantizer_config": {"num_levels": 2, "level_dropout": 0.0}},
    "AudioCodec": {"sampling_rate": 100, "hidden_channels": 4, "strides": (2, 4), "lstm_layers": 1, "codebook_size": 8,
                   "codebook_dim": 4, "quantizer_config": {"num_levels": 2, "level_dropout": 0.0}},
    "VQVAE": {"hidden_channels": 8, "codebook_size": 8, "codebook_dim": 4, "num_residual_layers": 1},
    "VQVAE2": {"hidden_channels": 8, "residual_channels": 4, "codebook_size": 8, "codebook_dim": 4, "strides": (4, 2)},
    "VQModel": {"block_out_channels": (8, 8), "norm_num_groups": 4, "num_vq_embeddings": 8,
                "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2},
    "RQVAE": {"block_out_channels": (8, 8), "norm_num_groups": 4, "attention_stages": None, "latent_channels": 4,
              "codebook_dim": 4, "codebook_size": 8, "quantizer_config": {"num_levels": 2}},
    "DVAE": {"block_out_channels": (8, 8), "layers_per_block": 1, "codebook_size": 8, "codebook_dim": 4},
    "MAGVIT2Model": {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "codebook_size": 16},
    "ViTVQModel": {"image_size": 16, "patch_size": 4, "encoder_dim": 8, "encoder_depth": 1, "encoder_heads": 1,
                   "encoder_head_dim": 8, "encoder_mlp_dim": 8, "decoder_dim": 8, "decoder_depth": 1,
                   "decoder_heads": 1, "decoder_head_dim": 8, "decoder_mlp_dim": 8, "codebook_size": 8,
                   "codebook_dim": 4},
}  # fmt: skip
CODEC_NAMES = [codec.__name__ for codec in CODECS]
every = pytest.mark.parametrize("name", [*sorted(SMALL), *CODEC_NAMES])
codecs = pytest.mark.parametrize("codec_class", CODECS, ids=CODEC_NAMES)


@pytest.fixture(autouse=True)
def codecs_are_registered(monkeypatch):
    register_codecs(monkeypatch)


def make(name):
    """A small model whose codebook has started, and samples for it."""
    torch.manual_seed(0)
    codec = AUTOENCODERS[name]
    model = make_codec(codec) if codec in CODECS else codec(**SMALL[name])
    space = CODECS[codec][1] if codec in CODECS else (16,) * codec.space_dims
    sample = torch.rand(4, model.in_channels, *space) * 2 - 1
    model.initialize_codebook(sample)
    return model, sample


def public(config):
    return json.loads(json.dumps({name: value for name, value in config.items() if not name.startswith("_")}))


def halved(sample):
    """A mask under which the second item ends in the middle of its first axis."""
    mask = torch.ones(len(sample), *sample.shape[2:], dtype=torch.bool)
    mask[1, sample.shape[2] // 2 :] = False
    return mask


def with_junk(sample, mask):
    return sample.where(mask[:, None], torch.rand_like(sample) * 2 - 1)


def test_the_table_of_small_models_is_whole():
    assert AUTOENCODERS.keys() == SMALL.keys() | set(CODEC_NAMES)


@every
def test_codes_have_the_promised_shapes_and_decode_to_what_forward_gives(name):
    model, sample = make(name)
    output, codes = model.eval()(sample), model.tokenize(sample)
    assert model.hierarchical == isinstance(codes, tuple)
    grids = as_grids(codes)
    assert [tuple(grid.shape[1:]) for grid in grids] == list(model.code_shapes(sample.shape[1:]))
    assert len(grids) == len(model.grid_names) == len(model.grid_strides) == len(model.codebook_sizes)
    for grid, own, size, strides in zip(
        grids, as_grids(output.codes), model.codebook_sizes, model.grid_strides, strict=True
    ):
        assert torch.equal(grid, own)
        assert grid.dtype == torch.int64
        assert 0 <= grid.min() <= grid.max() < size
        assert grid.ndim == 1 + model.grid_dims
        assert [side * stride for side, stride in zip(grid.shape[-model.space_dims :], strides, strict=True)] == list(
            sample.shape[2:]
        )
    torch.testing.assert_close(model.detokenize(codes), output.sample)
    assert output.sample.shape == sample.shape


@every
def test_the_loss_is_the_weighted_sum_of_its_parts_and_teaches_the_network(name):
    model, sample = make(name)
    output = model.train()(sample)
    expected = model.config.reconstruction_weight * output.reconstruction_loss + output.quantizer_loss
    torch.testing.assert_close(output.loss, expected)
    assert set(output.losses) > {"reconstruction"} or name == "DVAE"
    output.loss.backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@every
def test_saved_folder_loads_as_its_class_with_the_same_codes(name, tmp_path):
    model, sample = make(name)
    model.eval().save_pretrained(tmp_path)
    loaded = hf_vq.AutoVQModel.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert public(loaded.config) == public(model.config)
    for one, other in zip(as_grids(loaded.tokenize(sample)), as_grids(model.tokenize(sample)), strict=True):
        assert torch.equal(one, other)


@every
@pytest.mark.parametrize("training", [False, True])
def test_what_lies_in_the_padding_changes_nothing(name, training):
    outcomes = []
    for junk in (False, True):
        model, sample = make(name)
        mask = halved(sample)
        sample = with_junk(sample, mask) if junk else sample
        torch.manual_seed(1)
        output = model.train(training)(sample, padding_mask=mask)
        grids = [grid.flatten() for grid in as_grids(output.codes)]
        state = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
        outcomes.append([output.loss, *output.losses.values(), *grids, *state])
    assert all(map(torch.equal, *outcomes))


@every
def test_padding_counts_in_no_reconstruction_loss(name):
    model, sample = make(name)
    mask = halved(sample)
    output = model.eval()(sample, padding_mask=mask)
    if model.config.reconstruction_loss == "mse":
        error = (output.sample - sample).square().movedim(1, -1)[mask]
        torch.testing.assert_close(output.reconstruction_loss, error.mean())
    everything = model(sample, padding_mask=torch.ones_like(mask))
    torch.testing.assert_close(everything.loss, model(sample).loss)


@codecs
@pytest.mark.parametrize("level_volume", [False, True])
def test_a_padded_batch_gives_each_sample_what_it_gets_alone(codec_class, level_volume):
    torch.manual_seed(0)
    model = make_codec(codec_class, level_volume=level_volume, quantizer_type="vector")
    _, space, shorter = CODECS[codec_class]
    long, short = torch.rand(1, 2, *space) * 2 - 1, torch.rand(1, 2, *shorter) * 2 - 1
    model.initialize_codebook(long)
    batch, mask = torch.rand(2, 2, *space), torch.zeros(2, *space, dtype=torch.bool)
    inside = tuple(slice(side) for side in shorter)
    batch[0], mask[0] = long[0], True
    batch[(1, slice(None), *inside)], mask[(1, *inside)] = short[0], True
    together = model.eval().tokenize(batch, mask, return_dict=True)
    assert together.length.tolist() == ([space[0], shorter[0]] if len(space) == 1 else [list(space), list(shorter)])
    decoded = model.detokenize(together.codes, together.scales, together.length)
    for index, alone in enumerate((long, short)):
        expected = model.tokenize(alone, return_dict=True)
        cells = tuple(slice(side) for side in model.code_shape(alone.shape[1:]))
        assert torch.equal(together.codes[(index, *cells)], expected.codes[0])
        assert (expected.scales is None) == (not level_volume)
        assert expected.length is None
        sample = model.detokenize(expected.codes, expected.scales)
        places = tuple(slice(side) for side in alone.shape[2:])
        torch.testing.assert_close(decoded[(index, slice(None), *places)], sample[0])
    beyond = decoded[1].clone()
    beyond[(slice(None), *inside)] = 0
    assert not beyond.any()
    losses = [model(alone).losses for alone in (long, short)]
    weights = torch.tensor([float(alone.numel()) for alone in (long, short)])
    for name, value in model(batch, mask).losses.items():
        mean = torch.stack([each[name] for each in losses]) @ weights / weights.sum()
        torch.testing.assert_close(value, mean)


@codecs
def test_length_cuts_what_codes_decode_to(codec_class):
    model = make_codec(codec_class).eval()
    space = CODECS[codec_class][1]
    codes = torch.randint(16, (2, *model.code_shape((2, *space))))
    whole = model.detokenize(codes)
    assert torch.equal(model.detokenize(codes, length=space[0] - 1), whole[:, :, : space[0] - 1])
    both = model.detokenize(codes, length=torch.tensor([space[0], 1]))
    assert torch.equal(both[0], whole[0])
    assert torch.equal(both[1, :, :1], whole[1, :, :1])
    assert not both[1, :, 1:].any()


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (r"length.*at most 24.*25", lambda model, codes: model.detokenize(codes, length=25)),
        (r"length.*\(3,\)", lambda model, codes: model.detokenize(codes, length=torch.tensor([1, 2, 3]))),
        (r"length.*at least 1.*got 0", lambda model, codes: model.detokenize(codes, length=0)),
        (r"length.*at least 1.*got 0", lambda model, codes: model.detokenize(codes, length=[24, 0])),
        (r"length.*at least 1.*got -3", lambda model, codes: model.detokenize(codes, length=np.array([24, -3]))),
        (r"length.*at most 24.*25", lambda model, codes: model.detokenize(codes, length=[[24], [25]])),
        (r"length.*integers.*got True", lambda model, codes: model.detokenize(codes, length=True)),
        (r"length.*integers.*bool", lambda model, codes: model.detokenize(codes, length=np.array([True, False]))),
        (r"length.*integers.*got 12\.0", lambda model, codes: model.detokenize(codes, length=12.0)),
        (r"length.*integers.*\[3\.0, 4\]", lambda model, codes: model.detokenize(codes, length=[3.0, 4])),
        (r"length.*\(2,\).*\[24\]", lambda model, codes: model.detokenize(codes, length=[24])),
        (r"length.*\[\[24, 24\], ", lambda model, codes: model.detokenize(codes, length=[[24, 24]] * 2)),
        (r"length.*'all'", lambda model, codes: model.detokenize(codes, length="all")),
        (r"length.*\[1, \[2\]\]", lambda model, codes: model.detokenize(codes, length=[1, [2]])),
        (r"padding_mask.*\(2, 24\).*list", lambda model, codes: model(torch.zeros(2, 2, 24), [[True] * 24] * 2)),
        (
            r"padding_mask.*\(2, 24\).*ndarray",
            lambda model, codes: model.tokenize(torch.zeros(2, 2, 24), np.ones((2, 24), dtype=bool)),
        ),
        (r"scales given.*SignalCodec", lambda model, codes: model.detokenize(codes, scales=torch.ones(2))),
        (r"padding_mask.*\(2, 24\).*int64", lambda model, codes: model(torch.zeros(2, 2, 24), codes.new_ones(2, 24))),
        (r"padding_mask.*\(2, 24\).*\(2, 6\)", lambda model, codes: model.tokenize(torch.zeros(2, 2, 24), codes > 0)),
        (r"sample.*\(batch, channels, length\).*\(2, 24\)", lambda model, codes: model.tokenize(torch.zeros(2, 24))),
        (r"sides that 4.*\(2, 23\)", lambda model, codes: model.tokenize(torch.zeros(2, 2, 23))),
        (r"2 channels.*\(3, 24\)", lambda model, codes: model.tokenize(torch.zeros(2, 3, 24))),
    ],
)
def test_wrong_input_is_named_with_its_value(words, call):
    with pytest.raises(ValueError, match=words):
        call(make_codec(SignalCodec).eval(), torch.zeros(2, 6, dtype=torch.int64))


def test_lengths_are_refused_before_any_work_and_taken_in_any_form_of_integers():
    model, codes = make_codec(SignalCodec).eval(), torch.zeros(2, 6, dtype=torch.int64)
    expected = model.detokenize(codes, length=torch.tensor([20, 3]))
    for length in ([20, 3], (20, 3), np.array([20, 3], dtype=np.uint8), torch.tensor([[20], [3]])):
        assert torch.equal(model.detokenize(codes, length=length), expected)
    model.to_sample = None  # nothing decodes any more
    with pytest.raises(ValueError, match="length must be at least 1 and at most 24"):
        model.detokenize(codes, length=99)


@every
def test_a_sample_that_is_nothing_but_padding_is_refused_before_any_work(name):
    model, sample = make(name)
    mask = torch.ones(len(sample), *sample.shape[2:], dtype=torch.bool)
    mask[-1] = False
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for padding_mask in (mask, torch.zeros_like(mask)):
        for training in (True, False):
            model.train(training)
            for ask in (model, model.tokenize, model.without_padding):
                with pytest.raises(ValueError, match=r"padding_mask must be True somewhere in each sample.*\[.*\]"):
                    ask(sample, padding_mask=padding_mask)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("shortcut", [False, "principal"])
def test_no_codebook_starts_on_padding_alone(shortcut):
    model = hf_vq.VQVAE(1, 8, 0, stage_channels=(8,), codebook_size=8, codebook_dim=4, shortcut=shortcut)
    sample = torch.rand(2, 1, 8, 8)
    for rows in ([0], [0, 1]):
        mask = torch.ones(2, 8, 8, dtype=torch.bool)
        mask[rows] = False
        with pytest.raises(ValueError, match=re.escape(f"False all over in {rows}")):
            model.initialize_codebook(sample, mask)
        with pytest.raises(ValueError, match=re.escape(f"False all over in {rows}")):
            model.train()(sample, padding_mask=mask)
    assert not model.codebook_initialized


def test_statistics_of_batchnorm_never_see_padding():
    options = {"stage_channels": (8,), "codebook_size": 8, "codebook_dim": 4, "norm": "batch"}
    model, sample = hf_vq.VQVAE(1, 8, 1, residual_channels=4, **options), torch.rand(2, 1, 8, 8)
    model.train()(sample)
    mask = torch.ones(2, 8, 8, dtype=torch.bool)
    whole = copy.deepcopy(model)
    torch.manual_seed(0)
    expected = whole(sample)
    torch.manual_seed(0)
    assert torch.equal(model(sample, padding_mask=mask).loss, expected.loss)  # nothing is padding
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())
    mask[1, :, 4:] = False
    with pytest.raises(ValueError, match="padding_mask with padding given to a model with BatchNorm in training"):
        model(sample, padding_mask=mask)
    model.tokenize(sample, padding_mask=mask)  # in evaluation mode, whatever the mode of the model
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.eval()(sample, padding_mask=mask).loss.isfinite()


def test_a_mask_with_holes_has_no_length():
    mask = torch.ones(1, 24, dtype=torch.bool)
    mask[0, 3] = False
    codec = make_codec(SignalCodec).eval()
    assert codec.tokenize(torch.zeros(1, 2, 24), mask).shape == (1, 6)
    with pytest.raises(ValueError, match="padding_mask must be True from the start"):
        codec.tokenize(torch.zeros(1, 2, 24), mask, return_dict=True)

"""Facts about MAGVIT2Model: parity with Open-MAGVIT2, any size, folders, gradients, what a bad argument says."""

import functools
import re

import pytest
import torch
import yaml

from hf_vq.autoencoders.images.magvit2 import MAGVIT2Model
from hf_vq.converters.base import Source, fill
from hf_vq.converters.open_magvit2 import open_magvit2_config, original_name, plan_open_magvit2

from .conftest import FIXTURES, fixture

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {
    "in_channels": 1, "block_out_channels": (8, 16, 16), "layers_per_block": 2, "stem_channels": 4,
    "norm_num_groups": 4, "codebook_size": 64,
}  # fmt: skip


@functools.cache
def original():
    """State dict and config of Open-MAGVIT2."""
    folder = FIXTURES / "open_magvit2"
    tensors = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    return tensors, yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]


def converted(use_averages):
    tensors, config = original()
    config = {"class_path": "lfqgan.VQModel", "init_args": {**config, "use_ema": use_averages}}
    source = Source("model.ckpt", tensors, config=config)
    return fill(source, plan_open_magvit2(source))


def small_model(**options):
    torch.manual_seed(0)
    return MAGVIT2Model(**{**SMALL, **options}), torch.rand(2, 1, 24, 8) * 2 - 1


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_open_magvit2_gives_its_numbers(kind):
    expected, model = fixture("open_magvit2")[0], converted(use_averages=kind == "ema")
    with torch.no_grad():
        latents, output = model.encode(expected["image"]).latents, model(expected["image"])
    assert torch.equal(output.codes, expected[f"{kind}.codes"])
    assert torch.equal(model.tokenize(expected["image"]), expected[f"{kind}.codes"])
    torch.testing.assert_close(latents, expected[f"{kind}.prequant"], **CLOSE)
    torch.testing.assert_close(output.sample, expected[f"{kind}.reconstruction"], **CLOSE)
    decoded = model.detokenize(expected[f"{kind}.codes"])
    torch.testing.assert_close(decoded, expected[f"{kind}.reconstruction_from_codes"], **CLOSE)


def test_open_magvit2_training_terms():
    expected, model = fixture("open_magvit2")[0], converted(use_averages=False).train()
    losses = model(expected["image"]).losses
    for ours, theirs in (
        ("commitment", "commitment"), ("sample_entropy", "per_sample_entropy"), ("codebook_entropy",) * 2,
    ):  # fmt: skip
        torch.testing.assert_close(losses[ours], expected[f"train.{theirs}"], rtol=1e-4, atol=1e-5)


def test_sizes_come_from_the_weights_alone():
    tensors, config = original()
    assert open_magvit2_config(tensors, {}) == open_magvit2_config(tensors, config)
    weights = MAGVIT2Model(**SMALL).state_dict()  # its levels differ in width, and one needs a shortcut
    sizes = open_magvit2_config({original_name(name): tensor for name, tensor in weights.items()}, {})
    assert {name: sizes[name] for name in SMALL} == SMALL | {"norm_num_groups": 32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ddconfig": {"ch": 64}}, "ddconfig.ch .*64.*32"),
        ({"ddconfig": {"ch_mult": [1, 2]}}, "ch_mult"),
        ({"ddconfig": {"num_res_blocks": 2}}, "num_res_blocks"),
        ({"ddconfig": {"z_channels": 18}}, "z_channels.*18.*8"),
        ({"n_embed": 512}, "n_embed.*512.*256"),
        ({"embed_dim": 9}, "embed_dim"),
    ],
)
def test_a_config_that_disagrees_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        open_magvit2_config(original()[0], change)


def test_missing_and_unknown_tensors_are_named():
    tensors = original()[0]
    for name in ("encoder.conv_out.weight", "encoder.down.1.block.0.conv1.weight"):
        with pytest.raises(ValueError, match=name):
            open_magvit2_config({key: value for key, value in tensors.items() if key != name}, {})
    for name, replaced in (("model_ema.encoderconv_inweight", None), ("encoder.mid.attn_1.q.weight", torch.ones(1))):
        changed = {key: value for key, value in tensors.items() if key != name}
        source = Source("model.ckpt", changed if replaced is None else {**changed, name: replaced})
        with pytest.raises(ValueError, match=f"model.ckpt.*{re.escape(name)}"):
            fill(source, plan_open_magvit2(source))


def test_codes_of_any_size_decode_to_the_reconstruction():
    model, sample = small_model()
    output = model.eval()(sample)
    assert model.downsample_factor == 4
    assert output.codes.shape == (2, *model.code_shape((1, 24, 8))) == (2, 6, 2)
    assert output.sample.shape == sample.shape
    torch.testing.assert_close(model.detokenize(output.codes), output.sample, **CLOSE)


def test_input_range_is_inside():
    model, sample = small_model()
    other = MAGVIT2Model(**SMALL, input_scale=0.5, input_shift=0.25).eval()
    other.load_state_dict(model.state_dict())
    model.eval()
    torch.testing.assert_close(other(sample).sample, (model(sample * 0.5 + 0.25).sample - 0.25) / 0.5, **CLOSE)


def test_a_resized_codebook_keeps_its_width(tmp_path):
    model, sample = small_model(quantizer_type="vector")
    model.train()(sample)
    model.resize_codebook(20)
    model.eval().save_pretrained(tmp_path)
    assert torch.equal(MAGVIT2Model.from_pretrained(tmp_path)(sample).sample, model(sample).sample)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_out_channels": ()}, "block_out_channels"),
        ({"block_out_channels": (8, 0)}, r"block_out_channels\[1\].*0"),
        ({"block_out_channels": (8, 10)}, r"block_out_channels\[1\].*norm_num_groups.*10"),
        ({"stem_channels": 6}, "stem_channels.*6"),
        ({"layers_per_block": 0}, "layers_per_block.*0"),
        ({"norm_num_groups": 0}, "norm_num_groups.*0"),
        ({"codebook_size": 100}, "codebook_size.*100"),
        ({"codebook_dim": 0}, "codebook_dim.*0"),
        ({"quantizer_type": "lfq"}, "quantizer_type.*lfq"),
        ({"quantizer_config": {"bata": 1}}, "bata.*beta"),
        ({"reconstruction_loss": "l3"}, "reconstruction_loss.*l3"),
        ({"input_scale": 0}, "input_scale"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MAGVIT2Model(**{**SMALL, **arguments})


def test_bad_samples_are_named():
    model, _ = small_model()
    with pytest.raises(ValueError, match=r"downsampling.*22"):
        model(torch.rand(1, 1, 22, 8))
    with pytest.raises(ValueError, match="channels"):
        model.code_shape((3, 16, 8))
    with pytest.raises(ValueError, match=r"2 positions.*6, 1, 1"):
        model.detokenize(torch.zeros(1, 1, 1, dtype=torch.int64))

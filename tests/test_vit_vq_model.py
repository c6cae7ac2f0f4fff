"""Facts about ViTVQModel: parity with ViT-VQGAN, places, folders, gradients, what a bad argument says."""

import functools

import pytest
import torch
import yaml

from hf_vq.autoencoders.images.vit_vq_model import ViTVQModel, sine_cosine_table
from hf_vq.converters.base import Source, fill
from hf_vq.converters.vitvqgan import plan_vitvqgan, vitvqgan_config

from .conftest import FIXTURES, channels_first, fixture

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {
    "in_channels": 1, "image_size": (8, 12), "patch_size": 4, "codebook_size": 20, "codebook_dim": 6,
    "encoder_dim": 8, "encoder_depth": 2, "encoder_heads": 2, "encoder_head_dim": 3, "encoder_mlp_dim": 10,
    "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 1, "decoder_head_dim": 12, "decoder_mlp_dim": 14,
}  # fmt: skip


@functools.cache
def original():
    """State dict and config of ViT-VQGAN."""
    folder = FIXTURES / "vitvqgan"
    tensors = torch.load(folder / "imagenet_vitvq_tiny.ckpt", weights_only=True)["state_dict"]
    return tensors, yaml.safe_load((folder / "config.yaml").read_text())["model"]["params"]


def converted():
    tensors, config = original()
    source = Source("model.ckpt", tensors, config={"target": "enhancing", "params": config})
    return fill(source, plan_vitvqgan(source))


def small_model(**options):
    """A model after one training step, when k-means has started its codebook, and a batch for it."""
    torch.manual_seed(0)
    model, sample = ViTVQModel(**{**SMALL, **options}), torch.rand(4, 1, 8, 12) * 2 - 1
    model.train()(sample)
    return model, sample


def test_vitvqgan_gives_its_numbers():
    expected, model = fixture("vitvqgan")[0], converted().eval()
    sample = 2 * expected["image"] - 1  # theirs is [0, 1]
    with torch.no_grad():
        latents, output = model.encode(sample).latents, model(sample)
    codes = expected["codes"].view(2, 4, 4)
    assert torch.equal(output.codes, codes)
    assert torch.equal(model.tokenize(sample), codes)
    torch.testing.assert_close(latents.flatten(2), channels_first(expected["prequant"]), **CLOSE)
    torch.testing.assert_close(output.sample / 2 + 0.5, expected["reconstruction"], **CLOSE)
    torch.testing.assert_close(model.detokenize(codes) / 2 + 0.5, expected["reconstruction_from_codes"], **CLOSE)
    torch.testing.assert_close(output.quantizer_loss, expected["codebook_loss"], **CLOSE)


def test_places_are_loaded_and_start_as_the_original_table():
    tensors, model = original()[0], converted()
    torch.testing.assert_close(sine_cosine_table(4, 4, 32)[None], tensors["decoder.de_pos_embedding"], **CLOSE)
    assert torch.equal(model.encoder.position_embedding, tensors["encoder.en_pos_embedding"])
    assert not torch.equal(model.encoder.position_embedding, model.decoder.position_embedding)
    table = sine_cosine_table(2, 3, 8).view(2, 3, 8)  # row, column
    assert torch.equal(table[0, :, :4], table[1, :, :4])  # the first half knows only the column
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])  # the second only the row
    torch.testing.assert_close(table[0, 2, 0], torch.tensor(2.0).sin())


def test_sizes_come_from_the_weights_alone():
    tensors, config = original()
    assert vitvqgan_config(tensors, {}) == vitvqgan_config(tensors, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 16}, "patch_size.*16.*8"),
        ({"image_size": 64}, r"image_size.*64.*encoder\.en_pos_embedding.*16"),
        ({"image_size": [128, 8], "patch_size": [8, 4]}, "patch_size"),
        ({"encoder": {"dim": 64}}, r"encoder\.dim.*64.*32"),
        ({"decoder": {"depth": 3}}, r"decoder\.depth.*3.*2"),
        ({"decoder": {"mlp_dim": 32}}, r"decoder\.mlp_dim"),
        ({"encoder": {"heads": 3}}, r"encoder\.heads.*3 x 64.*128"),
        ({"quantizer": {"n_embed": 8192}}, r"quantizer\.n_embed.*8192.*48"),
        ({"quantizer": {"use_residual": True}}, r"quantizer\.use_residual"),
    ],
)
def test_a_config_that_disagrees_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        vitvqgan_config(original()[0], change)


def test_missing_and_unknown_tensors_are_named():
    tensors = original()[0]
    for name in ("quantizer.embedding.weight", "decoder.de_pos_embedding"):
        with pytest.raises(ValueError, match=name):
            vitvqgan_config({key: value for key, value in tensors.items() if key != name}, {})
    source = Source("model.ckpt", {**tensors, "encoder.cls_token": torch.ones(1)})
    with pytest.raises(ValueError, match=r"model\.ckpt.*encoder\.cls_token"):
        fill(source, plan_vitvqgan(source))
    table = torch.zeros(1, 6, 32)
    with pytest.raises(ValueError, match=r"image_size.*6 patches"):
        vitvqgan_config({**tensors, "encoder.en_pos_embedding": table, "decoder.de_pos_embedding": table}, {})


@pytest.mark.parametrize("patch_size", [4, (4, 2)])
def test_codes_decode_to_the_reconstruction(patch_size):
    model, sample = small_model(patch_size=patch_size)
    output = model.eval()(sample)
    grid = (2, 3) if patch_size == 4 else (2, 6)
    assert model.downsample_factor == patch_size
    assert output.codes.shape == (4, *model.code_shape((1, 8, 12))) == (4, *grid)
    assert output.sample.shape == sample.shape
    torch.testing.assert_close(model.detokenize(output.codes), output.sample, **CLOSE)


def test_codes_are_compared_by_direction_unless_told_otherwise():
    model, sample = small_model()
    model.eval()
    vectors = model.quantizer.detokenize(model.tokenize(sample))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4, 2, 3), **CLOSE)
    assert small_model(quantizer_type="ema")[0].quantizer.normalize
    assert not small_model(quantizer_config={"normalize": False})[0].quantizer.normalize
    assert small_model(quantizer_type="lookup_free", codebook_size=64)[0].codebook_size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 5}, "image_size.*patch_size, 5.*8, 12"),
        ({"patch_size": 0}, r"patch_size.*0"),
        ({"image_size": (8, 8, 8)}, "image_size.*8, 8, 8"),
        ({"image_size": 8.0}, r"image_size.*8\.0"),
        ({"encoder_dim": 6}, "encoder_dim.*4.*6"),
        ({"decoder_depth": 0}, "decoder_depth.*0"),
        ({"encoder_heads": -1}, "encoder_heads.*-1"),
        ({"codebook_dim": 0}, "codebook_dim.*0"),
        ({"quantizer_type": "vq"}, "quantizer_type.*vq"),
        ({"quantizer_config": {"bata": 1}}, "bata.*beta"),
        ({"reconstruction_loss": "l3"}, "reconstruction_loss.*l3"),
        ({"input_scale": 0}, "input_scale"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViTVQModel(**{**SMALL, **arguments})


def test_another_size_is_refused():
    model, _ = small_model()
    for sides in ((8, 8), (16, 24), (12, 8)):
        with pytest.raises(ValueError, match=f"image_size.*{sides[0]}, {sides[1]}"):
            model(torch.rand(1, 1, *sides))
    with pytest.raises(ValueError, match="channels"):
        model(torch.rand(1, 3, 8, 12))
    with pytest.raises(ValueError, match=r"image_size.*1, 1"):
        model.detokenize(torch.zeros(2, 1, 1, dtype=torch.int64))

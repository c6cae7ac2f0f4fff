"""Facts about microsoft/VQ-Diffusion's image codecs: its numbers, its averages, and where its files have them."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import hf_vq
import hf_vq_cli
from hf_vq.converters import convert
from hf_vq.converters.files import read_file
from hf_vq.converters.wrappers import find_tensors

from .conftest import FIXTURES, fixture

CLOSE = {"rtol": 0, "atol": 1e-5}
FOLDER = FIXTURES / "vqdiffusion_patchvqgan"


def read(path):
    return find_tensors(read_file(path).content, path)[0]


def wrapped(tensors, prefix=""):
    """The state dict of the original's wrappers, which hold the quantizer twice."""
    decoder = ("decoder.", "post_quant_conv.")
    halves = {f"enc.{name}": one for name, one in tensors.items() if not name.startswith(decoder)}
    halves |= {f"dec.{name}": one for name, one in tensors.items() if name.startswith((*decoder, "quantize."))}
    return {f"{prefix}{name}": one for name, one in halves.items()}


def test_codes_and_decodings_are_the_originals(tmp_path, capsys):
    hf_vq_cli.main(["convert", str(FOLDER), str(tmp_path / "out"), "--license", "mit"])
    assert "x / 127.5 - 1" in capsys.readouterr().out
    model, tensors = hf_vq.AutoVQModel.from_pretrained(tmp_path / "out"), fixture("vqdiffusion_patchvqgan")[0]
    sample = tensors["in.pixel_values_0_255"] / 127.5 - 1
    with torch.no_grad():
        output, latents = model(sample), model.encode(sample).latents
        decoded = model.detokenize(tensors["in.tokens"].view(2, 4, 4))
    assert torch.equal(output.codes.flatten(1), tensors["out.indices"])
    torch.testing.assert_close(latents, tensors["out.latents"], **CLOSE)
    torch.testing.assert_close(output.quantizer_loss, tensors["out.quantize_loss"], **CLOSE)
    torch.testing.assert_close(decoded, tensors["out.decoded_raw"], **CLOSE)
    pixels = ((output.sample + 1) * 127.5).clamp(0, 255)
    torch.testing.assert_close(pixels / 255, tensors["out.reconstruction_over_255"], **CLOSE)
    (note,) = json.loads((tmp_path / "out/conversion.json").read_text())["notes"]
    assert "x / 255 in [0, 1]" in note
    assert note in ModelCard.load(tmp_path / "out/README.md").text


def test_a_step_of_the_averages_is_the_originals():
    tensors = fixture("vqdiffusion_patchvqgan")[0]
    quantizer = hf_vq.VQModel.from_single_file(FOLDER).train().quantizer
    output = quantizer.quantize(tensors["out.latents"])
    torch.testing.assert_close(output.loss, tensors["out.ema_loss"], **CLOSE)
    torch.testing.assert_close(output.latents, tensors["out.ema_quantized"], **CLOSE)
    torch.testing.assert_close(quantizer.cluster_size, tensors["out.ema_cluster_size"], **CLOSE)
    torch.testing.assert_close(quantizer.embedding_sum, tensors["out.ema_embedding_avg"], **CLOSE)
    torch.testing.assert_close(quantizer.embedding.weight, tensors["out.ema_embedding"], **CLOSE)


@pytest.mark.parametrize(
    ("system", "file"), [("vqdiffusion_patchvqgan", "vqvae.pth"), ("taming_gumbel", ""), ("taming_vqgan", "")]
)
def test_a_codec_in_its_wrapper_and_in_a_whole_model_is_the_bare_one(system, file, tmp_path):
    """Whole models hold it beside the transformer over its codes, which is not asked for here."""
    bare = hf_vq.VQModel.from_single_file(FIXTURES / system / file)
    tensors = read(FIXTURES / system / (file or "last.ckpt"))
    tensors = {name: one for name, one in tensors.items() if not name.startswith("loss.")}
    whole = wrapped(tensors, "content_codec.") | {"transformer.log_at": torch.ones(3)}
    sample = torch.rand(2, 3, 16, 32) * 2 - 1
    told = {"content_codec_config": {"target": "ema_vqvae.Wrapper", "params": {"token_shape": (4, 4)}}}
    config = yaml.dump({"model": {"target": "dalle.DALLE", "params": told}})  # with a tuple of Python's
    (tmp_path / "config.yaml").write_text(config)
    for content, format in ((wrapped(tensors), None), (whole, "vqdiffusion-codec")):
        torch.save({"model": content}, tmp_path / "model.pth")
        model = hf_vq.VQModel.from_single_file(tmp_path / "model.pth", format=format)
        assert torch.equal(model.tokenize(sample), bare.tokenize(sample))
        assert torch.equal(model.detokenize(model.tokenize(sample)), bare.detokenize(bare.tokenize(sample)))


def test_what_does_not_fit_is_named(tmp_path):
    tensors = read(FOLDER / "vqvae.pth")
    changes = {
        "quantizer_dis_type.*cosine": lambda params: params.update(quantizer_dis_type="cosine"),
        "quantizer_type.*PQEMAVQ": lambda params: params.update(quantizer_type="PQEMAVQ"),
        r"encoder_config\.params\.attn_resolutions.*8.*4": lambda params: params["encoder_config"]["params"].update(
            attn_resolutions=[[8, 8]]
        ),
        r"decoder_config\.params\.out_ch.*1.*3": lambda params: params["decoder_config"]["params"].update(out_ch=1),
    }
    torch.save({"model": tensors}, tmp_path / "vqvae.pth")
    for words, change in changes.items():
        config = yaml.safe_load((FOLDER / "config.yaml").read_text())
        change(config["model"]["params"])
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(ValueError, match=words):
            convert(tmp_path, tmp_path / "out")
    (tmp_path / "config.yaml").unlink()
    halves = wrapped(tensors)
    torch.save({"model": halves | {"dec.quantize.embedding": torch.ones(40, 6)}}, tmp_path / "vqvae.pth")
    with pytest.raises(ValueError, match=r"dec\.quantize\.embedding differs.*enc\.quantize\.embedding"):
        convert(tmp_path, tmp_path / "out")
    halves.pop("dec.decoder.conv_out.bias")
    torch.save({"model": halves}, tmp_path / "vqvae.pth")
    with pytest.raises(ValueError, match=r"lacks the tensor 'dec\.decoder\.conv_out\.bias'"):
        convert(tmp_path, tmp_path / "out")

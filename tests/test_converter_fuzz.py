"""Checkpoints of others that were changed in one place, or are of another format: converted, or one line."""

import copy
import random
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file

from hf_vq.converters import FORMATS
from hf_vq.converters.base import Source, pick_format
from hf_vq.converters.convert import load_checkpoint
from hf_vq.converters.sources import read_source
from tests.test_converters import FIXTURES

SOURCES = [
    "taming_vqgan/last.ckpt", "taming_gumbel/last.ckpt", "taming_net2net/last.ckpt", "ibq/model.ckpt",
    "llamagen_vq/vq_model.pt", "llamagen_gpt_c2i/gpt_model.pt", "rqvae/stage1", "dalle_dvae", "vqvae2/vqvae.pt",
    "vqvae2/pixelsnail_top.pt", "ritheshkumar_vqvae/best.pt", "ritheshkumar_vqvae/prior.pt", "open_magvit2/model.ckpt",
    "vitvqgan", "diffusers_vqmodel/plain_f4", "sonnet_vqvae/model_ema/variables.npz",
    "wavenet_r9y9/onehot_local/checkpoint.pth",
]  # fmt: skip
RAW = ("IndexError", "KeyError", "TypeError", "AttributeError", "Traceback", "\n")


@pytest.fixture(scope="module")
def sources():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: read_source(FIXTURES / name) for name in SOURCES}


def load(source, monkeypatch, format=None):
    """The outcome of a source: the model, or the one line of the ValueError."""
    monkeypatch.setattr(sys.modules[load_checkpoint.__module__], "read_source", lambda *_: source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_checkpoint(source.path, format)[0]
    except ValueError as error:
        text = str(error)
        assert str(source.path) in text
        assert not any(word in text for word in RAW), text
        return text


def copied(source):
    return Source(source.path, dict(source.tensors), source.rest, copy.deepcopy(source.config), source.config_path)


@pytest.mark.parametrize("name", SOURCES)
def test_a_forced_format_contradicts_neither_keys_nor_config(sources, name, monkeypatch):
    own = pick_format(sources[name]).name
    for other in FORMATS:
        if other != own:
            outcome = load(sources[name], monkeypatch, other)
            assert isinstance(outcome, str), other
            assert f"format={other!r} contradicts" in outcome
            assert f"it is of {own}" in outcome


def lose(source, generator):
    name = generator.choice(sorted(source.tensors))
    del source.tensors[name]
    return name


def add(source, generator):
    source.tensors["quite.another.weight"] = torch.zeros(3)
    return "quite.another.weight"


def reshape(source, generator):
    name = generator.choice(sorted(name for name, tensor in source.tensors.items() if tensor.ndim))
    tensor = source.tensors[name]
    source.tensors[name] = generator.choice([tensor[..., None, None], tensor[:0], tensor[0], torch.cat([tensor] * 2)])
    return name


def retype(source, generator):
    names = [name for name, tensor in source.tensors.items() if tensor.is_floating_point() and tensor.numel() > 1]
    name = generator.choice(sorted(names))
    source.tensors[name] = source.tensors[name].to(generator.choice([torch.int32, torch.bool, torch.complex64]))
    return name


def spoil(source, generator):
    name = generator.choice(sorted(name for name, tensor in source.tensors.items() if tensor.is_floating_point()))
    source.tensors[name] = torch.full_like(source.tensors[name], generator.choice([float("nan"), float("inf")]))
    return name


def rename(source, generator):
    name = lose(source, generator)
    source.tensors[f"x.{name}"] = torch.zeros(2)
    return name


def miswrite(source, generator):
    section, path = source.config, []
    while isinstance(section, dict) and section:
        path.append(generator.choice(sorted(section, key=str)))
        if not isinstance(section[path[-1]], dict) or generator.random() < 0.3:
            section[path[-1]] = generator.choice(["text", None, [], 3, -1, {}, [[1]], 0.5, True])
            break
        section = section[path[-1]]
    return None


@pytest.mark.parametrize("change", [lose, add, reshape, retype, spoil, rename, miswrite])
def test_a_changed_checkpoint_converts_or_says_in_one_line_what_is_wrong(sources, change, monkeypatch):
    generator, refused, named = random.Random(16), 0, 0
    for source in sources.values():
        for forced in (False, True):
            changed = copied(source)
            own = pick_format(source).name
            change(changed, generator)
            outcome = load(changed, monkeypatch, own if forced else None)
            refused += isinstance(outcome, str)
            if change is lose and isinstance(outcome, str):
                named += own in outcome.partition("; known are")[0]
    assert named >= (0.9 * refused if change is lose else 0)
    assert refused >= (0 if change is miswrite else len(sources) // 2)


def test_a_file_one_tensor_short_names_format_and_tensor(sources, monkeypatch):
    for name, mark in {
        "taming_vqgan/last.ckpt": "post_quant_conv.weight", "ibq/model.ckpt": "quant_conv.weight",
        "llamagen_vq/vq_model.pt": "encoder.conv_blocks.0.res.0.conv1.weight", "rqvae/stage1": "quant_conv.weight",
        "vqvae2/vqvae.pt": "quantize_b.embed", "dalle_dvae": "decoder.blocks.input.w",
        "vitvqgan": "decoder.to_pixel.1.weight", "open_magvit2/model.ckpt": "encoder.mid_block.0.conv1.weight",
    }.items():  # fmt: skip
        changed, own = copied(sources[name]), pick_format(sources[name]).name
        del changed.tensors[mark]
        for forced in (None, own):
            outcome = load(changed, monkeypatch, forced)
            assert f"for {own} it lacks the tensor {mark!r}" in outcome, outcome


def test_the_folder_of_a_pipeline_names_its_autoencoder(tmp_path):
    for name in ("diffusers_amused_pipeline", "diffusers_ldm_pipeline"):
        with pytest.raises(ValueError, match=rf"{name} is a pipeline.*give its vqvae, .*{name}.vqvae$"):
            load_checkpoint(FIXTURES / name)


def test_a_truncated_file_is_named(tmp_path):
    save_file({"encoder.weight": torch.zeros(64)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"cannot load .*a.safetensors.*cut short"):
        load_checkpoint(tmp_path / "a.safetensors")

"""Facts about formats: a given one contradicts neither config nor tensors, and what a changed checkpoint says."""

import copy
import json
import random
import shutil
import warnings

import pytest
import torch
import yaml

import hf_vq
from hf_vq.autoencoders import AudioCodec
from hf_vq.converters import FORMATS, convert
from hf_vq.converters.base import Config, Source
from hf_vq.converters.convert import load_read
from hf_vq.converters.sources import read_source

from .conftest import FIXTURES

CHECKPOINTS = {
    "taming-vqgan": "taming_vqgan",
    "taming-gumbel": "taming_gumbel",
    "taming-gpt": "taming_net2net",
    "ibq": "ibq/model.ckpt",
    "llamagen-vq": "llamagen_vq",
    "llamagen-gpt": "llamagen_gpt_c2i",
    "rqvae": "rqvae/stage1",
    "rq-transformer": "rqvae/stage2",
    "dalle-dvae": "dalle_dvae",
    "rosinality-vqvae2": "vqvae2/vqvae.pt",
    "rosinality-pixelsnail": "vqvae2/pixelsnail_top.pt",
    "ritheshkumar-vqvae": "ritheshkumar_vqvae/best.pt",
    "ritheshkumar-pixelcnn": "ritheshkumar_vqvae/prior.pt",
    "open-magvit2": "open_magvit2/model.ckpt",
    "vitvqgan": "vitvqgan",
    "keras-vqvae": "keras_vqvae_example/vqvae_keras3.keras",
    "keras-pixelcnn": "keras_vqvae_example/pixelcnn_keras3.keras",
    "diffusers-vqmodel": "diffusers_vqmodel/attention_blocks",
    "r9y9-wavenet": "wavenet_r9y9/onehot_local",
    "encodec": "encodec_original/orig_causal",
    "dac": "dac_original/orig",
    "sonnet-vqvae": "sonnet_vqvae/model_ema",
    "vqdiffusion-codec": "vqdiffusion_patchvqgan",
    "vqdiffusion": "vqdiffusion_original",
    "diffusers-vqdiffusion": "diffusers_vqdiffusion_pipeline",
    "diffusers-vqdiffusion-transformer": "diffusers_vqdiffusion_pipeline/transformer",
}
FROM_TRANSFORMERS = ("encodec", "dac")
FORMAT_NAMES = [*CHECKPOINTS, *(f"transformers-{name}" for name in FROM_TRANSFORMERS)]
FIRST_STAGES = {"rq-transformer": FIXTURES / "rqvae/stage1"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    found = {name: read_source(FIXTURES / path) for name, path in CHECKPOINTS.items()}
    folder = tmp_path_factory.mktemp("stock")
    for name in FROM_TRANSFORMERS:
        AudioCodec.from_single_file(FIXTURES / CHECKPOINTS[name]).to_transformers().save_pretrained(folder / name)
        found[f"transformers-{name}"] = read_source(folder / name)
    return found


def clone(source):
    told = Config(copy.deepcopy(dict(source.config)))
    return Source(source.path, dict(source.tensors), dict(source.rest), told, source.config_path)


def message(source, name, format=None):
    """What loading says in one line; None where it loads."""
    stage = FIRST_STAGES.get(name)
    told = None
    try:
        load_read(source, format, stage if FORMATS[format or name].takes_first_stage else None)
    except ValueError as error:
        told = str(error)
    assert told is None or not set(told) & {"\n"}
    return told


def test_every_format_has_a_checkpoint_here():
    assert set(FORMAT_NAMES) == FORMATS.keys()


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_another_format_is_refused_and_its_own_is_named(name, sources):
    for other in FORMATS.keys() - {name}:
        if name in FORMATS[other].within:
            continue  # a part of it, which is there
        told = message(clone(sources[name]), name, other)
        assert told is not None, other
        assert f"format={other!r} contradicts" in told
        assert name in told
    assert message(clone(sources[name]), name, name) is None


def test_the_first_stage_of_a_larger_checkpoint_may_be_asked_for(sources):
    part = load_read(clone(sources["taming-gpt"]), "taming-vqgan")[0]
    whole = load_read(clone(sources["taming-gpt"]), None)[0].autoencoder
    sample = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(part.tokenize(sample), whole.tokenize(sample))


@pytest.mark.parametrize("named", ["some.IBQ", "taming.models.vqgan.GumbelVQ"])
def test_a_config_that_names_another_class_is_believed(named, sources):
    source = clone(sources["taming-vqgan"])
    source.config = Config({"model": {**dict(source.config)["model"], "target": named}})
    told = message(source, "taming-vqgan", "taming-vqgan")
    assert named.rpartition(".")[2] in told or "ibq" in told
    larger = clone(sources["taming-gpt"])
    told = copy.deepcopy(dict(larger.config))
    told["model"]["params"]["first_stage_config"]["target"] = named
    larger.config = Config(told)
    assert named in message(larger, "taming-gpt", "taming-vqgan")


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_one_tensor_less_is_named_with_its_format(name, sources):
    kept = {key for key, tensor in sources[name].tensors.items() if tensor.ndim > 1}  # not what is optional
    for key in random.Random(0).sample(sorted(kept), min(3, len(kept))):
        source = clone(sources[name])
        del source.tensors[key]
        told = message(source, name)
        if told is None:
            assert key.startswith(("loss.", "model_ema.")) or ".mask" in key, key
        elif not name.startswith("keras"):  # whose names are the user's: shapes and order tell what is what
            assert name in told
            assert key.removeprefix("first_stage_model.").removesuffix("_v").removesuffix("_g") in told, key
        else:
            assert name in told or "of no known format" in told


CHANGES = {
    "lies flat": lambda tensor: tensor.flatten()[None, None, None, None],
    "is a number": lambda tensor: torch.ones(()),
    "is empty": lambda tensor: tensor.new_zeros((0,) * tensor.ndim),
    "is doubled": lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None],
    "is of integers": lambda tensor: torch.ones_like(tensor, dtype=torch.int32),
    "is NaN": lambda tensor: torch.full_like(tensor, torch.nan, dtype=torch.float32),
}


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_changed_tensors_are_a_line_that_says_what_is_wrong(name, sources):
    draw = random.Random(name)
    for _ in range(4):
        source = clone(sources[name])
        for key in draw.sample(sorted(source.tensors), draw.choice((1, 2))):
            source.tensors[key] = CHANGES[draw.choice(sorted(CHANGES))](source.tensors[key])
        told = message(source, name, draw.choice((None, name, draw.choice(sorted(FORMATS)))))
        assert told is None or str(source.path) in told


def entries(tree, path=()):
    for key, value in tree.items() if isinstance(tree, dict) else ():
        yield (*path, key)
        yield from entries(value, (*path, key))


@pytest.mark.parametrize("name", [name for name, path in CHECKPOINTS.items() if name != "r9y9-wavenet"])
def test_changed_configs_are_a_line_that_names_the_key(name, sources):
    draw = random.Random(name)
    keys = list(entries(sources[name].config))
    for key in draw.sample(keys, min(5, len(keys))):
        told = copy.deepcopy(dict(sources[name].config))
        section = told
        for part in key[:-1]:
            section = section[part]
        section[key[-1]] = draw.choice((None, "x", [], {}, -1, 1.5, [{}]))
        source = clone(sources[name])
        source.config = Config(told)
        with warnings.catch_warnings(action="ignore"):
            said = message(source, name)
        assert said is None or str(source.path) in said


@pytest.mark.parametrize("pipeline", ["diffusers_ldm_pipeline", "diffusers_amused_pipeline"])
def test_of_the_folder_of_a_pipeline_the_vqvae_is_taken(pipeline, tmp_path):
    model = convert(FIXTURES / pipeline, tmp_path / "out")
    part = hf_vq.VQModel.from_single_file(FIXTURES / pipeline / "vqvae")
    torch.testing.assert_close(dict(model.state_dict()), dict(part.state_dict()), rtol=0, atol=0)
    assert "its vqvae was taken" in (tmp_path / "out/conversion.json").read_text()
    index = {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"0 autoencoders in vqvae \(AutoencoderKL\)"):
        read_source(tmp_path)


def test_ibqs_file_never_becomes_tamings(tmp_path):
    shutil.copytree(FIXTURES / "ibq", tmp_path / "ibq")
    with pytest.raises(ValueError, match=r"format='taming-vqgan' contradicts .*: it is ibq"):
        convert(tmp_path / "ibq/model.ckpt", tmp_path / "out", format="taming-vqgan")
    config = yaml.safe_load((tmp_path / "ibq/config.yaml").read_text())
    config["model"]["class_path"] = "taming.models.vqgan.VQModel"  # as the user says
    (tmp_path / "ibq/config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"format='ibq' contradicts .*: it is taming-vqgan"):
        convert(tmp_path / "ibq/model.ckpt", tmp_path / "out", format="ibq")

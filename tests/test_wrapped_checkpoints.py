"""Facts about files as training leaves them: with prefixes, in wrappers, beside objects; each is as the bare file."""

import shutil

import pytest
import torch
import yaml

from hf_vq import PixelCNN, VQModel
from hf_vq.converters import convert
from hf_vq.converters.base import Source, pick_format
from hf_vq.converters.prefixes import peel
from hf_vq.converters.sources import read_source

from .conftest import FIXTURES
from .test_forced_formats import FORMAT_NAMES, sources  # noqa: F401  (a fixture)
from .test_foreign_objects import MADE_BY_USERS, PLAIN

OWN = "my.own_net."
ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
PREFIXES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", OWN)
WRAPPERS = {
    "model_state": lambda state: {"model_state": state, "step": 3},
    "net, in several": lambda state: {"a": {"b": {"net": state, "seen": torch.ones(())}}, "optimizer": ADAM},
    "params_ema": lambda state: {"params": {name: one * 0 for name, one in state.items()}, "params_ema": state},
    "generator": lambda state: {"generator": state, "discriminator": {"main.0.weight": torch.ones(2)}, "opt": ADAM},
}
OBJECTS = {
    **{kind: PLAIN[kind][0] for kind in ("array", "path", "namespaces", "datetime", "deque", "optimizer")},
    "mapped": MADE_BY_USERS["mapped"],
    "fields": MADE_BY_USERS["fields"],
}


def prefixed(prefix):
    return lambda state: {prefix + name: one for name, one in state.items()}


VARIANTS = {
    **{prefix: prefixed(prefix) for prefix in PREFIXES},
    **WRAPPERS,
    "objects": lambda state: {"weights": state, **{kind: make() for kind, make in OBJECTS.items()}},
    "objects among": lambda state: {**state, **{kind: make() for kind, make in OBJECTS.items()}},
}


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_every_format_is_read_as_its_bare_file(name, sources, tmp_path):  # noqa: F811
    bare = sources[name]
    for variant, wrap in VARIANTS.items():
        if "/" in next(iter(bare.tensors)) and variant in ("model.", OWN):
            continue  # of TensorFlow's variables any beginning is a model's own name
        torch.save(wrap(bare.tensors), tmp_path / "a.pt")
        read = read_source(tmp_path / "a.pt", bare.config_path)
        assert read.tensors.keys() == bare.tensors.keys(), variant
        assert all(torch.equal(read.tensors[key], one) for key, one in bare.tensors.items()), variant
        assert pick_format(read).name == name, variant
        assert bool(read.told) is (variant != "objects among"), variant


@pytest.mark.parametrize("variant", ["_orig_mod.module.", OWN, "params_ema", "objects"])
def test_they_become_the_same_models(variant, tmp_path):
    for path, model_class in (("taming_vqgan/last.ckpt", VQModel), ("ritheshkumar_vqvae/prior.pt", PixelCNN)):
        source = read_source(FIXTURES / path)
        torch.save(VARIANTS[variant](source.tensors), tmp_path / "a.pt")
        model = model_class.from_single_file(tmp_path / "a.pt", source.config_path)
        bare = model_class.from_single_file(FIXTURES / path)
        torch.testing.assert_close(dict(model.state_dict()), dict(bare.state_dict()), rtol=0, atol=0)


def test_of_several_models_in_dicts_one_must_be_named_and_the_one_of_a_format_is_found(tmp_path):
    state = read_source(FIXTURES / "ritheshkumar_vqvae/best.pt").tensors
    other = {name: one + 1 for name, one in state.items()}
    torch.save({"first": state, "second": other, "statistics": {"mean": torch.ones(3)}}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="several state dicts, 'first', 'second': give weights"):
        read_source(tmp_path / "a.pt")
    assert all(
        torch.equal(one, other[name]) for name, one in read_source(tmp_path / "a.pt", None, "second").tensors.items()
    )
    torch.save({"first": state, "statistics": {"mean": torch.ones(3)}}, tmp_path / "a.pt")
    assert read_source(tmp_path / "a.pt").tensors.keys() == state.keys()


def test_a_part_of_the_names_is_peeled_and_what_is_left_out_is_said(tmp_path):
    state = read_source(FIXTURES / "ritheshkumar_vqvae/best.pt").tensors
    beside = {f"lpips.net.{name}": torch.ones(2) for name in "abcde"}
    torch.save({"state_dict": prefixed("vqvae.")(state) | beside}, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "out")
    told = (tmp_path / "out/conversion.json").read_text()
    assert (
        "'vqvae.' was left out before the names of tensors, and with it 5 tensors that are not under it, of lpips"
        in (told)
    )
    both = prefixed("online.")(state) | prefixed("target.")(state)
    with pytest.raises(ValueError, match="several models, 'online', 'target': give weights"):
        peel(Source(tmp_path, both))
    assert peel(Source(tmp_path, both), "target").tensors.keys() == state.keys()
    averaged = peel(
        Source(tmp_path, prefixed("net.")(state) | prefixed("net_ema.")({k: v + 1 for k, v in state.items()}))
    )
    assert all(torch.equal(averaged.tensors[key], one + 1) for key, one in state.items())


def test_a_broken_file_of_a_known_format_is_not_taken_for_a_part_of_it(tmp_path):
    state = dict(read_source(FIXTURES / "taming_net2net/last.ckpt").tensors)
    del state["transformer.tok_emb.weight"]
    torch.save(state, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"taming-gpt has 'transformer\.tok_emb\.weight'"):
        pick_format(read_source(tmp_path / "last.ckpt"))


def test_the_folder_of_a_run_is_a_checkpoint_and_several_are_listed_by_step(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "configs").mkdir()
    shutil.copy(FIXTURES / "taming_vqgan/last.ckpt", tmp_path / "checkpoints/last.ckpt")
    for date in ("2020-11-09T10-00-00", "2020-11-20T10-00-00"):
        for kind in ("project", "lightning"):
            shutil.copy(FIXTURES / "taming_vqgan/config.yaml", tmp_path / f"configs/{date}-{kind}.yaml")
    read = read_source(tmp_path)
    assert read.config_path.name == "2020-11-20T10-00-00-project.yaml"
    assert pick_format(read).name == "taming-vqgan"
    for name in ("epoch=000002", "epoch=000010"):
        shutil.copy(FIXTURES / "taming_vqgan/last.ckpt", tmp_path / f"checkpoints/{name}.ckpt")
    with pytest.raises(ValueError, match=r"as source: .*epoch=000002\.ckpt, epoch=000010\.ckpt"):
        read_source(tmp_path)
    (tmp_path / "checkpoints/last.ckpt").unlink()
    (tmp_path / "checkpoints/epoch=000010.ckpt").write_bytes(b"")  # none is read to ask which
    with pytest.raises(ValueError, match=r"as source: epoch=000002\.ckpt, epoch=000010\.ckpt"):
        read_source(tmp_path)


def test_a_file_of_latent_diffusion_needs_no_config_unless_it_is_ibqs(tmp_path):
    state = prefixed("first_stage_model.")(read_source(FIXTURES / "taming_vqgan/last.ckpt").tensors)
    state |= {f"model.diffusion_model.{name}.weight": torch.ones(2) for name in "abcd"}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    read = read_source(tmp_path / "a.ckpt")
    assert pick_format(read).name == "taming-vqgan"
    told = {"model": {"target": "ldm.LatentDiffusion", "params": {"first_stage_config": {"target": "some.IBQ"}}}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(told))
    assert pick_format(read_source(tmp_path / "a.ckpt")).name == "ibq"

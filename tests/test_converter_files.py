"""Facts about files of others: what is read from which, and that nothing in a file runs, leads out of it or swells."""

import argparse
import collections
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import typing
import warnings
import zipfile
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_vq.converters.files import read_file
from hf_vq.converters.wrappers import WRAPPERS, find_tensors

STATE = {
    "encoder.weight": torch.arange(6.0).reshape(2, 3),
    "codebook": torch.randn(4, 2).half(),
    "steps": torch.tensor(7),
}


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


def save_torch(content, path, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)


def save_npz(content, path, save=np.savez):
    with open(path, "wb") as file:
        save(file, **{name: tensor.numpy() for name, tensor in content.items()})


def save_hdf5(content, file):
    with pytest.importorskip("h5py").File(file, "w") as root:
        for name, tensor in content.items():
            root[name.replace(".", "/")] = tensor.numpy()


def save_keras(content, path, packing=zipfile.ZIP_STORED):
    weights = io.BytesIO()
    save_hdf5(content, weights)
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps({"class_name": "Functional"}))
        archive.writestr("model.weights.h5", weights.getvalue())


SAVERS = {
    "safetensors": save_file,
    "torch": save_torch,
    "torch, legacy": lambda content, path: save_torch(content, path, legacy=True),
    "npz": save_npz,
    "npz, packed": lambda content, path: save_npz(content, path, np.savez_compressed),
    "hdf5": save_hdf5,
    "keras": save_keras,
    "keras, packed": lambda content, path: save_keras(content, path, zipfile.ZIP_DEFLATED),
}


def refuse(path, *words):
    """The file is a ValueError that names it, and says the words."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_file(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def classes(monkeypatch, modules):
    """Make classes importable under names of others: pickles of them then name those."""
    for name, members in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            package = ".".join(parts[:depth])
            monkeypatch.setitem(sys.modules, package, sys.modules.get(package) or ModuleType(package))
        for member in members:
            member.__module__, member.__qualname__ = name, member.__name__
            setattr(sys.modules[name], member.__name__, member)


@pytest.mark.parametrize("saver", SAVERS)
def test_formats_are_told_by_content_and_read_exactly(saver, tmp_path):
    path = tmp_path / "weights.unknown"
    SAVERS[saver](STATE, path)
    loaded = read_file(path)
    tensors, rest, _ = find_tensors(loaded.content, path)
    assert loaded.format == saver.split(",")[0]
    assert {name.replace("/", "."): tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in STATE.items()
    }
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.float16, torch.int64}
    assert rest == {}


def test_keras_gives_its_config_and_hdf5_the_order_of_its_layers(h5py, tmp_path):
    save_keras(STATE, tmp_path / "model.keras")
    attributes = read_file(tmp_path / "model.keras").attributes
    assert attributes["config"] == {"class_name": "Functional"}
    assert attributes["metadata"] == {"keras_version": "3.15.1"}
    with h5py.File(tmp_path / "model.h5", "w") as root:
        for layer in ("stem", "head"):
            root[f"{layer}/{layer}/kernel:0"] = np.zeros(2, ">f4")
            root[layer].attrs["weight_names"] = [f"{layer}/kernel:0".encode()]
        root.attrs["layer_names"] = np.array([b"stem", b"head"])
        root.attrs["backend"] = "tensorflow"
        root.attrs["nothing"] = h5py.Empty("f")
    loaded = read_file(tmp_path / "model.h5")
    assert loaded.attributes[""] == {"layer_names": ["stem", "head"], "backend": "tensorflow"}
    assert loaded.attributes["stem"] == {"weight_names": ["stem/kernel:0"]}
    assert list(loaded.content) == ["head/head/kernel:0", "stem/stem/kernel:0"]


def test_safetensors_gives_its_metadata(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_file(tmp_path / "model.safetensors").attributes == {"format": "pt"}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_state_dict_is_found_in_its_wrapper_and_the_rest_is_kept(wrapper, legacy, tmp_path):
    args = argparse.Namespace(width=8, nested=argparse.Namespace(depth=2))
    state = {name: nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) for name, tensor in STATE.items()}
    save_torch({wrapper: {**state, "version": 2}, "args": args, "epoch": 3}, tmp_path / "a.ckpt", legacy)
    tensors, rest, _ = find_tensors(read_file(tmp_path / "a.ckpt").content, tmp_path / "a.ckpt")
    torch.testing.assert_close(tensors, STATE)
    assert not any(tensor.requires_grad for tensor in tensors.values())
    assert rest == {"args": {"width": 8, "nested": {"depth": 2}}, "epoch": 3, "version": 2}


def test_of_several_state_dicts_the_average_is_taken_and_others_stay():
    content = {"ema": {"w": torch.zeros(1)}, "model": {"state_dict": {"w": torch.ones(1)}}}
    tensors, rest, told = find_tensors(content, "a.pt")
    assert (tensors["w"], rest["model"]["state_dict"]["w"]) == (0, 1)
    assert told == ["Of ema, model.state_dict the average was taken, 'ema'."]
    tensors, rest, _ = find_tensors(content, "a.pt", "model.state_dict")
    assert (tensors["w"], rest["ema"]["w"]) == (1, 0)
    several = {"ema": {"module.w": torch.zeros(1)}, "model": {"_orig_mod.w": torch.ones(1)}}
    assert find_tensors(several, "a.pt")[0].keys() == {"module.w"}
    content["model"]["state_dict"]["buffer"] = torch.ones(2)  # which the average lacks
    assert find_tensors(content, "a.pt")[0].keys() == {"w", "buffer"}
    with pytest.raises(ValueError, match=r"a\.pt holds several state dicts, 'a', 'b': give weights"):
        find_tensors({name: {"w": torch.ones(1)} for name in "ab"}, "a.pt")
    with pytest.raises(ValueError, match=r"weights='c' is not in a\.pt, which has 'a', 'b'"):
        find_tensors({name: {"w": torch.ones(1)} for name in "ab"}, "a.pt", "c")
    assert find_tensors({}, "a.pt") == ({}, {}, [])
    itself = {}
    itself["model"] = itself
    for content in (itself, {"epoch": 1}, {"model": {}}, [1]):
        with pytest.raises(ValueError, match=r"a\.pt holds no state dict"):
            find_tensors(content, "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt names a tensor 0"):
        find_tensors({0: torch.ones(1)}, "a.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_lightning_checkpoints_load_without_lightning_and_omegaconf(legacy, tmp_path, monkeypatch):
    checkpoint, attributes = type("ModelCheckpoint", (), {}), type("AttributeDict", (dict,), {})
    dict_config, list_config = type("DictConfig", (), {}), type("ListConfig", (), {})
    node, metadata = type("AnyNode", (), {}), type("ContainerMetadata", (), {})

    def wrap(value, parent=None):
        kind = {dict: dict_config, list: list_config}.get(type(value), node)
        wrapped = kind()
        wrapped._metadata, wrapped._parent = metadata(), parent
        wrapped._metadata.__dict__.update(
            object_type=dict, key_type=str, ref_type=typing.Any, cache=collections.defaultdict(dict)
        )
        if kind is dict_config:
            wrapped._content = {key: wrap(entry, wrapped) for key, entry in value.items()}
        elif kind is list_config:
            wrapped._content = [wrap(entry, wrapped) for entry in value]
        else:
            wrapped._val = value
        return wrapped

    config = {"embed_dim": 256, "ddconfig": {"ch_mult": [1, 2], "dropout": 0.0, "resolution": None}}
    with monkeypatch.context() as patch:
        modules = {
            "pytorch_lightning.callbacks.model_checkpoint": [checkpoint],
            "pytorch_lightning.utilities.parsing": [attributes],
            "omegaconf.dictconfig": [dict_config],
            "omegaconf.listconfig": [list_config],
            "omegaconf.nodes": [node],
            "omegaconf.base": [metadata],
        }
        classes(patch, modules)
        content = {
            "state_dict": STATE,
            "callbacks": {checkpoint: {"best": np.float64(0.5), "steps": np.int32(-3), "name": np.str_("é")}},
            "hyper_parameters": attributes(config=wrap(config), lr=1e-4),
            "milestones": collections.Counter([5, 5]),
        }
        save_torch(content, tmp_path / "last.ckpt", legacy)
    tensors, rest, _ = find_tensors(read_file(tmp_path / "last.ckpt").content, tmp_path / "last.ckpt")
    torch.testing.assert_close(tensors, STATE)
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert rest["callbacks"] == {name: {"best": 0.5, "steps": -3, "name": "é"}}
    assert rest["hyper_parameters"] == {"config": config, "lr": 1e-4}
    assert rest["milestones"] == {5: 2}
    assert not any(name.startswith(("pytorch_lightning", "omegaconf")) for name in sys.modules)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_modules_become_state_dicts(legacy, tmp_path, monkeypatch):
    class Conv2d(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(2, 2, 1, 1)), nn.Parameter(torch.randn(2))
            self.register_buffer("seen", torch.tensor(3))
            self.register_buffer("scratch", torch.tensor(4), persistent=False)

    class EncoderBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.id_path = nn.Identity()
            self.res_path = nn.Sequential(collections.OrderedDict(relu_1=nn.ReLU(), conv_1=Conv2d()))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.n_hid, self.device = 16, torch.device("cpu")
            group = collections.OrderedDict(block_1=EncoderBlock(), block_2=EncoderBlock(), pool=nn.MaxPool2d(2))
            self.blocks = nn.Sequential(collections.OrderedDict(group_1=nn.Sequential(group), up=nn.Upsample(None, 2)))

    path = tmp_path / "encoder.pkl"
    with monkeypatch.context() as patch:
        classes(patch, {"dall_e.encoder": [Encoder, EncoderBlock], "dall_e.utils": [Conv2d]})
        encoder = Encoder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, that it finds no source
            save_torch(encoder, path, legacy)
            save_torch({"model": encoder}, tmp_path / "wrapped.pt", legacy)
    tensors, rest, _ = find_tensors(read_file(path).content, path)
    torch.testing.assert_close(tensors, dict(encoder.state_dict()))
    assert "blocks.group_1.block_2.res_path.conv_1.w" in tensors
    assert rest["class"] == "dall_e.encoder.Encoder"
    assert rest["attributes"]["n_hid"] == 16
    assert find_tensors(read_file(tmp_path / "wrapped.pt").content, path)[0].keys() == tensors.keys()
    assert "dall_e.encoder" not in sys.modules


class Runs:
    """Unpickled by pickle itself, it calls the function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def unheard(*_):
    raise AssertionError("it ran")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4"])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, "touch {}", f"{os.name}.system"),
        (eval, "open({!r}, 'w')", "builtins.eval"),
        (subprocess.Popen, "touch {}", "subprocess.Popen"),
        (unheard, "", f"{__name__}.unheard"),
        (bytearray, "", "builtins.bytearray"),
        (torch.storage._load_from_bytes, "", "torch.storage._load_from_bytes"),
    ],
)
def test_files_that_name_code_are_refused_and_nothing_runs(function, arguments, name, form, tmp_path):
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pt"
    evil = {"state_dict": STATE, "x": Runs(function, arguments.format(str(sentinel)))}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(evil["x"], protocol=int(form[-1])))
    else:
        save_torch(evil, path, legacy=form == "legacy")
    refuse(path, name, "refused")
    assert not sentinel.exists()


def test_what_was_allowed_elsewhere_is_not_allowed_here_and_stays_allowed_there(tmp_path):
    save_torch({"x": Runs(unheard), **STATE}, tmp_path / "a.pt")
    save_torch({"args": argparse.Namespace(width=8), **STATE}, tmp_path / "b.pt")
    shadows = [(lambda *_, number=number: number, "argparse.Namespace") for number in range(32)]
    with torch.serialization.safe_globals([unheard, *shadows]):
        before = set(torch.serialization.get_safe_globals())
        refuse(tmp_path / "a.pt", "unheard")
        assert read_file(tmp_path / "b.pt").content["args"] == {"width": 8}
        assert set(torch.serialization.get_safe_globals()) == before


def test_second_pickles_and_pickles_under_other_names_are_scanned(tmp_path):
    save_torch(STATE, tmp_path / "good.pt")
    for name in ("good/DATA.pkl", "other/Data.Pkl"):
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "evil.pt", "w") as evil:
            evil.writestr(name, pickle.dumps(Runs(unheard), protocol=2))
            for member in good.namelist():
                evil.writestr(member, good.read(member))
        refuse(tmp_path / "evil.pt", "twice" if name.startswith("good") else "unheard")


def patched(path, old, new):
    """The torch zip with bytes of its pickle replaced."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = [name for name in members if name.endswith("data.pkl")]
    assert old in members[pickled]
    members[pickled] = members[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_that_reach_beyond_their_storage_are_refused(legacy, tmp_path):
    path, tensor = tmp_path / "a.pt", torch.arange(4.0)
    for old, new in [(b"K\x04tq", b"K\xfftq"), (b"K\x04\x85", b"K\xff\x85")]:  # of the storage, of the tensor
        save_torch({"a": tensor}, path, legacy)
        if legacy:
            old = old.replace(b"tq", b"Ntq")
            data = path.read_bytes()
            assert old in data
            path.write_bytes(data.replace(old, new.replace(b"tq", b"Ntq")))
        else:
            patched(path, old, new)
        refuse(path)


def test_broken_and_foreign_files_are_named(tmp_path):
    save_torch({"w": torch.zeros(4000)}, tmp_path / "zip.pt")
    save_torch({"w": torch.zeros(4000)}, tmp_path / "legacy.pt", legacy=True)
    save_file({"w": torch.zeros(4000)}, tmp_path / "model.safetensors")
    save_npz({"w": torch.zeros(4000)}, tmp_path / "a.npz")
    for name, kept, words in [
        ("zip.pt", 0.6, "cut short"), ("legacy.pt", 0.6, "EOF"), ("legacy.pt", 0.01, "cut short"),
        ("a.npz", 0.6, "cut"), ("model.safetensors", 0.6, "cut"), ("model.safetensors", 0.002, "cut"),
    ]:  # fmt: skip
        data = (tmp_path / name).read_bytes()
        (tmp_path / "cut").write_bytes(data[: int(len(data) * kept)])
        refuse(tmp_path / "cut", words)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with tarfile.open(tmp_path / "tar", "w") as archive:
        archive.add(tmp_path / "zip.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "script")
    torch.save(STATE, tmp_path / "protocol", pickle_protocol=4)
    (tmp_path / "plain").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    (tmp_path / "empty").touch()
    (tmp_path / "page").write_text("\n<!DOCTYPE html><html><body>Not found</body></html>")
    (tmp_path / "lfs").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    (tmp_path / "gzip").write_bytes(gzip.compress(b"weights"))
    (tmp_path / "yaml").write_text("config:\n  width: 8\n")
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    for name, words in {
        "zip": "readme.txt", "tar": "tar archive", "script": "TorchScript", "protocol": "protocol 4",
        "plain": "torch.save did not write", "empty": "empty", "page": "HTML", "lfs": "git-lfs pointer",
        "gzip": "gzip", "yaml": "none of: safetensors", "noise": "none of: safetensors",
    }.items():  # fmt: skip
        refuse(tmp_path / name, words)
    refuse(tmp_path, "folder")
    with pytest.raises(FileNotFoundError, match="missing"):
        read_file(tmp_path / "missing")


def test_archives_that_swell_are_refused(tmp_path):
    zeros = {"w": torch.zeros(20 * 2**20)}  # 80 MiB
    save_npz(zeros, tmp_path / "a.npz", np.savez_compressed)
    refuse(tmp_path / "a.npz", "bomb")
    save_torch({"w": torch.zeros(10)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as good, zipfile.ZipFile(tmp_path / "b.pt", "w", 8) as packed:
        for member in good.namelist():
            packed.writestr(member, good.read(member))
    refuse(tmp_path / "b.pt", "a/data.pkl", "compressed")
    save_torch({"w": torch.zeros(1).expand(2**15, 2**15)}, tmp_path / "expanded.pt")
    refuse(tmp_path / "expanded.pt", "bomb")


@pytest.mark.parametrize("name", ["../data.pkl", "/etc/x/data.pkl", "a/../../data.pkl", "C:/x/data.pkl"])
def test_members_that_lead_out_of_the_archive_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr(name, b"")
    refuse(tmp_path / "a.pt", "out of the archive", name)


def test_npz_with_objects_is_refused_and_names_the_array(tmp_path):
    np.savez(tmp_path / "a.npz", fine=np.zeros(2), text=np.array(["a", "b"]))
    assert read_file(tmp_path / "a.npz").content["text"] == ["a", "b"]
    np.savez(tmp_path / "b.npz", evil=np.array([Runs(os.mkdir, str(tmp_path / "sentinel"))], dtype=object))
    refuse(tmp_path / "b.npz", "'evil'")
    assert not (tmp_path / "sentinel").exists()


def build_hdf5(h5py, path, kind):
    with h5py.File(path.parent / "other.h5", "w") as other:
        other["secret"] = np.arange(4.0)
    with h5py.File(path, "w") as root:
        group = root.create_group("layers")
        if kind == "external link":
            group["w"] = h5py.ExternalLink("other.h5", "secret")
        elif kind == "soft link":
            group["w"] = h5py.SoftLink("/elsewhere")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource(str(path.parent / "other.h5"), "secret", (4,))
            group.create_virtual_dataset("w", layout)
        elif kind == "external storage":
            group.create_dataset("w", (4,), "f8", external=[("/etc/hostname", 0, 32)])
        elif kind == "declared":
            group.create_dataset("w", (2**20, 2**20), "f4", chunks=(64, 64))
        elif kind == "text":
            group["w"] = "text"
        elif kind == "loop":
            group["w"] = group


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("external link", ("'layers/w'", "ExternalLink")), ("soft link", ("'layers/w'", "SoftLink")),
        ("virtual", ("'layers/w'", "another file")), ("external storage", ("'layers/w'", "another file")),
        ("declared", ("bomb",)), ("text", ("'layers/w'", "no tensor")), ("loop", ("holds itself",)),
    ],
)  # fmt: skip
def test_hdf5_that_leads_out_or_swells_is_refused(kind, words, h5py, tmp_path):
    build_hdf5(h5py, tmp_path / "a.h5", kind)
    refuse(tmp_path / "a.h5", *words)
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "a.h5", "model.weights.h5")
    refuse(tmp_path / "a.keras", *words)


def test_broken_keras_files_are_named(h5py, tmp_path):
    save_keras({"w": torch.zeros(20 * 2**20)}, tmp_path / "bomb.keras", zipfile.ZIP_DEFLATED)
    refuse(tmp_path / "bomb.keras", "bomb")
    save_hdf5({"w": torch.zeros(4000)}, tmp_path / "a.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:4000])
    refuse(tmp_path / "cut.h5", "truncated")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{")
        archive.write(tmp_path / "a.h5", "model.weights.h5")
    refuse(tmp_path / "a.keras", "config.json")


def test_without_h5py_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ImportError, match="pip install h5py"):
        read_file(tmp_path / "a.h5")

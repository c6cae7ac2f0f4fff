"""Facts about objects beside the weights: they never keep a file from being read, and nothing of theirs runs."""

import argparse
import collections
import datetime
import functools
import os
import pathlib
import pickle
import random
import types

import numpy as np
import pytest
import torch
from torch import nn

from hf_vq.converters.files import read_file
from hf_vq.converters.stand_ins import STAND_INS, can_stand_in

from .test_converter_files import STATE, Runs, classes, patched, refuse, save_torch

ARMED: list[pathlib.Path] = []  # the marker file, while a file is read


def touch():
    for marker in ARMED:
        marker.touch()


class Touches:
    """Whatever an unpickler does with an object of this class, it touches the marker."""

    def __new__(cls, *arguments, **named):
        touch()
        return super().__new__(cls)

    def __setstate__(self, state):
        touch()
        self.__dict__.update(state)


class Mapped(Touches, dict):
    """As EasyDict, addict's Dict and yacs' CfgNode: a dict with attributes."""

    def __setitem__(self, key, value):
        touch()
        super().__setitem__(key, value)


class Listed(Touches, list):
    """A list of a class of its own."""

    def append(self, value):
        touch()
        super().append(value)

    extend = append


class Fields(Touches):
    """As HParams, ml_collections' ConfigDict and dataclasses."""


def fields(**values):
    made = Fields()
    made.__dict__.update(values)
    return made


def mapped():
    made = Mapped(width=8)
    made.__dict__["width"] = 8
    return made


def looped():
    made = fields(width=8)
    made.parts = [{"owner": made}]
    return made


def optimizer():
    weight = nn.Parameter(torch.ones(2))
    made = torch.optim.Adam([weight])
    weight.sum().backward()
    made.step()
    return made


MADE_BY_USERS = {"mapped": mapped, "listed": lambda: Listed([1, 2]), "fields": lambda: fields(width=8), "loop": looped}
PLAIN = {  # what it is, and what is read
    "array": (lambda: np.arange(6.0).reshape(2, 3), lambda read: read.tolist() == [[0, 1, 2], [3, 4, 5]]),
    "array by columns": (lambda: np.asfortranarray(np.eye(2, 3)), lambda read: read.tolist() == np.eye(2, 3).tolist()),
    "empty array": (lambda: np.zeros((0, 3)), lambda read: read.shape == (0, 3)),
    "array of objects": (lambda: np.array([{}, None]), lambda read: read["class"] == "numpy.ndarray"),
    "scalar": (lambda: np.float32(0.5), lambda read: read == 0.5),
    "date of numpy": (lambda: np.datetime64("2020-01-01"), lambda read: isinstance(read, bytes)),
    "path": (lambda: pathlib.PosixPath("/data/x"), lambda read: read == "/data/x"),
    "path of Windows": (lambda: pathlib.PureWindowsPath("C:/x"), lambda read: read == "C:\\x"),
    "namespaces": (
        lambda: types.SimpleNamespace(a=argparse.Namespace(b=1)), lambda read: read == {"a": {"b": 1}}
    ),
    "deque": (lambda: collections.deque([1, 2], maxlen=4), lambda read: read == [1, 2]),
    "datetime": (lambda: datetime.datetime(2020, 1, 2), lambda read: read["class"] == "datetime.datetime"),
    "timedelta": (lambda: datetime.timedelta(3), lambda read: read["arguments"] == (3, 0, 0)),
    "random numbers": (
        lambda: {"numpy": np.random.RandomState(0).get_state(), "python": random.getstate(), "torch": torch.get_rng_state()},  # noqa: E501
        lambda read: read["numpy"][0] == "MT19937",
    ),
    "generator": (lambda: np.random.default_rng(0), lambda read: "__generator_ctor" in read["class"]),
    "partial": (lambda: functools.partial(argparse.Namespace), lambda read: read["class"] == "functools.partial"),
    "optimizer": (optimizer, lambda read: read["class"] == "torch.optim.adam.Adam"),
    "schedule": (
        lambda: torch.optim.lr_scheduler.StepLR(optimizer(), 3).state_dict(), lambda read: read["step_size"] == 3
    ),
    "loss": (nn.MSELoss, lambda read: read["class"] == "torch.nn.modules.loss.MSELoss"),
    "size": (lambda: torch.Size([2]), lambda read: tuple(read) == (2,)),
}  # fmt: skip


@pytest.fixture
def marker(tmp_path):
    yield tmp_path / "marker"
    ARMED.clear()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_objects_are_read_beside_the_weights(kind, legacy, tmp_path):
    make, is_right = PLAIN[kind]
    save_torch({"state_dict": STATE, "beside": make()}, tmp_path / "a.pt", legacy)
    content = read_file(tmp_path / "a.pt").content
    torch.testing.assert_close(content["state_dict"], STATE)
    assert is_right(content["beside"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", MADE_BY_USERS)
def test_objects_of_unknown_classes_are_kept_without_their_code(kind, legacy, tmp_path, marker):
    path, made = tmp_path / "a.pt", MADE_BY_USERS[kind]()
    save_torch({"state_dict": STATE, "beside": made, "class": type(made)}, path, legacy)
    expected = {"mapped": {"width": 8}, "listed": [1, 2]}.get(kind)
    ARMED.append(marker)
    read = read_file(path).content
    assert not marker.exists()
    torch.testing.assert_close(read["state_dict"], STATE)
    assert read["class"] == f"{__name__}.{'Fields' if kind in ('fields', 'loop') else kind.title()}"
    assert read["beside"] == expected if expected else read["beside"]["width"] == 8


@pytest.mark.parametrize("kind", MADE_BY_USERS)
def test_those_objects_would_touch_the_marker_where_classes_are_looked_up(kind, marker):
    data = pickle.dumps(MADE_BY_USERS[kind](), protocol=2)
    ARMED.append(marker)
    pickle.loads(data)  # its own bytes, of two lines above
    assert marker.exists()


@pytest.mark.parametrize("name", sorted({name for _, name in STAND_INS}))
def test_stand_ins_run_nothing_whatever_they_are_given(name, tmp_path, marker, monkeypatch):
    module, _, member = name.rpartition(".")
    touching = f"touch {marker}"
    for argument in (touching, Runs(os.system, touching)):
        with monkeypatch.context() as patch:
            called = type(member, (), {})
            classes(patch, {"stood.in_for": [called]})
            save_torch({"state_dict": STATE, "x": Runs(called, argument)}, tmp_path / "a.pt")
        patched(tmp_path / "a.pt", f"cstood.in_for\n{member}\n".encode(), f"c{module}\n{member}\n".encode())
        if isinstance(argument, str):
            try:
                read_file(tmp_path / "a.pt")
            except ValueError as error:
                assert str(tmp_path / "a.pt") in str(error)  # noqa: PT017  (it may be read, or refused)
        else:
            refuse(tmp_path / "a.pt", f"{os.name}.system")
        assert not marker.exists()


def test_no_stand_in_has_a_name_that_torch_or_python_would_look_up():
    from torch._weights_only_unpickler import _get_allowed_globals

    python = {
        f"{module}.{name}" for module in ("builtins", "os", "posix", "subprocess", "pickle") for name in ("a", "eval")
    }
    assert len(_get_allowed_globals()) > 50
    assert not [name for name in (*_get_allowed_globals(), *python, "a.b c", "hf_vq.a;b") if can_stand_in(name)]
    assert can_stand_in("__main__.HParams")

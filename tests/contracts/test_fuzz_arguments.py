"""A sample of `benchmarks/fuzz_arguments.py`: wrong values for the arguments of everything public, and its table."""

import inspect
import math
import sys
from collections import Counter
from dataclasses import MISSING, fields
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

from hf_vq.arguments import check_argument
from hf_vq.ranges import Chance, OneOf, Parity, Positive, QuantizerType, Range, StepsOrShare, Width
from hf_vq.registry import AUTOENCODERS, PRIORS, QUANTIZERS
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.prior import PriorTrainingArguments

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import fuzz_arguments
import fuzz_targets


@pytest.fixture(scope="module")
def targets():
    return fuzz_targets.targets()


def test_a_sample_of_wrong_values_is_refused_clearly_or_works(targets):
    verdicts = fuzz_arguments.fuzz(targets[::4], share=0.03, seed=1)
    bad = [each for each in verdicts if each["kind"] not in ("refused", "used")]
    assert bad == []
    assert Counter(each["kind"] for each in verdicts)["refused"] > 40


def test_every_public_number_has_a_range(targets):
    assert len(targets) > 60
    assert fuzz_arguments.unlimited(targets) == []


def defaults(owner):
    if owner in (AutoencoderTrainingArguments, PriorTrainingArguments) or hasattr(owner, "model_type"):
        made = {each.name: each.default_factory() for each in fields(owner) if each.default_factory is not MISSING}
        return {each.name: each.default for each in fields(owner)} | made
    bases = [base for base in owner.__mro__ if "__init__" in vars(base) and base.__module__.startswith("hf_vq")]
    parameters = [each for base in bases for each in inspect.signature(vars(base)["__init__"]).parameters.values()]
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def test_every_default_is_in_its_range(targets):
    owners = {name: AUTOENCODERS[name] for name in fuzz_targets.SMALL_AUTOENCODERS}
    owners |= {name: PRIORS[name].config_class for name in fuzz_targets.SMALL_PRIORS} | QUANTIZERS
    owners |= {each.__name__: each for each in (AutoencoderTrainingArguments, PriorTrainingArguments)}
    looked_at = 0
    for target in targets:
        found = defaults(owners[target.name]) if target.name in owners else {}
        for name in target.kinds.keys() & found.keys() - {"output_dir", "num_used"}:
            check_argument(name, found[name], target.kinds[name])
            looked_at += 1
    assert looked_at > 250


def test_the_fuzz_leaves_nothing_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = fuzz_targets.Target("a writer", {"output_dir": str}, lambda output_dir: Path(output_dir).mkdir())
    assert {each["value"]: each["kind"] for each in fuzz_arguments.fuzz([target])}["'a string'"] == "used"
    assert list(tmp_path.iterdir()) == []


def test_the_fuzz_tells_what_is_wrong():
    def build(width=8, sleep=False):
        if width == "a string":
            raise ValueError("no, thanks")
        if isinstance(width, list):
            raise ValueError(f"width must be an integer, got {width!r}")
        return width

    def use(width):
        assert width != 0

    target = fuzz_targets.Target("wrong", {"width": Width}, build, use)
    found = {each["value"]: each["kind"] for each in fuzz_arguments.fuzz([target])}
    assert found["'a string'"] == "obscure"
    assert found["[]"] == found["[1]"] == "refused"
    assert found["0"] == "fails"
    assert found["True"] == found["nan"] == found["-1"] == found["1000000000"] == "nonsense"


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (Width, 0, "x must be an integer between 1 and 65536, got 0"),
        (Width | None, 10**9, "x must be an integer between 1 and 65536, got 1000000000"),
        (tuple[Width, ...], (8, 0), "x[1] must be an integer between 1 and 65536, got 0"),
        (Width | tuple[Width, ...], (8, 0), "x[1] must be an integer between 1 and 65536, got 0"),
        (Width, 1.5, "x must be an integer, got 1.5"),
        (Chance, 1, "x must be a number at least 0 and below 1, got 1"),
        (Positive, 0.0, "x must be a number above 0, got 0.0"),
        (Positive, math.nan, "x must be a finite number, got nan"),
        (Positive, Fraction(1, 3), "x must be a finite number, got Fraction(1, 3)"),
        (Width, np.int64(0), "x must be an integer between 1 and 65536, got np.int64(0)"),
        (StepsOrShare, 10.5, "x must be a number that is whole, or a share below 1, got 10.5"),
        (StepsOrShare | None, -0.5, "x must be a number at least 0, got -0.5"),
        (Annotated[Width, Parity(0)], 5, "x must be even, got 5"),
        (QuantizerType, "none", f"x must be one of {sorted(QUANTIZERS)}, got 'none'"),
    ],
)
def test_a_value_out_of_its_range_is_told_with_the_range(kind, value, words):
    with pytest.raises(ValueError, match="must be") as error:
        check_argument("x", value, kind)
    assert str(error.value) == words


def test_ranges_and_choices_hold_what_they_say():
    assert [value in Range(0, 1, above=True) for value in (0, 0.5, 1)] == [False, True, True]
    assert [value in Range(0, 1, below=True) for value in (0, 0.5, 1)] == [True, True, False]
    assert str(Range(2)) == "at least 2"
    assert True not in OneOf((1, 2))
    assert 1 not in OneOf((True, "principal"))

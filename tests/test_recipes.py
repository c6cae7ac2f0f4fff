"""Recipes that are hostile or mistaken end in one line with the key and its place; those of the project pass."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from transformers import SchedulerType, get_scheduler

from hf_vq.arguments import check_arguments
from hf_vq.cli.manual import Manual
from hf_vq.cli.options import parse_options
from hf_vq.cli.reading import as_yaml, read_recipe, read_yaml
from hf_vq.cli.train_autoencoder import main as train_autoencoder
from hf_vq.registry import AUTOENCODERS, PRIORS
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.prior import PriorTrainingArguments

ROOT = Path(__file__).parent.parent
RECIPES = [*ROOT.glob("hf_vq/cli/recipes/*.yaml"), *ROOT.glob("model_cards/*/*.yaml")]
BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
LADDER = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 40))
HOSTILE = {
    "key twice": ("data: digits\nseed: 1\nseed: 2\n", "line 3: the key 'seed' is also in line 2"),
    "key twice within": ("model_config:\n  beta: 1\n  beta: 2\n", "line 3: the key 'beta' is also in line 2"),
    "aliases that make much": (BOMB, "line 5: it holds more than 10000 values"),
    "aliases that make depth": (LADDER, "line 15: it is nested deeper than 16"),
    "alias of what it is in": ("a: &a [1, *a]\n", r"line 1: \*a is within what it stands for"),
    "alias of nothing": ("a: *b\n", "line 1: found undefined alias"),
    "nested lists": ("data: digits\nmodel_config: " + "[" * 500 + "]" * 500, "line 2: it is nested deeper than 16"),
    "nested mappings": ("\n".join(" " * depth + "a:" for depth in range(300)), "line 16: it is nested deeper than 16"),
    "key that is a number": ("data: digits\n3: 4\n", "line 2: the key 3 is no word"),
    "key that is a list": ("? [1, 2]\n: 3\n", "line 1: the key a sequence is no word"),
    "no YAML": ("data: [digits\nmodel: VQVAE\n", "line 2: "),
    "tag": ("data: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
    "date that is none": ("data: 2020-13-45\n", "line 1: '2020-13-45' is no timestamp: month must be in 1"),
    "tag that does not fit": ("seed: !!bool x\n", "line 1: 'x' is no bool"),
    "number without digits": ("data: digits\nseed: !!int ''\n", "line 2: '' is no int"),
    "list for a mapping": ("a: !!map [1]\n", "line 1: expected a mapping node"),
    "key twice in what is merged": ("a:\n  <<: {b: 1, b: 2}\n", "line 2: the key 'b' is also in line 2"),
    "merged twice": ("a:\n  <<: {b: 1}\n  <<: {b: 2}\n", "line 3: the key '<<' is also in line 2"),
    "control character": ("data: \x01\n", "special characters are not allowed"),
    "list": ("[data, digits]\n", "must be a mapping of option names to values, got a list"),
    "nothing": ("", "must be a mapping of option names to values, got a NoneType"),
}
MISTAKEN = {
    "accumulation": ("gradient_accumulation_steps: 1000000000", "between 1 and 1048576, got 1000000000"),
    "negative": ("per_device_train_batch_size: -1", "between 1 and 1048576, got -1"),
    "list for a number": ("learning_rate: [1]", "one value is needed"),
    "mapping for a number": ("seed: {a: 1}", "one value is needed"),
    "words for a number": ("max_steps: many", "'many'"),
    "not finite": ("adam_epsilon: .nan", "must be a finite number, got nan"),
    "unknown schedule": ("lr_scheduler_type: slow", "must be one of"),
    "schedule that needs more": ("lr_scheduler_type: reduce_lr_on_plateau", "must be one of"),
    "list for a config": ("model_config: [1]", r"model_config=\[1\] must be a mapping"),
    "text for a config": ("model_config: large", "model_config='large' must be a mapping"),
    "wrong type within": ("model_config: {hidden_channels: [1]}", r"hidden_channels must be an integer, got \[1\]"),
    "too large within": ("model_config: {hidden_channels: 1000000000}", "hidden_channels must be .*, got 1000000000"),
    "list within within": ("model_config: {quantizer_config: [1]}", r"quantizer_config must be a mapping .*\[1\]"),
    "wrong type within within": ("model_config: {quantizer_config: {beta: many}}", "beta must be .* got 'many'"),
}


def test_aliases_and_merged_keys_are_read_as_they_stand(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {seed: 1, beta: 2}\nb:\n  <<: *a\n  beta: 3\nc: [*a, *a]\n")
    read, a = read_recipe(path), {"seed": 1, "beta": 2}
    assert read == {"a": a, "b": {"seed": 1, "beta": 3}, "c": [a, a]}
    path.write_text("a: &a {seed: 1}\nb:\n  c:\n    d: &d {<<: *a, seed: 2}\ne: {<<: *d}\n")
    assert read_recipe(path)["e"] == read_recipe(path)["b"]["c"]["d"] == {"seed": 2}
    assert "*" not in as_yaml(read)
    assert read_yaml(as_yaml(read), "it") == read


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_recipes_are_one_line_that_names_file_and_line(case, tmp_path):
    text, words = HOSTILE[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_recipe(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schedule", SchedulerType, ids=lambda each: each.value)
def test_a_schedule_that_needs_more_than_autoencoders_are_told_is_refused(schedule):
    """Refused are those alone that `get_scheduler` cannot make of steps, or that step by metrics."""
    optimizer, made = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), None
    try:
        made = get_scheduler(schedule, optimizer, 1, 4)
        optimizer.step()
        made.step()
    except (TypeError, ValueError):
        with pytest.raises(ValueError, match="lr_scheduler_type must be one of"):
            AutoencoderTrainingArguments("out", lr_scheduler_type=schedule)
    else:
        assert AutoencoderTrainingArguments("out", lr_scheduler_type=schedule).lr_scheduler_type == schedule
    prior = {"lr_scheduler_type": schedule.value, "use_cpu": True, "eval_steps": 1}
    if made is not None:
        PriorTrainingArguments("out", **prior)
    else:  # without arguments of its own
        with pytest.raises(ValueError, match=f"lr_scheduler_type='{schedule.value}' with lr_scheduler_kwargs=None"):
            PriorTrainingArguments("out", **prior)


def test_priors_too_can_be_saved_at_the_end_alone():
    assert PriorTrainingArguments("out", use_cpu=True, save_steps=0).save_steps == 0
    with pytest.raises(ValueError, match="save_steps must be a number at least 0, got -1"):
        PriorTrainingArguments("out", use_cpu=True, save_steps=-1)


@pytest.mark.parametrize("case", MISTAKEN)
def test_mistaken_recipes_are_one_line_that_names_the_key(case, tmp_path):
    text, words = MISTAKEN[case]
    path, key = tmp_path / "recipe.yaml", text.split(":")[0]
    path.write_text(f"data: digits\nmodel: VQVAE\n{text}\n")
    with pytest.raises(ValueError, match=words) as error:
        train_autoencoder([str(path), "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(error.value)
    if key != "model_config":
        assert f"{path}, line 3" in str(error.value)
        assert key in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_value_of_our_recipes_is_accepted(path, tmp_path):
    recipe = read_recipe(path)
    prior = "prior_config" in recipe
    arguments = PriorTrainingArguments if prior else AutoencoderTrainingArguments
    fields = inspect.signature(arguments).parameters
    own = {name: value for name, value in recipe.items() if name in fields}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    argv = ["--recipe", str(tmp_path / "own.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "True"]
    found, _ = parse_options([arguments], argv, Manual("train", "", "", ()))
    assert found.learning_rate == recipe["learning_rate"]
    if prior:
        PRIORS[recipe.get("prior", "PixelCNN")].config_class(**{"num_classes": 3, **recipe["prior_config"]})
    else:
        check_arguments(AUTOENCODERS[recipe.get("model", "VQVAE")].__init__, recipe.get("model_config", {}))

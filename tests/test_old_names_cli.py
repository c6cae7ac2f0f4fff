"""Old names of options: on the command line they work as the new ones do, and are told in one plain line."""

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig, AutoModel

import hf_vq
import hf_vq_cli
from hf_vq import renaming
from hf_vq.cli import inspect
from hf_vq.data.codes import load_codes

from .conftest import FIXTURES
from .processes import in_a_process
from .stock_users import type_command

pytestmark = pytest.mark.filterwarnings("default::FutureWarning")  # they are what is tested

SAVED = FIXTURES / "saved/0.1.0/hierarchy"
HIERARCHY = {"hidden_channels": 8, "num_residual_layers": 0, "residual_channels": 4, "codebook_size": 8}
RESIDUAL = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 8,
    "codebook_dim": 8,
    "codebook_size": 8,
    "quantizer_config": {"num_levels": 2},
}
OLD = {  # class, its other arguments, the old name, a value, the new name
    "level_dropout": ("VQVAE2", {**HIERARCHY, "strides": [2, 2]}, 0.25, "grid_dropout"),
    "attention_levels": ("RQVAE", RESIDUAL, [True, False], "attention_stages"),
}


@pytest.fixture
def said(monkeypatch, tmp_path):
    """Nothing has been said yet; the working folder is a new one."""
    monkeypatch.setattr(renaming, "_said", set())
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


def recipe(model, model_config, path="a.yaml", **options):
    common = {"data": "digits", "max_steps": 2, "save_steps": 2, "use_cpu": True, "disable_tqdm": True}
    Path(path).write_text(yaml.safe_dump({"model": model, "model_config": model_config, **common, **options}))
    return path


def told(capsys, old):
    """The lines on stderr that speak of the old name, none of which is Python's form of a warning."""
    error = capsys.readouterr().err
    assert "Warning" not in error
    return [line for line in error.splitlines() if f"{old} is now called" in line]


@pytest.fixture(scope="module")
def of_new_names(tmp_path_factory):
    """The weights of trainings whose options have their new names, by the old name."""
    weights = {}
    for old, (model, config, value, new) in OLD.items():
        folder = tmp_path_factory.mktemp(old)
        arguments = recipe(model, {**config, new: value}, folder / "a.yaml"), "--output", folder / "new"
        assert run("train", "autoencoder", *arguments) == 0
        weights[old] = (folder / "new/diffusion_pytorch_model.safetensors").read_bytes()
    return weights


@pytest.mark.parametrize(
    ("way", "old"), [("recipe", "level_dropout"), ("flag", "attention_levels"), ("mapping", "level_dropout")]
)
def test_an_old_model_argument_trains_what_the_new_one_does(way, old, of_new_names, said, capsys):
    model, config, value, new = OLD[old]
    if way == "recipe":
        arguments = [recipe(model, {**config, old: value})]
    elif way == "flag":
        arguments = [recipe(model, {**config, new: "replaced"}), f"--model_config.{old}", value]
    else:
        arguments = [
            recipe(model, {}),
            "--model_config",
            yaml.safe_dump({**config, old: value}, default_flow_style=True),
        ]
    assert run("train", "autoencoder", *arguments, "--output", "old") == 0
    assert told(capsys, old) == [f"warning: {model}: {old} is now called {new}"]
    assert Path("old/diffusion_pytorch_model.safetensors").read_bytes() == of_new_names[old]
    assert yaml.safe_load(Path("old/recipe.yaml").read_text())["model_config"] == {**config, new: value}


def test_a_run_of_an_old_recipe_resumes_and_starts_another(said, capsys):
    old = "level_dropout"
    model, config, value, new = OLD[old]
    former = recipe(model, {**config, old: value})
    assert run("train", "autoencoder", former, "--output", "out", "--max_steps", 1) == 0
    assert run("train", "autoencoder", former, "--output", "out", "--resume") == 0
    capsys.readouterr()
    renaming._said.clear()
    short = ["--max_steps", 1, "--use_cpu", "true", "--disable_tqdm", "true"]
    source = ["--data", "digits", "--init_from", "out", *short]
    assert run("train", "autoencoder", *source, f"--model_config.{old}", value, "--output", "tuned") == 0
    assert told(capsys, old) == [f"warning: {model}: {old} is now called {new}"]
    assert run("train", "autoencoder", *source, f"--model_config.{old}", 0.5, "--output", "other") == 2
    assert f"{new}=0.5, but init_from=out has" in capsys.readouterr().err


@pytest.mark.parametrize("old", OLD)
def test_one_option_under_both_names_is_refused(old, said, capsys):
    model, config, value, new = OLD[old]
    both = f"{model}: {old} and {new} are one option, got both"
    former = recipe(model, {**config, old: value, new: value})
    assert run("train", "autoencoder", former, "--output", "out") == 2
    assert both in capsys.readouterr().err
    for make in (getattr(hf_vq, model), getattr(hf_vq, model).from_config, getattr(hf_vq, f"{model}Config")):
        given = {old: value, new: value}
        with pytest.raises(ValueError, match=rf"{old} and {new} are one option, got both"):
            make(given) if "from_config" in str(make) else make(**given)
    assert not Path("out").exists()


def test_one_flag_or_recipe_key_under_both_names_is_refused(said, capsys):
    Path("both.yaml").write_text("codes: codes\nlevel: top\ngrid: bottom\n")
    Path("places.yaml").write_text("output: one\noutput_dir: other\n")
    for arguments, message in (
        (["prior", "both.yaml", "--output", "out"], "error: level and grid are one option, got both"),
        (["prior", "--level", "top", "--grid=bottom", "--output", "out"], "error: --level and --grid are one option"),
        (["autoencoder", "places.yaml"], "error: output and output_dir are one option, got both"),
    ):
        assert run("train", *arguments) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="level and grid are one option, got both"):
        load_codes(SAVED / "codes", level=0, grid=1)


def test_a_warning_of_ours_is_one_plain_line():
    code, errors = in_a_process(type_command, "inspect", str(SAVED / "saved/autoencoder"))
    assert (code, errors) == (0, "warning: VQVAE2: level_dropout is now called grid_dropout\n")


def test_a_warning_of_others_says_where_it_comes_from(monkeypatch, capsys):
    monkeypatch.setattr(inspect, "main", lambda arguments: warnings.warn("of another", UserWarning, stacklevel=1))
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("inspect") == 0
        assert f"{__file__}:" in (error := capsys.readouterr().err)
        assert "UserWarning: of another" in error
        source = str(Path(hf_vq.__file__).parent / "converters/files.py")
        monkeypatch.setattr(
            inspect, "main", lambda arguments: warnings.warn_explicit("broken\nweights", UserWarning, source, 9)
        )
        assert run("inspect") == 0
    assert capsys.readouterr().err == "warning: broken weights\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize(
    "use",
    [
        lambda: hf_vq.VQVAE2(level_dropout=0.1, **HIERARCHY),
        lambda: hf_vq.VQVAE2.from_config({**HIERARCHY, "level_dropout": 0.1}),
        lambda: hf_vq.VQVAE2.from_pretrained(SAVED / "saved/autoencoder"),
        lambda: hf_vq.AutoVQModel.from_pretrained(SAVED / "saved/autoencoder"),
        lambda: hf_vq.VQVAE2Pipeline.from_pretrained(SAVED / "saved"),
        lambda: hf_vq.VQVAE2Config(level_dropout=0.1),
        lambda: AutoModel.from_pretrained(SAVED / "saved/autoencoder"),
        lambda: load_codes(SAVED / "codes", level=0),
    ],
)
def test_in_python_the_warning_points_at_the_line_of_the_user(use, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
    (warning,) = [each for each in caught if "is now called" in str(each.message)]
    assert warning.category is FutureWarning
    assert (warning.filename, warning.lineno) == (__file__, use.__code__.co_firstlineno)


def test_faces_take_and_give_options_by_old_names(said):
    folder = SAVED / "saved/autoencoder"
    assert AutoConfig.from_pretrained(folder, level_dropout=0.4).grid_dropout == 0.4
    assert AutoModel.from_pretrained(folder, level_dropout=0.4).autoencoder.config.grid_dropout == 0.4
    config = hf_vq.VQVAE2Config()
    config.level_dropout = 0.3
    assert config.grid_dropout == config.level_dropout == 0.3
    config.update({"level_dropout": 0.2})
    assert config.grid_dropout == 0.2
    assert "level_dropout" not in config.to_dict()
    with pytest.raises(AttributeError, match="no attribute 'depth'"):
        config.depth  # noqa: B018


@pytest.mark.parametrize(
    "use",
    [
        lambda both: AutoConfig.from_pretrained(SAVED / "saved/autoencoder", **both),
        lambda both: AutoModel.from_pretrained(SAVED / "saved/autoencoder", **both),
        lambda both: hf_vq.VQVAE2.from_pretrained(SAVED / "saved/autoencoder", **both),
        lambda both: hf_vq.VQVAE2Config(**both),
        lambda both: hf_vq.VQVAE2Config().update(both),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_option_under_both_names_is_refused(use, said):
    with pytest.raises(ValueError, match="level_dropout and grid_dropout are one option"):
        use({"level_dropout": 0.4, "grid_dropout": 0.2})


def test_a_models_config_is_read_by_old_names(said):
    model = hf_vq.VQVAE2(grid_dropout=0.1, **HIERARCHY)
    for config in (model.config, copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config))):
        found = config.level_dropout, config["level_dropout"], config.get("level_dropout")
        assert found == (0.1, 0.1, 0.1)
        assert (dict(config), config.get("depth")) == (dict(model.config), None)
        with pytest.raises(KeyError, match="depth"):
            config["depth"]
    assert "level_dropout" not in dict(model.config)
    assert model.level_names == model.grid_names


@pytest.mark.parametrize(
    "use",
    [
        lambda: AutoConfig.from_pretrained(SAVED / "saved/autoencoder", level_dropout=0.4),
        lambda: hf_vq.VQVAE2Config().level_dropout,
        lambda: hf_vq.VQVAE2(**HIERARCHY).config.level_dropout,
        lambda: hf_vq.VQVAE2(**HIERARCHY).level_names,
    ],
)
def test_reading_by_an_old_name_points_at_the_line_of_the_user(use, said):
    with pytest.warns(FutureWarning, match="is now called grid_") as told:
        use()
    assert [(each.filename, each.lineno) for each in told] == [(__file__, use.__code__.co_firstlineno)]

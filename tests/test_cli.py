"""The command line: the whole road on tiny models, and every way of holding it wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import hf_vq
import hf_vq_cli
from hf_vq.cli import checks
from hf_vq.data.images import load_images
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from tests.processes import in_a_process
from tests.test_data import make_folder, picture, truncate

AUTOENCODER = {
    "data": "digits",
    "model_config": {"hidden_channels": 8, "stage_channels": [4], "num_residual_layers": 0, "codebook_size": 8},
    "max_steps": 4,
    "save_steps": 2,
    "learning_rate": "1e-3",
    "use_cpu": True,
    "disable_tqdm": True,
}
PRIOR = {
    "prior_config": {"hidden_channels": 8, "num_layers": 1, "head_channels": 8},
    "max_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


def write_recipe(path, recipe):
    path.write_text(yaml.safe_dump(recipe))
    return path


def tree(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A folder with a tiny quickstart in it, made by the command line."""
    folder = tmp_path_factory.mktemp("road")
    recipes = [write_recipe(folder / "a.yaml", AUTOENCODER), write_recipe(folder / "p.yaml", PRIOR)]
    flags = ["--autoencoder-recipe", recipes[0], "--prior-recipe", recipes[1]]
    assert run("quickstart", folder / "quickstart", "--seed", 3, *flags) == 0
    return folder / "quickstart"


@pytest.fixture
def here(tmp_path, monkeypatch, road):
    """An empty working folder with recipes, `quickstart` as a link beside it, and images."""
    monkeypatch.chdir(tmp_path)
    write_recipe(Path("a.yaml"), AUTOENCODER)
    write_recipe(Path("p.yaml"), PRIOR)
    Path("quickstart").symlink_to(road)
    return tmp_path


def fails(capsys, here, message, *arguments):
    """Run a command that must fail: code 2, one line with the message, nothing written and nothing lost."""
    before = tree(here)
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-vq: error: ")
    assert error.count("\n") == 1
    assert message in error, error
    assert tree(here) == before


def test_help_imports_nothing_heavy():
    program = (
        "import sys, hf_vq_cli\n"
        "for verb in ['', 'train', *hf_vq_cli.VERBS]: hf_vq_cli.main([*verb.split(), '--help'])\n"
        "assert not {'torch', 'diffusers', 'transformers', 'numpy', 'hf_vq'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(f"usage: hf-vq {verb} [" in shown for verb in hf_vq_cli.VERBS)


def test_the_help_that_is_shown_is_that_of_the_options(tmp_path):
    in_a_process(hf_vq_cli.write_help, tmp_path)  # here tests register classes
    written = {path.name: path.read_text() for path in Path(hf_vq_cli.HELP).iterdir()}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == written  # else: make help


def test_quickstart_leaves_a_pipeline_and_pictures(road, capsys):
    pipeline = hf_vq.VQPipeline.from_pretrained(road / "pipeline")
    assert pipeline(class_labels=[3, "7"]).images[1].size == (8, 8)
    pictures = ["samples", "autoencoder/reconstructions", "autoencoder/code_maps", "autoencoder/codebook_usage"]
    for name in [*pictures, "autoencoder/loss_curve", "prior/loss_curve", "prior/samples"]:
        Image.open(road / f"{name}.png").verify()
    for part in ("autoencoder", "prior"):
        report = json.loads((road / part / "report.json").read_text())
        assert report["settings"]["arguments"]["seed"] == 3  # the flag went before the recipe and the default
    assert report["settings"]["model"]["num_classes"] == 10
    assert json.loads((road / "pipeline" / "evaluation.json").read_text())["prior"]["nats_per_code"] > 0


def test_flags_go_before_the_recipe_and_the_written_recipe_repeats_the_run(here):
    flags = ["--max-steps", 2, "--model_config.codebook_size", 4, "--model_config.quantizer_config={beta: 1e-1}"]
    assert run("train", "autoencoder", "a.yaml", "--output", "one", *flags) == 0
    model = hf_vq.AutoVQModel.from_pretrained("one")
    assert (model.codebook_size, model.config.hidden_channels, model.config.in_channels) == (4, 8, 1)
    assert model.config.quantizer_config == {"beta": 0.1}
    report = json.loads(Path("one/report.json").read_text())
    assert report["settings"]["arguments"]["learning_rate"] == 1e-3
    assert report["history"][-1]["step"] == 2
    assert run("train", "autoencoder", "one/recipe.yaml", "--output", "two") == 0
    again = hf_vq.AutoVQModel.from_pretrained("two")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_names_of_other_scripts_and_words_without_flags_are_the_same_options(here):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    config = {"codebook_size": 8, "codebook_dim": 2, "block_out_channels": [4, 4], "norm_num_groups": 2, **blocks}
    write_recipe(Path("other.yaml"), {"model": "VQModel", "mixed_precision": "bf16", "model_config": config})
    flags = "--resolution 8 --lr 1e-3 --train_batch_size 8 --max_train_steps 2 --checkpoints_total_limit 1 --use_cpu"
    assert run("train", "autoencoder", "other.yaml", "digits", "tokenizer", *flags.split()) == 0
    recipe = yaml.safe_load(Path("tokenizer/recipe.yaml").read_text())
    config |= {"num_vq_embeddings": config.pop("codebook_size"), "vq_embed_dim": config.pop("codebook_dim")}
    assert recipe == {
        "model": "VQModel", "bf16": True, "model_config": config, "data": "digits", "image_size": "8", "use_cpu": True,
        "learning_rate": 1e-3, "per_device_train_batch_size": 8, "max_steps": 2, "save_total_limit": 1,
    }  # fmt: skip
    assert run("tokenize", "tokenizer", "codes", "--data", "digits") == 0
    assert run("inspect", "codes") == 0
    for seed in (0, 1):
        name = f"{seed}.png"
        assert run("sample", "quickstart/pipeline", name, "--temperature", 0, "--num_samples", 1, "--seed", seed) == 0
    assert Path("0.png").read_bytes() == Path("1.png").read_bytes()  # the likeliest codes, whatever the seed


def test_train_on_an_image_folder_with_a_bad_file_skipped(here, capsys):
    for name in ("cat", "dog"):
        make_folder(here / "pets" / name, 12, size=(10, 8))
    truncate(here / "pets" / "cat" / "04.png")
    fails(capsys, here, "04.png", "train", "autoencoder", "a.yaml", "--data", "pets", "--output", "out")
    flags = ["--data", "pets", "--image-size", 4, "--skip-bad"]
    assert run("train", "autoencoder", "a.yaml", *flags, "--output", "out") == 0
    assert "04.png" in capsys.readouterr().err
    assert hf_vq.AutoVQModel.from_pretrained("out").config.in_channels == 3
    assert run("tokenize", "out", "--output", "codes", *flags) == 0
    assert run("train", "prior", "p.yaml", "--codes", "codes", "--autoencoder", "out", "--output", "prior") == 0
    assert run("sample", "prior/pipeline", "--classes", "dog,0", "--num", 2, "--output", "new/grid.png") == 0
    assert Image.open("new/grid.png").size == (2 * 52, 2 * 52)  # 4 pixels, enlarged 12 times, with borders of 2
    assert run("inspect", "prior/pipeline") == 0


def test_a_decode_error_in_training_names_the_file_and_loses_nothing(tmp_path):
    folder = make_folder(tmp_path / "images", 20, size=(8, 8))
    images = load_images(folder, validation_fraction=0, cache_bytes=0)
    torch.manual_seed(0)
    options = {"max_steps": 5, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}

    def train(**more):
        model = hf_vq.VQVAE(
            hidden_channels=8, stage_channels=(4,), codebook_size=4, quantizer_config={"kmeans_init": False}
        )
        args = AutoencoderTrainingArguments(output_dir=str(tmp_path / "run"), **options, **more)
        return train_autoencoder(model, images, args)

    sound = (folder / "07.png").read_bytes()
    truncate(folder / "07.png")
    with pytest.raises(ValueError, match=r"07\.png"):
        train()
    finished = [int(path.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*")]
    (folder / "07.png").write_bytes(sound)
    report = train(resume_from_checkpoint=True if finished else None)
    assert report["history"][-1]["step"] == 5


def test_sampling_depends_on_the_seed_alone(here):
    common = ["quickstart/pipeline", "--classes", "0,1", "--num", 3, "--temperature", 0.9]
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        assert run("sample", *common, "--seed", seed, "--output", f"{name}.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


def test_evaluate_and_inspect_know_every_kind_of_folder(here, capsys):
    assert run("evaluate", "quickstart/autoencoder", "--data", "digits", "--output", "a.json") == 0
    assert run("evaluate", "quickstart/prior", "--codes", "quickstart/codes", "--output", "p.json") == 0
    assert run("evaluate", "quickstart/pipeline", "--data", "digits", "--output", "both.json") == 0
    figures = {name: json.loads(Path(f"{name}.json").read_text()) for name in ("a", "p", "both")}
    assert figures["both"]["autoencoder"] == figures["a"]["autoencoder"]
    assert figures["both"]["prior"] == pytest.approx(figures["p"]["prior"])
    facts = {}
    for name in ("autoencoder", "prior", "pipeline", "codes"):
        capsys.readouterr()
        assert run("inspect", f"quickstart/{name}", "--json", "--image-size", 8) == 0
        facts[name] = json.loads(capsys.readouterr().out)
        assert facts[name]["kind"] == name
    autoencoder = facts["autoencoder"]
    model = hf_vq.AutoVQModel.from_pretrained("quickstart/autoencoder")
    assert autoencoder["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (autoencoder["downsample_factor"], autoencoder["bits_per_image"]) == (2, 48)  # 16 codes of 3 bits
    assert facts["codes"]["bits_per_image"] == facts["prior"]["bits_per_image"] == 48
    assert facts["pipeline"]["prior"]["parameters"] == facts["prior"]["parameters"]


def test_samples_and_reconstructions_are_rated_by_features_and_compared(here, capsys):
    flags = ["--data", "digits", "--split", "train[:90]", "--features", "quickstart/autoencoder", "--num_samples", 80]
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        assert run("evaluate", "quickstart/pipeline", *flags, "--seed", seed, "--output", f"{name}.json") == 0
    found = {name: json.loads(Path(f"{name}.json").read_text()) for name in "abc"}
    assert {"ssim", "feature_distance", "rfid", "rkid", "bits_per_pixel"} <= found["a"]["autoencoder"].keys()
    assert found["a"]["samples"].keys() == {"fid", "kid", "num_samples"}
    assert {**found["a"], "seed": 0} == {**found["b"], "seed": 0}
    assert found["c"]["autoencoder"] == found["a"]["autoencoder"]
    assert found["c"]["samples"]["fid"] != found["a"]["samples"]["fid"]
    told = found["a"]["protocol"]
    assert (told["num_images"], told["resize"], told["precision"]) == (90, "none", "float32")
    assert told["metrics"]["rfid"]["extractor"].keys() == {"extractor", "source", "sha256"}
    capsys.readouterr()
    assert run("compare", "a.json", "b.json", "c.json") == 0
    shown = capsys.readouterr()
    assert "autoencoder.rfid" in shown.out
    assert "samples.fid" not in shown.out
    assert "left out: samples.fid does not compare: samples.seed is 0 in a.json, 1 in c.json" in shown.err
    fails(
        capsys,
        here,
        "samples.kid does not compare: samples.seed is 0",
        "compare",
        "a.json",
        "c.json",
        "--figures",
        "kid",
    )
    evaluate = ["evaluate", "quickstart/autoencoder", "--data", "digits", "--output", "d.json", "--metrics"]
    fails(capsys, here, "ms_ssim needs samples of 176 x 176 at least, got 8 x 8", *evaluate, "ssim,ms_ssim")
    fails(capsys, here, "fid needs a network of features", *evaluate, "fid")
    fails(capsys, here, "num_samples=5: samples to compare need a pipeline", *evaluate, "ssim", "--num_samples", 5)


def test_inspect_loads_no_weights(here, monkeypatch):
    monkeypatch.setattr(hf_vq.VQVAE, "from_pretrained", None)
    assert run("inspect", "quickstart/autoencoder") == 0


def test_reconstruct_from_data_and_from_files(here):
    picture(0, size=(8, 8), mode="L").save("one.png")
    assert run("reconstruct", "quickstart/autoencoder", "--data", "digits", "--output", "data.png") == 0
    assert run("reconstruct", "quickstart/autoencoder", "--images", "one.png", "--output", "files.png") == 0
    assert Image.open("data.png").width > Image.open("files.png").width


def test_overwrite_replaces_own_files_and_spares_others_and_resume_continues(here, capsys):
    train = ["train", "autoencoder", "a.yaml", "--output", "out"]
    assert run(*train) == 0
    Path("out/notes.txt").write_text("mine")
    fails(capsys, here, "exists and is not empty", *train)
    assert run(*train, "--max_steps", 6, "--resume") == 0
    history = json.loads(Path("out/report.json").read_text())["history"]
    assert history[-1]["step"] == 6
    assert Path("out/checkpoint-2").exists()
    assert run(*train, "--max_steps", 1, "--overwrite") == 0
    assert [path.name for path in Path("out").glob("checkpoint-*")] == ["checkpoint-1"]
    assert Path("out/notes.txt").read_text() == "mine"


BAD_INPUT = {
    "misspelled verb": ("did you mean 'tokenize'", "tokenise quickstart/autoencoder"),
    "half a verb": ("hf-vq train autoencoder", "train encoder"),
    "misspelled flag": ("did you mean 'learning_rate'", "train autoencoder a.yaml --output out --lerning_rate 1"),
    "misspelled flag of the prior": ("did you mean 'max_steps'", "train prior p.yaml --output out --max_step 3"),
    "misspelled key in the recipe": (
        "'num_train_epoch', did you mean 'num_train_epochs'",
        "train autoencoder bad.yaml",
    ),
    "wrong type in the recipe": ("recipe key 'max_steps'", "train autoencoder type.yaml --output out"),
    "wrong type of a flag": ("--max_steps", "train autoencoder a.yaml --output out --max_steps many"),
    "recipe that is no mapping": ("must be a mapping", "train autoencoder list.yaml --output out"),
    "recipe that is not there": ("cannot read the recipe", "train autoencoder none.yaml --output out"),
    "misspelled model argument": (
        "'codebok_size', did you mean 'codebook_size'",
        "train autoencoder a.yaml --output out --model_config.codebok_size 3",
    ),
    "misspelled prior option": (
        "'num_layer', did you mean 'num_layers'",
        "train prior p.yaml --codes quickstart/codes --output out --prior_config.num_layer 3",
    ),
    "model argument of a wrong type": (
        "hidden_channels",
        "train autoencoder a.yaml --output out --model_config.hidden_channels many",
    ),
    "model option that is no number": (
        "input_scale must be a finite number, got nan",
        "train autoencoder a.yaml --output out --model_config.input_scale .nan",
    ),
    "training option that is no number": (
        "learning_rate must be a finite number, got nan",
        "train autoencoder a.yaml --output out --learning_rate nan",
    ),
    "sampling option that is no number": (
        "temperature must be a finite number, got inf",
        "sample quickstart/pipeline --output out.png --temperature inf",
    ),
    "prior option of a wrong type": (
        "hidden_channels must be an integer, got 'many'",
        "train prior p.yaml --codes quickstart/codes --output out --prior_config.hidden_channels many",
    ),
    "bad model argument": (
        "hidden_channels",
        "train autoencoder a.yaml --output out --model_config.hidden_channels 0",
    ),
    "unknown model": ("did you mean 'VQVAE'", "train autoencoder a.yaml --output out --model VQVEA"),
    "no output": ("output_dir is missing", "train autoencoder a.yaml"),
    "bad training option": (
        "learning_rate must be a number above 0, got -1.0",
        "train autoencoder a.yaml --output out --learning_rate -1",
    ),
    "output is a file": ("is a file, not a folder", "train autoencoder a.yaml --output a.yaml"),
    "output below a file": ("is a file, not a folder", "train autoencoder a.yaml --output a.yaml/out"),
    "output of codes below a file": (
        "is a file, not a folder",
        "tokenize quickstart/autoencoder --data digits --output a.yaml/out",
    ),
    "picture below a file": ("is a file", "sample quickstart/pipeline --output a.yaml/grid.png"),
    "output exists": ("exists and is not empty", "train prior p.yaml --codes quickstart/codes --output full"),
    "output of codes exists": (
        "exists and is not empty",
        "tokenize quickstart/autoencoder --data digits --output full",
    ),
    "output of the quickstart exists": ("exists and is not empty", "quickstart full"),
    "picture exists": ("exists", "sample quickstart/pipeline --output full/grid.png"),
    "size not divisible": ("downsampling", "train autoencoder a.yaml --output out --image_size 7"),
    "size not divisible in tokenize": (
        "downsampling",
        "tokenize quickstart/autoencoder --data digits --image_size 7 --output out",
    ),
    "checkpoint without weights": ("no weights", "tokenize hollow --data digits --output out"),
    "pipeline without weights": ("no weights", "sample hollow_pipeline --output out.png"),
    "inspect without weights": ("no weights", "inspect hollow"),
    "no model folder": ("no such model folder", "tokenize ./nowhere --data digits --output out"),
    "nothing in the folder": ("holds no model", "inspect empty"),
    "another kind of folder": ("holds a prior, an autoencoder is needed", "tokenize quickstart/prior --output out"),
    "class out of range": (
        "class label 12 is out of range",
        "sample quickstart/pipeline --classes 3,12 --output o.png",
    ),
    "negative class": ("class label -1 is out of range", "sample quickstart/pipeline --classes=-1 --output o.png"),
    "no such class name": ("neither a class label", "sample quickstart/pipeline --classes cat --output o.png"),
    "no images wanted": (
        "num must be an integer at least 1, got 0",
        "sample quickstart/pipeline --num 0 --output o.png",
    ),
    "no codes": ("holds no codes", "train prior p.yaml --codes empty --output out"),
    "codes that contradict the config": (
        "codebook_size=9",
        "train prior p.yaml --codes quickstart/codes --output out --prior_config.codebook_size 9",
    ),
    "no data": ("no such file or folder", "train autoencoder a.yaml --output out --data ./nowhere"),
    "data missing": ("data is missing", "tokenize quickstart/autoencoder --output out"),
    "both overwrite and resume": ("exclude each other", "train autoencoder a.yaml --output out --overwrite --resume"),
    "key of a mapping as a flag": (
        "unknown option --codebook_size, did you mean '--model_config.codebook_size'?",
        "train autoencoder a.yaml --output out --codebook_size 9",
    ),
    "one option by two names": (
        "--lr and --learning_rate are one",
        "train autoencoder a.yaml --lr 1 --learning_rate 2",
    ),
    "a key by two names": (
        "num_vq_embeddings and codebook_size are one",
        "train autoencoder a.yaml --output out --model_config.num_vq_embeddings 9 --model_config.codebook_size 9",
    ),
    "two precisions": (
        "--mixed_precision=bf16 means bf16=True, got bf16=False too",
        "train autoencoder a.yaml --output out --mixed_precision bf16 --bf16 false",
    ),
    "a word too many": ("unrecognized word 'x'", "sample quickstart/pipeline o.png x"),
    "no output of a prior": (
        "output_dir is missing: give it as --output_dir",
        "train prior p.yaml --codes quickstart/codes",
    ),
    "word and flag": ("'one' without a flag is --output_dir", "train autoencoder a.yaml digits one --output two"),
    "folder around the right one": ("did you mean quickstart/pipeline?", "sample quickstart o.png"),
    "folder within the right one": (
        "did you mean quickstart/pipeline?",
        "sample quickstart/pipeline/autoencoder o.png",
    ),
    "nothing to resume": ("no complete checkpoint", "train autoencoder a.yaml --output empty --resume"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_line_before_any_work(case, here, capsys):
    message, command = BAD_INPUT[case]
    write_recipe(Path("bad.yaml"), {**AUTOENCODER, "num_train_epoch": 3})
    write_recipe(Path("type.yaml"), {**AUTOENCODER, "max_steps": 2.5})
    write_recipe(Path("list.yaml"), ["data", "digits"])
    for name in ("empty", "full", "hollow"):
        Path(name).mkdir()
    Path("full/grid.png").write_text("precious")
    shutil.copy("quickstart/autoencoder/config.json", "hollow")
    shutil.copytree("quickstart/pipeline", "hollow_pipeline")
    next(Path("hollow_pipeline/prior").glob("*.safetensors")).unlink()
    fails(capsys, here, message, *command.split())


@pytest.mark.parametrize(
    "command",
    [
        "train autoencoder a.yaml --output out",
        "train prior p.yaml --codes quickstart/codes --output out",
        "tokenize quickstart/autoencoder --data digits --output out",
    ],
)
def test_a_full_disk_is_noticed_before_any_work(command, here, capsys, monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    fails(capsys, here, "no disk space", *command.split())


@pytest.mark.parametrize(
    ("options", "copies"),
    [
        ({"max_steps": 100, "save_steps": 25}, 1 + 3 * 4),
        ({"max_steps": 100, "save_steps": 30, "weight_ema_decay": 0.9}, 1 + 4 * 4),
        ({"num_train_epochs": 2, "per_device_train_batch_size": 10, "save_steps": 5}, 1 + 3 * 4),
        ({"max_steps": 100, "save_steps": 1, "save_total_limit": 2}, 1 + 3 * 3),
        ({"max_steps": 100, "save_steps": 0}, 1 + 3),
    ],
)
def test_estimated_bytes_count_weights_and_optimizer_of_every_checkpoint(options, copies):
    model = torch.nn.Linear(9, 10)  # 100 numbers of 4 bytes
    args = AutoencoderTrainingArguments(output_dir="out", **options)
    assert checks.training_bytes(model, args, num_samples=100) == 400 * copies


def test_codes_of_another_tokenizer_are_refused(here, capsys):
    assert run("train", "autoencoder", "a.yaml", "--output", "other", "--seed", 5) == 0
    command = "train prior p.yaml --codes quickstart/codes --autoencoder other --output out"
    fails(capsys, here, "made by another tokenizer", *command.split())


def test_traceback_on_request(here):
    with pytest.raises(ValueError, match="no such model folder"):
        run("inspect", "./nowhere", "--traceback")


def test_training_starts_from_a_model_with_its_codebook_and_averages(here, capsys):
    start = hf_vq.AutoVQModel.from_pretrained("quickstart/autoencoder")
    flags = ["--use_cpu", "true", "--disable_tqdm", "true", "--learning_rate", "1e-12", "--max_steps", 1]
    source = ["--data", "digits", "--init_from", "quickstart/autoencoder"]
    assert run("train", "autoencoder", *source, *flags, "--output", "tuned") == 0
    tuned = hf_vq.AutoVQModel.from_pretrained("tuned")
    assert dict(tuned.config) | {"_name_or_path": ""} == dict(start.config) | {"_name_or_path": ""}
    moved = (tuned.quantizer.embedding.weight - start.quantizer.embedding.weight).abs().max()
    assert 0 < moved < 0.1  # one step of a moving average, no new k-means
    torch.testing.assert_close(tuned.downsample[0].conv.weight, start.downsample[0].conv.weight)

    finer = ["--freeze_codes", "true", "--model_config.reconstruction_loss", "logistic", "--learning_rate", "1e-2"]
    assert run("train", "autoencoder", *source, *flags, *finer, "--output", "finer") == 0
    finer = hf_vq.AutoVQModel.from_pretrained("finer")
    sample = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(finer.tokenize(sample), start.tokenize(sample))
    assert torch.equal(finer.quantizer.embedding.weight, start.quantizer.embedding.weight)
    assert not torch.equal(finer.decoder_middle.weight, start.decoder_middle.weight)
    assert finer.config.reconstruction_loss == "logistic"
    fails(
        capsys, here, "freeze_codes=True", "train", "autoencoder", "a.yaml", "--freeze_codes", "true", "--output", "w"
    )

    prior = hf_vq.AutoVQPrior.from_pretrained("quickstart/prior")
    flags = ["--codes", "quickstart/codes", *flags, "--init_from", "quickstart/prior", "--output", "tuned-prior"]
    assert run("train", "prior", *flags) == 0
    for name, value in hf_vq.AutoVQPrior.from_pretrained("tuned-prior").state_dict().items():
        torch.testing.assert_close(value, prior.state_dict()[name], msg=name)

    wrong = ["train", "autoencoder", "--data", "digits", "--output", "w", "--init_from"]
    fails(capsys, here, "codebook_size=9", *wrong, "quickstart/autoencoder", "--model_config.codebook_size", 9)
    fails(capsys, here, "VQModel", *wrong, "quickstart/autoencoder", "--model", "VQModel")
    fails(capsys, here, "a prior, an autoencoder is needed", *wrong, "quickstart/prior")
    flags += ["--overwrite", "--prior_config.hidden_channels", 9]
    assert run("train", "prior", *flags) == 2
    assert "hidden_channels=9" in capsys.readouterr().err

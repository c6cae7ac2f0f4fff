"""Facts about the Hub road: pushed repositories, who loads them, their cards, and interrupted pushes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import ModelCard

import hf_vq
from hf_vq.autoencoders import AUTOENCODERS
from hf_vq.converters import convert
from hf_vq.hub.shims import modeling_files

from .conftest import FIXTURES
from .hub_client import EVALUATION
from .hub_server import TOKEN, Hub
from .test_docs import blocks, commands

ROOT = Path(__file__).parent.parent


class Client:
    """Runs tasks of a module such as tests/hub_client.py, each in a process where hf_vq was not imported before."""

    def __init__(self, hub, work, module="tests.hub_client", **environment):
        self.work = work
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(work / "hf_home"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", module], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, task, **arguments):
        self.process.stdin.write(json.dumps([task, arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def push(self, *arguments):
        return self("push", arguments=list(map(str, arguments)), folder=str(self.work))

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def hub():
    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A client, and on the Hub: me/vqmodel, me/vqvae, me/prior and me/pipeline."""
    client = Client(hub, tmp_path_factory.mktemp("hub"))
    client("build", work=str(client.work))
    for name in ("vqmodel", "vqvae", "prior"):
        code, _, errors = client.push(client.work / name, f"me/{name}", "--license", "apache-2.0")
        assert code == 0, errors
    code, output, errors = client.push(
        client.work / "pipeline", "me/pipeline", "--license", "apache-2.0",
        "--evaluation", client.work / "evaluation.json",
    )  # fmt: skip
    assert code == 0, errors
    assert hub.head("me/pipeline") in output
    yield client
    client.close()


def test_folders_travel_dressed_and_nothing_else_does(client, hub):
    assert sorted(hub.files("me/vqmodel")) == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "hf_vq_remote.py"
    ]  # fmt: skip
    assert sorted(hub.files("me/vqvae")) == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors", "hf_vq_remote.py", "recipe.yaml",
        "reconstructions.png", "report.json",
    ]  # fmt: skip
    assert sorted(hub.files("me/pipeline")) == [
        "README.md", "autoencoder/config.json", "autoencoder/diffusion_pytorch_model.safetensors",
        "autoencoder/hf_vq_remote.py", "evaluation.json", "model_index.json", "pipeline.py", "prior/config.json",
        "prior/hf_vq_remote.py", "prior/model.safetensors",
    ]  # fmt: skip


def test_a_push_as_the_readme_prints_it(client, hub):
    (line,) = [words for text in blocks("README.md", "bash") for words in commands(text) if words[1] == "push"]
    folder = client.work / line[2]
    folder.parent.mkdir()
    folder.symlink_to(client.work / "pipeline")
    code, _, errors = client.push(*line[2:])
    assert code == 0, errors
    assert {"README.md", "model_index.json"} <= set(hub.files("user/digits"))


def test_a_converted_checkpoint_brings_its_licence_and_origin(client, hub, tmp_path):
    convert(FIXTURES / "ritheshkumar_vqvae/best.pt", tmp_path / "out", license="mit")
    code, _, errors = client.push(tmp_path / "out", "me/converted")
    assert code == 0, errors
    assert "conversion.json" in hub.files("me/converted")
    card = ModelCard(hub.files("me/converted")["README.md"].decode())
    assert card.data.license == "mit"
    assert "github.com/ritheshkumar95/pytorch-vqvae" in card.text
    assert 'from_pretrained("me/converted")' in card.text


def test_our_classes_load_by_repo_id(client):
    assert client("load_ours", work=str(client.work)) == []


def test_a_processor_travels_with_a_model_and_with_a_pipeline(client, hub):
    assert client("push_prepared", work=str(client.work)) == [16, 16, 3]
    assert "preprocessor_config.json" in hub.files("me/prepared")
    assert "autoencoder/preprocessor_config.json" in hub.files("me/prepared-pipeline")


def test_stock_diffusers_loads_stock_options_without_trust_or_warning(client):
    assert client("load_stock_diffusers", work=str(client.work)) == []


def test_stock_auto_models_load_with_trust_where_hf_vq_was_never_imported(client):
    assert client("load_with_trust", work=str(client.work)) == ["hf_vq", "hf_vq"]
    client("load_prior_with_trust", work=str(client.work))


def test_stock_pipeline_loads_with_trust_where_hf_vq_was_never_imported(client):
    assert client("load_stock_pipeline", work=str(client.work)) == "hf_vq.VQPipeline"


def test_a_pipeline_of_sounds_is_known_by_repo_id_with_and_without_hf_vq(client):
    assert client("push_sounds", work=str(client.work)) == 800
    assert client("load_sound_pipeline", work=str(client.work)) == "hf_vq.VQAudioPipeline"
    card = client("read_card", repo_id="me/sounds")
    assert card["data"]["pipeline_tag"] == "text-to-audio"
    assert client("run_card", repo_id="me/sounds", folder=str(client.work)) == 2
    assert (client.work / "sample.wav").is_file()


def test_a_pipeline_of_texts_travels_with_all_its_parts(client, hub):
    fixture = FIXTURES / "diffusers_vqdiffusion_pipeline"
    convert(fixture, client.work / "texts", license="mit")
    code, _, errors = client.push("texts", "me/texts")
    assert code == 0, errors
    assert {"scheduler/hf_vq_remote.py", "tokenizer/tokenizer.json", "text_encoder/model.safetensors"} <= set(
        hub.files("me/texts")
    )
    ours, stock = dict.fromkeys(("autoencoder", "prior", "scheduler"), "hf_vq"), ("text_encoder", "tokenizer")
    assert client("load_text_pipeline", fixture=str(fixture)) == ours | dict.fromkeys(stock, "transformers")
    card = client("read_card", repo_id="me/texts")
    assert card["data"]["pipeline_tag"] == "text-to-image"
    assert "`CLIPTextModel` (text_encoder)" in card["text"]
    assert client("run_card", repo_id="me/texts", folder=str(client.work)) == 2
    assert (client.work / "sample.png").is_file()


def test_words_for_those_who_lack_hf_vq_or_trust(client):
    words = client("without_hf_vq")
    for name in ("AutoModel", "prior", "pipeline"):
        assert "hf_vq" in words[name], words[name]
        assert "pip install hf_vq" in words[name], words[name]
    assert "trust_remote_code=True" in words["untrusted"]


def test_methods_push_dressed_repositories_and_want_a_licence(client, hub):
    assert client("push_by_methods", work=str(client.work)) == []
    for method, verb in {"method-vqmodel": "vqmodel", "method-face": "vqmodel", "method-pipeline": "pipeline"}.items():
        files = hub.files(f"me/{method}")
        expected = {name: content for name, content in hub.files(f"me/{verb}").items() if name != "evaluation.json"}
        assert set(files) == set(expected)
        assert [name for name in expected if name != "README.md" and files[name] != expected[name]] == []
    assert "me/method-prior" in hub.private
    assert hub.files("me/method-prior") == {}
    assert "model.safetensors.index.json" in hub.files("me/method-prior", "trial")
    for name in ("model", "prior", "pipeline"):
        card = hub.files(f"me/saved-{name}")["README.md"].decode()
        assert "Written by hf_vq" in card
        assert "license: mit" in card


def test_card_has_the_figures_of_the_evaluation_and_its_code_runs(client):
    card = client("read_card", repo_id="me/pipeline")
    measured = {**EVALUATION["autoencoder"], **EVALUATION["prior"]}
    assert card["figures"] == {name: value for name, value in measured.items() if name != "num_samples"}
    assert card["datasets"] == ["digits"]
    assert card["data"]["license"] == "apache-2.0"
    assert card["data"]["library_name"] == "diffusers"
    assert card["data"]["pipeline_tag"] == "unconditional-image-generation"
    assert card["data"]["tags"] == ["hf_vq", "vector-quantization", "vqpipeline", "vqvae", "pixelcnn"]
    assert "| 0.1235 |" in card["text"]

    card = client("read_card", repo_id="me/vqvae")
    assert card["figures"] == {"error_over_variance": 0.25, "usage": 0.75}
    assert "![reconstructions](reconstructions.png)" in card["text"]
    assert "# the recipe\ndata: digits" in card["text"]
    for name in ("pipeline", "vqvae", "vqmodel", "prior"):
        assert client("run_card", repo_id=f"me/{name}", folder=str(client.work)) == 2
    assert (client.work / "sample.png").is_file()


def test_a_written_card_keeps_its_text(client, hub):
    card = client.work / "card"
    card.mkdir()
    (card / "README.md").write_text("---\nlicense: mit\ntags:\n- digits\n---\n# By hand\n")
    (card / "prior.yaml").write_text("prior: PixelCNN\n")
    assert client.push(client.work / "vqvae", "me/written", "--card", card)[0] == 0
    assert hub.files("me/written")["prior.yaml"] == b"prior: PixelCNN\n"
    for _ in range(2):
        found = client("read_card", repo_id="me/written")
        assert found["text"].strip() == "# By hand"
        assert (found["data"]["license"], found["figures"]["usage"]) == ("mit", 0.75)
        assert found["data"]["tags"] == ["digits", "hf_vq", "vector-quantization", "vqvae"]
        assert client.push(client.work / "vqvae", "me/written", "--license", "mit")[0] == 0  # without the folder
    code, _, errors = client.push(client.work / "vqvae", "me/written", "--card", card, "--license", "apache-2.0")
    assert code == 2
    assert "apache-2.0" in errors
    assert "mit" in errors


@pytest.mark.parametrize("card", sorted(path.parent.name for path in ROOT.glob("model_cards/*/README.md")))
def test_model_cards_are_complete_and_their_code_runs(card, client, hub):
    """Pushed with the recipes' networks (untrained): metadata, pictures, recipes, code."""
    folder = ROOT / "model_cards" / card
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")}
    model = AUTOENCODERS[recipes["autoencoder"]["model"]](**recipes["autoencoder"]["model_config"])
    if "prior" in recipes:
        side = 28 if "mnist" in card else 32
        shape = model.code_shape((model.config.in_channels, side, side))
        prior_class = getattr(hf_vq, recipes["prior"].get("prior", "PixelCNN"))
        config = recipes["prior"]["prior_config"]
        classes = {"num_classes": 10} if "class_dropout_prob" in config else {}  # those of the codes
        options = {"codebook_size": model.codebook_size, "code_shape": shape, **classes, **config}
        model = hf_vq.VQPipeline(model, prior_class(prior_class.config_class(**options)))
    model.save_pretrained(client.work / card)
    code, _, errors = client.push(client.work / card, f"hf-vq/{card}", "--card", folder)
    assert code == 0, errors
    found = client("read_card", repo_id=f"hf-vq/{card}")
    assert found["data"]["license"] == "apache-2.0"
    assert found["data"]["library_name"] == "diffusers"
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", found["text"])
    assert len(pictures) >= 3
    assert {*pictures, *(f"{name}.yaml" for name in recipes)} <= set(hub.files(f"hf-vq/{card}"))
    assert client("run_card", repo_id=f"hf-vq/{card}", folder=str(client.work)) == 1
    for picture in re.findall(r'save\("(.*?)"\)', found["text"]):
        assert (client.work / picture).is_file()


def test_nothing_is_sent_without_a_licence_or_of_a_folder_that_is_not_whole(client, hub):
    requests = len(hub.log)
    cut, empty, foreign = (client.work / name for name in ("cut", "empty", "foreign"))
    for folder in (cut, empty, foreign):
        folder.mkdir()
        for name in ("config.json", "hf_vq_remote.py"):
            (folder / name).write_bytes((client.work / "vqmodel" / name).read_bytes())
    weights = (client.work / "vqmodel" / "diffusion_pytorch_model.safetensors").read_bytes()
    (cut / "diffusion_pytorch_model.safetensors").write_bytes(weights[:-1])
    (foreign / "hf_vq_remote.py").unlink()
    unreadable = {name: client.work / f"bad {name}" for name in ("report.json", "conversion.json", "README.md")}
    for name, folder in unreadable.items():
        shutil.copytree(client.work / "vqmodel", folder)
        (folder / name).write_text("---\nlicense: [\n---\n" if name == "README.md" else "[1]")
        (folder / "evaluation.json").unlink(missing_ok=True)
    mit = ["--license", "mit"]
    for folder, options, words in (
        (unreadable["report.json"], mit, "bad report.json/report.json must hold a mapping"),
        (unreadable["conversion.json"], [], "bad conversion.json/conversion.json must hold a mapping"),
        (unreadable["README.md"], mit, "cannot read the card .*README.md"),
        (client.work / "vqmodel", [*mit, "--evaluation", "absent.json"], "cannot read absent.json"),
        (client.work / "vqmodel", [], "license is missing"),
        (client.work / "vqmodel", ["--license", "a licence"], "license.*a licence"),
        (cut, ["--license", "mit"], "cut.*safetensors"),
        (empty, ["--license", "mit"], "no weights"),
        (foreign, ["--license", "mit"], "not saved by hf_vq"),
        (client.work / "nothing", ["--license", "mit"], "holds no model"),
    ):
        code, _, errors = client.push(folder, "me/refused", *options)
        assert code == 2
        assert re.search(words, errors), errors
    assert len(hub.log) == requests


def rename(folder, name):
    """One more component in the index of a pipeline."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, name: index["prior"]}))


def add_stock_component(folder, name):
    """One more component, of another library, with a hidden file beside its own."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, name: ["diffusers", "DDPMScheduler"]}))
    (folder / name).mkdir()
    (folder / name / "scheduler_config.json").write_text("{}")
    (folder / name / ".env").write_text("a secret")


def link(path, target):
    """A link in place of what was there."""
    if path.is_dir():
        path.rename(path.with_name("moved"))
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def test_nothing_from_outside_a_folder_arrives(client, hub, tmp_path):
    """A secret lies beside a pipeline, whose index names it, or whose links lead to it."""
    outside = tmp_path / "outside"
    shutil.copytree(client.work / "prior", outside)
    (outside / "secret.yaml").write_text("data: a secret\n")
    names = (str(outside), "../outside", "..", "prior/.", "_/../../outside")
    links = {
        "prior": outside, "notes": outside, "absent.png": outside / "absent.png",
        "recipe.yaml": outside / "secret.yaml", "prior/generation_config.json": outside / "secret.yaml",
        "README.md": "../outside/secret.yaml", "autoencoder/report.json": "../../outside/secret.yaml",
    }  # fmt: skip
    folders = {}
    for case in (*names, *links):
        folders[case] = tmp_path / f"pipeline{len(folders)}"
        shutil.copytree(client.work / "pipeline", folders[case])
        link(folders[case] / case, links[case]) if case in links else rename(folders[case], case)
    requests = len(hub.log)
    said = client("push_foreign", folders={case: str(folder) for case, folder in folders.items()})
    for case, (code, errors, words) in said.items():
        assert code == 2, case
        assert case in errors
        assert "outside the folder" in errors
        assert "outside the folder" in words
    assert len(said) == len(names) + len(links)
    assert len(hub.log) == requests

    folder = tmp_path / "linked within"
    shutil.copytree(client.work / "pipeline", folder)
    link(folder / "prior", "moved")
    link(folder / "loop.png", "loop.png")
    add_stock_component(folder, "scheduler")
    assert client.push(folder, "me/linked", "--license", "mit")[0] == 0
    files = hub.files("me/linked")
    told = sorted({*files} ^ {*hub.files("me/pipeline")})
    assert told == ["evaluation.json", "scheduler/scheduler_config.json"]  # not what is hidden
    assert files["prior/model.safetensors"] == hub.files("me/pipeline")["prior/model.safetensors"]

    card = tmp_path / "card"
    card.mkdir()
    (card / "README.md").write_text("# By hand\n")
    link(card / "prior.yaml", outside / "secret.yaml")
    code, _, errors = client.push(folder, "me/linked", "--license", "mit", "--card", card)
    assert code == 2
    assert "prior.yaml" in errors
    assert "outside the folder" in errors


@pytest.mark.parametrize("moment", ["lfs", "commit"])
def test_an_interrupted_push_leaves_the_previous_revision_and_completes_when_repeated(moment, client, hub):
    name = f"me/interrupted-{moment}"
    assert client.push(client.work / "vqmodel", name, "--license", "mit")[0] == 0
    before, head = hub.files(name), hub.head(name)
    client("build", work=str(client.work / moment), seed=1)  # other weights
    again = (client.work / moment / "vqmodel", name, "--license", "mit")
    hub.cut = moment
    code, _, errors = client.push(*again)
    hub.cut = None
    assert code == 2
    assert "as it was before. Run it again" in errors
    assert (hub.files(name), hub.head(name)) == (before, head)

    assert client.push(*again)[0] == 0
    assert hub.files(name) != before
    assert sorted(hub.files(name)) == sorted(before)
    head, uploads = hub.head(name), sum(path.startswith("/lfs/") for _, path in hub.log)
    assert client.push(*again)[0] == 0  # nothing has changed: no commit, no upload
    assert (hub.head(name), sum(path.startswith("/lfs/") for _, path in hub.log)) == (head, uploads)


def test_weights_in_one_file_replace_weights_in_shards(client, hub):
    client("push_sharded", work=str(client.work))
    assert any("-of-" in name for name in hub.files("me/sharded"))
    assert client.push(client.work / "vqmodel", "me/sharded", "--license", "mit")[0] == 0
    assert sorted(hub.files("me/sharded")) == sorted(hub.files("me/vqmodel"))


def test_the_folder_modeling_holds_what_travels():
    for name, text in modeling_files().items():
        assert (ROOT / "modeling" / name).read_text() == text
    assert {path.name for path in (ROOT / "modeling").iterdir()} == {*modeling_files(), "README.md"}


def test_the_card_template_is_the_packaged_one():
    packaged = (ROOT / "hf_vq" / "hub" / "template.md").read_text()
    assert (ROOT / "model_cards" / "template.md").read_text() == packaged


def test_trainings_push_what_they_wrote_and_survive_a_hub_that_hangs_up(client, hub):
    def train(*arguments):
        given = ["train", *arguments, "--use_cpu", "--disable_tqdm", "--max_steps", "2", "--save_steps", "1"]
        given += ["--push_to_hub", "--license", "mit"]
        return client("command", arguments=given, folder=str(client.work))

    config = "{hidden_channels: 8, stage_channels: [4], num_residual_layers: 0, codebook_size: 8}"
    judge = ["--adversarial_weight", "0.5", "--discriminator_config", "{hidden_channels: 4, num_layers: 1}"]
    code, output, errors = train(
        *("autoencoder", "digits", "tok", "--model_config", config, "--hub_model_id", "me/tok", "--hub_private_repo"),
        *judge,
    )
    assert code == 0, errors
    assert f"Pushed: {hub.endpoint}/me/tok/commit/" in output
    assert "me/tok" in hub.private
    assert {"README.md", "config.json", "reconstructions.png", "recipe.yaml", "report.json"} <= set(
        hub.files("me/tok")
    )
    assert {"discriminator/config.json", f"discriminator/{SAFETENSORS_WEIGHTS_NAME}"} <= set(hub.files("me/tok"))
    further = ["--max_steps", "1", "--init_from", "me/tok", "--discriminator_init", "me/tok"]
    code, _, errors = client(
        "command",
        arguments=["train", "autoencoder", "digits", "further", "--use_cpu", *judge[:2], *further],
        folder=str(client.work),
    )
    assert code == 0, errors
    shutil.rmtree(client.work / "tok" / "discriminator")
    code, _, errors = client.push("tok", "me/tok", "--license", "mit")
    assert code == 0, errors
    assert not [name for name in hub.files("me/tok") if name.startswith("discriminator/")]
    code, _, errors = client(
        "command", arguments=["tokenize", "tok", "--data", "digits", "--output", "codes"], folder=str(client.work)
    )
    assert code == 0, errors
    prior = ["prior", "codes", "learnt", "--autoencoder", "tok", "--num_samples", "0", "--hub_model_id", "me/learnt"]
    hub.cut = "commit"
    try:
        code, output, errors = train(*prior, "--prior_config", "{hidden_channels: 8, num_layers: 1, head_channels: 8}")
    finally:
        hub.cut = None
    assert (code, "Wrote learnt" in output) == (2, True)
    line = errors.splitlines()[-1]
    assert line.startswith("hf-vq: error: the run in learnt is whole, but not pushed:")
    again = re.search(r"\(again: hf-vq push (.*)\)$", line)[1].split()
    assert not hub.files("me/learnt")  # Trainer has pushed nothing
    code, _, errors = client.push(*again)
    assert code == 0, errors
    assert {"model_index.json", "prior/model.safetensors"} <= set(hub.files("me/learnt"))

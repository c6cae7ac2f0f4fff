"""The package of examples/, installed outside the tree: commands, Auto classes, pipelines and the Hub know it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .hub_server import Hub
from .test_hub import Client

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "hf_vq_example"


@pytest.fixture(scope="module")
def hub():
    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A client where the example is installed; it has trained a codec and a prior by the commands of its README."""
    source, site, work = (tmp_path_factory.mktemp(name) for name in ("source", "site", "work"))
    shutil.copytree(EXAMPLE, source, dirs_exist_ok=True)  # a build writes beside the sources
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site))
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    client = Client(
        hub, work, "tests.plugin_client",
        PYTHONPATH=os.pathsep.join([str(ROOT), str(site)]), HF_DATASETS_CACHE=str(work / "cache"),
    )  # fmt: skip
    short = ["--max_steps", "8", "--use_cpu", "true", "--disable_tqdm", "true"]
    for line in (EXAMPLE / "README.md").read_text().split("```bash\n")[1].split("```")[0].splitlines():
        name, *arguments = line.replace("--max_steps 200", "").split()
        if name == "hf-vq":
            run(client, *arguments, *(short if arguments[0] == "train" else []))
    yield client
    client.close()


def run(client, *arguments):
    code, output, errors = client("cli", arguments=list(map(str, arguments)), folder=str(client.work))
    assert code == 0, errors
    return output


def test_the_example_is_small():
    lines = [line.strip() for line in (EXAMPLE / "hf_vq_example.py").read_text().splitlines()]
    assert len([line for line in lines if line and not line.startswith(("import ", "from ", '"""'))]) <= 40


def test_commands_train_tokenize_sample_and_explain_a_users_classes(client):
    assert "PatchCodec" in run(client, "train", "autoencoder", "--help")
    assert "BigramPrior" in run(client, "train", "prior", "--help")
    assert "class: PatchCodec" in run(client, "inspect", "codec")
    assert "class: BigramPrior" in run(client, "inspect", "prior")
    assert (client.work / "samples.png").stat().st_size > 0


def test_folders_load_by_every_auto_class_and_in_pipelines(client):
    assert client("load", work=str(client.work)) == [
        "PatchCodec", "SignQuantizer", "BigramPrior", "PatchCodecForAutoModel", "BigramPrior", "PatchCodec",
        "BigramPrior",
    ]  # fmt: skip


def test_repositories_load_by_our_classes_and_by_stock_ones_with_trust(client, hub):
    client("load", work=str(client.work))
    for folder, name in (("codec", "codec"), ("prior", "prior"), ("prior/pipeline", "pipeline")):
        run(client, "push", folder, f"me/{name}", "--license", "mit")
    client("load_again", work=str(client.work))
    for what in ("transformers", "diffusers", "prior", "pipeline"):
        assert client("load_stock", work=str(client.work), what=what)
    for name in ("codec", "prior", "pipeline"):
        card = client("read_card", repo_id=f"me/{name}")
        assert "`pip install hf-vq-example`" in card
        assert "hf_vq and hf-vq-example installed" in card
        assert client("run_card", repo_id=f"me/{name}", folder=str(client.work)).startswith("import hf_vq_example")
    for name in ("codec/hf_vq_remote.py", "prior/hf_vq_remote.py", "pipeline/prior/hf_vq_remote.py"):
        repository, _, file = name.partition("/")
        assert b"\nimport hf_vq_example" in hub.files(f"me/{repository}")[file]


def test_a_package_without_an_entry_point_is_imported_by_what_its_repositories_carry(client, hub):
    if "me/pipeline" not in hub.repositories:
        pytest.skip("pushed by the test above")
    words = client("without_the_entry_point", work=str(client.work))
    assert "`hf_vq` has no class" in words[2]  # of diffusers
    for name, message in zip(("PatchCodec", "hf_vq_example_bigram"), words, strict=False):
        assert name in message
        assert "import the package that registers it" in message


def test_a_plugin_that_fails_to_import_is_told_once_and_breaks_nothing(client, tmp_path):
    (tmp_path / "broken_models.py").write_text("raise OSError('no such codec')")
    info = tmp_path / "broken_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hf_vq]\nmodels = broken_models\n")
    words, module = client("import_beside", folder=str(tmp_path))
    (message,) = words
    assert module == "hf_vq_example"
    for part in ("'broken-plugin'", "broken_models", "OSError: no such codec"):
        assert part in message

"""Every block of the README and of docs/ runs as printed, page by page, in a folder that has what the page names."""

import importlib
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hf_vq
import hf_vq_cli

from .conftest import FIXTURES
from .registering import tables_as_they_were
from .sound_codec import sound_bytes, tone

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
ELSEWHERE = ("make ", "python3 -m venv ", "pip ", "git ")  # .ci/run installs and runs these
CHECKOUTS = "--before PATH"  # of a benchmark that needs another checkout
EXAMPLE = ROOT / "examples" / "hf_vq_example"


def blocks(page, language):
    return [text for name, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if name == language]


def commands(text):
    """The command lines of a block, continued lines joined, comments cut."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and not line.startswith(ELSEWHERE):
            yield words


def write_voices(folder):
    """Sounds of two speakers, and single files."""
    (folder / "path/to/sounds").mkdir(parents=True)
    for index in range(6):
        (folder / f"path/to/sounds/{index}.wav").write_bytes(sound_bytes(tone(2000 + 100 * index)))
    rows = [f"{index}.wav,{('bob', 'eve')[index % 2]}" for index in range(6)]
    (folder / "path/to/sounds/metadata.csv").write_text("\n".join(["file_name,speaker", *rows]))
    for name in ("speech.wav", "beginning.wav", "other.flac"):
        (folder / name).write_bytes(sound_bytes(tone(3000), format=name.rpartition(".")[2].upper()))


@pytest.fixture
def page_folder(tmp_path, monkeypatch):
    """A working folder with pictures, sounds, checkpoints of taming and diffusers, and a pipeline of two classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    for index in range(4):
        folder = tmp_path / "path/to/images" / ("rose" if index % 2 else "tulip")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (80, 70, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    write_voices(tmp_path)
    for name in ("last.ckpt", "config.yaml"):
        shutil.copy(FIXTURES / "taming_vqgan" / name, tmp_path)
    shutil.copytree(FIXTURES / "diffusers_vqdiffusion_pipeline", tmp_path / "vq-diffusion")
    torch.manual_seed(0)
    model = hf_vq.VQVAE(1, 8, stage_channels=(8,), num_residual_layers=0, codebook_size=8, codebook_dim=4)
    model.initialize_codebook(torch.rand(8, 1, 8, 8) * 2 - 1)
    prior = hf_vq.PixelCNN(
        hf_vq.PixelCNNConfig(codebook_size=8, num_classes=10, code_shape=(4, 4), hidden_channels=8, num_layers=1)
    )
    hf_vq.VQPipeline(model.eval(), prior.eval()).save_pretrained("quickstart/pipeline")
    monkeypatch.syspath_prepend(EXAMPLE)
    with tables_as_they_were():
        yield tmp_path
    sys.modules.pop(EXAMPLE.name, None)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_as_printed(page, page_folder):
    pieces = [(name, text) for name, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if name]
    unknown = {name for name, _ in pieces} - {"python", "bash", "toml", "yaml"}
    assert not unknown
    for language, text in pieces:
        if text == (EXAMPLE / f"{EXAMPLE.name}.py").read_text(encoding="utf-8"):
            importlib.import_module(EXAMPLE.name)
        elif language == "python":
            exec(compile(text, page, "exec"), {"__name__": "__main__"})
        elif language == "bash":
            for words in commands(text):
                assert words[0] == "hf-vq", f"{page}: {shlex.join(words)} is run by nothing"
                if words[1] != "push":  # tests/test_hub.py does
                    assert hf_vq_cli.main(words[1:]) == 0, shlex.join(words)


def test_the_page_on_adding_a_model_shows_the_example_as_it_is():
    page, readme = (path.read_text(encoding="utf-8") for path in (ROOT / "docs/add-a-model.md", EXAMPLE / "README.md"))
    assert (EXAMPLE / f"{EXAMPLE.name}.py").read_text(encoding="utf-8") in page
    assert readme.split("```bash\n")[1].split("```")[0] in page  # tests/test_plugins.py runs these, installed
    (shown,) = blocks("docs/add-a-model.md", "toml")
    shown, whole = (tomllib.loads(text) for text in (shown, (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")))
    assert shown["project"].items() <= whole["project"].items()


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "AGENTS.md", "model_cards/template.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "{{")):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_the_readme_is_short_and_shows_a_picture_at_once():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.encode()) < 11_000
    assert any("![" in line for line in text.splitlines()[:20])

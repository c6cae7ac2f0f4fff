"""The README's code runs as it stands."""

import re
from pathlib import Path

from hf_vq.autoencoders import AUTOENCODERS
from hf_vq.converters import FORMATS
from hf_vq.priors import PRIORS
from hf_vq.quantizers import QUANTIZERS

README = Path(__file__).parent.parent / "README.md"


def test_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = README.read_text(encoding="utf-8")
    (example,) = re.findall(r"## In Python\n\n```python\n(.*?)```", text, flags=re.S)
    names = {}
    exec(example, names)
    assert names["codes"].shape == (8, 4, 4)
    assert (tmp_path / "my-pipeline" / "model_index.json").is_file()


def test_quantizer_example_runs_and_the_table_has_every_type():
    section = README.read_text(encoding="utf-8").split("## Quantizers by one word")[1].split("\n## ")[0]
    names = {}
    exec(re.search(r"```python\n(.*?)```", section, flags=re.S)[1], names)
    assert names["codes"].shape == (16, 4, 8, 8)
    assert names["coarse"].shape == (16, 3, 32, 32)
    assert names["model"].quantizer.bits_per_token == 32
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M)) == {"quantizer_type", *QUANTIZERS}


def test_hierarchy_example_runs_and_the_tables_have_every_model_and_format():
    text = README.read_text(encoding="utf-8")
    section = text.split("## Models")[1].split("\n## ")[0]
    names = {}
    exec(re.search(r"```python\n(.*?)```", section, flags=re.S)[1], names)
    assert (names["top"].shape, names["bottom"].shape) == ((4, 8, 8), (4, 16, 16))
    assert names["coarse"].shape == names["images"].shape
    assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.M)) == set(AUTOENCODERS)
    formats = text.split("## Checkpoints of others")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", formats, flags=re.M)
    assert {name for row in rows[1:] for name in re.findall(r"`([\w-]+)`", row)} == set(FORMATS)


def test_prior_example_runs_and_the_table_has_every_prior():
    section = README.read_text(encoding="utf-8").split("## Priors")[1].split("\n## ")[0]
    names = {}
    exec(re.search(r"```python\n(.*?)```", section, flags=re.S)[1], names)
    assert names["images"].shape == (2, 3, 32, 32)
    assert len(names["completed"]) == 2
    rows = re.findall(r"^\| (`.*?) \|", section, flags=re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(PRIORS)


def test_commands_and_picture_exist():
    text = README.read_text(encoding="utf-8")
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, flags=re.M):
        assert f"\n{target}:" in makefile
    for path in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (README.parent / path).is_file()

"""The command line in two processes, as torchrun starts them: training, tokenizing, a prior."""

import contextlib
import io
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.processes import context, free_port

TINY = "--model_config={hidden_channels: 8, stage_channels: [4], num_residual_layers: 0, codebook_size: 8}"
QUIET = ("--use_cpu", "--disable_tqdm")
SMALL = "--prior_config={hidden_channels: 8, num_layers: 1, head_channels: 8}"
TOKENIZE = "tokenize tokenizer codes --data digits --shard_size 400 --device cpu"
COMMANDS = (
    ["train", "autoencoder", "digits", "tokenizer", "--max_steps", "4", "--save_steps", "2", *QUIET, TINY],
    TOKENIZE.split(),
    ["train", "prior", "codes", "prior", "--max_steps", "2", *QUIET, SMALL],
)


def run_all(rank, port, folder):
    """The exit codes of the commands, and what this process printed."""
    import hf_vq_cli

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        codes = [hf_vq_cli.main(command) for command in COMMANDS]
    return codes, shown.getvalue()


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Folder of a road that two processes went, and what each returned."""
    folder, port = tmp_path_factory.mktemp("launched"), free_port()
    with ProcessPoolExecutor(2, mp_context=context()) as pool:
        calls = [pool.submit(run_all, rank, port, str(folder)) for rank in range(2)]
        return folder, [call.result() for call in calls]


def test_two_processes_go_the_road_together_and_say_so_once(launched):
    folder, ((first, shown), (second, silent)) = launched
    assert first == second == [0, 0, 0]
    assert [line.rpartition(" in ")[2] for line in shown.splitlines() if " in " in line] == ["2 processes."] * 3
    assert silent == ""
    for name in ("tokenizer", "prior"):
        assert (folder / name / "recipe.yaml").is_file()
        assert json.loads((folder / name / "report.json").read_text())["metrics"]


def test_shards_that_processes_share_are_those_of_one(launched, monkeypatch):
    import hf_vq_cli

    folder, _ = launched
    monkeypatch.chdir(folder)
    assert hf_vq_cli.main(TOKENIZE.replace("codes", "alone").split()) == 0
    shards = sorted(path.name for path in Path("alone/data").glob("*.parquet"))
    assert len(shards) == 5
    assert all(Path("alone/data", name).read_bytes() == Path("codes/data", name).read_bytes() for name in shards)


def test_only_the_first_process_writes_the_recipe(launched, tmp_path, monkeypatch):
    """Two that write it at once take each other's temporary file away."""
    import hf_vq_cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "1")
    assert hf_vq_cli.main(["train", "autoencoder", "digits", "tokenizer", "--max_steps", "1", *QUIET, TINY]) == 0
    assert not Path("tokenizer/recipe.yaml").exists()


def test_torchrun_starts_the_command_line(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "hf_vq_cli", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert len(shown) == 2
    assert len(set(shown)) == 1

"""A checkpoint resumes only as it was written: its manifest has the hash of every file."""

import json

import pytest

from hf_vq.training.checkpoints import MANIFEST, latest_checkpoint, resolve_checkpoint, seal

FILES = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "deeper/data.json")


@pytest.fixture
def run(tmp_path):
    """A run with two complete checkpoints."""
    for step in (2, 10):
        for name in FILES:
            path = tmp_path / f"checkpoint-{step}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(range(64)) * step)
        seal(tmp_path / f"checkpoint-{step}", step)
    return tmp_path


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_with_the_file_and_what_to_do(run, name):
    newest = run / "checkpoint-10"
    assert resolve_checkpoint(run, True) == newest
    flip(newest / name, 33, bit=7)
    for asked in (True, str(newest)):
        with pytest.raises(ValueError, match=rf"checkpoint-10.*its file {name} has changed.*\(checkpoint-2\)"):
            resolve_checkpoint(run, asked)
    assert resolve_checkpoint(run, run / "checkpoint-2") == run / "checkpoint-2"
    flip(run / "checkpoint-2" / name, 0)
    with pytest.raises(ValueError, match=rf"its file {name} has changed.*start anew"):
        resolve_checkpoint(run, run / "checkpoint-2")


def test_no_bit_of_the_manifest_changes_what_it_says(run):
    path = run / "checkpoint-10" / MANIFEST
    content, said = path.read_bytes(), json.loads(path.read_text())
    refused = 0
    for position in range(len(content)):
        flip(path, position, bit=position % 7)
        try:
            resolve_checkpoint(run, run / "checkpoint-10")
        except ValueError:
            refused += 1
        else:
            assert json.loads(path.read_text()) == said
        path.write_bytes(content)
    assert refused > len(content) / 2


def test_checkpoints_of_older_versions_have_sizes_alone_and_resume(run):
    path = run / "checkpoint-10" / MANIFEST
    said = json.loads(path.read_text())
    said["files"] = {name: entry["size"] for name, entry in said["files"].items()}
    path.write_text(json.dumps(said))
    assert resolve_checkpoint(run, True) == latest_checkpoint(run) == run / "checkpoint-10"

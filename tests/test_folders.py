"""Facts about folders that are not whole, or hold something else than they say: refused before anything is read."""

import json
import os
import shutil
import socket

import diffusers
import pytest
import torch
import transformers

import hf_vq
from hf_vq.hub import push_folder

from .contracts import test_pipelines

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER, UNET, UNKNOWN = ["diffusers", "DDPMScheduler"], ["diffusers", "UNet2DModel"], ["absent", "Model"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small pipeline, and its autoencoder in shards."""
    root = tmp_path_factory.mktemp("saved")
    pipeline = test_pipelines.BUILD["VQPipeline"]()
    pipeline.save_pretrained(root / "pipeline")
    pipeline.autoencoder.save_pretrained(root / "autoencoder", max_shard_size=2000)
    pipeline.prior.save_pretrained(root / "prior", max_shard_size=2000)
    return root


@pytest.fixture
def pipeline(saved, tmp_path):
    return shutil.copytree(saved / "pipeline", tmp_path / "pipeline")


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def other(path, kind):
    """Something that is no file."""
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        here = os.open(path.parent, os.O_RDONLY)  # the paths of sockets are short
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def add(name, value, **files):
    def change(folder):
        edit(folder / "model_index.json", **{name: value})
        if files:
            (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text)

    return change


def empty(folder):
    shutil.rmtree(folder / "prior")
    (folder / "prior").mkdir()


NOT_WHOLE = {
    "none of ours": (lambda folder: shutil.rmtree(folder / "prior"), "names prior, a .*no folder prior"),
    "ours that is empty": (empty, "prior has no config.json"),
    "ours left out": (add("prior", [None, None]), r"names no prior.*\[None, None\]"),
    "ours without weights": (lambda folder: (folder / "prior" / "model.safetensors").unlink(), "prior .*no weights"),
    "a file in its place": (add("scheduler", SCHEDULER), "names scheduler, a DDPMScheduler, but there is no folder"),
    "stock that is empty": (add("scheduler", SCHEDULER, **{".hidden": ""}), "scheduler is empty.*DDPMScheduler"),
    "stock of another config": (add("scheduler", SCHEDULER, **{"config.json": "{}"}), "no scheduler_config.json"),
    "stock without config": (add("unet", UNET, **{"model.bin": ""}), "unet has no config.json.*UNet2DModel"),
    "stock without weights": (add("unet", UNET, **{"config.json": "{}"}), "unet .*no weights"),
    "unknown without weights": (add("other", UNKNOWN, **{"config.json": "{}"}), "other .*no weights"),
    "tokenizer without config": (add("words", ["transformers", "CLIPTokenizer"], **{"notes": ""}), "words has no"),
    "class of no name": (lambda folder: edit(folder / "model_index.json", _class_name=["pipeline", 3]), "_class_name"),
    "map of no names": (lambda folder: edit(folder / "prior" / "config.json", auto_map=["x"]), "auto_map"),
}


@pytest.mark.parametrize("case", NOT_WHOLE)
def test_a_pipeline_that_is_not_whole_is_not_pushed(case, pipeline):
    change, words = NOT_WHOLE[case]
    change(pipeline)
    if case == "a file in its place":
        (pipeline / "scheduler").write_text("")
    with pytest.raises(ValueError, match=words) as error:
        push_folder(pipeline, "me/refused", license="mit")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_what_is_no_file_is_named(kind, saved, pipeline, tmp_path):
    model = shutil.copytree(saved / "autoencoder", tmp_path / "model")
    for folder, name in ((pipeline, "prior/x.safetensors"), (model, "x.safetensors"), (model, "config.json")):
        other(folder / name, kind)
        loader = hf_vq.VQPipeline if folder is pipeline else hf_vq.AutoVQModel
        for call in (loader.from_pretrained, lambda folder: push_folder(folder, "me/refused", license="mit")):
            with pytest.raises(ValueError, match=rf"{name} is a .*{kind}.*but must be a file"):
                call(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret", "sub/secret", "..", 3, "link"])
@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_shards_from_outside_are_not_read(kind, name, saved, tmp_path):
    folder = shutil.copytree(saved / kind, tmp_path / "model")
    (tmp_path / "secret.safetensors").write_text("no tensors: an error of its own, if it were read")
    index = next(folder.glob("*.index.json"))
    if name == "link":
        name = next(folder.glob("*-00001-of-*.safetensors")).name
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret.safetensors")
    shards = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={**shards, next(iter(shards)): name})
    auto = hf_vq.AutoVQModel if kind == "autoencoder" else hf_vq.AutoVQPrior
    words = "weight_map" if name == 3 else "outside the folder"
    for call in (
        auto.from_pretrained,
        transformers.AutoModel.from_pretrained,
        lambda folder: push_folder(folder, "me/refused", license="mit"),
    ):
        with pytest.raises(ValueError, match=words):
            call(folder)


def test_shards_of_a_snapshot_are_links_into_its_repository(saved, tmp_path):
    folder = shutil.copytree(saved / "autoencoder", tmp_path / "models--me--codec" / "snapshots" / "main")
    (folder.parent.parent / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        path.rename(folder.parent.parent / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert type(hf_vq.AutoVQModel.from_pretrained(folder)).__name__ == "VQVAE"


@pytest.mark.parametrize("kind", ["autoencoder", "prior"])
def test_shards_and_variants_load_in_both_libraries_and_replace_each_other(kind, saved, tmp_path):
    auto = hf_vq.AutoVQModel if kind == "autoencoder" else hf_vq.AutoVQPrior
    model = auto.from_pretrained(saved / kind)
    sharded, variant = {"max_shard_size": 2000}, {"variant": "fp16"}
    for options in (variant, {}, sharded | variant, sharded, variant, {}):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        model.save_pretrained(tmp_path, **options)
        for loader in (auto, transformers.AutoModel):
            loaded = loader.from_pretrained(tmp_path, **{name: options[name] for name in options if name == "variant"})
            assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    assert not [*tmp_path.glob("*index*"), *tmp_path.glob("*-of-*")]


@pytest.mark.parametrize("name", [["VQVAE"], [], {"a": 1}, 5, ""])
def test_a_class_that_is_no_name_is_refused(name, saved, tmp_path):
    for kind, key, loader in (
        ("autoencoder", "_class_name", hf_vq.AutoVQModel),
        ("autoencoder", "_class_name", hf_vq.VQVAE),
        ("prior", "model_type", hf_vq.AutoVQPrior),
    ):
        folder = shutil.copytree(saved / kind, tmp_path / kind, dirs_exist_ok=True)
        edit(folder / "config.json", **{key: name})
        with pytest.raises(ValueError, match=f"{key} must be a name"):
            loader.from_pretrained(folder)


def test_stock_components_of_a_pipeline_are_looked_at_too(pipeline):
    diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=2, attention_head_dim=2,
    ).save_pretrained(pipeline / "unet", max_shard_size=2000)  # fmt: skip
    edit(pipeline / "model_index.json", unet=UNET)
    index = next((pipeline / "unet").glob("*.index.json"))
    edit(index, weight_map={"conv_in.weight": "../secret.safetensors"})
    with pytest.raises(ValueError, match=r"secret.*outside the folder"):
        hf_vq.VQPipeline.from_pretrained(pipeline)

"""What every room asks: what a folder is, and a model's mode while it is evaluated."""

import json

import pytest
import torch

import hf_vq
from hf_vq.saved import folder_kind, read_json
from hf_vq.training.evaluation import evaluate_autoencoder


def test_evaluation_leaves_the_parts_that_were_frozen_frozen():
    model = hf_vq.VQVAE(hidden_channels=8, codebook_size=4, codebook_dim=2, norm="batch").train()
    model.downsample.eval()  # its owner froze its batch norm
    modes = [module.training for module in model.modules()]
    evaluate_autoencoder(model, [{"sample": torch.rand(3, 8, 8)}] * 2)
    assert [module.training for module in model.modules()] == modes
    assert model.training
    assert not model.downsample[0].training


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"model_index.json": {}, "config.json": {}}, "pipeline"),
        ({"config.json": {"_class_name": "VQVAE"}}, "autoencoder"),
        ({"config.json": {"model_type": "hf_vq_pixelcnn"}}, "prior"),
        ({"data/train.parquet": {}}, "codes"),
        ({"notes.json": {}}, None),
    ],
)
def test_a_folder_tells_its_kind_by_its_files(tmp_path, files, kind):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    assert folder_kind(tmp_path) == kind


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        folder_kind(tmp_path)
    with pytest.raises(ValueError, match=r"cannot read .*nothing\.json"):
        read_json(tmp_path / "nothing.json")

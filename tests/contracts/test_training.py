"""Every autoencoder trains, in full and in half precision, and logs each of its terms."""

import math

import pytest
import torch

from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder

from .test_autoencoders import codecs_are_registered, every, make  # noqa: F401


class Samples(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {"sample": self.samples[index]}


@every
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_autoencoder_trains_and_logs_each_of_its_terms(name, precision, tmp_path):
    model, samples = make(name)
    terms = model(samples).losses.keys()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    args = AutoencoderTrainingArguments(
        str(tmp_path), 2, max_steps=2, logging_steps=1, bf16=precision == "bfloat16", use_cpu=True, disable_tqdm=True
    )
    report = train_autoencoder(model, Samples(samples), args, Samples(samples))
    entries = [entry for entry in report["history"] if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        logged = {name.removeprefix("loss_") for name in entry if name.startswith("loss_")}
        assert logged == terms
        assert all(math.isfinite(entry[f"loss_{term}"]) for term in terms)
        parts = model.config.reconstruction_weight * entry["reconstruction_loss"] + entry["quantizer_loss"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-4)
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(moved) > len(before) / 2
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    expected = "eval_mse" if model.config.reconstruction_loss in ("mse", "l1") else "eval_loss"
    assert report["best"][expected] == report["metrics"][expected]

"""transformers' own Trainer on an autoencoder's face."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import AutoModel, Trainer, TrainingArguments

import hf_vq
from hf_vq.training.callbacks import CodebookCallback

from .tiny_models import Images


class Items(Dataset):
    def __init__(self, count, name):
        self.samples, self.name = F.interpolate(Images(count).samples, size=16), name

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {self.name: self.samples[index], "sentence": "not for the model"}


def face(family, quantizer_type="ema"):
    torch.manual_seed(1)  # with which no code restarts, at a latent of the last batch
    model = getattr(hf_vq, family)(
        1, hidden_channels=8, codebook_size=8, codebook_dim=4, quantizer_type=quantizer_type
    )
    return getattr(hf_vq, f"{family}ForAutoModel").from_autoencoder(model)


def trainer(model, folder, name="pixel_values", callbacks=(), **options):
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, report_to="none", **options)
    return Trainer(model, args, train_dataset=Items(64, name), eval_dataset=Items(12, name), callbacks=[*callbacks])


@pytest.mark.parametrize("name", ["sample", "pixel_values"])
@pytest.mark.parametrize("family", ["VQVAE", "VQVAE2"])
def test_a_face_trains_and_evaluates_with_default_arguments(family, name, tmp_path):
    model = face(family)
    stock = trainer(model, tmp_path, name, learning_rate=1e-2)
    before = stock.evaluate()["eval_loss"]
    stock.train()
    after = stock.evaluate()["eval_loss"]
    assert after < before
    samples = Items(12, name).samples
    with torch.no_grad():
        output = model.eval()(samples)
        assert after == pytest.approx(
            sum(model(part).loss * len(part) for part in samples.split(8)).item() / 12, rel=1e-5
        )
    predictions, codes = stock.predict(Items(12, name)).predictions
    torch.testing.assert_close(torch.from_numpy(predictions), output.sample, atol=1e-5, rtol=1e-4)
    for found, expected in zip(hf_vq.as_grids(codes), hf_vq.as_grids(output.codes), strict=True):
        assert torch.equal(torch.from_numpy(found), expected)
    stock.save_model(str(tmp_path / "saved"))
    loaded = AutoModel.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(pixel_values=samples).sample, output.sample)


@pytest.mark.parametrize("quantizer_type", ["ema", "vector"])
@pytest.mark.parametrize("family", ["VQVAE", "VQVAE2"])
def test_accumulating_four_batches_trains_a_face_as_one_large_batch_does(family, quantizer_type, tmp_path):
    states = []
    for accumulation in (1, 4):
        model = face(family, quantizer_type)
        model.autoencoder.initialize_codebook(Items(64, "sample").samples)
        trainer(
            model,
            tmp_path / str(accumulation),
            callbacks=[CodebookCallback],
            per_device_train_batch_size=16 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
        ).train()
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_face_takes_samples_by_one_name_and_leaves_losses_out_on_request():
    model, samples = face("VQVAE").eval(), Items(2, "sample").samples
    output = model(pixel_values=samples, return_loss=False)
    assert list(output.keys()) == ["sample", "codes"]
    assert torch.equal(output.sample, model(samples).sample)
    for names in [(), ("sample", "pixel_values")]:
        with pytest.raises(ValueError, match="either sample or pixel_values"):
            model(**dict.fromkeys(names, samples))


@pytest.mark.parametrize(("family", "quantizer_type"), [("VQVAE", "ema"), ("VQVAE", "vector"), ("VQVAE2", "ema")])
def test_a_stopped_stock_training_resumes_to_the_same_weights(family, quantizer_type, tmp_path):
    options = {"save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "learning_rate": 1e-2, "logging_steps": 1}
    options |= {"per_device_train_batch_size": 16, "max_steps": 8, "metric_for_best_model": "eval_loss"}
    whole = face(family, quantizer_type)
    trainer(whole, tmp_path / "whole", callbacks=[CodebookCallback], **options).train()
    other = face(family, quantizer_type)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()  # all that counts is in the checkpoint
    stopped = trainer(other, tmp_path / "whole", callbacks=[CodebookCallback], **options)
    stopped.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    for (name, one), two in zip(whole.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_the_best_weights_are_loaded_at_the_end(tmp_path):
    model, worse = face("VQVAE"), iter([0.5, 0.1, 0.9])
    options = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 6, "learning_rate": 1e-2}
    stock = trainer(model, tmp_path, load_best_model_at_end=True, metric_for_best_model="eval_word", **options)
    stock.compute_metrics = lambda prediction: {"word": next(worse)}
    stock.args.greater_is_better = False
    stock.train()
    assert stock.state.best_model_checkpoint.endswith("checkpoint-4")
    saved = AutoModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert not (tmp_path / "model.safetensors").exists()

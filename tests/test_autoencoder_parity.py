"""Image autoencoders beside their originals: stock diffusers, Sonnet, Keras, ritheshkumar."""

import diffusers
import pytest
import torch

from hf_vq import VQVAE, VQModel

from .conftest import FIXTURES, channels_first, fixture, no_complaints
from .test_autoencoders import CLOSE, SMALL, STOCK_CASES, build


@pytest.mark.parametrize("case", STOCK_CASES)
def test_stock_folders_give_stock_numbers(case):
    tensors, meta = fixture(f"diffusers_vqmodel/{case}")
    model = VQModel.from_pretrained(FIXTURES / "diffusers_vqmodel" / case)
    sample, codes = tensors["in.pixel_values"], tensors["in.codes"]
    entries = tensors["out.codebook_entries"]
    with torch.no_grad():
        latents = model.encode(sample).latents
        stock_tuple = model.quantize(latents)
        decoded = model.decode(latents)
        output = model(sample)
        numbers = {
            "latents": latents,
            "quantized": stock_tuple[0],
            "quantize_loss": stock_tuple[1],
            "decoded_from_latents": decoded.sample,
            "commit_loss": decoded.commit_loss,
            "decoded_from_codes": model.detokenize(codes),
            "codebook_entries": model.quantize.get_codebook_entry(codes, (*codes.shape, entries.shape[1])),
            "forward_sample": output.sample,
        }
        if not meta["hyperparameters"].get("lookup_from_codebook"):
            continuous = tensors["in.latents_continuous"]
            numbers["decoded_unquantized"] = model.decode(continuous, force_not_quantize=True).sample
        else:
            stock_call = model.decode(codes, force_not_quantize=True, shape=(*codes.shape, entries.shape[1]))
            torch.testing.assert_close(stock_call.sample, tensors["out.decoded_from_codes"], **CLOSE)
        assert torch.equal(model.tokenize(sample), tensors["out.indices"])
        assert torch.equal(stock_tuple[2][2].view_as(output.codes), tensors["out.indices"])
        for name, ours in numbers.items():
            torch.testing.assert_close(ours, tensors[f"out.{name}"], **CLOSE, msg=lambda t, n=name: f"{n}: {t}")
        assert [
            torch.equal(a, b)
            for a, b in zip(model(sample, return_dict=False), model.decode(latents, return_dict=False), strict=True)
        ] == [True, True]


@pytest.mark.parametrize("case", STOCK_CASES)
def test_what_we_save_loads_in_stock_without_a_word(case, tmp_path):
    sample = fixture(f"diffusers_vqmodel/{case}")[0]["in.pixel_values"]
    model = VQModel.from_pretrained(FIXTURES / "diffusers_vqmodel" / case)
    model.train()(sample)  # trains with stock options, leaves no extra state
    model.eval().save_pretrained(tmp_path)
    with no_complaints():
        stock = diffusers.VQModel.from_pretrained(tmp_path)
        generic = diffusers.AutoModel.from_pretrained(str(tmp_path))
    assert type(stock) is type(generic) is diffusers.VQModel
    with torch.no_grad():
        for other in (stock, generic):
            torch.testing.assert_close(other(sample).sample, model(sample).sample, **CLOSE)


def test_stock_resaved_folder_still_loads(tmp_path):
    model, sample = build("vqmodel-vector")
    model.save_pretrained(tmp_path)
    diffusers.VQModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "stock")
    with no_complaints():
        ours = VQModel.from_pretrained(tmp_path / "stock")
    assert torch.equal(ours(sample).sample, model(sample).sample)


def test_vqmodel_trains_with_gradient_checkpointing_alike():
    model, sample = build("vqmodel-ema")
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_codebook_updates("off")
        (model.enable_gradient_checkpointing if checkpointing else model.disable_gradient_checkpointing)()
        model.train()(sample).loss.backward()
        gradients.append(model.encoder.conv_in.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0])


# VQVAE and its three originals


@pytest.mark.parametrize(("case", "quantizer_type"), [("model_ema", "ema"), ("model_vq", "vector")])
def test_sonnet_example_model(case, quantizer_type):
    tensors, meta = fixture(f"sonnet_vqvae/{case}")
    model = VQVAE.from_single_file(FIXTURES / "sonnet_vqvae" / case / "variables.npz")
    model.register_to_config(reconstruction_weight=1 / (4 * meta["hyperparameters"]["var"]))
    assert model.config.quantizer_type == quantizer_type
    sample = channels_first(tensors["in.images"]) * 2  # theirs is [-0.5, 0.5]
    output = model.eval()(sample)
    latents = model.encode(sample).latents
    assert torch.equal(output.codes, tensors["out.indices"])
    torch.testing.assert_close(latents, channels_first(tensors["out.z"]), **CLOSE)
    torch.testing.assert_close(output.sample / 2, channels_first(tensors["out.x_recon"]), **CLOSE)
    torch.testing.assert_close(output.loss, tensors["out.loss"], **CLOSE)
    torch.testing.assert_close(output.quantizer_loss, tensors["out.vq_loss"], **CLOSE)

    output = model.train()(sample)
    output.loss.backward()
    torch.testing.assert_close(output.loss, tensors["out.train_loss"], **CLOSE)
    gradients = {
        "grad_enc_1_w": model.downsample[0].conv.weight.grad,
        "grad_dec_3_w": model.upsample[1].conv.weight.grad,
        "grad_pre_vq_w": model.to_latents.weight.grad,
    }
    for name, ours in gradients.items():
        torch.testing.assert_close(ours.permute(2, 3, 1, 0), tensors[f"out.{name}"], rtol=1e-4, atol=1e-5)
    if quantizer_type == "ema":
        torch.testing.assert_close(model.quantizer.embedding.weight.T, tensors["out.train_embeddings"], **CLOSE)
    else:
        torch.testing.assert_close(
            model.quantizer.embedding.weight.grad.T, tensors["out.grad_embeddings"], rtol=1e-4, atol=1e-5
        )


def test_keras_example():
    tensors, meta = fixture("keras_vqvae_example")
    model = VQVAE.from_single_file(FIXTURES / "keras_vqvae_example/vqvae_keras3.keras")
    model.register_to_config(reconstruction_weight=1 / (4 * meta["hyperparameters"]["train_variance"]))
    sample = channels_first(tensors["in.images"]) * 2
    output = model(sample)
    output.loss.backward()
    assert torch.equal(output.codes, tensors["out.indices"])
    torch.testing.assert_close(model.encode(sample).latents, channels_first(tensors["out.z"]), **CLOSE)
    torch.testing.assert_close(output.sample / 2, channels_first(tensors["out.reconstruction"]), **CLOSE)
    torch.testing.assert_close(output.loss, tensors["out.total_loss"], **CLOSE)
    torch.testing.assert_close(output.quantizer_loss, tensors["out.vq_loss"], **CLOSE)
    decoded = model.detokenize(tensors["in.codes"]) / 2
    torch.testing.assert_close(decoded, channels_first(tensors["out.decoded_codes"]), **CLOSE)
    codebook, kernel = model.quantizer.embedding.weight.grad, model.downsample[0].conv.weight.grad
    torch.testing.assert_close(codebook.T, tensors["out.grad_embeddings"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kernel.permute(2, 3, 1, 0), tensors["out.grad_first_kernel"], rtol=1e-4, atol=1e-5)


def test_ritheshkumar_batchnorm_network():
    tensors = fixture("ritheshkumar_vqvae")[0]
    model = VQVAE.from_single_file(FIXTURES / "ritheshkumar_vqvae/best.pt")
    sample = tensors["image"]
    output = model.eval()(sample)
    assert torch.equal(output.codes, tensors["codes"])
    torch.testing.assert_close(model.encode(sample).latents, tensors["prequant"], **CLOSE)
    torch.testing.assert_close(output.sample, tensors["reconstruction"], **CLOSE)
    torch.testing.assert_close(model.detokenize(tensors["codes"]), tensors["reconstruction_from_codes"], **CLOSE)
    torch.testing.assert_close(output.reconstruction_loss, tensors["eval_loss_recons"], **CLOSE)

    output = model.train()(sample)
    output.loss.backward()
    torch.testing.assert_close(output.loss, tensors["train.loss_total"], **CLOSE)
    torch.testing.assert_close(output.losses["commitment"], tensors["train.loss_commit"], **CLOSE)
    torch.testing.assert_close(output.losses["codebook"], tensors["train.loss_vq"], **CLOSE)
    gradients = {
        "codebook": model.quantizer.embedding.weight,
        "decoder_last": model.last_layer,
        "encoder_conv0": model.downsample[0].conv.weight,
    }
    for name, parameter in gradients.items():
        torch.testing.assert_close(parameter.grad, tensors[f"train.grad_{name}"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.downsample[0].norm.running_mean, tensors["train.bn1_running_mean"], **CLOSE)
    torch.testing.assert_close(model.downsample[0].norm.running_var, tensors["train.bn1_running_var"], **CLOSE)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
def test_any_kernel_halves_and_doubles(padding, kernel_size):
    model = VQVAE(**SMALL, kernel_size=kernel_size, padding=padding, stage_channels=(4, 4, 8))
    sample = torch.rand(1, 1, 24, 8)
    assert model.encode(sample).latents.shape == (1, 6, 3, 1)
    assert model(sample).sample.shape == sample.shape

"""Facts about autoencoders: parity with the originals, what both libraries load, what a bad argument says."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

import hf_vq
from hf_vq import VQVAE, AutoVQModel, VQModel
from hf_vq.autoencoders.images.dvae import logit_laplace_log_prob
from hf_vq.autoencoders.images.grid_networks import share_out

from .conftest import FIXTURES, no_complaints

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
STOCK_CASES = sorted(folder.name for folder in (FIXTURES / "diffusers_vqmodel").iterdir())
SMALL = {"in_channels": 1, "hidden_channels": 16, "codebook_size": 20, "codebook_dim": 6}
SMALL_VQMODEL = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "num_vq_embeddings": 20, "sample_size": 8,
}  # fmt: skip


def build(name):
    """A small model of each family after one training step, and a batch for it."""
    torch.manual_seed(0)
    family, quantizer_type = name.split("-")
    model = {
        "vqvae": lambda: VQVAE(**SMALL, quantizer_type=quantizer_type),
        "vqmodel": lambda: VQModel(**SMALL_VQMODEL, quantizer_type=quantizer_type),
        "vqvae_shortcut": lambda: VQVAE(**SMALL, quantizer_type=quantizer_type, shortcut=True),
        "vqvae_principal": lambda: VQVAE(**SMALL, quantizer_type=quantizer_type, shortcut="principal"),
        "vqvae2": lambda: hf_vq.VQVAE2(1, 8, 1, 4, 20, 6, quantizer_type=quantizer_type),
        "vqvae2_three": lambda: hf_vq.VQVAE2(1, 8, 1, 4, 20, 6, strides=(2, 2, 2), quantizer_type=quantizer_type),
        "vqvae2_residual": lambda: hf_vq.VQVAE2(1, 8, 1, 4, 20, 16, quantizer_type=quantizer_type, residual=True),
        "dvae": lambda: hf_vq.DVAE(1, (8, 8, 12), 1, 20, 6, quantizer_type, reconstruction_loss="mse"),
        "rqvae": lambda: hf_vq.RQVAE(
            1, (8, 8), 1, None, latent_channels=6, norm_num_groups=4, codebook_size=20, codebook_dim=6,
            quantizer_type=quantizer_type,
        ),
        "magvit2": lambda: hf_vq.MAGVIT2Model(
            1, (8, 8), 1, norm_num_groups=4, codebook_size=64, quantizer_type=quantizer_type
        ),
        "vitvq": lambda: hf_vq.ViTVQModel(
            1, (16, 8), 4, *(8, 1, 2, 4, 12) * 2, codebook_size=20, codebook_dim=6, quantizer_type=quantizer_type
        ),
    }[family]()  # fmt: skip
    if family.endswith(("shortcut", "principal", "residual")):  # whose networks begin at zero
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    sample = torch.rand(4, model.config.in_channels, 16, 8) * 2 - 1
    model.train()(sample)
    return model.eval(), sample


FAMILIES = [
    "vqvae-ema", "vqvae-vector", "vqmodel-vector", "vqmodel-ema", "vqvae2-ema", "vqvae2-residual",
    "vqvae_shortcut-ema", "vqvae_principal-product", "vqvae2_residual-ema", "dvae-gumbel", "dvae-ema",
    "rqvae-residual", "magvit2-lookup_free", "vitvq-vector",
]  # fmt: skip
CLASSES = [  # one of each, and of each kind of quantizer state
    "vqvae-ema", "vqmodel-vector", "vqvae2-residual", "vqvae_principal-product", "dvae-gumbel", "rqvae-residual",
    "magvit2-lookup_free", "vitvq-vector",
]  # fmt: skip


def as_tuple(codes):
    return codes if isinstance(codes, tuple) else (codes,)


def same_codes(one, other):
    return all(torch.equal(a, b) for a, b in zip(as_tuple(one), as_tuple(other), strict=True))


# Every family


@pytest.mark.parametrize("name", FAMILIES)
def test_codes_decode_to_the_reconstruction(name):
    model, sample = build(name)
    output = model(sample)
    for codes, shape in zip(as_tuple(output.codes), model.code_shapes(tuple(sample.shape[1:])), strict=True):
        assert codes.shape == (4, *shape)
    assert model.hierarchical == isinstance(output.codes, tuple)
    assert same_codes(model.tokenize(sample), output.codes)
    torch.testing.assert_close(model.detokenize(output.codes), output.sample, **CLOSE)


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_reaches_every_parameter_and_sums_its_terms(name):
    model, sample = build(name)
    output = model.train()(sample)
    output.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    torch.testing.assert_close(output.loss, output.reconstruction_loss + output.quantizer_loss)
    torch.testing.assert_close(output.losses["reconstruction"], (output.sample - sample).square().mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_save_equals_load_in_both_libraries(name, tmp_path):
    model, sample = build(name)
    model.save_pretrained(tmp_path)
    expected = model(sample)
    with no_complaints():
        loaded = [AutoVQModel.from_pretrained(tmp_path), type(model).from_pretrained(tmp_path)]
        face = AutoModel.from_pretrained(tmp_path)
    assert [type(m) for m in loaded] == [type(model)] * 2
    for other in (*loaded, face):
        assert torch.equal(other(sample).sample, expected.sample)
        assert same_codes(other.tokenize(sample), expected.codes)
    assert loaded[0].codebook_initialized
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[0].state_dict()[key], value), key
        assert torch.equal(face.autoencoder.state_dict()[key], value), key
    face.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()
    assert torch.equal(AutoVQModel.from_pretrained(tmp_path / "again")(sample).sample, expected.sample)


@pytest.mark.parametrize("name", CLASSES)
def test_training_goes_on_after_loading_as_without(name, tmp_path):
    model, sample = build(name)
    model.save_pretrained(tmp_path)
    states = []
    for trained in (model, AutoVQModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).autoencoder):
        torch.manual_seed(2)
        for _ in range(3):
            trained.train()(sample)
        states.append(trained.state_dict())
    for other in states[1:]:
        assert all(torch.equal(other[key], value) for key, value in states[0].items())


@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_keeps_the_codebook_in_float32(name, tmp_path):
    model, sample = build(name)
    model.save_pretrained(tmp_path)
    for half in (
        AutoVQModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16),
        AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).autoencoder,
        model.to(torch.bfloat16),
    ):
        assert half(sample.to(torch.bfloat16)).sample.dtype == torch.bfloat16
        for quantizer in half.quantizers:
            assert {t.dtype for t in quantizer.state_dict().values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("name", CLASSES)
def test_sharded_and_variant_folders_load_in_both_libraries(name, tmp_path):
    model, sample = build(name)
    model.save_pretrained(tmp_path, max_shard_size="3KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for loaded in (AutoVQModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert torch.equal(loaded(sample).sample, model(sample).sample)


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_samples_and_folders_are_named(name, tmp_path):
    model, sample = build(name)
    with pytest.raises(ValueError, match=r"downsampling.*15|15.*downsampling"):
        model(torch.rand(1, model.config.in_channels, 15, 8))
    with pytest.raises(ValueError, match="channels"):
        model.code_shape((model.config.in_channels + 1, 16, 8))
    with pytest.raises(ValueError, match="floating point"):
        model(sample.to(torch.uint8))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        model.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointed_gradients_are_equal_and_the_codebook_moves_once(name):
    model, sample = build(name)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        copied = copy.deepcopy(model).train()
        if checkpointed:
            copied.enable_gradient_checkpointing()
        copied(sample).loss.backward()
        results.append([p.grad for p in copied.parameters()] + list(copied.state_dict().values()))
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("name", ["vqvae2-ema", "dvae-ema", "rqvae-residual", "vitvq-vector", "magvit2-lookup_free"])
def test_deferred_updates_wait_for_the_optimizer_step(name):
    model, sample = build(name)
    model.set_codebook_updates("deferred")
    before = [copy.deepcopy(quantizer.state_dict()) for quantizer in model.quantizers]
    model.train()(sample)
    for quantizer, state in zip(model.quantizers, before, strict=True):
        assert all(torch.equal(quantizer.state_dict()[key], value) for key, value in state.items())
    model.update_codebook()
    if name in ("vqvae2-ema", "dvae-ema", "rqvae-residual"):
        changed = [
            not torch.equal(quantizer.state_dict()[key], value)
            for quantizer, state in zip(model.quantizers, before, strict=True)
            for key, value in state.items()
        ]
        assert any(changed)


def test_hierarchy_decodes_without_its_finer_levels():
    model, sample = build("vqvae2-ema")
    top, bottom = model.tokenize(sample)
    mean = (model.quantizers[1].cluster_size / model.quantizers[1].cluster_size.sum()) @ model.quantizers[1].codebook
    vectors = mean[None, :, None, None].expand(4, -1, *bottom.shape[1:])
    expected = model.decode((model.quantizers[0].detokenize(top), vectors)).sample
    torch.testing.assert_close(model.detokenize((top, None)), expected)
    for codes, words in [
        ((None, bottom), r"codes\[0\]"), (top, "tuple of 2"), ((top, bottom[:, 1:]), r"codes\[1\].*grid"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=words):
            model.detokenize(codes)


def test_hierarchy_learns_to_decode_coarse_levels_alone():
    model, sample = build("vqvae2-ema")
    model.register_to_config(level_dropout=1.0)
    model.set_codebook_updates("off")
    output = model.train()(sample)
    top, _ = output.codes
    torch.testing.assert_close(output.sample, model.detokenize((top, None)))
    model.register_to_config(level_dropout=0.0)
    torch.testing.assert_close(model(sample).sample, model.detokenize(output.codes))


@torch.no_grad()
def test_residual_levels_code_what_coarser_codes_do_not_predict():
    torch.manual_seed(0)
    model = hf_vq.VQVAE2(1, (6, 8, 10), 1, 4, (5, 6, 7), 18, strides=(4, 2, 2), residual=True).eval()
    for parameter in model.parameters():  # networks beside the shortcuts begin at zero
        parameter.add_(0.05 * torch.randn_like(parameter))
    sample = torch.rand(2, 1, 32, 48) * 2 - 1
    latents, codes = model.encode(sample).latents, model.tokenize(sample)
    total = model.quantizers[0].detokenize(codes[0])
    for level in (1, 2):
        predicted = model.conditioners[level - 1](total) + F.interpolate(total, scale_factor=2, mode="bicubic")
        assert torch.equal(model.quantizers[level].tokenize(latents[level]), codes[level])
        total = predicted + model.quantizers[level].detokenize(codes[level])
    expected = model.decoder(total) + model.shortcut.decoder(total)
    torch.testing.assert_close(model.detokenize(codes), expected)


def test_the_prediction_loss_is_that_of_the_finer_latents_and_teaches_coarse_levels():
    torch.manual_seed(0)
    model = hf_vq.VQVAE2(1, 8, 1, 4, 20, 16, strides=(4, 2, 2), residual=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sample = torch.rand(2, 1, 32, 32) * 2 - 1
    losses, gradients = [], []
    learning = (model.conditioners[0].middle.weight, model.conditioners[1].middle.weight, model.to_latents[0].weight)
    for weight in (0.0, 0.3):
        model.register_to_config(prediction_weight=weight)
        output = model(sample)
        losses.append(output.loss)
        gradients.append(torch.autograd.grad(output.loss, learning))
    differences = [latents.square().mean() for latents in model.encode(sample).latents[1:]]
    for name, value in zip(("middle", "bottom"), differences, strict=True):
        torch.testing.assert_close(output.losses[f"prediction_{name}"], value)
    torch.testing.assert_close(losses[1] - losses[0], 0.3 * sum(differences))
    for without, with_it in zip(*gradients, strict=True):
        assert (with_it - without).norm() > 0.01 * without.norm()


def test_shortcuts_start_as_linear_codes_of_patches():
    torch.manual_seed(0)
    sample = torch.rand(2, 1, 16, 16) * 2 - 1
    model = VQVAE(1, 8, codebook_size=20, codebook_dim=16, shortcut=True).eval()
    torch.testing.assert_close(model.decode(model.encode(sample).latents).sample, sample)  # 16 numbers a patch of 16
    model = hf_vq.VQVAE2(1, 8, 1, 4, 20, 16, residual=True).eval()
    latents = model._encode(sample, lambda quantizer, latents: latents)[0]
    torch.testing.assert_close(model.decode(latents).sample, sample)
    flat = model._encode(torch.full((1, 1, 48, 48), 0.3), lambda quantizer, latents: latents)[0]
    assert flat[0].abs().max() > 0.1
    torch.testing.assert_close(flat[1][..., 4:-4, 4:-4], torch.zeros(1, 16, 4, 4))  # nothing to add within a plane
    for build, message in [
        (lambda: VQVAE(1, 8, codebook_dim=None, shortcut=True), "shortcut=True.*None"),
        (lambda: VQVAE(1, 8, shortcut="principle"), "shortcut.*principle"),
        (lambda: VQVAE(1, 8, shortcut="principal", quantizer_config={"kmeans_init": False}), "principal.*kmeans_init"),
        (lambda: VQVAE(1, 8, shortcut="principal", kernel_size=2), "principal.*kernel_size=2"),
        (lambda: VQVAE(1, 8, reconstruction_loss="softmax", shortcut=True), "shortcut=True.*softmax"),
        (lambda: hf_vq.VQVAE2(1, 8, residual=True, level_dropout=0.1), r"level_dropout.*0\.1"),
        (lambda: hf_vq.VQVAE2(1, 8, residual=True, reconstruction_loss="logistic"), "logistic.*residual"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


def test_components_join_the_group_with_the_fewest_bits():
    assert share_out([64.0, 16.0, 4.0, 1.0], groups=2, width=2, bits=20) == [0, 2, 3, 1]
    assert share_out([9.0, 8.0, 7.0], groups=1, width=4, bits=3) == [0, 1, 2]
    components = [1024.0, 4.0, 4.0, 4.0]
    assert share_out(components, groups=2, width=3, bits=4) == [0, 3, 4, 5]  # all bits go to the first
    assert share_out(components, groups=2, width=3, bits=60) == [0, 3, 4, 1]  # 18 bits, then 14 each


@torch.no_grad()
def test_principal_patches_start_product_codes_and_the_scale_of_their_error():
    torch.manual_seed(0)
    sample = F.interpolate(torch.rand(40, 1, 8, 8) * 2 - 1, 32, mode="bicubic").clamp(-1, 1)
    options = {"quantizer_type": "product", "quantizer_config": {"groups": 4}, "codebook_dim": 16, "codebook_size": 20}
    models = {}
    for shortcut in (True, "principal"):
        torch.manual_seed(1)
        models[shortcut] = VQVAE(1, 8, **options, shortcut=shortcut, reconstruction_loss="logistic")
        models[shortcut].set_codebook_updates("off")
        models[shortcut].train()(sample)  # a forward starts what `initialize_codebook` does
        assert not models[shortcut].eval().initialize_codebook(sample)
    model = models["principal"]
    errors = {name: F.mse_loss(each.detokenize(each.tokenize(sample)), sample) for name, each in models.items()}
    assert errors["principal"] < 0.7 * errors[True]
    torch.testing.assert_close(model.decode(model.encode(sample).latents).sample, sample, atol=1e-5, rtol=0)
    rows = model.encode(sample).latents.movedim(1, -1).flatten(0, 2)
    moments = rows.T @ rows / len(rows)
    torch.testing.assert_close(moments, moments.diag().diag(), atol=1e-5 * moments.max().item(), rtol=0)

    nats, bias = [], model.upsample[-1].conv.bias
    for shift in (0.0, -0.5, 1.0):  # a scale of the error's own is better than another
        bias[1] += shift
        nats.append(model(sample).reconstruction_loss)
    assert nats[0] < min(nats[1:])

    model.last_layer.add_(0.01)  # trained
    before = model.patches.encoder.weight.mul_(0.9).clone()
    model.quantizer.levels[0].reset()
    assert model.initialize_codebook(sample)
    assert torch.equal(model.patches.encoder.weight, before)


def reached(model, outputs):
    """Names of the parameters that outputs depend on."""
    parameters = dict(model.named_parameters())
    total = sum(output.sum() for output in as_tuple(outputs))
    gradients = torch.autograd.grad(total, tuple(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def test_only_started_codes_without_batch_statistics_can_be_frozen():
    with pytest.raises(ValueError, match="not started"):
        VQVAE(**SMALL).freeze_codes()
    with pytest.raises(ValueError, match="BatchNorm"):
        VQVAE(**SMALL, norm="batch", quantizer_config={"kmeans_init": False}).freeze_codes()


@pytest.mark.parametrize("name", [*FAMILIES, "vqvae2_three-ema"])
def test_frozen_codes_stay_while_the_decoder_learns(name):
    model, sample = build(name)
    codes, decoded = model.tokenize(sample), model.detokenize(model.tokenize(sample))
    names = dict(model.named_parameters())
    encoding = reached(model, model.encode(sample).latents)
    latents = tuple(
        quantizer.detokenize(grid).detach() for quantizer, grid in zip(model.quantizers, as_tuple(codes), strict=True)
    )
    decoding = reached(model, model.decode(latents if model.hierarchical else latents[0]).sample)
    decodes_only = {
        name for name in decoding - encoding if not name.startswith("conditioners")
    }  # whose way is detached
    assert {name for name in names if model.only_decodes(name)} == decodes_only
    frozen = {id(parameter) for parameter in model.freeze_codes()}
    assert frozen == {id(parameter) for name, parameter in names.items() if not model.only_decodes(name)}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not model.only_decodes(name)}
    model.train()(sample).reconstruction_loss.backward()
    with torch.no_grad():
        for parameter in learning:
            parameter.add_(parameter.grad.sign(), alpha=-0.01)
    model.update_codebook()
    assert same_codes(model.eval().tokenize(sample), codes)
    assert all(torch.equal(tensor, before.get(name, tensor)) for name, tensor in model.state_dict().items())
    assert (model.detokenize(codes) - decoded).abs().max() > 1e-3


def test_hierarchy_levels_may_differ_and_be_more_than_two():
    model = hf_vq.VQVAE2(1, 8, 1, 4, (5, 6, 7), 4, strides=(4, 2, 2))
    codes = model.tokenize(torch.rand(2, 1, 32, 48))
    assert [tuple(c.shape) for c in codes] == [(2, 2, 3), (2, 4, 6), (2, 8, 12)]
    assert model.codebook_size == (5, 6, 7)
    assert model.code_shape((1, 32, 48)) == ((2, 3), (4, 6), (8, 12))
    for options, words in [
        ({"strides": (4,)}, "strides"),
        ({"strides": (4, 3)}, r"strides\[1\]"),
        ({"codebook_size": (5, 6, 7)}, "codebook_size"),
    ]:
        with pytest.raises(ValueError, match=words):
            hf_vq.VQVAE2(**options)


def test_dvae_likelihood_is_a_density_of_the_sample():
    model, _ = build("dvae-gumbel")
    codes = torch.randint(20, (1, 4, 2))
    grid = torch.linspace(-1.24, 1.24, 20001, dtype=torch.float64)  # the whole range that the map can take
    location, log_scale = (value.double() for value in model._distribution(model.quantizer.detokenize(codes)))
    scale = log_scale.flatten()[:8] - 2  # narrow enough that next to nothing lies beyond that range
    density = logit_laplace_log_prob(model._map_pixels(grid)[:, None], location.flatten()[:8], scale)
    mass = torch.trapezoid((density + torch.tensor(0.4).log()).exp(), grid, dim=0)
    torch.testing.assert_close(mass, torch.ones(8, dtype=torch.float64), rtol=0.02, atol=0)
    sample = torch.rand(1, 1, 16, 8) * 2 - 1
    model.register_to_config(reconstruction_loss="logit_laplace")
    output = model(sample)
    log_prob = model.reconstruction_log_prob(sample, output.codes)
    expected = -output.reconstruction_loss * sample.numel() + sample.numel() * math.log(0.4)
    torch.testing.assert_close(log_prob[0], expected, rtol=1e-4, atol=1e-3)


def test_auto_refuses_what_is_no_autoencoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="UNet2DModel"):
        AutoVQModel.from_pretrained(tmp_path)


def test_initialisers_are_sonnets():
    model = VQVAE(hidden_channels=256)
    for conv in (model.encoder_middle, model.upsample[0].conv):
        weight, deviation = conv.weight, (conv.in_channels * conv.kernel_size[0] ** 2) ** -0.5
        assert weight.abs().max() <= 2 * deviation
        # a normal cut at two deviations has 0.8796 of the deviation
        torch.testing.assert_close(weight.std().item(), 0.8796 * deviation, rtol=0.01, atol=0)
        assert conv.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_channels": 0}, "hidden_channels.*0"),
        ({"codebook_size": -1}, "codebook_size.*-1"),
        ({"padding": "sane"}, "padding.*sane"),
        ({"kernel_size": 1}, "kernel_size.*1"),
        ({"middle_kernel_size": 2}, "middle_kernel_size.*2"),
        ({"middle_kernel_size": None, "codebook_dim": 7}, "codebook_dim.*7"),
        ({"reconstruction_loss": "l3"}, "reconstruction_loss.*l3"),
        ({"reconstruction_weight": 0.0}, "reconstruction_weight.*0"),
        ({"quantizer_type": "vq"}, "quantizer_type.*vq"),
        ({"quantizer_config": {"bata": 1}}, "bata.*beta"),
        ({"stage_channels": ()}, "stage_channels"),
        ({"num_residual_layers": -1}, "num_residual_layers.*-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(**arguments)


def test_public_names_exist():
    assert all(hasattr(hf_vq, name) for name in hf_vq.__all__)


@pytest.mark.parametrize("wrong", [torch.linspace(0, 255, 64), torch.full((64,), torch.nan), torch.full((64,), -9.0)])
def test_samples_of_another_scale_have_no_codes(wrong):
    model, sample = VQVAE(1, hidden_channels=8, stage_channels=(4,), codebook_size=8).eval(), wrong.view(1, 1, 8, 8)
    low, high = wrong.min().item(), wrong.max().item()
    with pytest.raises(ValueError, match=rf"^sample must be in \[-1, 1\], got {low} to {high}"):
        model.tokenize(sample)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 0] = True
    model.tokenize(sample.where(~mask[:, None], 1.05), mask)  # as resampling makes it; the rest is padding
    model.train()(torch.linspace(0, 255, 64).view(1, 1, 8, 8)).loss.backward()

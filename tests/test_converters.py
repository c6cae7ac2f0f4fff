"""Facts about converters: every original's numbers, nothing lost on the way, and what a wrong checkpoint says."""

import json
import shutil
import warnings
from dataclasses import dataclass

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file

import hf_vq
import hf_vq_cli
from hf_vq.converters import FORMATS, convert

from .conftest import FIXTURES, channels_first, fixture, sonnet_variables
from .test_converter_files import classes

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SONNET = FIXTURES / "sonnet_vqvae/model_ema/variables.npz"


@dataclass
class Case:
    """A checkpoint of an original, and the names of what it gave."""

    system: str
    source: str
    class_name: str
    prefix: str = ""
    image: str = "image"
    codes: str | tuple = "codes"
    latents: str | tuple | None = "prequant"
    sample: str = "reconstruction"
    from_codes: str | None = "reconstruction_from_codes"
    last: bool = False  # channels
    scale: float = 1.0  # from the original's pixels to [-1, 1]
    shift: float = 0.0

    def read(self):
        tensors = fixture(self.system)[0]

        def get(name, pixels=False):
            if isinstance(name, tuple):
                return tuple(get(one) for one in name)
            tensor = tensors[self.prefix + name if name not in tensors else name]
            if pixels or tensor.is_floating_point():
                tensor = channels_first(tensor) if self.last else tensor
            return tensor * self.scale + self.shift if pixels else tensor

        return get


CASES = {
    "taming-vqgan": Case("taming_vqgan", "last.ckpt", "VQModel"),
    "taming-gumbel": Case("taming_gumbel", "last.ckpt", "VQModel", from_codes=None),
    "llamagen-vq": Case("llamagen_vq", "vq_model.pt", "VQModel"),
    "ibq": Case("ibq", "model.ckpt", "VQModel", prefix="raw."),
    "rqvae": Case("rqvae", "stage1", "RQVAE", latents=None),
    "dalle-dvae": Case(
        "dalle_dvae", "", "DVAE", latents=None, from_codes="reconstruction", scale=2.0, shift=-1.0
    ),
    "rosinality-vqvae2": Case(
        "vqvae2", "vqvae.pt", "VQVAE2", codes=("codes_top", "codes_bottom"),
        latents=("prequant_top", "prequant_bottom"),
    ),
    "ritheshkumar-vqvae": Case("ritheshkumar_vqvae", "best.pt", "VQVAE"),
    "open-magvit2": Case("open_magvit2", "model.ckpt", "MAGVIT2Model", prefix="ema."),
    "vitvqgan": Case("vitvqgan", "", "ViTVQModel", latents=None, scale=2.0, shift=-1.0),
    **{
        f"keras-vqvae, {name}": Case(
            "keras_vqvae_example", name, "VQVAE", image="in.images", codes="out.indices", latents="out.z",
            sample="out.reconstruction", from_codes=None, last=True, scale=2.0,
        )
        for name in ("vqvae_keras2.h5", "vqvae_keras2.weights.h5", "vqvae_keras3.weights.h5", "vqvae_keras3.keras")
    },
    **{
        f"diffusers-vqmodel, {name}": Case(
            f"diffusers_vqmodel/{name}", "", "VQModel", image="in.pixel_values", codes="out.indices",
            latents="out.latents", sample="out.decoded_from_latents", from_codes=None,
        )
        for name in ("attention_blocks", "spatial_norm_movq", "legacy_attention_bin")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_originals_numbers_before_and_after_saving(name, tmp_path):
    case, get = CASES[name], CASES[name].read()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = convert(FIXTURES / case.system / case.source, tmp_path / "out", license="mit")
    assert type(converted).__name__ == case.class_name
    sample, codes = get(case.image, pixels=True), get(case.codes)
    if case.system == "rqvae":  # depth last in the original
        codes = codes.movedim(-1, 1)
    if not converted.hierarchical:  # some are flat in the original
        codes = codes.reshape(-1, *converted.code_shape(sample.shape[1:]))
    for model in (converted, hf_vq.AutoVQModel.from_pretrained(tmp_path / "out")):
        assert not model.training
        with torch.no_grad():
            latents, output = model.encode(sample).latents, model(sample)
        torch.testing.assert_close(model.tokenize(sample), codes, rtol=0, atol=0)
        torch.testing.assert_close(output.codes, codes, rtol=0, atol=0)
        torch.testing.assert_close(output.sample, get(case.sample, pixels=True), **CLOSE)
        if case.latents is not None:
            torch.testing.assert_close(latents, get(case.latents), **CLOSE)
        if case.from_codes is not None:
            torch.testing.assert_close(model.detokenize(codes), get(case.from_codes, pixels=True), **CLOSE)


def test_sonnets_averages_continue_where_they_stood():
    model, variables = hf_vq.VQVAE.from_single_file(SONNET), sonnet_variables("model_ema")
    assert model.quantizer.ema_steps == variables["_vqvae/ema_cluster_size/_counter"]
    assert torch.equal(model.quantizer.cluster_size, variables["_vqvae/ema_cluster_size/_hidden"])
    assert torch.equal(model.quantizer.embedding_sum, variables["_vqvae/ema_dw/_hidden"].T)


@pytest.mark.parametrize("name", ["keras2.h5", "keras2.weights.h5", "keras3.weights.h5", "keras3.keras"])
def test_keras_pixelcnn(name, tmp_path):
    expected = fixture("keras_vqvae_example")[0]
    convert(FIXTURES / f"keras_vqvae_example/pixelcnn_{name}", tmp_path / "out", license="mit")
    prior = hf_vq.AutoVQPrior.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        output = prior(expected["in.codes"])
    torch.testing.assert_close(output.logits, expected["out.pixelcnn_logits"], **CLOSE)
    torch.testing.assert_close(output.loss, expected["out.pixelcnn_loss"], **CLOSE)


def test_dalle_logits_and_statistics():
    tensors = fixture("dalle_dvae")[0]
    model = hf_vq.DVAE.from_single_file(FIXTURES / "dalle_dvae")
    sample = tensors["image"] * 2 - 1
    logits = model.quantizer.proj(model.encode(sample).latents.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(logits, tensors["logits"], **CLOSE)
    location, log_scale = model._distribution(model.quantizer.detokenize(tensors["codes"]))
    torch.testing.assert_close(torch.cat([location, log_scale], dim=1), tensors["decoder_stats"], **CLOSE)


def test_dalle_as_it_was_published(tmp_path, monkeypatch):
    """The files are pickled modules: their classes need not exist, and do not run."""

    def with_parts(module, state):
        for name in dict.fromkeys(name.split(".")[0] for name in state):
            inner = {key.partition(".")[2]: value for key, value in state.items() if key.split(".")[0] == name}
            leaf = "w" in inner
            part = with_parts(Conv2d() if leaf else torch.nn.Sequential(), {} if leaf else inner)
            for key in inner if leaf else ():
                part.register_parameter(key, torch.nn.Parameter(inner[key]))
            module.add_module(name, part)
        return module

    Conv2d, Encoder, Decoder = (type(name, (torch.nn.Module,), {}) for name in ("Conv2d", "Encoder", "Decoder"))
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it finds no source
        classes(patch, {"dall_e.encoder": [Encoder], "dall_e.decoder": [Decoder], "dall_e.utils": [Conv2d]})
        for half, kind in (("encoder", Encoder), ("decoder", Decoder)):
            state = torch.load(FIXTURES / f"dalle_dvae/{half}.pt", weights_only=True)
            torch.save(with_parts(kind(), state), tmp_path / f"{half}.pkl")
    model, tensors = hf_vq.DVAE.from_single_file(tmp_path), fixture("dalle_dvae")[0]
    assert torch.equal(model.tokenize(tensors["image"] * 2 - 1), tensors["codes"])


def gradients(model, latents, name):
    """Of the quantizer's loss, or of its latents times the cotangent, by latents and codebook."""
    tensors = fixture(name)[0]
    latents = latents.clone().requires_grad_()
    output = model.train().quantizer.quantize(latents)
    codebook = model.quantizer.embedding.weight
    through = (output.latents * tensors["train.ste_cotangent"]).sum()
    by_loss = torch.autograd.grad(output.loss, (latents, codebook), retain_graph=True)
    return output.loss, by_loss, torch.autograd.grad(through, latents)[0]


@pytest.mark.parametrize("legacy", [True, False])
def test_taming_training_terms(legacy):
    tensors, model = fixture("taming_vqgan")[0], hf_vq.VQModel.from_single_file(FIXTURES / "taming_vqgan/last.ckpt")
    assert model.quantizer.legacy
    model.quantizer.legacy, kind = legacy, "legacy" if legacy else "fixed"
    loss, (by_latents, by_codebook), through = gradients(model, tensors["prequant"], "taming_vqgan")
    torch.testing.assert_close(loss, tensors[f"train.{kind}_loss"], **CLOSE)
    torch.testing.assert_close(by_latents, tensors[f"train.{kind}_loss_grad_z"], **CLOSE)
    torch.testing.assert_close(by_codebook, tensors[f"train.{kind}_loss_grad_codebook"], **CLOSE)
    torch.testing.assert_close(through, tensors["train.ste_grad_z"], **CLOSE)


def test_llamagen_training_terms():
    tensors, model = fixture("llamagen_vq")[0], hf_vq.VQModel.from_single_file(FIXTURES / "llamagen_vq/vq_model.pt")
    loss, (by_latents, by_codebook), through = gradients(model, tensors["prequant"], "llamagen_vq")
    torch.testing.assert_close(loss, tensors["train.vq_loss"] + tensors["train.commit_loss"], **CLOSE)
    torch.testing.assert_close(by_latents, tensors["train.vq_plus_commit_grad_z"], **CLOSE)
    torch.testing.assert_close(by_codebook, tensors["train.vq_plus_commit_grad_codebook"], **CLOSE)
    torch.testing.assert_close(through, tensors["train.ste_grad_z"], **CLOSE)


def test_rqvae_decodes_fewer_levels_and_counts_the_loss_as_the_original():
    tensors = fixture("rqvae")[0]
    model = hf_vq.RQVAE.from_single_file(FIXTURES / "rqvae/stage1")
    codes = tensors["codes"].movedim(-1, 1)
    fewer = model.detokenize(codes[:, : codes.shape[1] - 1])
    torch.testing.assert_close(fewer, tensors["partial_add_reconstruction"], **CLOSE)
    output = model(tensors["image"])
    torch.testing.assert_close(output.loss, tensors["loss_total"], **CLOSE)
    torch.testing.assert_close(output.reconstruction_loss, tensors["loss_recon"], **CLOSE)


def test_vqvae2_training_objective_and_average_step():
    tensors = fixture("vqvae2")[0]
    model = hf_vq.VQVAE2.from_single_file(FIXTURES / "vqvae2/vqvae.pt")
    output = model.train()(tensors["image"])
    torch.testing.assert_close(output.loss, tensors["train_objective"], **CLOSE)
    for quantizer, level in zip(model.quantizers, ("top", "bottom"), strict=True):
        torch.testing.assert_close(quantizer.cluster_size, tensors[f"ema_step_{level}.cluster_size"], **CLOSE)
        torch.testing.assert_close(quantizer.embedding.weight.T, tensors[f"ema_step_{level}.embed"], **CLOSE)


@pytest.mark.parametrize(("unknown", "expected"), [("extra", "remap_extra"), (7, "remap_int7")])
def test_a_remapped_vqgan(unknown, expected, tmp_path):
    tensors, config = fixture("taming_vqgan")[0], yaml.safe_load((FIXTURES / "taming_vqgan/config.yaml").read_text())
    weights = taming_weights() | {"quantize.used": tensors["remap_extra.used"]}
    torch.save({"state_dict": weights}, tmp_path / "last.ckpt")
    config["model"]["params"] |= {"remap": "used.npy", "unknown_index": unknown}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    convert(tmp_path / "last.ckpt", tmp_path / "out")
    model = hf_vq.AutoVQModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.tokenize(tensors["image"]), tensors[f"{expected}.codes"])
    entries = model.quantizer.detokenize(tensors[f"{expected}.codes"])
    torch.testing.assert_close(entries, tensors[f"{expected}.codebook_entry"])
    torch.testing.assert_close(model(tensors["image"]).sample, tensors["reconstruction"], **CLOSE)
    assert model.codebook_size == 32 + (unknown == "extra")


def test_first_stage_of_a_larger_model(tmp_path):
    weights = {f"first_stage_model.{name}": tensor for name, tensor in taming_weights().items()}
    first_stage = yaml.safe_load((FIXTURES / "taming_vqgan/config.yaml").read_text())["model"]
    config = {"model": {"target": "ldm.LatentDiffusion", "params": {"first_stage_config": first_stage}}}
    torch.save({"state_dict": {**weights, "model.diffusion.weight": torch.ones(2)}}, tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    model = hf_vq.VQModel.from_single_file(tmp_path / "model.ckpt")
    tensors = fixture("taming_vqgan")[0]
    assert torch.equal(model.tokenize(tensors["image"]), tensors["codes"])


def test_what_a_converted_folder_says(tmp_path):
    convert(FIXTURES / "vqvae2/vqvae.pt", tmp_path / "out", license="mit")
    facts = json.loads((tmp_path / "out/conversion.json").read_text())
    assert facts.items() >= {"format": "rosinality-vqvae2", "license": "mit", "source": "vqvae.pt"}.items()
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.license == "mit"
    assert facts["origin"] in card.text


# What goes wrong


def taming_weights():
    """Its tensors without those of the loss."""
    from hf_vq.converters.files import read_file
    from hf_vq.converters.wrappers import find_tensors

    path = FIXTURES / "taming_vqgan/last.ckpt"
    tensors, *_ = find_tensors(read_file(path).content, path)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("loss.")}


@pytest.fixture
def broken(tmp_path):
    """Writes a changed taming checkpoint with its config, and gives its path."""

    def write(change=lambda weights: None, config=lambda params: None):
        weights, told = taming_weights(), yaml.safe_load((FIXTURES / "taming_vqgan/config.yaml").read_text())
        change(weights)
        config(told["model"]["params"])
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
        return tmp_path / "model.safetensors"

    return write


KEY = "encoder.mid.block_1.conv1.weight"


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda w: w.pop(KEY), None, KEY),
        (lambda w: w.pop("encoder.conv_out.weight"), None, "encoder.conv_out.weight"),
        (lambda w: w.update({"decoder.extra.weight": torch.ones(1)}), None, "decoder.extra.weight"),
        (lambda w: w.update({KEY: torch.ones(32, 32, 1, 1)}), None, f"{KEY}.*\\(32, 32, 1, 1\\)"),
        (lambda w: w.update({"quantize.embedding.weight": torch.ones(64)}), None, "quantize.embedding.weight"),
        (None, lambda p: p.update(n_embed=128), "n_embed.*128.*64"),
        (None, lambda p: p["ddconfig"].update(ch_mult=[1, 2, 2]), "ch_mult"),
        (None, lambda p: p["ddconfig"].update(attn_resolutions=[16]), "attn_resolutions"),
        (None, lambda p: p["ddconfig"].update(z_channels="many"), "z_channels.*many"),
        (None, lambda p: p.update(ddconfig=3), "taming-vqgan"),
    ],
)
def test_a_wrong_checkpoint_names_file_and_key_and_writes_nothing(broken, tmp_path, change, config, words):
    path = broken(change or (lambda weights: None), config or (lambda params: None))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=words) as error:
        convert(path, tmp_path / "out")
    assert "model.safetensors" in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.tensor([float("nan")]), "NaN"),
        (torch.tensor([float("-inf")]), "infinity"),
        (torch.tensor([1e300], dtype=torch.float64), "infinity .in torch.float64"),
        (torch.tensor([1], dtype=torch.int32), "int32"),
        (torch.tensor([True]), "bool"),
        (torch.tensor([1j]), "complex64"),
    ],
)
def test_weights_that_are_no_numbers_are_refused_by_name(broken, tmp_path, tensor, words):
    path = broken(lambda weights: weights.update({"encoder.conv_in.bias": tensor.expand(32).clone()}))
    with pytest.raises(ValueError, match=rf"model\.safetensors: encoder\.conv_in\.bias .*{words}"):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_left_out_may_hold_anything(broken, tmp_path):
    path = broken(lambda weights: weights.update({"loss.logvar": torch.tensor(float("nan"))}))
    assert torch.isfinite(convert(path, tmp_path / "out").encoder.conv_in.weight).all()


def test_vqgan_without_config_is_ambiguous_and_a_format_decides(broken, tmp_path):
    path = broken()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors.*taming-vqgan, ibq"):
        convert(path, tmp_path / "out")
    model = convert(path, tmp_path / "out", format="taming-vqgan")
    assert torch.equal(model.tokenize(fixture("taming_vqgan")[0]["image"]), fixture("taming_vqgan")[0]["codes"])


def test_unknown_input_says_what_was_seen_and_what_is_known(tmp_path):
    save_file({"some.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"some\.weight") as error:
        convert(tmp_path / "x.safetensors", tmp_path / "out")
    assert all(name in str(error.value) for name in FORMATS)
    with pytest.raises(ValueError, match=r"format must be one of .*got 'vqgan'"):
        convert(tmp_path / "x.safetensors", tmp_path / "out", format="vqgan")


def test_existing_folders_and_halves_and_classes(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    source = FIXTURES / "vqvae2/vqvae.pt"
    with pytest.raises(ValueError, match=r"out.*not empty"):
        convert(source, tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"out.*mine\.txt"):
        convert(source, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    convert(FIXTURES / "ritheshkumar_vqvae/best.pt", tmp_path / "model")
    convert(source, tmp_path / "model", overwrite=True)
    assert isinstance(hf_vq.AutoVQModel.from_pretrained(tmp_path / "model"), hf_vq.VQVAE2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    shutil.copy(FIXTURES / "dalle_dvae/encoder.pt", tmp_path)
    with pytest.raises(ValueError, match=r"decoder\.pt must be beside it"):
        convert(tmp_path / "encoder.pt", tmp_path / "other")
    with pytest.raises(ValueError, match=r"VQVAE2\.from_single_file"):
        hf_vq.DVAE.from_single_file(source)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert(tmp_path / "nowhere.pt", tmp_path / "other")


def test_the_command_line_asks_for_the_licence(tmp_path, capsys):
    source, out = FIXTURES / "ritheshkumar_vqvae/best.pt", tmp_path / "out"
    assert hf_vq_cli.main(["convert", str(source), str(out)]) == 2
    assert "license" in capsys.readouterr().err
    assert not out.exists()
    assert hf_vq_cli.main(["convert", str(source), str(out), "--license", "mit"]) == 0
    assert "VQVAE" in capsys.readouterr().out

"""Folders that earlier builds saved load for ever, and compute what they computed.

`tests/fixtures/saved/make.py` made them, with the build of each folder's name, here commit 0bb0404:

    PYTHONPATH=CHECKOUT python tests/fixtures/saved/make.py tests/fixtures/saved/0.1.0
"""

import json

import diffusers
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel

import hf_vq
from hf_vq.data.codes import check_tokenizer, load_codes, read_metadata, tokenizer_identity
from hf_vq.data.identity import makes_codes
from hf_vq.data.images import load_images
from hf_vq.data.tokenizing import tokenize_dataset

from .conftest import FIXTURES

SAVED = FIXTURES / "saved/0.1.0"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # between processors, whose kernels round in another order
AUTOENCODERS = {
    "hierarchy/saved/autoencoder": hf_vq.VQVAE2,
    "transformer/saved/autoencoder": hf_vq.VQVAE,
    "vqmodel/saved": hf_vq.VQModel,
    "rqvae/saved": hf_vq.RQVAE,
}
PRIORS = {
    "hierarchy/saved/top_prior": hf_vq.PixelSNAIL,
    "hierarchy/saved/bottom_prior": hf_vq.PixelSNAIL,
    "transformer/saved/prior": hf_vq.TransformerPrior,
}
PIPELINES = {"hierarchy": hf_vq.VQVAE2Pipeline, "transformer": hf_vq.VQPipeline}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of names that have changed since


def expected(folder):
    """Tensors of `expected.safetensors` of a fixture, and its facts."""
    with safe_open(SAVED / folder.split("/")[0] / "expected.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def numbered(prefix, tensors):
    """Of one grid its tensor, of a hierarchy a tuple, as `tokenize` gives them."""
    found = tuple(tensors[name] for name in sorted(tensors) if name.startswith(prefix))
    return found if len(found) > 1 else found[0]


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_give_their_codes_and_samples(name):
    tensors, facts = expected(name)
    codes = numbered("codes_", tensors)
    face = AutoModel.from_pretrained(SAVED / name)
    for model in (
        AUTOENCODERS[name].from_pretrained(SAVED / name),
        hf_vq.AutoVQModel.from_pretrained(SAVED / name),
        face.autoencoder,
    ):
        assert type(model) is AUTOENCODERS[name]
        assert_equal(model.tokenize(tensors["sample"]), codes)
        torch.testing.assert_close(model.detokenize(codes), tensors["decoded"], **CLOSE)
        assert tokenizer_identity(model)["codes_sha256"] == facts["codes_sha256"]
    assert_equal(face.tokenize(tensors["sample"]), codes)


def test_options_are_those_that_were_saved():
    model = hf_vq.AutoVQModel.from_pretrained(SAVED / "hierarchy/saved/autoencoder")
    samples = model.train()(torch.zeros(400, 1, 16, 16)).sample.flatten(1)
    coarse = 1 - samples.unique(dim=0, return_counts=True)[1].max() / 400
    assert 0.15 < coarse < 0.35  # a quarter of equal items was decoded without the finer grid
    model = hf_vq.AutoVQModel.from_pretrained(SAVED / "rqvae/saved")
    attentions = [name for name, module in model.named_modules() if type(module).__name__ == "Attention"]
    assert len(attentions) == 5  # behind one block of the encoder and two of the decoder, and in both middles


@pytest.mark.parametrize("name", ["hierarchy/saved/autoencoder", "rqvae/saved"])
def test_saved_anew_they_are_the_same_tokenizers(name, tmp_path):
    hf_vq.AutoVQModel.from_pretrained(SAVED / name).save_pretrained(tmp_path)
    identity = tokenizer_identity(hf_vq.AutoVQModel.from_pretrained(tmp_path))
    assert identity["codes_sha256"] == expected(name)[1]["codes_sha256"]


NO_OPTIONS = [
    ({}, "ae941a4fb354061b77d992c6a570e579a0dd6aaee9aeb39c6a0f003cf899b0ee"),
    (None, "aaea0e8767b29e947cf9a194071ce74319e7922ce552e913bb8af902cf222504"),
]


@pytest.mark.parametrize(("options", "told"), NO_OPTIONS)
def test_no_options_are_no_other_tokenizer(options, told, tmp_path):
    """The hashes, here of weights that are all 0, are those that the build of the folders gives."""
    model = hf_vq.VQVAE(hidden_channels=8, codebook_size=8, codebook_dim=4, quantizer_type="vector")
    model.quantizer.initialized = True
    for name, tensor in model.state_dict().items():
        tensor.fill_(name == "quantizer.cluster_size")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantizer_config": options}))
    loaded = hf_vq.VQVAE.from_pretrained(tmp_path)
    assert makes_codes(loaded, told)
    assert not makes_codes(model, told)


@torch.no_grad()
def test_the_coarse_grid_decodes_alone():
    model, (tensors, _) = hf_vq.VQVAE2.from_pretrained(SAVED / "hierarchy/saved/autoencoder"), expected("hierarchy")
    torch.testing.assert_close(model.detokenize((tensors["codes_0"], None)), tensors["decoded_coarse"], **CLOSE)


@pytest.mark.parametrize("name", PRIORS)
def test_priors_give_their_likelihoods(name):
    tensors, _ = expected(name)
    finer = name.endswith("bottom_prior")
    conditions = {"class_labels": torch.tensor([1, 2])}
    if finer:
        conditions["context_codes"] = (tensors["codes_0"],)
    for prior in (PRIORS[name].from_pretrained(SAVED / name), hf_vq.AutoVQPrior.from_pretrained(SAVED / name)):
        assert type(prior) is PRIORS[name]
        nats = prior.log_prob(tensors[f"codes_{int(finer)}"], **conditions)
        torch.testing.assert_close(nats, tensors[f"log_prob_{int(finer)}"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_draw_what_they_drew(name):
    tensors, _ = expected(name)
    for pipe in (
        PIPELINES[name].from_pretrained(SAVED / name / "saved"),
        diffusers.DiffusionPipeline.from_pretrained(SAVED / name / "saved", trust_remote_code=True),
    ):
        pipe.set_progress_bar_config(disable=True)
        for kind, wanted, check in (
            ("codes", numbered("drawn_", tensors), {"rtol": 0, "atol": 0}),
            ("pt", tensors["images"], CLOSE),
        ):
            images = pipe(
                class_labels=["line", 0], guidance_scale=1.5, top_k=9, output_type=kind,
                generator=torch.Generator().manual_seed(7),
            ).images  # fmt: skip
            torch.testing.assert_close(images, wanted, **check)


def test_tokenized_data_is_read_checked_and_continued(tmp_path):
    folder = SAVED / "hierarchy/codes"
    model = hf_vq.VQVAE2.from_pretrained(SAVED / "hierarchy/saved/autoencoder").eval()
    images = load_images("digits", split="train[:24]", image_size=16)
    codes = model.tokenize(torch.stack([item["sample"] for item in images]))
    for grid, wanted in enumerate(codes):
        loaded = load_codes(folder, level=grid, context=True, tokenizer=model)
        assert_equal(torch.stack([item["codes"] for item in loaded]), wanted)
        assert_equal(torch.stack([item["class_labels"] for item in loaded]), images.labels)
        assert loaded.code_shape == tuple(wanted.shape[1:])
        assert loaded.codebook_size == 12
        if grid:
            assert_equal(torch.stack([item["context_codes"][0] for item in loaded]), codes[0])
    first, second = sorted((folder / "data").iterdir())
    check_tokenizer(read_metadata(first)["tokenizer"], model, folder)
    assert "images_sha256" in json.loads(pyarrow.parquet.read_schema(first).metadata[b"hf_vq"])  # its name in 0.1.0
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / first.name).write_bytes(first.read_bytes())
    tokenize_dataset(model, images, tmp_path, shard_size=16, path="hierarchy", resume=True)
    assert_equal(
        torch.stack([item["codes"] for item in load_codes(tmp_path, level=1)]),
        torch.stack([item["codes"] for item in load_codes(folder, level=1)]),
    )
    assert (tmp_path / "data" / second.name).is_file()

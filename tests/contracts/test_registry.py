"""The door for users' classes: what `register` takes, what it refuses and how, and who knows a class afterwards."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from transformers import AutoConfig, AutoModel, PreTrainedModel

import hf_vq
from hf_vq import AutoVQModel, VQModel, register
from hf_vq.autoencoders import AutoencoderMixin
from hf_vq.autoencoders.pretrained import AutoencoderForAutoModel
from hf_vq.modalities import IMAGE
from hf_vq.pipelines.base import CodesPipeline
from hf_vq.priors import AutoregressivePrior, Prior, PriorConfig
from hf_vq.quantizers import EMAVectorQuantizer, Quantizer, make_quantizer
from hf_vq.registry import AUTOENCODERS, MODALITIES, PIPELINES, PRIORS, QUANTIZERS, TABLES

from ..registering import register_for_now, tables_as_they_were
from ..tiny_codecs import PictureCodec, make_codec
from ..tiny_priors import RasterConvPrior
from ..tiny_quantizers import SignQuantizer


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    with tables_as_they_were():
        yield


def derived(base, **body):
    """A class of this module on a base."""
    return type("Mine", (base,), {"__module__": __name__, **body})


# What is known afterwards


def test_it_is_a_decorator_with_and_without_a_name():
    assert register(PictureCodec) is PictureCodec
    assert AUTOENCODERS["PictureCodec"] is PictureCodec

    @register("mine")
    class Mine(EMAVectorQuantizer):
        pass

    assert QUANTIZERS["mine"] is Mine
    assert Mine.quantizer_type == "mine"
    assert EMAVectorQuantizer.quantizer_type == "ema"
    assert type(make_quantizer("mine", 8, 4)) is Mine
    assert register(Mine) is Mine
    assert register(SignQuantizer, "sign") is QUANTIZERS["sign"]
    assert hf_vq.register is register


def test_each_table_holds_its_kind_under_the_names_in_saved_folders():
    assert all(type_ == found.quantizer_type for type_, found in QUANTIZERS.items())
    for table in (AUTOENCODERS, PRIORS, PIPELINES):
        assert all(name == found.__name__ for name, found in table.items())
    assert all(name == found.name for name, found in MODALITIES.items())
    for kind, table in TABLES.items():
        assert table
        assert all(found.registry_kind == kind for found in table.values())


@pytest.mark.parametrize("kind", TABLES)
def test_what_is_registered_keeps_the_contract_and_may_register_again(kind):
    before = dict(TABLES[kind])
    for found in before.values():
        register(found)
    assert TABLES[kind] == before


def test_an_autoencoder_has_a_face_at_once(tmp_path):
    register(PictureCodec)
    config_class, face_class = hf_vq.PictureCodecConfig, hf_vq.PictureCodecForAutoModel
    assert issubclass(face_class, AutoencoderForAutoModel)
    assert pickle.loads(pickle.dumps(face_class)) is face_class
    model = make_codec(PictureCodec)
    model.train()(torch.randn(4, 2, 16, 8))
    model.eval().save_pretrained(tmp_path)
    config, face = AutoConfig.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(config) is config_class
    assert (config.model_type, config.strides) == ("hf_vq_picturecodec", [4, 2])
    assert type(face) is face_class
    sample = torch.randn(2, 2, 16, 8)
    assert torch.equal(face.tokenize(sample), model.tokenize(sample))
    text = (tmp_path / "hf_vq_remote.py").read_text()
    assert "import tests.tiny_codecs  #" in text
    assert "from hf_vq import PictureCodec, PictureCodecConfig" in text


@pytest.mark.parametrize("quantizer_type", ["sign", "residual", "product"])
def test_a_quantizer_serves_every_autoencoder_also_as_level_and_group(quantizer_type, tmp_path, monkeypatch):
    register_for_now(monkeypatch, SignQuantizer)
    part = {"sign": None, "residual": {"level_type": "sign", "num_levels": 2}, "product": {"group_type": "sign"}}
    options = {"quantizer_type": quantizer_type, "quantizer_config": part[quantizer_type]}
    size = 4 if quantizer_type == "product" else 16  # two groups of two channels
    sample = torch.randn(4, 3, 16, 16).clamp(-1, 1)
    for make in (
        lambda: hf_vq.VQVAE(hidden_channels=8, codebook_size=size, codebook_dim=4, **options),
        lambda: VQModel(latent_channels=4, num_vq_embeddings=size, block_out_channels=(32,), **options),
    ):
        model = make()
        model.train()(sample).loss.backward()
        model.eval().save_pretrained(tmp_path)
        codes = model.tokenize(sample)
        loaded = AutoVQModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.tokenize(sample), codes)
        torch.testing.assert_close(loaded.detokenize(codes), model.detokenize(codes))
        again = pickle.loads(pickle.dumps(model))
        assert type(again.quantizer) is type(model.quantizer)
        assert torch.equal(again.tokenize(sample), codes)


def test_levels_are_refused_where_they_would_not_learn():
    for level_type in ("gumbel", "index_backpropagation", "remapped", "residual", "product"):
        with pytest.raises(ValueError, match=rf"level_type must be one of \[.*'vector'\], got '{level_type}'"):
            make_quantizer("residual", 8, 4, {"level_type": level_type})


def test_a_modality_and_a_pipeline_are_found_by_name():
    register(replace(IMAGE, name="icon"))
    assert MODALITIES["icon"].plural == "images"

    @register
    class IconPipeline(hf_vq.VQPipeline):
        pass

    assert hf_vq.IconPipeline is PIPELINES["IconPipeline"] is IconPipeline


def test_other_attributes_of_hf_vq_say_what_may_be_missing():
    with pytest.raises(AttributeError, match=r"no attribute 'Nobodys'.*import the package that registers it"):
        hf_vq.Nobodys  # noqa: B018


# What is refused


def test_a_name_belongs_to_one_class():
    for found, words in (
        (derived(EMAVectorQuantizer, quantizer_type="ema"), r"Mine cannot be the quantizer 'ema'.*EMAVectorQuantizer"),
        (type("VQVAE", (hf_vq.VQVAE,), {"__module__": __name__}), r"test_registry\.VQVAE.*hf_vq\..*\.VQVAE is regist"),
        (type("PixelCNN", (hf_vq.PixelCNN,), {"__module__": __name__}), r"the prior 'PixelCNN'"),
        (type("VQPipeline", (hf_vq.VQPipeline,), {"__module__": __name__}), r"the pipeline 'VQPipeline'"),
        (replace(IMAGE, plural="pictures"), r"the modality 'image'"),
    ):
        before = copy.copy(TABLES[found.registry_kind])
        with pytest.raises(ValueError, match=words):
            register(found)
        assert TABLES[found.registry_kind] == before
    with pytest.raises(ValueError, match=r"name='ours'.*'VQVAE'"):
        register(hf_vq.VQVAE, "ours")
    with pytest.raises(ValueError, match=r"name='other'.*quantizer_type of this quantizer is 'ema'"):
        register(EMAVectorQuantizer, "other")


def test_a_class_defined_again_in_its_module_takes_its_own_place():
    first, second = (type("Cell", (hf_vq.VQVAE,), {"__module__": __name__}) for _ in range(2))
    register(first)
    register(second)
    assert hf_vq.Cell is second
    assert hf_vq.CellConfig.autoencoder_class is second
    assert type(AutoConfig.for_model("hf_vq_cell")) is hf_vq.CellConfig


def test_a_model_type_belongs_to_one_class():
    class TakenConfig(PriorConfig):
        model_type = "hf_vq_pixelcnn"

    class StockConfig(PriorConfig):
        model_type = "bert"

    for config_class, owner in ((TakenConfig, "PixelCNNConfig"), (StockConfig, "BertConfig")):
        name = config_class.__name__.removesuffix("Config")
        prior_class = type(name, (RasterConvPrior,), {"__module__": __name__, "config_class": config_class})
        with pytest.raises(
            ValueError, match=rf"model_type='{config_class.model_type}' of .*{name}.* taken by .*{owner}"
        ):
            register(prior_class)
        assert name not in PRIORS
    with pytest.raises(ValueError, match=r"model_type='hf_vq_vqvae' of .*MineConfig is taken by .*VQVAEConfig"):
        register(derived(hf_vq.VQVAE, face_type="hf_vq_vqvae"))


@pytest.mark.parametrize("found", [dict, torch.nn.Linear, PreTrainedModel, type(IMAGE), 3])
def test_what_is_no_model_is_refused(found):
    with pytest.raises(TypeError, match=r"register takes a subclass of AutoencoderMixin.*got"):
        register(found)
    with pytest.raises(TypeError, match=r"register takes a subclass of AutoencoderMixin"):
        register(make_quantizer("ema", 8, 4))


# What a class must have


def needs(base, words, **body):
    return pytest.param(lambda: derived(base, **body), words, id=words[:40])


def init(self, codebook_size=8, reconstruction_loss="mse", reconstruction_weight=1.0):
    pass


def without_default(self, codebook_size, reconstruction_loss="mse", reconstruction_weight=1.0):
    pass


def without_loss(self, codebook_size=8):
    pass


class Bare(AutoencoderMixin, ModelMixin, ConfigMixin):
    """All that an autoencoder needs, as little as possible."""

    space_dims, downsample_factor = 2, 4
    __init__ = register_to_config(init)

    def encode(self, sample):
        pass

    def decode(self, latents):
        pass


class Behind(ModelMixin, AutoencoderMixin, ConfigMixin):
    pass


class Rows(Quantizer):
    def __init__(self, codebook_size, dim, **options):
        super().__init__(codebook_size, dim, **options)

    def _codes(self, rows):
        pass

    def _vectors(self, codes):
        pass


class MineConfig(PriorConfig):
    model_type = "test_mine"


class AfterConfig(MineConfig):
    pass


class Drawn(Prior):
    def sample(self, *arguments, **options):
        pass


class Whole(AutoregressivePrior, PreTrainedModel):
    config_class, grid_dims = MineConfig, 2

    def predict(self, codes):
        pass


class Called(CodesPipeline):
    def __init__(self, autoencoder, prior):
        pass

    def __call__(self):
        pass


def test_little_is_needed():
    for base in (Bare, Rows, Whole, Called):
        kind = base.registry_kind
        TABLES["autoencoder"].pop("Mine", None)  # of the first, by the same name
        TABLES["prior"].pop("Mine", None)
        register(derived(base), "mine" if kind == "quantizer" else None)
        assert TABLES[kind]["mine" if kind == "quantizer" else "Mine"].__mro__[1] is base


@pytest.mark.parametrize(
    ("define", "words"),
    [
        needs(AutoencoderMixin, r"Mine must be a ModelMixin and ConfigMixin"),
        needs(Behind, r"AutoencoderMixin must stand before ModelMixin"),
        needs(Bare, r"Mine\.space_dims must be .* got None", space_dims=None),
        needs(Bare, r"Mine must define encode\(sample\)", encode=None),
        needs(Bare, r"Mine must define decode\(latents\)", decode=None),
        needs(Bare, r"Mine must define the property downsample_factor", downsample_factor=None),
        needs(Bare, r"Mine must define the property downsample_factors", hierarchical=True),
        needs(Bare, r"Mine must define the property quantizers", hierarchical=True, downsample_factors=(8, 4)),
        needs(Bare, r"decorated with @register_to_config", __init__=init),
        needs(Bare, r"must have a default for codebook_size", __init__=register_to_config(without_default)),
        needs(Bare, r"must take reconstruction_loss, which", __init__=register_to_config(without_loss)),
        needs(Bare, r"modality must be None or one of \[.*'image'.*\], got 'smell'", modality="smell"),
        needs(Rows, r"Mine has no quantizer_type"),
        needs(Rows, r"must begin with codebook_size, dim; it takes dim", quantizer_type="mine",
              __init__=lambda self, dim: None),
        needs(Rows, r"Mine must define _codes", quantizer_type="mine", _codes=Quantizer._codes),
        needs(Rows, r"Mine must define _vectors", quantizer_type="mine", _vectors=Quantizer._vectors),
        needs(Rows, r"it must define _initialize", quantizer_type="mine", initialized=False),
        needs(Drawn, r"Mine must be a PreTrainedModel"),
        needs(Whole, r"Mine\.config_class must be a subclass of PriorConfig, got None", config_class=None),
        needs(Whole, r"PriorConfig must have a model_type", config_class=PriorConfig),
        needs(Whole, r"must be called MineConfig, got AfterConfig", config_class=AfterConfig),
        needs(Whole, r"Mine must define forward\(codes", forward=PreTrainedModel.forward),
        needs(Whole, r"Mine must define predict\(codes", predict=AutoregressivePrior.predict),
        needs(Whole, r"Mine has conditions of its own: it must define a forward", make_conditions=lambda self: ()),
        needs(Called, r"must take autoencoder, and prior.*it takes model", __init__=lambda self, model: None),
        needs(CodesPipeline, r"Mine must define __call__"),
    ],
)  # fmt: skip
def test_a_class_that_breaks_the_contract_is_told_what_it_lacks(define, words):
    found = define()
    before = dict(TABLES[found.registry_kind])
    with pytest.raises((TypeError, ValueError), match=words):
        register(found)
    assert TABLES[found.registry_kind] == before

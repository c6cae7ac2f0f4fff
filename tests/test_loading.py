"""What loading refuses: folders of another class, weights that are missing, no numbers, or not finite."""

import itertools
import json
import warnings

import diffusers
import pytest
import torch
import transformers
from diffusers.configuration_utils import register_to_config
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file

import hf_vq
from hf_vq import AutoVQModel, AutoVQPrior, as_grids
from hf_vq.quantizers import Quantizer

from .contracts import test_autoencoders, test_pipelines, test_priors
from .quantizer_variants import VARIANTS
from .registering import register_for_now
from .tiny_codecs import PictureCodec, make_codec, register_codecs
from .tiny_priors import RasterConvPrior

WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")


class KeepingCodec(PictureCodec):
    """Of a user who keeps more than quantizers in float32."""

    _keep_in_fp32_modules = ["quantizer", "to_sample"]


@pytest.fixture(autouse=True)
def classes_of_the_users(monkeypatch):
    register_codecs(monkeypatch)
    register_for_now(monkeypatch, test_priors.ToyMaskedPrior, RasterConvPrior, test_pipelines.SignalPipeline)
    register_for_now(monkeypatch, KeepingCodec)
    monkeypatch.setitem(test_autoencoders.SMALL, "KeepingCodec", {"channels": 1, "strides": (2, 2)})


def file_of(folder):
    return next(folder / name for name in WEIGHTS if (folder / name).exists())


def write(folder, weights):
    """Other tensors in a saved folder."""
    save_file(weights, file_of(folder), {"format": "pt"})


def change(folder, edit):
    """Edit the tensors of a saved folder, a dict."""
    weights = load_file(file_of(folder))
    edit(weights)
    write(folder, weights)


LOADERS = (AutoVQModel, transformers.AutoModel)  # which load by the class and by its face


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One small folder of every kind."""
    root = tmp_path_factory.mktemp("folders")
    hf_vq.VQVAE(hidden_channels=8, codebook_size=8, codebook_dim=4).save_pretrained(root / "VQVAE")
    hf_vq.VQModel(**test_autoencoders.SMALL["VQModel"]).save_pretrained(root / "VQModel")
    for name, family in (("PixelCNN", "pixelcnn gated"), ("GPTPrior", "gpt"), ("TransformerPrior", "class and text")):
        test_priors.FAMILIES[family][0].save_pretrained(root / name)
    test_pipelines.BUILD["VQPipeline"]().save_pretrained(root / "VQPipeline")
    return root


WRONG = {  # what loads, and the class of the folder that it cannot be
    "autoencoder": ("VQModel", "VQVAE", "AutoVQModel"),
    "drop-in": ("VQVAE", "VQModel", "AutoVQModel"),
    "autoencoder of a prior": ("VQVAE", "PixelCNN", "AutoVQPrior"),
    "autoencoder of a pipeline": ("VQVAE", "VQPipeline", "DiffusionPipeline"),
    "face": ("VQModelForAutoModel", "VQVAE", "AutoVQModel"),
    "face's config": ("VQVAEConfig", "VQModel", "AutoVQModel"),
    "prior": ("GPTPrior", "PixelCNN", "AutoVQPrior"),
    "prior of a Llama": ("PixelCNN", "TransformerPrior", "AutoVQPrior"),
    "Llama of a prior": ("TransformerPrior", "GPTPrior", "AutoVQPrior"),
    "prior's config": ("PixelCNNConfig", "GPTPrior", "AutoVQPrior"),
    "prior of an autoencoder": ("PixelCNN", "VQVAE", "AutoVQModel"),
    "prior of a pipeline": ("PixelCNN", "VQPipeline", "DiffusionPipeline"),
    "pipeline": ("VQVAE2Pipeline", "VQPipeline", "VQPipeline.from_pretrained"),
    "pipeline of an autoencoder": ("VQPipeline", "VQVAE", "AutoVQModel"),
    "auto": ("AutoVQModel", "PixelCNN", "AutoVQPrior"),
    "auto of a pipeline": ("AutoVQModel", "VQPipeline", "DiffusionPipeline"),
    "auto prior": ("AutoVQPrior", "VQVAE", "AutoVQModel"),
    "auto prior of a pipeline": ("AutoVQPrior", "VQPipeline", "DiffusionPipeline"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_of_another_class_is_refused(folders, case):
    wanted, saved, loader = WRONG[case]
    with pytest.raises(ValueError, match=rf"{saved}.* holds .*{saved}.*{loader}") as error:
        getattr(hf_vq, wanted).from_pretrained(folders / saved)
    assert "\n" not in str(error.value)


def test_what_a_class_is_a_subclass_of_loads_and_the_reverse_does_not(tmp_path, monkeypatch):
    class Special(PictureCodec):
        pass

    register_for_now(monkeypatch, Special)
    make_codec(PictureCodec).save_pretrained(tmp_path / "base")
    assert type(Special.from_pretrained(tmp_path / "base")) is Special
    Special().save_pretrained(tmp_path / "special")
    with pytest.raises(ValueError, match="holds a Special, not a PictureCodec"):
        PictureCodec.from_pretrained(tmp_path / "special")
    with pytest.raises(ValueError, match="config holds a Special"):
        PictureCodec.from_config(json.loads((tmp_path / "special" / "config.json").read_text()))


def test_stock_libraries_load_what_they_did(folders):
    assert type(diffusers.VQModel.from_pretrained(folders / "VQModel")) is diffusers.VQModel
    assert type(transformers.AutoModel.from_pretrained(folders / "VQVAE").autoencoder) is hf_vq.VQVAE
    assert type(transformers.AutoModelForCausalLM.from_pretrained(folders / "TransformerPrior")).__name__ in (
        "LlamaForCausalLM", "TransformerPrior",
    )  # fmt: skip


@test_autoencoders.every
def test_autoencoders_load_whole_or_not_at_all(name, tmp_path):
    """Every tensor: what can be derived is, by each way of loading; all else is refused by name."""
    model, sample = test_autoencoders.make(name)
    model.train()(sample)
    model.eval().save_pretrained(tmp_path)
    state, derived = model.state_dict(), set()
    for tensor in state:
        leaf = tensor.rpartition(".")[2]
        known = ("cluster_size", "embedding_sum", "steps", "position_embedding", "num_batches_tracked")
        if leaf in known and ".fitted." not in tensor:  # moments of latents follow from nothing
            derived.add(tensor)
    change(tmp_path, lambda weights: [weights.pop(tensor) for tensor in derived])
    for loader in LOADERS:
        loaded = loader.from_pretrained(tmp_path)
        loaded = getattr(loaded, "autoencoder", loaded)
        for part, tensor in loaded.named_buffers():
            if part.endswith("position_embedding"):
                assert torch.equal(tensor, state[part])
            if part in derived and part.endswith("steps"):
                assert tensor == 0
            if part.endswith("cluster_size"):
                assert tensor.eq(1).all()
            if part.endswith("embedding_sum"):
                torch.testing.assert_close(tensor, state[part.replace("embedding_sum", "embedding.weight")])
        grids = zip(hf_vq.as_grids(loaded.tokenize(sample)), hf_vq.as_grids(model.tokenize(sample)), strict=True)
        assert all(torch.equal(one, other) for one, other in grids)
    codebook = [tensor for tensor in state if "embedding.weight" in tensor and "quant" in tensor][:1]
    first, weights = sorted(set(state) - derived - set(codebook))[0], load_file(file_of(tmp_path))
    for gone in (first, *codebook):
        write(tmp_path, {tensor: value for tensor, value in weights.items() if tensor != gone})
        for loader in LOADERS:
            with pytest.raises(ValueError, match=f"lacks {gone.replace('.', '[.]')} of"):
                loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_tensor_of_every_quantizer_is_derived_or_refused(variant, tmp_path):
    kind, size, config = VARIANTS[variant]
    model = PictureCodec(1, (2, 2), size, 6, quantizer_type=kind, quantizer_config=config)
    model.train()(torch.randn(8, 1, 12, 12))
    model.save_pretrained(tmp_path)
    weights, refused = load_file(file_of(tmp_path)), []
    for name in (name for name in weights if name.startswith("quantizer.")):
        write(tmp_path, {key: tensor for key, tensor in weights.items() if key != name})
        try:
            loaded = transformers.AutoModel.from_pretrained(tmp_path).autoencoder
            tensor = loaded.state_dict()[name]
            assert name.rpartition(".")[2] in ("cluster_size", "embedding_sum", "ema_steps", "steps")
            assert tensor.isfinite().all()
            assert tensor.double().abs().max() < 100
        except ValueError as error:
            assert f"lacks {name} of" in str(error)  # noqa: PT017
            refused.append(name)
    if refused:  # by the class, too
        write(tmp_path, {key: tensor for key, tensor in weights.items() if key not in refused})
        with pytest.raises(ValueError, match=f"lacks .*{refused[0]}"):
            PictureCodec.from_pretrained(tmp_path)


@test_priors.every
def test_priors_load_whole_or_not_at_all(name, tmp_path):
    prior, *_ = test_priors.make(name)
    prior.save_pretrained(tmp_path)
    names, weights = list(prior.state_dict()), load_file(file_of(tmp_path))
    # a Llama without hf_vq's class is stock's own
    auto = type(prior) if prior.config.model_type == "llama" else transformers.AutoModel
    for gone, loader in ((names[0], AutoVQPrior), (names[-1], auto)):
        write(tmp_path, {key: tensor for key, tensor in weights.items() if key != gone})
        with pytest.raises(ValueError, match=f"lacks {gone.replace('.', '[.]')} of"):
            loader.from_pretrained(tmp_path)
    write(tmp_path, weights)
    loaded, info = type(prior).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(tensor, prior.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_code_vectors_of_a_prior_are_not_made_up(tmp_path):
    prior, *_ = test_priors.FAMILIES["rq classes"]
    prior.save_pretrained(tmp_path)
    change(tmp_path, lambda weights: weights.pop("code_vectors"))
    with pytest.raises(ValueError, match="lacks code_vectors of RQTransformer"):
        transformers.AutoModel.from_pretrained(tmp_path)


class Remembering(PictureCodec):
    """A user's codec with buffers of its own: a mask that is not saved, and one with infinities that is."""

    @register_to_config
    def __init__(self, channels=2, strides=(2, 2), reconstruction_loss="mse", reconstruction_weight=1.0):
        super().__init__(channels, strides)
        self.register_buffer("ramp", torch.arange(4.0), persistent=False)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


def test_buffers_of_a_users_model_are_those_of_its_constructor(tmp_path, monkeypatch):
    register_for_now(monkeypatch, Remembering)
    Remembering().save_pretrained(tmp_path)
    for loader in (Remembering, transformers.AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        loaded = getattr(loaded, "autoencoder", loaded)
        assert torch.equal(loaded.ramp, torch.arange(4.0))
        assert loaded.mask[0, 1] == -torch.inf
    change(tmp_path, lambda weights: weights["mask"].fill_(torch.inf))
    with pytest.raises(ValueError, match="mask of Remembering holds NaN or infinity"):
        Remembering.from_pretrained(tmp_path)
    change(tmp_path, lambda weights: weights.pop("mask"))
    with pytest.raises(ValueError, match="lacks mask of Remembering"):
        transformers.AutoModel.from_pretrained(tmp_path)


def spoil(value, dtype):
    def edit(weights, name):
        weights[name] = weights[name].to(dtype) if dtype else weights[name].float()
        if value is not None:
            weights[name].view(-1)[-1] = value

    return edit


SPOILS = {
    "NaN": (spoil(torch.nan, None), "NaN or infinity"),
    "infinity": (spoil(torch.inf, None), "NaN or infinity"),
    "NaN in half precision": (spoil(torch.nan, torch.bfloat16), "NaN or infinity"),
    "integers": (spoil(None, torch.int32), "is stored as int32"),
    "bytes": (spoil(None, torch.uint8), "is stored as uint8"),
    "bool": (spoil(None, torch.bool), "is stored as bool"),
    "complex": (spoil(None, torch.complex64), "is stored as complex64"),
}


@pytest.mark.parametrize("name", ["VQVAE", "VQModel", "SignalCodec"])
def test_weights_that_are_no_numbers_are_refused_by_name(name, tmp_path):
    model, _ = test_autoencoders.make(name)
    model.save_pretrained(tmp_path)
    parameter = next(iter(dict(model.named_parameters())))
    codebook = next(key for key in model.state_dict() if key.endswith("embedding.weight"))
    for (kind, (edit, words)), spoiled in itertools.product(SPOILS.items(), (parameter, codebook)):
        weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        edit(weights, spoiled)
        write(tmp_path, weights)
        # every kind by the class; one of each message by the face, too
        for loader in LOADERS if kind in ("NaN", "integers", "complex") else LOADERS[:1]:
            with pytest.raises(ValueError, match=rf"(: {spoiled}|{spoiled} of).*{words}|{spoiled} {words}"):
                loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["pixelcnn gated", "class and text", test_priors.TOY])
def test_weights_of_priors_that_are_no_numbers_are_refused_by_name(name, tmp_path):
    prior, *_ = test_priors.make(name)
    prior.save_pretrained(tmp_path)
    spoiled = next(iter(prior.state_dict()))
    right = load_file(file_of(tmp_path))
    for edit, words in SPOILS.values():
        weights = dict(right) | {spoiled: right[spoiled].clone()}
        edit(weights, spoiled)
        write(tmp_path, weights)
        with pytest.raises(ValueError, match=f"{spoiled}.*{words}"):
            AutoVQPrior.from_pretrained(tmp_path)


def test_pipelines_refuse_the_weights_that_their_parts_refuse(folders, tmp_path):
    pipe = test_pipelines.BUILD["VQPipeline"]()
    pipe.save_pretrained(tmp_path)
    name = next(iter(pipe.prior.state_dict()))
    change(tmp_path / "prior", lambda weights: weights[name].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"prior: {name} of PixelCNN holds NaN"):
        type(pipe).from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_load(dtype, tmp_path):
    model, _ = test_autoencoders.make("VQVAE")
    model.save_pretrained(tmp_path)
    change(tmp_path, lambda weights: weights.update({n: t.to(dtype) for n, t in weights.items()}))
    for loader in LOADERS:
        loaded = loader.from_pretrained(tmp_path)
        assert all(
            torch.equal(tensor.double(), model.state_dict()[name].to(dtype).double())
            for name, tensor in getattr(loaded, "autoencoder", loaded).state_dict().items()
        )


def save_with_averages(model, folder):
    EMAModel(model.parameters(), model_cls=type(model), model_config=model.config).save_pretrained(folder)


@pytest.mark.parametrize("name", ["VQVAE", "VQModel", "SignalCodec"])
def test_averages_of_diffusers_never_come_back_with_a_random_codebook(name, tmp_path):
    model, sample = test_autoencoders.make(name)
    kept_in_buffers = "embedding.weight" in " ".join(key for key, _ in model.named_buffers())
    if not kept_in_buffers:  # all that matters is a parameter
        save_with_averages(model, tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert torch.equal(loaded.tokenize(sample), model.eval().tokenize(sample))
        assert loaded.codebook_initialized
        loaded.save_pretrained(tmp_path)
        return
    with pytest.raises(ValueError, match=r"EMAModel saves parameters only.*quantizer\.embedding\.weight"):
        save_with_averages(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    model.save_pretrained(tmp_path / "old")  # as EMAModel left them with older versions
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    state = EMAModel(model.parameters()).state_dict()
    config |= {key: value for key, value in state.items() if key != "shadow_params"}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"old was saved by EMAModel.*quantizer\.embedding\.weight"):
        type(model).from_pretrained(tmp_path / "old")


def unstarted_warnings(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, sum("has never started" in str(one.message) for one in caught)


UNSTARTED = {  # types and options of quantizers that are to start
    "ema": ("ema", {}),
    "ema from zero": ("ema", {"zero_debias": True}),
    "vector": ("vector", {}),
    "vector without restarts": ("vector", {"restart_threshold": 0.0}),
    "frozen codes": ("vector", {"code_transform": True}),
    "residual": ("residual", {}),
    "product": ("product", {}),
    "remapped": ("remapped", {"num_used": 8}),
    "gumbel": ("gumbel", {}),
    "user's": ("late", {}),
}


class LateQuantizer(Quantizer):
    """Of a user: rows of a table that the first batch fills."""

    initialized = False
    quantizer_type = "late"

    def __init__(self, codebook_size: int, dim: int):
        super().__init__(codebook_size, dim)
        self.register_buffer("table", torch.randn(codebook_size, dim))

    def _initialize(self, rows):
        self.table.copy_(rows[: len(self.table)])
        self.initialized = True
        return True

    def _codes(self, rows):
        return torch.cdist(rows, self.table).argmin(dim=1)

    def _vectors(self, codes):
        return self.table[codes]


@pytest.mark.parametrize("kind", UNSTARTED)
def test_a_codebook_that_never_started_says_so(kind, tmp_path, monkeypatch):
    register_for_now(monkeypatch, LateQuantizer)
    quantizer_type, options = UNSTARTED[kind]
    model = PictureCodec(2, (2, 2), 8, 4, quantizer_type=quantizer_type, quantizer_config=options)
    sample = torch.randn(4, 2, 8, 8)
    assert unstarted_warnings(lambda: model.save_pretrained(tmp_path))[1] == 1
    for options in ({}, {"low_cpu_mem_usage": False}):
        loaded, count = unstarted_warnings(lambda options=options: PictureCodec.from_pretrained(tmp_path, **options))
        assert count == 1
        assert not loaded.codebook_initialized
        assert all(torch.equal(buffer, model.get_buffer(name)) for name, buffer in loaded.named_buffers())
    assert unstarted_warnings(lambda: transformers.AutoModel.from_pretrained(tmp_path))[1] == 1
    codes, count = unstarted_warnings(lambda: loaded.tokenize(sample))
    assert count == 1
    assert torch.equal(codes, unstarted_warnings(lambda: model.tokenize(sample))[0])

    def train():  # which starts it, and says nothing
        loaded.train()(sample)
        loaded.save_pretrained(tmp_path)
        again = PictureCodec.from_pretrained(tmp_path)
        return again, again.tokenize(sample)

    (again, _), count = unstarted_warnings(train)
    assert count == 0
    assert again.codebook_initialized
    assert not any("unstarted" in name for name in again.state_dict())
    assert "unstarted" in " ".join(model.state_dict())
    model.load_state_dict(again.state_dict())
    assert model.codebook_initialized


@pytest.mark.parametrize("kind", ["ema", "ema from zero", "vector", "residual"])
def test_a_codebook_that_never_started_said_so_by_its_use(kind, tmp_path):
    """Before there was a key for it."""
    quantizer_type, options = UNSTARTED[kind]
    model = PictureCodec(2, (2, 2), 8, 4, quantizer_type=quantizer_type, quantizer_config=options)

    def as_before(weights):
        for name in [name for name in weights if name.endswith("unstarted")]:
            del weights[name]
        for name in [name for name in weights if name.endswith("cluster_size")]:
            weights[name].zero_()

    model.save_pretrained(tmp_path)
    change(tmp_path, as_before)
    state = load_file(file_of(tmp_path))
    loaded = [each.from_pretrained(tmp_path) for each in (PictureCodec, transformers.AutoModel)]
    loaded.append(PictureCodec.from_pretrained(tmp_path, low_cpu_mem_usage=False))
    loaded.append(PictureCodec(2, (2, 2), 8, 4, quantizer_type=quantizer_type, quantizer_config=options))
    loaded[-1].load_state_dict(state)
    for one in loaded:
        one = getattr(one, "autoencoder", one)
        assert not one.codebook_initialized
        assert all(torch.equal(buffer, model.get_buffer(name)) for name, buffer in one.named_buffers())


@pytest.mark.parametrize("kind", ["autoencoder", "drop-in", "user's", "face", "prior", "Llama", "pipeline"])
def test_wrong_options_of_saving_are_refused_before_anything_is_written(kind, tmp_path):
    model = {
        "autoencoder": lambda: test_autoencoders.make("VQVAE")[0],
        "drop-in": lambda: test_autoencoders.make("VQModel")[0],
        "user's": lambda: make_codec(PictureCodec),
        "face": lambda: hf_vq.VQVAEForAutoModel.from_autoencoder(test_autoencoders.make("VQVAE")[0]),
        "prior": lambda: test_priors.FAMILIES["pixelcnn gated"][0],
        "Llama": lambda: test_priors.FAMILIES["class and text"][0],
        "pipeline": lambda: test_pipelines.BUILD["VQPipeline"](),
    }[kind]()
    for options, error in (
        ({"safe_serialization": False}, ValueError),
        ({"max_shard_size": "five"}, ValueError),
        ({"max_shard_size": 0}, ValueError),
        ({"variant": "../up"}, ValueError),
        ({"nonsense": 1}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(options)) if options != {"max_shard_size": "five"} else "five"):
            model.save_pretrained(tmp_path / "new", **options)
        assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):
        model.save_pretrained(tmp_path / "file")
    model.save_pretrained(tmp_path / "new", safe_serialization=True)
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", [*sorted(test_autoencoders.SMALL), "SignalCodec", "KeepingCodec"])
def test_what_stock_accepts_when_it_loads_plainly(name, dtype, tmp_path):
    model, sample = test_autoencoders.make(name)
    model.save_pretrained(tmp_path)
    options = {} if dtype is None else {"torch_dtype": dtype}
    loaded = AutoVQModel.from_pretrained(tmp_path, low_cpu_mem_usage=False, **options)
    usual = type(model).from_pretrained(tmp_path, **options)
    assert loaded.dtype == (dtype or torch.float32)
    for key, tensor in usual.state_dict().items():
        assert tensor.dtype == loaded.state_dict()[key].dtype
        assert torch.equal(tensor, loaded.state_dict()[key])
    given, expected = (as_grids(each.tokenize(sample.to(each.dtype))) for each in (loaded, usual))
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


def test_other_sizes_load_where_the_caller_says_so(tmp_path):
    model, _ = test_autoencoders.make("VQModel")
    model.save_pretrained(tmp_path)
    options = {"low_cpu_mem_usage": False, "ignore_mismatched_sizes": True, "num_vq_embeddings": 6}
    assert diffusers.VQModel.from_pretrained(tmp_path, **options).config.num_vq_embeddings == 6
    assert hf_vq.VQModel.from_pretrained(tmp_path, **options).codebook_size == 6


def test_a_subfolder_has_its_own_weights_where_the_folder_has_some_too(tmp_path):
    """diffusers takes the config of the one, and the weights of the other."""
    for folder in (tmp_path, tmp_path / "ema"):
        make_codec(PictureCodec).save_pretrained(folder)
    for name, options in ((tmp_path, {"subfolder": "ema"}), (tmp_path / "ema", {}), (tmp_path, {})):
        wanted = load_file((name / options.get("subfolder", "")) / "diffusion_pytorch_model.safetensors")
        found = PictureCodec.from_pretrained(name, **options).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    for loader in (PictureCodec, AutoVQModel):
        with pytest.raises(FileNotFoundError, match="has no folder 'emaa'"):
            loader.from_pretrained(tmp_path, subfolder="emaa")

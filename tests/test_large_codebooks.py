"""Codebooks of 2^18 to 2^63 codes: every tool behind the quantizers takes them, in the memory of what occurs."""

import math
import resource

import numpy as np
import pytest
import torch

from hf_vq import VQVAE
from hf_vq.cli.inspect import describe
from hf_vq.data.codes import load_codes
from hf_vq.data.tokenizing import storage_dtype, tokenize_dataset
from hf_vq.metrics import counts as counting
from hf_vq.metrics.codebook import CodebookUsage
from hf_vq.metrics.counts import CodeCounts
from hf_vq.metrics.likelihood import CodeLikelihood
from hf_vq.modalities.image_pictures import save_code_maps
from hf_vq.priors import PRIORS
from hf_vq.quantizers import QUANTIZERS, Quantizer, make_quantizer
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.likelihood import evaluate_likelihood
from hf_vq.training.pictures import save_usage_histogram

from .registering import register_for_now
from .tiny_codecs import PictureCodec
from .tiny_models import Images

FREE = {"entropy_weight": 0.0}
LARGE = {  # quantizer type, codes, options
    **{f"2^{bits} signs": ("lookup_free", 2**bits, FREE) for bits in (18, 31, 32, 63)},
    "FSQ of 2^63": ("finite_scalar", 2**63, {"levels_per_dim": [2] * 63, "preserve_symmetry": True}),
    "FSQ of 3^39": ("finite_scalar", 3**39, {"levels_per_dim": [3] * 39}),
    "residual signs": ("residual", 2**40, {"num_levels": 2, "level_type": "lookup_free", "level_config": FREE}),
    "residual FSQ": ("residual", 2**40, {"num_levels": 2, "level_type": "finite_scalar",
                                         "level_config": {"levels_per_dim": [32] * 8}}),
    "groups of signs": ("product", 2**36, {"groups": 2, "group_type": "lookup_free", "group_config": FREE}),
    "groups of FSQ": ("product", 4**20, {"groups": 2, "group_type": "finite_scalar",
                                         "group_config": {"levels_per_dim": [4] * 20}}),
}  # fmt: skip
PICTURED = ("2^63 signs", "residual FSQ")  # pictures see sizes and levels alone
every = pytest.mark.parametrize("name", LARGE)


@pytest.fixture(autouse=True)
def own_cache_and_classes(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    register_for_now(monkeypatch, PictureCodec)


def codec(name):
    torch.manual_seed(0)
    quantizer_type, size, options = LARGE[name]
    return PictureCodec(1, (2, 2), size, codebook_dim=8, quantizer_type=quantizer_type, quantizer_config=options)


@every
def test_a_large_codebook_goes_the_whole_road(name, tmp_path):
    model, images = codec(name), Images(12)
    size, levels = model.codebook_size, model.num_levels
    args = AutoencoderTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, eval_steps=2, use_cpu=True, disable_tqdm=True
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = train_autoencoder(model, images, args, images)
    codes = model.eval().tokenize(images.samples)
    seen = [len(level.unique()) for level in (codes.unbind(1) if levels > 1 else [codes])]
    assert report["metrics"]["eval_dead_codes"] == sum(size - each for each in seen)
    assert report["metrics"]["eval_usage"] == pytest.approx(sum(seen) / levels / size, rel=1e-9)
    assert codes.max() > 2**17
    # what is written is what is read
    tokenize_dataset(model, images, tmp_path / "codes", shard_size=7)
    dataset = load_codes(tmp_path / "codes", tokenizer=model)
    assert dataset.codes.dtype == storage_dtype(size)
    assert torch.equal(torch.stack([item["codes"] for item in dataset]), codes)
    assert torch.equal(model.detokenize(torch.from_numpy(dataset.codes)), model.detokenize(codes))
    assert describe(str(tmp_path / "codes"))["codebook_size"] == size
    assert describe(str(tmp_path / "run"))["codebook_size"] == size
    # figures
    (figures,), _ = evaluate_likelihood(model, None, images)
    assert figures["nats_per_code"] == pytest.approx(math.log(size))
    if name in PICTURED:
        whole = CodebookUsage(size, levels)
        whole.update(codes)
        save_code_maps(tmp_path / "maps.png", images.samples[:2], codes[:2], size)
        save_usage_histogram(tmp_path / "usage.png", whole.compute().counts, size * levels)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 2**10  # KiB


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_seen_codes_give_the_figures_of_a_counter_for_each(batch_size, levels, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1000, (40, levels, 4, 4), generator=generator) ** 2 // 1000
    codes = codes if levels > 1 else codes[:, 0]
    mask = torch.rand(40, 4, 4, generator=generator) < 0.7

    def figures(waiting):
        monkeypatch.setattr(counting, "GATHERED", waiting)
        usage, likelihood = CodebookUsage(1000, levels), CodeLikelihood(1000, (1, 8, 8))
        for _ in range(2):  # the second time from nothing
            usage.reset()
            likelihood.reset()
            for batch, real in zip(codes.split(batch_size), mask.split(batch_size), strict=True):
                usage.update(batch, real)
                likelihood.update(batch, torch.full((len(batch),), -50.0))
        return usage.compute(), likelihood.compute()

    dense, dense_likelihood = figures(0)
    monkeypatch.setattr(counting, "DENSE_CODES", 0)
    for waiting in (0, 10**6):
        sparse, sparse_likelihood = figures(waiting)
        assert torch.equal(sparse.counts, dense.counts[dense.counts > 0])
        assert sparse.dead_codes == dense.dead_codes
        assert sparse.usage == pytest.approx(dense.usage, rel=1e-12)
        assert sparse.perplexity == pytest.approx(dense.perplexity, rel=1e-12)
        assert vars(sparse_likelihood) == pytest.approx(vars(dense_likelihood), rel=1e-12)


@pytest.mark.parametrize(
    "size", [2, *(2**bits + more for bits in (8, 16, 31, 32, 36, 62) for more in (-1, 0, 1)), 2**63]
)
def test_every_code_fits_the_type_that_stores_it_and_none_smaller(size):
    dtype = storage_dtype(size)
    assert np.array([size - 1]).astype(dtype).tolist() == [size - 1]
    smaller = [name for name in ("uint8", "uint16", "int32", "uint32") if np.dtype(name).itemsize < dtype.itemsize]
    assert all(np.iinfo(name).max < size - 1 for name in smaller)


def test_what_cannot_be_is_refused_in_one_line_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=rf"codebook_size={2**63 + 1}: codes beyond 2\*\*63 - 1 fit no integer type"):
        storage_dtype(2**63 + 1)
    for make in (
        lambda size: make_quantizer("lookup_free", size, 4, FREE),
        lambda size: make_quantizer("finite_scalar", size, 4, {"levels_per_dim": [2] * 64}),
        lambda size: VQVAE(codebook_size=size, codebook_dim=4, quantizer_type="lookup_free", quantizer_config=FREE),
    ):
        with pytest.raises(ValueError, match=rf"codebook_size must be an integer between 1 and .* got {2**64}$"):
            make(2**64)
    with pytest.raises(ValueError, match=rf"codebook_size={2**40} is too large for a table of code vectors"):
        codec("residual signs").quantizer.code_vectors()
    with pytest.raises(ValueError, match=rf"codes must be in \[0, {2**36}\), got 0 to {2**36}"):
        CodeCounts(2**36).add(torch.tensor([0, 2**36]))
    with pytest.raises(ValueError, match=rf"codes must be in \[0, {2**36}\), got -1 to -1"):
        CodebookUsage(2**36).update(torch.tensor([[-1]]))


@pytest.mark.parametrize("name", sorted(PRIORS))
@pytest.mark.parametrize("size", [2**24 + 1, 2**36, 2**62])
def test_a_prior_with_an_entry_for_each_of_so_many_codes_is_refused_by_its_config(name, size):
    needed = {"DelayedTransformerPrior": {"num_levels": 2}, "LlamaGenPrior": {"num_classes": 1}}.get(name, {})
    PRIORS[name].config_class(codebook_size=2**20, **needed)
    with pytest.raises(ValueError, match=rf"codebook_size={size} is too large for a prior"):
        PRIORS[name].config_class(codebook_size=size, **needed)


def test_a_tokenizer_that_gives_codes_beyond_its_codebook_is_refused_and_nothing_wraps(tmp_path, monkeypatch):
    model = codec("2^18 signs")
    monkeypatch.setattr(
        type(model.quantizer), "tokenize", lambda self, latents, mask=None: torch.full((7, 2, 2), 2**31)
    )
    with pytest.raises(ValueError, match=rf"PictureCodec gave codes {2**31} to {2**31}, of codebook_size={2**18}"):
        tokenize_dataset(model, Images(7), tmp_path / "codes")


def test_code_maps_show_large_codes_apart_and_small_ones_as_ever(tmp_path):
    from hf_vq.modalities.image_pictures import _code_colours

    far = torch.tensor([0, 1 << 30, 1 << 40, 1 << 50, 1 << 61, (1 << 61) + 1]).numpy()
    assert len({tuple(colour) for colour in _code_colours(far).tolist()}) == len(far)
    few = torch.arange(6).view(2, 3).numpy()
    assert (_code_colours(few) == [_code_colours(row) for row in few]).all()


class Counted(Quantizer):
    """A user's quantizer, with a codebook of its own."""

    def __init__(self, codebook_size: int, dim: int):
        super().__init__(codebook_size, dim)
        self.vectors = torch.nn.Embedding(codebook_size, dim)


LEARNED = {
    **{name: lambda size, name=name: make_quantizer(name, size, 6) for name in QUANTIZERS},
    "remapped": lambda size: make_quantizer("remapped", size, 6, {"num_used": 5}),
    "residual groups": lambda size: make_quantizer("product", size, 6, {"groups": 2, "group_type": "residual"}),
    "resized": lambda size: make_quantizer("ema", 8, 6).resize(size),
    "of a model": lambda size: VQVAE(codebook_size=size, codebook_dim=6),
    "of a user": lambda size: Counted(size, 6),
}
for without in ("finite_scalar", "lookup_free"):
    del LEARNED[without]


@pytest.mark.parametrize("size", [2**40, 2**47, 2**63])
@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_codebook_that_no_memory_holds_is_refused_by_its_size(name, size):
    with pytest.raises(ValueError, match=rf"^codebook_size={size} [^\n]*$"):
        LEARNED[name](size)

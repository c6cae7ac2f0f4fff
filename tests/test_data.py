"""Image data sets and tokenized codes: real PNG and Parquet files, and everything that can be wrong with them."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_vq import VQVAE
from hf_vq.data import shards
from hf_vq.data.codes import differing_hash, load_codes, tokenizer_identity
from hf_vq.data.decoding import decode, read_header
from hf_vq.data.images import load_images
from hf_vq.data.shards import code_splits
from hf_vq.data.tokenizing import storage_dtype, tokenize_dataset

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(number, size=(8, 6), mode="RGB"):
    width, height = size
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_folder(root, count=10, **options):
    root.mkdir(parents=True)
    for number in range(count):
        picture(number, **options).save(root / f"{number:02d}.png")
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def write_parquet(path, count=10, names=("cat", "dog"), size=(8, 6)):
    rows = {"picture": [], "kind": []}
    for number in range(count):
        buffer = io.BytesIO()
        picture(number, size=size).save(buffer, "PNG")
        rows["picture"].append({"bytes": buffer.getvalue(), "path": None})
        rows["kind"].append(number % len(names))
    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


def tiny_model(**options):
    torch.manual_seed(0)
    options = {"codebook_size": 8, "codebook_dim": 4, "hidden_channels": 16, "stage_channels": (8,), **options}
    return VQVAE(**{"in_channels": 1, "num_residual_layers": 0, **options})


def test_digits_keep_their_values_and_their_split():
    from sklearn.datasets import load_digits

    train, validation = load_images("digits"), load_images("digits", split="validation")
    assert (len(train), len(validation)) == (1500, 297)
    assert train.sample_shape == (1, 8, 8)
    assert train.num_classes == 10
    originals = {tuple(row) for row in load_digits().data.astype(int)}
    items = [dataset[i]["sample"] for dataset in (train, validation) for i in range(len(dataset))]
    shown = {tuple(((item + 1) * 8).flatten().tolist()) for item in items}
    assert shown == originals  # exact: no value between the seventeen of the source, nothing lost
    again = load_images("digits", split="validation")
    assert torch.equal(validation.cache, again.cache)


def test_folder_reads_classes_pixels_and_split_whether_cached_or_not(tmp_path):
    for name in ("cat", "dog"):
        make_folder(tmp_path / "pets" / name)
    train, held_out = (load_images(tmp_path / "pets", split=split) for split in ("train", "validation"))
    assert train.class_names == ["cat", "dog"]
    assert (len(train), len(held_out)) == (18, 2)
    assert not set(train.source.names) & set(held_out.source.names)
    lazy = load_images(tmp_path / "pets", cache_bytes=0)
    assert lazy.cache is None
    for index, name in enumerate(train.source.names):
        expected = torch.from_numpy(np.array(Image.open(name))).permute(2, 0, 1) / 127.5 - 1  # (3, 6, 8)
        for dataset in (train, lazy):
            torch.testing.assert_close(dataset[index]["sample"], expected)
            assert dataset.class_names[dataset[index]["class_labels"]] == Path(name).parent.name


def test_folder_with_split_folders_uses_them(tmp_path):
    make_folder(tmp_path / "train" / "a", 4)
    make_folder(tmp_path / "train" / "b", 4)
    make_folder(tmp_path / "val" / "b", 3)
    assert len(load_images(tmp_path)) == 8
    validation = load_images(tmp_path, split="validation")
    assert (len(validation), validation[0]["class_labels"].item()) == (3, 1)
    with pytest.raises(ValueError, match="no such split"):
        load_images(tmp_path, split="test")


def test_resize_crops_the_centre():
    wide = Image.new("L", (24, 8), 0)
    wide.paste(255, (8, 0, 16, 8))
    assert (decode(wide, channels=3, image_size=4) == 255).all()
    assert decode(wide, channels=3, image_size=4).shape == (3, 4, 4)


def test_sixteen_bit_grey_and_orientation_are_read_as_meant(tmp_path):
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert decode(deep, channels=1).tolist() == [[[0, 100, 255]]]
    turned, exif = picture(0), Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as image:
        header = read_header(image)
        assert (header.height, header.width) == decode(image, channels=3).shape[1:] == (8, 6)


@pytest.mark.parametrize("layout", ["file", "glob", "folder"])
def test_parquet_finds_columns_by_their_features(tmp_path, layout):
    write_parquet(tmp_path / "p" / "train-00000.parquet", 10)
    if layout == "folder":
        write_parquet(tmp_path / "p" / "validation-00000.parquet", 4)
    source = {"file": "p/train-00000.parquet", "glob": "p/*.parquet", "folder": "p"}[layout]
    train, validation = (load_images(str(tmp_path / source), split=split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == ((10, 4) if layout == "folder" else (9, 1))
    assert train.class_names == ["cat", "dog"]
    index = int(train.source.names[0].rsplit(" ", 1)[1])
    expected = torch.from_numpy(np.array(picture(index))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(train[0]["sample"], expected)
    assert train[0]["class_labels"].item() == index % 2


def test_data_loader_workers_read_what_the_main_process_reads(tmp_path):
    write_parquet(tmp_path / "data.parquet", 12)
    for options in ({}, {"cache_bytes": 0}):
        images = load_images(str(tmp_path / "data.parquet"), **options)
        here, there = (next(iter(DataLoader(images, 11, num_workers=n))) for n in (0, 2))
        assert torch.equal(here["sample"], there["sample"])
        assert torch.equal(here["class_labels"], there["class_labels"])


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
@pytest.mark.parametrize("kind", ["truncated png", "truncated jpeg", "text"])
def test_bad_file_is_named_before_any_work_and_can_be_skipped(tmp_path, kind, cache_bytes):
    folder = make_folder(tmp_path / "images")
    bad = folder / {"truncated png": "03.png", "truncated jpeg": "03.jpg", "text": "notes.png"}[kind]
    if kind == "text":
        bad.write_text("no picture")
    else:
        picture(3).save(bad)
        truncate(bad)
    with pytest.raises(ValueError, match=f"bad image .*{bad.name}"):
        load_images(folder, validation_fraction=0, cache_bytes=cache_bytes)
    images = load_images(folder, validation_fraction=0, cache_bytes=cache_bytes, skip_bad=True)
    good = len(list(folder.iterdir())) - 1
    assert (len(images), len(images.skipped)) == (good, 1)
    assert bad.name in images.skipped[0]
    assert all(torch.isfinite(images[index]["sample"]).all() for index in range(good))


def test_decode_error_after_the_check_names_the_file(tmp_path):
    images = load_images(make_folder(tmp_path / "images"), validation_fraction=0, cache_bytes=0)
    truncate(tmp_path / "images" / "07.png")
    with pytest.raises(ValueError, match=r"07\.png"):
        list(DataLoader(images, 5, num_workers=1))


def test_differing_sizes_name_two_files(tmp_path):
    folder = make_folder(tmp_path / "images")
    picture(0, size=(8, 7)).save(folder / "05.png")
    with pytest.raises(ValueError, match=r"give image_size: .*00\.png is 6x8, .*05\.png is 7x8"):
        load_images(folder, validation_fraction=0)
    assert load_images(folder, validation_fraction=0, image_size=4).sample_shape == (3, 4, 4)
    write_parquet(tmp_path / "p" / "a.parquet", 4)
    write_parquet(tmp_path / "p" / "b.parquet", 4, size=(9, 6))
    for skip_bad in (False, True):  # sound images are not bad ones
        with pytest.raises(ValueError, match=r"give image_size: .* row 0 is 6x8, .* row 4 is 6x9"):
            load_images(str(tmp_path / "p" / "*.parquet"), validation_fraction=0, skip_bad=skip_bad)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("./nowhere", {}, "no such file or folder"),
        ("digits", {"split": "test"}, "split='test'"),
        ("digits", {"image_size": 0}, "image_size must be .*, got 0"),
        ("digits", {"channels": 2}, "channels=2"),
        ("digits", {"validation_fraction": 1.0}, "validation_fraction must be .*, got 1.0"),
        ("broken.parquet", {}, "not a readable Parquet file"),
        ("good.parquet", {"image_column": "pictur"}, "has columns picture, kind"),
        ("labels.parquet", {"label_column": "kind"}, "row 1: kind=-1 is out of range"),
        ("empty", {}, "holds no images"),
        ("mixed", {}, "both files .* and sub-folders"),
    ],
)
def test_bad_source_is_refused_by_name(tmp_path, monkeypatch, source, options, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.parquet").write_bytes(b"PAR1 nonsense")
    write_parquet(Path("good.parquet"))
    make_folder(Path("mixed") / "sub")
    picture(0).save("mixed/loose.png")
    Path("empty").mkdir()
    table = datasets.load_dataset("parquet", data_files="good.parquet")["train"].cast_column(
        "kind", datasets.Value("int64")
    )
    table.map(lambda row, i: {"kind": -1 if i == 1 else 0}, with_indices=True).to_parquet("labels.parquet")
    with pytest.raises(ValueError, match=message):
        load_images(source, **options)


def test_hub_failure_says_what_was_tried(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(ValueError, match=r"'someone/pictures' is no file or folder here, .* no connection"):
        load_images("someone/pictures")


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32")])
def test_codes_are_stored_in_the_smallest_type_that_fits(size, dtype):
    assert storage_dtype(size) == dtype
    assert np.iinfo(dtype).max >= size - 1


@pytest.mark.parametrize("codebook_size", [8, 300])
def test_stored_codes_are_the_codes_of_the_model(tmp_path, codebook_size):
    model = tiny_model(codebook_size=codebook_size)
    images = {split: load_images("digits", split=split) for split in ("train", "validation")}
    model.initialize_codebook(images["train"].cache[:400] / 8 - 1)
    counts = tokenize_dataset(model, images, tmp_path / "codes", shard_size=700)
    assert counts == {"train": 1500, "validation": 297}
    assert code_splits(tmp_path / "codes") == ["train", "validation"]
    for split, dataset in images.items():
        codes = load_codes(tmp_path / "codes", split, tokenizer=model)
        assert (codes.code_shape, codes.codebook_size, codes.num_classes) == ((4, 4), codebook_size, 10)
        batch = next(iter(DataLoader(dataset, len(dataset))))
        assert torch.equal(torch.stack([item["codes"] for item in codes]), model.eval().tokenize(batch["sample"]))
        assert torch.equal(codes.labels, batch["class_labels"])
        assert codes[0]["codes"].dtype == torch.int64
    table = datasets.load_dataset(str(tmp_path / "codes"), split="train").with_format("torch")
    assert table[0]["codes"].shape == (4, 4)
    assert table.features["class_labels"].names == [str(digit) for digit in range(10)]


def test_codes_are_the_same_from_memory_from_the_cache_and_without_one(tmp_path, monkeypatch):
    model, images = tiny_model(), load_images("digits")
    tokenize_dataset(model, images, tmp_path / "codes", shard_size=700)
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    read = load_codes(tmp_path / "codes")
    monkeypatch.setattr(shards, "IN_MEMORY_BYTES", 1000)
    cache.write_text("a file, where no folder can be made")
    with pytest.warns(UserWarning, match="cannot keep decoded codes .* read into memory") as told:
        without = load_codes(tmp_path / "codes")
    assert told[0].filename == __file__
    with pytest.raises(OSError, match=str(cache)):
        load_codes(tmp_path / "codes", memory_map=True)
    cache.unlink()
    with monkeypatch.context() as full:

        def no_space(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(os, "replace", no_space)
        with pytest.warns(UserWarning, match="No space left on device"):
            load_codes(tmp_path / "codes")
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    mapped = load_codes(tmp_path / "codes")
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".npy"]
    for other in (without, mapped):
        assert all(torch.equal(one["codes"], two["codes"]) for one, two in zip(read, other, strict=True))


def test_codes_know_their_tokenizer_also_after_it_was_saved_and_loaded(tmp_path):
    model, images = tiny_model(), load_images("digits", split="validation")
    tokenize_dataset(model, images, tmp_path / "codes")
    model.save_pretrained(tmp_path / "model")
    load_codes(tmp_path / "codes", tokenizer=VQVAE.from_pretrained(tmp_path / "model"))
    with torch.no_grad():
        model.quantizer.embedding.weight[0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"made by another tokenizer .*codes_sha256"):
        load_codes(tmp_path / "codes", tokenizer=model)
    with pytest.raises(ValueError, match=r"made by another tokenizer .*codes_sha256"):
        load_codes(tmp_path / "codes", tokenizer=tiny_model(input_scale=2.0))


def test_codes_remain_those_of_a_tokenizer_with_another_decoder(tmp_path):
    model, images = tiny_model(), load_images("digits", split="validation")
    tokenize_dataset(model, images, tmp_path / "codes")
    finer = model.with_reconstruction_loss("logistic", reconstruction_weight=2.0)
    with torch.no_grad():
        finer.last_layer.add_(1)
    load_codes(tmp_path / "codes", tokenizer=finer)
    tokenize_dataset(finer, images, tmp_path / "codes", resume=True)
    old = {key: value for key, value in tokenizer_identity(model).items() if key != "codes_sha256"}
    assert differing_hash(old, tokenizer_identity(model)) is None
    assert differing_hash(old, tokenizer_identity(finer)) == "config_sha256"
    with torch.no_grad():
        finer.to_latents.weight.add_(1)
    with pytest.raises(ValueError, match=r"made by another tokenizer .*codes_sha256"):
        load_codes(tmp_path / "codes", tokenizer=finer)


def test_interrupted_tokenizing_continues_to_the_same_bytes(tmp_path, monkeypatch):
    model, images = tiny_model(), load_images("digits")
    tokenize_dataset(model, images, tmp_path / "whole", shard_size=400)
    calls, tokenize = [], model.tokenize

    def die(sample):
        calls.append(len(sample))
        if len(calls) == 18:  # in the third of four shards
            raise KeyboardInterrupt
        return tokenize(sample)

    monkeypatch.setattr(model, "tokenize", die)
    with pytest.raises(KeyboardInterrupt):
        tokenize_dataset(model, images, tmp_path / "cut", shard_size=400)
    monkeypatch.undo()
    (tmp_path / "cut" / "data" / "train-00002-of-00004.parquet.partial").write_bytes(b"half")
    with pytest.raises(ValueError, match="incomplete: 2 of 4 shards"):
        load_codes(tmp_path / "cut")
    with pytest.raises(ValueError, match="exists and is not empty"):
        tokenize_dataset(model, images, tmp_path / "cut", shard_size=400)
    with pytest.raises(ValueError, match=r"cannot resume: .* was made with tokenizer="):
        tokenize_dataset(tiny_model(input_scale=2.0), images, tmp_path / "cut", shard_size=400, resume=True)
    before = os.stat(tmp_path / "cut" / "data" / "train-00000-of-00004.parquet").st_mtime_ns
    tokenize_dataset(model, images, tmp_path / "cut", shard_size=400, resume=True)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / run / "data").iterdir()} for run in ("whole", "cut")
    ]
    assert files[0] == files[1]
    assert os.stat(tmp_path / "cut" / "data" / "train-00000-of-00004.parquet").st_mtime_ns == before


def test_tokenizing_an_indivisible_size_writes_nothing(tmp_path):
    make_folder(tmp_path / "images", size=(8, 7), mode="L")
    with pytest.raises(ValueError, match="downsampling"):
        tokenize_dataset(tiny_model(), load_images(tmp_path / "images"), tmp_path / "codes")
    assert not (tmp_path / "codes").exists()


def test_overwriting_codes_spares_parquet_files_of_others(tmp_path):
    model, images = tiny_model(), load_images("digits", split="validation")
    tokenize_dataset(model, images, tmp_path / "codes", shard_size=100)
    tokenize_dataset(model, images, tmp_path / "codes", shard_size=200, overwrite=True)
    assert len(list((tmp_path / "codes" / "data").iterdir())) == 2
    foreign = write_parquet(tmp_path / "codes" / "data" / "train-00000-of-00009.parquet")
    before = foreign.read_bytes()
    with pytest.raises(ValueError, match="does not hold codes"):
        tokenize_dataset(model, images, tmp_path / "codes", overwrite=True)
    assert foreign.read_bytes() == before
    assert len(list((tmp_path / "codes" / "data").iterdir())) == 3


def test_foreign_parquet_is_not_taken_for_codes(tmp_path):
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="does not hold codes"):
        load_codes(tmp_path)
    with pytest.raises(ValueError, match="holds no codes"):
        load_codes(tmp_path / "nowhere")


@pytest.mark.data
@pytest.mark.skipif("HF_VQ_DATA" not in os.environ, reason="HF_VQ_DATA does not name the folder of the data sets")
def test_mnist_comes_whole_with_labels():
    train = load_images(f"{os.environ['HF_VQ_DATA']}/mnist", split="test")
    assert (len(train), train.sample_shape, train.num_classes) == (10000, (1, 28, 28), 10)
    assert abs(train.cache.float().mean() / 255 - 0.1325) < 1e-3


def test_codes_with_captions_do_not_resume_without_them(tmp_path):
    model, images = tiny_model(), load_images("digits", split="train[:8]")
    images.captions = ["a digit"] * 8
    tokenize_dataset(model, images, tmp_path / "codes", shard_size=4)
    (tmp_path / "codes" / "data" / "train-00001-of-00002.parquet").unlink()
    images.captions = None
    with pytest.raises(ValueError, match=r"cannot resume: .* was made with captions_sha256="):
        tokenize_dataset(model, images, tmp_path / "codes", shard_size=4, resume=True)

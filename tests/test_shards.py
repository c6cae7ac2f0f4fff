"""Every shard of a folder of codes is looked at before its codes are used: foreign and damaged ones, flipped bits."""

import json
import os
import random
import re
import shutil

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from hf_vq import VQVAE, VQVAE2
from hf_vq.cli.inspect import describe
from hf_vq.data.codes import load_codes
from hf_vq.data.sealing import seal_again
from hf_vq.data.seals import FILE_SEAL, SCHEMA_KEY, SEAL, SHARD, read_shard
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq_cli import main

from .registering import register_for_now
from .test_data import own_cache  # noqa: F401
from .tiny_codecs import PictureCodec, Waves, make_codec, register_codecs
from .tiny_models import Images, tiny_autoencoder


class Labelled(Images):
    """Images of two classes."""

    sample_shape, num_classes = (1, 4, 4), 2

    def __init__(self, count, names=("even", "odd")):
        super().__init__(count)
        self.labels, self.class_names = torch.arange(count) % 2, list(names)

    def __getitem__(self, index):
        return {**super().__getitem__(index), "class_labels": self.labels[index]}


def tokenizer(seed=0, **options):
    torch.manual_seed(seed)
    return tiny_autoencoder(**options).eval()


WRITTEN = {}  # folders of the usual tokenizer: what their files hold


def write(folder, model=None, count=24, shard_size=10, **options):
    key = (count, shard_size, *options.items())
    if model is None and key in WRITTEN:
        (folder / "data").mkdir(parents=True)
        for name, content in WRITTEN[key].items():
            (folder / name).write_bytes(content)
        return folder
    data = {"train": Labelled(count, **options), "validation": Labelled(12, **options)}
    tokenize_dataset(model or tokenizer(), data, folder, shard_size=shard_size)
    if model is None:
        WRITTEN[key] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return folder


def shard(folder, number=1, split="train"):
    return sorted((folder / "data").glob(f"{split}-*"))[number]


def rewrite(path, change_table=lambda table: table, seal=False, **plan):
    """A shard as an older version wrote it, without a seal, with another table or plan."""
    table = change_table(pyarrow.parquet.read_table(path))
    told = json.loads(table.schema.metadata[SCHEMA_KEY]) | plan
    if not seal:
        told = {key: value for key, value in told.items() if key not in (SEAL, SHARD)}
    metadata = table.schema.metadata | {SCHEMA_KEY: json.dumps(told, sort_keys=True).encode()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def unsealed(folder):
    for path in (folder / "data").iterdir():
        rewrite(path)
    return folder


def contents(folder, **options):
    codes = load_codes(folder, **options)
    told = (codes.labels.tolist(), codes.class_names, codes.codebook_size, codes.sample_shape, codes.tokenizer)
    return codes.codes.tobytes(), codes.codes.dtype, *told


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_bit_anywhere_is_refused(number, tmp_path):
    folder = write(tmp_path)
    path = shard(folder, number)
    whole, draw = path.read_bytes(), random.Random(number)
    contents(folder)
    for place in draw.sample(range(len(whole)), 75):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            contents(folder)
        assert "\n" not in str(error.value), place


def test_pages_carry_checksums_that_other_readers_see(tmp_path):
    path = shard(write(tmp_path))
    whole, caught = path.read_bytes(), 0
    end = min(pyarrow.parquet.read_metadata(path).row_group(0).column(0).total_compressed_size, 200)
    for place in range(4, end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            pyarrow.parquet.read_table(path, page_checksum_verification=True)
        except (OSError, pyarrow.ArrowException) as error:
            caught += "CRC" in str(error)
    assert caught > 20


@pytest.mark.parametrize("part", ["codes", "class_labels"])
def test_other_values_under_the_same_seal_are_refused(part, tmp_path):
    folder = write(tmp_path)

    def zeros(table):
        column = table[part].combine_chunks()
        same = pyarrow.array(np.zeros_like(column.to_numpy(zero_copy_only=False)).tolist(), column.type)
        return table.set_column(table.schema.names.index(part), table.schema.field(part), same)

    path = shard(folder)
    if part == "class_labels":
        rewrite(path, zeros, seal=True)
    else:
        rewrite(path, lambda table: table.take(list(reversed(range(10)))), seal=True)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: column \w+ is not as it was written"):
        load_codes(folder)


FOREIGN = {  # what another folder was made of, and what is said of its shard
    "weights": ({"model": lambda: tokenizer(1)}, "was made by another tokenizer .* codes_sha256 is "),
    "config": ({"model": lambda: tokenizer(dropout=0.2)}, "was made by another tokenizer .* codes_sha256 is "),
    "class": (
        {"model": lambda: VQVAE(1, hidden_channels=8, stage_channels=(4,), codebook_size=8)},
        "was made by another tokenizer .* class is VQVAE",
    ),
    "classes": ({"names": ("odd", "even")}, "was made with class_names="),
    "samples": ({"count": 25}, "was made with num_samples=25"),
    "sizes": ({"count": 50, "shard_size": 20}, "was made with num_samples=50"),
}


@pytest.fixture
def codecs(monkeypatch):
    register_codecs(monkeypatch)
    register_for_now(monkeypatch, PictureCodec)


@pytest.mark.parametrize("old", [False, True], ids=["sealed", "of an older version"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_shard_of_another_run_is_refused_by_name(name, old, codecs, tmp_path, capsys):
    options, message = FOREIGN[name]
    folder, other = write(tmp_path / "own"), {key: v() if callable(v) else v for key, v in options.items()}
    foreign = write(tmp_path / "other", **other)
    if old:
        unsealed(folder)
        unsealed(foreign)
    path = shard(folder)
    shutil.copy(shard(foreign), path)
    with pytest.raises(ValueError, match=f"{path.name} {message}"):
        load_codes(folder)
    for command in (
        ["inspect", str(folder)],
        ["train", "prior", "--codes", str(folder), "--output", str(tmp_path / "p")],
    ):
        assert main(command) == 2
        assert path.name in (line := capsys.readouterr().err)
        assert line.count("\n") == 1
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", ["weights", "classes"])
def test_a_split_of_another_run_is_refused_by_name(name, tmp_path):
    options, message = FOREIGN[name]
    folder = write(tmp_path / "own")
    foreign = write(tmp_path / "other", **{key: v() if callable(v) else v for key, v in options.items()})
    for number in (0, 1):
        shutil.copy(shard(foreign, number, "validation"), shard(folder, number, "validation"))
    for split, named in (("train", "validation-00000"), ("validation", "train-00000")):
        with pytest.raises(ValueError, match=f"{named}.* {message}"):
            load_codes(folder, split)
    with pytest.raises(ValueError, match="validation-00000"):
        describe(str(folder))


def drop_rows(table):
    return table.slice(0, 7)


def as_type(kind):
    def change(table):
        values = pyarrow.array(table["codes"].to_pylist(), pyarrow.list_(pyarrow.list_(kind, 2), 2))
        return table.set_column(0, "codes", values)

    return change


def flat(table):
    rows = [[code for line in grid for code in line] for grid in table["codes"].to_pylist()]
    values = pyarrow.array(rows, pyarrow.list_(pyarrow.uint8(), 4))
    return table.set_column(0, "codes", values)


def narrow(table):
    """int32 for what does not fit, as numpy casts."""
    codes = np.array(table["codes"].to_pylist()).astype(np.int32).tolist()
    return table.set_column(0, "codes", pyarrow.array(codes, pyarrow.list_(pyarrow.list_(pyarrow.int32(), 2), 2)))


def label(value):
    def change(table):
        return table.set_column(1, table.schema.field(1), pyarrow.array([value] * len(table), pyarrow.int64()))

    return change


@pytest.mark.parametrize(
    ("message", "change", "plan"),
    [
        ("has 7 rows, by its metadata it should have 10", drop_rows, {}),
        (r"has columns codes .*int16.*train-00000.*uint8", as_type(pyarrow.int16()), {}),
        ("has a column codes of float, which are no codes", as_type(pyarrow.float32()), {}),
        (r"has items of shape \(4,\) in codes, by its metadata \(2, 2\)", flat, {}),
        ("has no column codes", lambda table: table.drop_columns(["codes"]), {}),
        ("has columns codes", lambda table: table.drop_columns(["class_labels"]), {}),
        (r"class_labels of 2 to 2 are out of range, \[0, 2\)", label(2), {}),
        (r"class_labels of -1 to -1 are out of range", label(-1), {}),
        ("was made with codebook_size=9", lambda table: table, {"codebook_size": 9}),
        (r"was made with code_shape=\[1, 4\]|items of shape", lambda table: table, {"code_shape": [1, 4]}),
        ("should be one of 3000 shards", lambda table: table, {"num_samples": 30000}),
        ("shard_size=0", lambda table: table, {"shard_size": 0}),
        ("does not say which tokenizer", lambda table: table, {"tokenizer": None}),
    ],
)
def test_a_shard_that_is_not_what_it_promises_is_refused_also_without_a_seal(message, change, plan, tmp_path):
    folder = unsealed(write(tmp_path))
    load_codes(folder)
    path = shard(folder)
    rewrite(path, change, **plan)
    with pytest.raises(ValueError, match=f"{path.name}:? .*({message})|{path.name}:? {message}"):
        load_codes(folder)


def test_a_renamed_shard_is_refused(tmp_path):
    folder = write(tmp_path / "own", count=30)
    first, second = shard(folder, 0), shard(folder, 1)
    text = first.read_bytes()
    shutil.copy(second, first)
    with pytest.raises(ValueError, match=f"{first.name} was written as number=1, it is found as 0"):
        load_codes(folder)
    first.write_bytes(text)
    load_codes(folder)
    shutil.copy(first, folder / "data" / "train-00000-of-00004.parquet")
    with pytest.raises(ValueError, match="holds shards of several runs"):
        load_codes(folder)
    equal = tmp_path / "equal"
    tokenize_dataset(tokenizer(), {"train": Labelled(8), "validation": Labelled(8)}, equal)
    shutil.copy(shard(equal, 0, "validation"), shard(equal, 0))
    with pytest.raises(ValueError, match="was written as split=validation, it is found as train"):
        load_codes(equal)


def test_folders_of_older_versions_read_as_before_and_go_on_beside_new_shards(tmp_path):
    folder = write(tmp_path / "new")
    expected = contents(folder)
    assert contents(unsealed(folder)) == expected
    shard(folder, 2).unlink()
    tokenize_dataset(
        tokenizer(), {"train": Labelled(24), "validation": Labelled(12)}, folder, shard_size=10, resume=True
    )
    assert contents(folder) == expected


def test_codes_that_an_older_version_wrapped_are_refused(codecs, tmp_path):
    signs = {"quantizer_type": "lookup_free", "quantizer_config": {"entropy_weight": 0.0}, "codebook_size": 2**36}
    folder = unsealed(write(tmp_path, make_codec(PictureCodec, channels=1, strides=(2, 2), **signs).eval()))
    load_codes(folder)
    for path in (folder / "data").iterdir():
        rewrite(path, narrow)
    with pytest.raises(ValueError, match=f"a column codes of int32, too narrow for codebook_size={2**36}"):
        load_codes(folder)


def test_decoded_codes_in_the_cache_are_those_of_the_shards(tmp_path, monkeypatch):
    folder = write(tmp_path / "codes")
    expected = contents(folder)
    assert contents(folder, memory_map=True) == expected
    (cached,) = (tmp_path / "cache").rglob("*.npy")
    whole = cached.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2, 90):
        cached.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert contents(folder, memory_map=True) == expected
        assert cached.read_bytes() == whole


def test_lengths_beyond_the_grid_are_refused(codecs, tmp_path):
    data = Waves(PictureCodec, 6, variable_length=True)
    tokenize_dataset(make_codec(PictureCodec).eval(), data, tmp_path)
    load_codes(tmp_path)

    def longer(table):
        lengths = pyarrow.array([9] * len(table), pyarrow.int64())
        return table.set_column(table.schema.names.index("lengths"), "lengths", lengths)

    rewrite(shard(tmp_path, 0), longer)
    with pytest.raises(ValueError, match=r"train-00000.*parquet: lengths of 9 to 9 are out of range, \[1, 5\)"):
        load_codes(tmp_path)


def flip(path, place=40):  # in the first page
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def flip_label(path):
    flip(path, path.read_bytes().rindex(b'"even"') + 1)  # in what `datasets` reads of the footer


DAMAGE = {
    "metadata": lambda path: rewrite(path, seal=True, num_samples=25),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "a flipped bit": flip,
    "a flipped bit of the footer": flip_label,
    "a flipped bit of its seal": lambda path: flip(path, path.read_bytes().rindex(FILE_SEAL)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_resume_makes_damaged_shards_again_and_keeps_the_others(kind, tmp_path):
    folder = write(tmp_path)
    path = shard(folder)
    expected = path.read_bytes()
    DAMAGE[kind](path)
    before = {other: other.stat().st_mtime_ns for other in folder.glob("data/*.parquet") if other != path}
    data = {"train": Labelled(24), "validation": Labelled(12)}
    with pytest.warns(UserWarning, match=f"{path.name} is .*: it is made again"):
        tokenize_dataset(tokenizer(), data, folder, shard_size=10, resume=True)
    assert path.read_bytes() == expected
    assert {other: other.stat().st_mtime_ns for other in before} == before


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}], ids=["overwrite", "resume"])
def test_what_is_no_file_of_codes_is_refused_by_name_and_stays(options, tmp_path):
    folder, data = write(tmp_path), {"train": Labelled(24), "validation": Labelled(12)}
    path = shard(folder)
    if "overwrite" in options:
        flip(path, -6)  # where the length of the footer is
        with pytest.raises(ValueError, match=rf"{path.name} is .*resume=True \(hf-vq tokenize: --resume\)"):
            tokenize_dataset(tokenizer(), data, folder, shard_size=10, **options)
    path.unlink()
    path.mkdir()
    (path / "kept").write_text("mine")
    before = {other: other.read_bytes() for other in folder.rglob("*") if other.is_file()}
    with pytest.raises(ValueError, match=f"{path.name} is no file"):
        tokenize_dataset(tokenizer(), data, folder, shard_size=10, **options)
    assert {other: other.read_bytes() for other in folder.rglob("*") if other.is_file()} == before


def test_datasets_keeps_the_identity_of_hierarchies_and_of_padded_codes(codecs, tmp_path):
    torch.manual_seed(0)
    hierarchy = VQVAE2(1, 8, codebook_size=(8, 300), codebook_dim=4, strides=(2, 2)).eval()
    padded = make_codec(PictureCodec).eval()
    for name, model, data in (
        ("hierarchy", hierarchy, Labelled(6)),
        ("padded", padded, Waves(PictureCodec, 6, variable_length=True)),
    ):
        tokenize_dataset(model, data, tmp_path / name, shard_size=4)
        grid = 1 if name == "hierarchy" else None
        before = load_codes(tmp_path / name, tokenizer=model, grid=grid, context=True)
        again = tmp_path / f"{name} again"
        (again / "data").mkdir(parents=True)
        rows = datasets.load_dataset(str(tmp_path / name), split="train").select(range(5))
        rows.to_parquet(shard_path := again / "data/train-00000-of-00001.parquet")
        sealed = seal_again(again, tmp_path / f"{name} sealed")
        assert list(sealed) == ["data/train-00000-of-00001.parquet"]
        for folder in (again, tmp_path / f"{name} sealed"):
            after = load_codes(folder, tokenizer=model, grid=grid, context=True)
            assert (after.codes == before.codes[:5]).all()
            assert after.sample_shape == before.sample_shape
            assert after.codebook_size == before.codebook_size
            assert after.context_codebook_sizes == before.context_codebook_sizes
            assert (after.lengths is None) == (before.lengths is None)
        assert read_shard(shard_path).facts is None
        assert read_shard(*sealed.values()).facts["rows"] == 5
        with pytest.raises(ValueError, match="made by another tokenizer"):
            load_codes(again, tokenizer=tokenizer(), grid=grid)


def test_shards_without_a_seal_get_one_and_whole_ones_stay(tmp_path):
    folder = write(tmp_path / "codes")
    rewrite(shard(folder, 1))
    before = contents(folder)
    found = seal_again(folder, tmp_path / "sealed")
    assert [path.is_relative_to(folder) for path in found.values()] == [True, False, True, True, True]
    target = tmp_path / "sealed" / "data"
    for name, path in found.items():
        if path.is_relative_to(folder):
            shutil.copy(path, tmp_path / "sealed" / name)
    assert len(list(target.iterdir())) == 5
    assert contents(tmp_path / "sealed") == before
    assert all(read_shard(path).facts is not None for path in target.iterdir())


def test_a_file_of_another_name_is_told_what_it_should_be_called(tmp_path):
    folder = write(tmp_path / "codes")
    first, *others = sorted((folder / "data").iterdir())
    first.rename(folder / "data/train.parquet")
    for path in others:
        path.unlink()
    with pytest.raises(ValueError, match=r"data/train\.parquet should be called as data/train-00000-of-00001"):
        load_codes(folder)

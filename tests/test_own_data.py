"""Facts about data as people have them: what each layout of files gives, to the pixel."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hf_vq
import hf_vq_cli
from hf_vq.data.images import load_images
from hf_vq.modalities import ImageProcessor

COLOURS = [(40 * number, 255 - 40 * number, 7) for number in range(6)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def picture(number, size=(4, 3)):
    return Image.new("RGB", size, COLOURS[number])


def save(path, number):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number).save(path)


def png(number):
    buffer = io.BytesIO()
    picture(number).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path, rows):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if str(path).endswith(".jsonl"):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif str(path).endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        Path(path).write_text("\n".join(lines) + "\n")
    else:
        datasets.Dataset.from_list(rows).to_parquet(path)


def write_tar(path, numbers, **fields):
    """A WebDataset: `fields` gives the bytes of a file of each number by its suffix."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.endswith("gz") else "w") as archive:
        for number in numbers:
            for suffix, content in {"png": png, **fields}.items():
                info, data = tarfile.TarInfo(f"{number:04d}.{suffix}"), content(number)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def table(numbers, labels=None, feature=None, captions=None):
    columns = {"picture": [{"bytes": png(number), "path": None} for number in numbers]}
    features = {"picture": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, feature
    if captions is not None:
        columns["text"], features["text"] = captions, datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def classes_and_strays():
    for number, name in enumerate(["cat/0", "cat/deep/1", "dog/2"]):
        save(f"data/{name}.png", number)
    for name in ("README.md", "cat/notes.json", "cat/Thumbs.db", ".DS_Store", "dog/.hidden.png", "empty/readme"):
        Path("data", name).parent.mkdir(exist_ok=True)
        Path("data", name).write_text("no picture")
    Path("data/cat/deep/again").symlink_to(Path("data").absolute())
    Path("data/all.tar").write_bytes(b"what they came in")
    return {"data": [(0, "cat", None), (1, "cat", None), (2, "dog", None)]}


def captions_beside():
    for number in range(3):
        save(f"data/{number}.PNG", number)
    Path("data/0.txt").write_text("a red one\n")
    Path("data/2.txt").write_text("größer")
    return {"data": [(0, None, "a red one"), (1, None, ""), (2, None, "größer")]}


def one_folder_within():
    Path("data/images").mkdir(parents=True)
    for number in range(2):
        picture(number).save(f"data/images/{number}", "PNG")  # without a suffix
    return {"data": [(0, None, None), (1, None, None)]}


def metadata(kind):
    def write():
        for number in range(4):
            save(f"data/pictures/{number}.png", number)
        labels = ["b", "a", "b"]
        rows = [{"file_name": f"pictures/{n}.png", "label": labels[n], "text": f"number {n}"} for n in range(3)]
        write_rows(f"data/metadata.{kind}", rows)
        return {"data": [(n, labels[n], f"number {n}") for n in range(3)]}  # the fourth is not named

    return write


def metadata_of_splits():
    for split, numbers in {"train": (0, 1), "test": (2,)}.items():
        for number in numbers:
            save(f"data/{split}/{number}.png", number)
    write_rows("data/train/metadata.csv", [{"file_name": f"{n}.png", "label": n + 3} for n in (0, 1)])
    write_rows("data/test/metadata.csv", [{"file_name": "2.png", "label": 4}])
    return {"train": [(0, "3", None), (1, "4", None)], "test": [(2, "4", None)]}


def metadata_above_splits():
    for split, numbers in {"train": (0, 1), "val": (2,)}.items():
        for number in numbers:
            save(f"data/{split}/{number}.png", number)
    rows = [
        {"file_name": f"{'val' if n == 2 else 'train'}/{n}.png", "label": "xyx"[n], "caption": "c"} for n in range(3)
    ]
    write_rows("data/metadata.jsonl", rows)
    return {"train": [(0, "x", "c"), (1, "y", "c")], "validation": [(2, "x", "c")]}


def unlabelled_test():
    for name in ("train/a/0", "train/b/1", "test/2"):
        save(f"data/{name}.png", int(name[-1]))
    return {"train": [(0, "a", None), (1, "b", None)], "test": [(2, None, None)]}


def saved_dataset():
    table([0, 1, 2], [1, 0, 1], datasets.ClassLabel(names=["x", "y"]), ["one", None, "three"]).save_to_disk("data")
    return {"data": [(0, "y", "one"), (1, "x", ""), (2, "y", "three")]}


def saved_splits():
    parts = {
        "train": table([0, 1], ["q", "p"], datasets.Value("string")),
        "test": table([2], ["q"], datasets.Value("string")),
    }
    datasets.DatasetDict(parts).with_format("torch").save_to_disk("data")
    return {"train": [(0, "q", None), (1, "p", None)], "test": [(2, "q", None)]}


def tar_folder():
    write_tar("data/train-000.tar", [0, 1], cls=lambda n: str(n).encode(), txt=lambda n: f"tar {n}".encode())
    write_tar("data/train-001.tar", [2], cls=lambda n: str(n).encode(), txt=lambda n: f"tar {n}".encode())
    write_tar("data/more/val-000.tar.gz", [3], cls=lambda n: b"1", txt=lambda n: b"held")
    Path("data/index.json").write_text("{}")
    return {"train": [(n, str(n), f"tar {n}") for n in range(3)], "validation": [(3, "1", "held")]}


def tar_with_json():
    write_tar("data/0.tar", [0, 1], json=lambda n: json.dumps({"caption": f"j{n}", "label": f"l{n}"}).encode())
    write_rows("data/0.parquet", [{"url": "x"}])  # as img2dataset writes beside each
    return {"data": [(n, f"l{n}", f"j{n}") for n in range(2)]}


def parquet_without_labels_in_test():
    names = datasets.ClassLabel(names=["x", "y"])
    for split, rows in {"train": table([0, 1], [1, 0], names), "test": table([2, 3], [-1, -1], names)}.items():
        Path("data").mkdir(exist_ok=True)
        rows.to_parquet(f"data/{split}-0.parquet")
    return {"train": [(0, "y", None), (1, "x", None)], "test": [(2, None, None), (3, None, None)]}


def parquet_with_truth_values():
    Path("data").mkdir()
    table([0, 1], [True, False], datasets.Value("bool")).to_parquet("data/a.parquet")
    return {"data": [(0, "True", None), (1, "False", None)]}


LAYOUTS = {
    "classes and strays": classes_and_strays,
    "captions beside": captions_beside,
    "one folder within": one_folder_within,
    "metadata.jsonl": metadata("jsonl"),
    "metadata.csv": metadata("csv"),
    "metadata.parquet": metadata("parquet"),
    "metadata of splits": metadata_of_splits,
    "metadata above splits": metadata_above_splits,
    "unlabelled test": unlabelled_test,
    "saved data set": saved_dataset,
    "saved splits": saved_splits,
    "tars": tar_folder,
    "tar with json": tar_with_json,
    "unlabelled Parquet": parquet_without_labels_in_test,
    "truth values": parquet_with_truth_values,
}


def read(images):
    """(number of the colour, class, caption) of every image, whose pixels are one colour exactly."""
    found = []
    for item in images:
        colours = ((item["sample"] + 1) * 127.5).round().to(torch.uint8).flatten(1).unique(dim=1)
        number = COLOURS.index(tuple(colours[:, 0].tolist()))
        assert colours.shape == (3, 1)
        assert images.sample_shape == (3, 3, 4)
        label = images.class_names[item["class_labels"]] if "class_labels" in item else None
        found.append((number, label, item.get("caption")))
    return found


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_its_pixels_labels_captions_and_splits(layout):
    for split, expected in LAYOUTS[layout]().items():
        options = {"split": split} if split != "data" else {"validation_fraction": 0}
        if split == "train":
            options["validation_fraction"] = 0
        images = load_images("data", **options)
        assert read(images) == expected
        plain = load_images("data", label_column="none", caption_column="none", **options)
        assert read(plain) == [(number, None, None) for number, _, _ in expected]
        assert plain.num_classes == 0
        if split == "data":
            halves = [load_images("data", split=half, validation_fraction=0.5) for half in ("train", "validation")]
            assert sorted(read(halves[0]) + read(halves[1])) == expected
            assert read(load_images("data", split="train[1:]")) == expected[1:]


def mixed_depths():
    save("data/cat/0.png", 0)
    save("data/1.png", 1)


def missing_label(value):
    def write():
        save("data/0.png", 0)
        save("data/1.png", 1)
        write_rows("data/metadata.csv", [{"file_name": f"{n}.png", "label": [1, value][n]} for n in range(2)])

    return write


def missing_file():
    save("data/0.png", 0)
    write_rows("data/metadata.jsonl", [{"file_name": "0.png"}, {"file_name": "1.png"}])


def broken_table():
    save("data/0.png", 0)
    Path("data/metadata.jsonl").write_text("{broken")


def empty_table():
    save("data/0.png", 0)
    Path("data/metadata.jsonl").write_text("")


def no_tar():
    Path("data").mkdir()
    Path("data/a.tar").write_bytes(b"no archive" * 200)


def other_class():
    for name in ("train/a/0", "train/b/1", "test/c/2"):
        save(f"data/{name}.png", int(name[-1]))


def several_labels():
    save("data/0.png", 0)
    write_rows("data/metadata.jsonl", [{"file_name": "0.png", "label": [1, 2]}])


FAULTS = {
    "images at two depths": (mixed_depths, {}, r"both files \(1\.png\) and sub-folders \(cat\)"),
    "a label is missing": (missing_label(None), {}, r"1\.png: label=None is out of range .* label_column none"),
    "a label is -1": (missing_label(-1), {}, r"1\.png: label=-1 is out of range"),
    "a label is no whole number": (missing_label(0.5), {}, "label_column='label' holds neither"),
    "a label is an id": (missing_label(2**40), {}, "label_column='label' goes up to 1,099,511,627,776"),
    "several labels": (several_labels, {"label_column": "label"}, "label_column='label' holds neither"),
    "no such file": (missing_file, {}, r"metadata\.jsonl row 1: no such image: .*1\.png"),
    "broken table": (broken_table, {}, r"metadata\.jsonl' cannot be read: JSON parse error"),
    "empty table": (empty_table, {}, r"metadata\.jsonl' cannot be read: "),
    "no archive": (no_tar, {}, "'data' cannot be read: "),
    "no archive to stream": (no_tar, {"streaming": True}, "'data' cannot be read: "),
    "a class that training has not": (other_class, {"split": "test"}, "class that the training split has not: c"),
    "no such column": (missing_label(1), {"caption_column": "words"}, "caption_column='words': .* has columns"),
    "no table": (other_class, {"label_column": "kind"}, "label_column='kind': .* has no table"),
}


def test_images_at_two_depths_are_read_where_classes_are_left_out():
    mixed_depths()
    images = load_images("data", label_column="none", validation_fraction=0)
    assert read(images) == [(1, None, None), (0, None, None)]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_layout_is_named(fault):
    write, options, words = FAULTS[fault]
    write()
    with pytest.raises(ValueError, match=words) as told:
        load_images("data", **{"validation_fraction": 0, **options})
    assert "\n" not in str(told.value)


def gradient(path, width, height, number=0):
    """A picture that is brighter to the right and below, unlike its mirror image."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    values = (across * 8 + down * 3 + number * 5).astype(np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def run(*arguments):
    return hf_vq_cli.main([str(argument) for argument in arguments])


TRAINING = ["--max_steps", 2, "--save_steps", 0, "--use_cpu", "true", "--disable_tqdm", "true"]
TINY = ["--model_config", json.dumps({"hidden_channels": 8, "stage_channels": [4], "num_residual_layers": 0,
        "codebook_size": 8})]  # fmt: skip


def test_the_command_line_trains_on_own_data_of_any_shape_and_writes_captions_beside_codes(capsys):
    for number in range(6):
        gradient(f"data/{number % 2}/{number}.png", 24 + number, 10, number)
        Path(f"data/{number % 2}/{number}.txt").write_text(f"number {number}")
    flags = ["--image_size", "8x12", "--resize", "pad", "--background", "black", "--random_flip", "true"]
    assert run("train", "autoencoder", "--data", "data", "--output", "model", *flags, *TRAINING, *TINY) == 0
    model = hf_vq.AutoVQModel.from_pretrained("model")
    assert model.processor == ImageProcessor((8, 12), "pad", 1, background="black")
    assert run("tokenize", "model", "--data", "data", "--output", "codes", "--validation_fraction", 0) == 0
    assert "warning" not in capsys.readouterr().err
    rows = datasets.load_dataset("codes", split="train")
    assert rows["caption"][:] == [f"number {number}" for number in (0, 2, 4, 1, 3, 5)]
    assert rows.features["class_labels"].names == ["0", "1"]
    codes = hf_vq.data.codes.load_codes("codes", tokenizer=model)
    image = Image.open("data/1/5.png")
    assert torch.equal(codes[5]["codes"], model.tokenize(image)[0])
    assert run("tokenize", "model", "--data", "data", "--output", "more", "--random_flip", "true") == 2
    assert "unknown option --random_flip" in capsys.readouterr().err


def test_classes_of_a_split_are_told_by_name_where_its_numbers_are_others():
    parts = {}
    for split, names in (("train", ["cat", "dog"]), ("validation", ["dog", "cat"])):
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
        rows = {"image": [picture(0), picture(1)], "label": [0, 1]}
        parts[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(parts).save_to_disk("data")
    held_out = load_images("data", split="validation")
    assert held_out.class_names == ["cat", "dog"]
    assert held_out.labels.tolist() == [1, 0]


def test_parquet_files_that_number_their_classes_differently_are_refused(tmp_path):
    for split, names in (("train", ["cat", "dog"]), ("validation", ["dog", "cat"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        rows = datasets.Dataset.from_dict({"image": [picture(4)], "label": [0]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"validation.parquet: the classes of label are \['dog', 'cat'\], in .*train"):
        load_images(str(tmp_path), split="validation")

"""Facts about images for training: sizes of any shape, what is drawn at random, and streams."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_vq.data.images import load_images
from hf_vq.data.padding import SampleCollator
from hf_vq.data.tables import open_cell
from hf_vq.modalities import ImageProcessor
from hf_vq.training.autoencoder import AutoencoderTrainingArguments, train_autoencoder
from hf_vq.training.reading import make_reader

from .test_own_data import TINY, TRAINING, gradient, own_cache, run, write_tar
from .test_streams import StopAfter
from .tiny_models import tiny_autoencoder

__all__ = ["own_cache"]


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_a_picture_comes_to_any_shape_by_its_rule_and_the_processor_does_the_same(resize, tmp_path):
    values = gradient("data/0.png", 24, 8)
    images = load_images("data", image_size="4x6", resize=resize, validation_fraction=0, background="black")
    page = Image.fromarray(values)
    expected = {
        "crop": page.resize((6, 4), Image.Resampling.LANCZOS, (6, 0, 18, 8)),  # of 12 x 8 in the middle
        "stretch": page.resize((6, 4), Image.Resampling.LANCZOS),
        "pad": Image.new("L", (6, 4), 0),
    }[resize]
    if resize == "pad":
        expected.paste(page.resize((6, 2), Image.Resampling.LANCZOS), (0, 1))
    assert (images.cache[0, 0].numpy() == np.asarray(expected)).all()
    processor = ImageProcessor.from_dataset(images)
    processor.save_pretrained(tmp_path / "saved")
    again = ImageProcessor.from_pretrained(tmp_path / "saved")
    assert again == processor
    for form in (page, values, torch.from_numpy(values)[None]):
        assert torch.equal(again(form)[0], images[0]["sample"])
    same = load_images("data", validation_fraction=0, background="black", channels=1, **again.loader_options())
    assert torch.equal(same[0]["sample"], images[0]["sample"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": "4x"}, "image_size='4x' must be a side in pixels, or height x width"),
        ({"image_size": "0x4"}, "image_size='0x4' must"),
        ({"image_size": (4, 4, 4)}, "image_size"),
        ({"image_size": 4, "resize": "squeeze"}, "resize='squeeze' must be one of crop, pad"),
        ({"resize": "pad"}, "resize='pad' needs image_size"),
        ({"resize": "none", "image_size": 4}, r"0\.png is 8x24, not 4x4, and resize is none"),
        ({"random_crop": True}, "random_crop=True needs image_size"),
        ({"streaming": True}, "streaming=True: data is on this disk"),
    ],
)
def test_a_size_that_cannot_be_is_refused(options, words):
    gradient("data/0.png", 24, 8)
    with pytest.raises(ValueError, match=words):
        load_images("data", validation_fraction=0, **options)


def arguments(folder, steps, **options):
    options = {"max_steps": steps, "per_device_train_batch_size": 2, "save_steps": 0, "use_cpu": True, **options}
    return AutoencoderTrainingArguments(str(folder), disable_tqdm=True, **options)


def test_training_draws_crops_and_mirror_images_by_the_seed_alone():
    wide = [gradient(f"data/{number}.png", 12, 4, number) for number in range(4)]
    images = load_images(
        "data", image_size=4, random_crop=True, random_flip=True, validation_fraction=0, cache_bytes=0
    )
    places = {tuple((part[:, ::step]).ravel()): (left, step) for values in wide[:1]
              for left in range(9) for part in [values[:, left : left + 4]] for step in (1, -1)}  # fmt: skip
    pixels = lambda item: tuple(((item["sample"][0] + 1) * 127.5).round().int().ravel().tolist())  # noqa: E731
    drawn = {places[pixels(images.draw(0, np.random.default_rng(number)))] for number in range(200)}
    assert {left for left, _ in drawn} == set(range(9))
    assert {step for _, step in drawn} == {1, -1}
    assert places[pixels(images[0])] == (4, 1)  # an item itself is as it is

    def read(step, processes=1, **options):
        size = 4 // processes
        args = arguments("unused", 9, **{"per_device_train_batch_size": size, **options})
        readers = [make_reader(images, SampleCollator(), args, processes, rank) for rank in range(processes)]
        steps = [reader.steps(step, False) for reader in readers]
        return [torch.cat([batch["sample"] for one in steps for batch in next(one)]) for _ in range(3)]

    first = read(0)
    assert not torch.equal(first[0].sort(0).values, first[1].sort(0).values)  # another pass, other numbers
    assert torch.equal(read(1)[0], first[1])  # as after a resume
    assert all(map(torch.equal, read(0, dataloader_num_workers=2), first))
    assert all(map(torch.equal, read(0, processes=2), first))
    assert not torch.equal(read(0, seed=1)[0], first[0])


def write_stream(kind):
    """Grey pictures as a source that can be streamed: ten to train on in two files, four for validation."""
    for number in range(14):
        gradient(f"pictures/{number}.png", 4, 4, number)
    for name, numbers in {"train-0": range(6), "train-1": range(6, 10), "validation-0": range(10, 14)}.items():
        content = {number: Path(f"pictures/{number}.png").read_bytes() for number in numbers}
        if kind == "tar":
            write_tar(f"data/{name}.tar", numbers, png=content.get, cls=lambda number: b"1")
        else:
            rows = {"image": [{"bytes": part, "path": None} for part in content.values()]}
            Path("data").mkdir(exist_ok=True)
            features = datasets.Features({"image": datasets.Image()})
            datasets.Dataset.from_dict(rows, features=features).to_parquet(f"data/{name}.parquet")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_stream_gives_the_same_images_and_resumes_where_it_was(kind):
    write_stream(kind)
    for split, count in {"train": 10, "validation": 4}.items():
        stream, images = (load_images("data", split=split, streaming=streaming) for streaming in (True, False))
        assert [item["sample"].tolist() for item in stream] == [item["sample"].tolist() for item in images]
        assert (len(list(stream)), stream.sample_shape) == (count, (1, 4, 4))
    flipping, plain = (load_images("data", streaming=True, random_flip=flips) for flips in (True, False))
    assert [item["sample"].tolist() for item in flipping] == [item["sample"].tolist() for item in plain]
    passes = []
    for epoch in (0, 1, 0):
        flipping.set_epoch(epoch)
        pairs = [(one["sample"], own["sample"]) for one, own in zip(flipping.drawn(seed=1), plain, strict=True)]
        assert all(torch.equal(one, own) or torch.equal(one.flip(-1), own) for one, own in pairs)
        passes.append([torch.equal(one, own) for one, own in pairs])
    assert passes[0] == passes[2] != passes[1]
    metrics = []
    for name, stops in (("whole", [5]), ("parts", [4, 5])):  # of three images: it stops within the second pass
        for stop in stops:
            torch.manual_seed(0)
            train, validation = (
                load_images("data", split=split, streaming=True, random_flip=True) for split in ("train", "validation")
            )
            args = arguments(name, 5, per_device_train_batch_size=3, resume_from_checkpoint=stop != stops[0])
            report = train_autoencoder(tiny_autoencoder(), train, args, validation, callbacks=[StopAfter(stop)])
        metrics.append(report["metrics"])
    assert metrics[0] == metrics[1]


def test_an_image_of_a_stream_may_be_a_url():
    values = gradient("a picture.png", 4, 4)
    for path in (str(Path("a picture.png").absolute()), f"file://{Path('a picture.png').absolute()}"):
        with open_cell({"bytes": None, "path": path}) as image:
            assert (np.asarray(image) == values).all()


def test_the_command_line_trains_on_a_stream(capsys):
    write_stream("tar")
    flags = ["--streaming", "true", "--output", "model", *TRAINING, *TINY]
    assert run("train", "autoencoder", "--data", "data/train-*.tar", *flags) == 2
    assert "nothing is held out of a stream" in capsys.readouterr().err
    assert run("train", "autoencoder", "--data", "data", *flags, "--max_steps", -1) == 2
    assert "max_steps=-1 must be positive" in capsys.readouterr().err
    assert not Path("model").exists()
    assert run("train", "autoencoder", "--data", "data", *flags) == 0
    assert "a stream of images of 1x4x4" in capsys.readouterr().out
    assert json.loads(Path("model/report.json").read_text())["metrics"]["eval_num_samples"] == 4

"""Pictures of every type and mode give one picture through every door, or are refused: against plain numpy."""

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import hf_vq
import hf_vq_cli
from hf_vq import VQVAE, PixelCNN, PixelCNNConfig, VQPipeline
from hf_vq.data.codes import load_codes
from hf_vq.data.images import load_images
from hf_vq.modalities import ImageProcessor
from hf_vq.modalities.image_inputs import read_masks, read_pictures

RANDOM = np.random.default_rng(5)
DEEP = RANDOM.integers(0, 65536, (8, 8)).astype(np.uint16)
SIGNED = RANDOM.integers(-1024, 3072, (8, 8)).astype(np.int32)
TWELVE = RANDOM.integers(0, 4096, (8, 8)).astype(np.uint16)
GREY = RANDOM.integers(0, 256, (8, 8)).astype(np.uint8)
COLOUR = RANDOM.integers(0, 256, (8, 8, 3)).astype(np.uint8)
CLEAR = RANDOM.choice([0, 255], (8, 8)).astype(np.uint8)
PALETTE = RANDOM.integers(0, 256, (256, 3)).astype(np.uint8)
BITS = RANDOM.integers(0, 2, (8, 8)).astype(bool)
UNIT = RANDOM.random((8, 8)).astype(np.float32)


def png16(values):
    """A PNG of 16-bit colour, which PIL cannot write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def palette(indices, transparent=None):
    image = Image.new("P", indices.shape[::-1])
    image.putpalette(PALETTE.tobytes())
    image.putdata(indices.reshape(-1).tolist())
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


def stretched(values, low, high):
    return np.rint((values.astype(np.float64) - low) / (high - low) * 255)


def on_white(colour, clear):
    return np.where(clear[..., None] == 0, 255, colour)


# name: (picture, suffix of the file that keeps it, options, its pixel values by plain numpy)
RIGHT = {
    "1": (Image.fromarray(BITS), "png", {}, BITS * 255),
    "L": (Image.fromarray(GREY), "png", {}, GREY),
    "LA": (Image.fromarray(np.dstack([GREY, CLEAR])), "png", {}, on_white(GREY[..., None], CLEAR)),
    "P": (palette(GREY), "png", {}, PALETTE[GREY]),
    "P with a transparent colour": (palette(GREY, 7), "png", {}, on_white(PALETTE[GREY], GREY != 7)),
    "RGB": (Image.fromarray(COLOUR), "png", {}, COLOUR),
    "RGBA": (Image.fromarray(np.dstack([COLOUR, CLEAR])), "png", {}, on_white(COLOUR, CLEAR)),
    "RGBA on black": (
        Image.fromarray(np.dstack([COLOUR, CLEAR])), "png", {"background": "black"}, COLOUR * (CLEAR[..., None] > 0),
    ),
    "CMYK": (
        Image.fromarray(np.dstack([COLOUR, np.zeros_like(GREY)]), "CMYK"), "tif", {}, 255 - COLOUR.astype(int),
    ),
    "I;16": (Image.fromarray(DEEP), "png", {}, stretched(DEEP, 0, 65535)),
    "I;16 in TIFF": (Image.fromarray(DEEP), "tif", {}, stretched(DEEP, 0, 65535)),
    "I;16B": (Image.fromarray(DEEP.astype(">u2")), "tif", {}, stretched(DEEP, 0, 65535)),
    "I of PGM": (Image.fromarray(DEEP), "pgm", {}, stretched(DEEP, 0, 65535)),
    "I": (Image.fromarray(SIGNED), "tif", {"value_range": (-1024, 3071)}, stretched(SIGNED, -1024, 3071)),
    "12 bits in I;16": (Image.fromarray(TWELVE), "png", {"value_range": (0, 4095)}, stretched(TWELVE, 0, 4095)),
    "F": (Image.fromarray(UNIT), "tif", {}, np.rint(UNIT * 255)),
    "F of a range": (Image.fromarray(UNIT * 9 - 3), "tif", {"value_range": (-3, 6)}, np.rint(UNIT * 255)),
    "16-bit colour": (png16(COLOUR.astype(int) * 256 + 9), "png", {}, COLOUR),
    "black in 16 bits": (Image.fromarray(DEEP * 0), "png", {}, GREY * 0),
}  # fmt: skip
REFUSED = {
    "I": (Image.fromarray(SIGNED), "tif", {}, "int32.*value_range"),
    "I below its range": (Image.fromarray(SIGNED), "tif", {"value_range": (0, 4095)}, r"pixel value -\d+ .*0 4095"),
    "12 bits in I;16": (Image.fromarray(TWELVE), "png", {}, "uint16.*value_range"),
    "12 bits in 16-bit colour": (png16(COLOUR.astype(int) * 16), "png", {}, "16-bit.*value_range"),
    "12 bits in 16-bit alpha": (png16(np.dstack([COLOUR, CLEAR]).astype(int) * 16), "png", {}, "16-bit.*value_range"),
    "F": (Image.fromarray(UNIT * 2), "tif", {}, r"\[0, 1\].*value_range"),
    "not a number": (Image.fromarray(UNIT * np.nan), "tif", {}, "NaN"),
    "8 bits of a wide range": (Image.fromarray(GREY), "png", {"value_range": (0, 4095)}, "8 bits"),
    "LAB": (Image.fromarray(COLOUR, "LAB"), "tif", {}, "LAB"),
}
ARRAYS = {
    "uint8": (GREY, {}, GREY),
    "uint8 of a range": (GREY // 16, {"value_range": (0, 15)}, GREY // 16 * 17),
    "bool": (BITS, {}, BITS * 255),
    "uint16": (DEEP, {}, stretched(DEEP, 0, 65535)),
    "big-endian": (DEEP.astype(">u2"), {}, stretched(DEEP, 0, 65535)),
    "int16": (SIGNED.astype(np.int16), {"value_range": (-1024, 3071)}, stretched(SIGNED, -1024, 3071)),
    "int64": (SIGNED.astype(np.int64), {"value_range": (-1024, 3071)}, stretched(SIGNED, -1024, 3071)),
    "uint32": (TWELVE.astype(np.uint32), {"value_range": (0, 4095)}, stretched(TWELVE, 0, 4095)),
    "float64": (UNIT.astype(np.float64), {}, np.rint(UNIT.astype(np.float64) * 255)),
}
REFUSED_ARRAYS = {
    **{name: (SIGNED.astype(name), {}, f"{name} .*value_range") for name in ("int16", "int32", "int64")},
    "int8": (BITS.astype(np.int8), {}, "int8 .*value_range"),
    "uint32": (TWELVE.astype(np.uint32), {}, "uint32 .*value_range"),
    "12 bits": (TWELVE, {}, "uint16 .*value_range"),
    "above": (UNIT + 1e-3 + np.eye(8), {}, r"\[0, 1\]"),
    "below": (-UNIT, {}, r"\[0, 1\]"),
    "NaN": (np.where(UNIT > 0.5, np.nan, UNIT), {}, r"NaN|nan"),
    "complex": (UNIT * 1j, {}, "complex64"),
}


def in_channels(pixels, channels):
    """(channels, 8, 8) float64 pixel values; grey of colours as in ITU-R 601-2, exact to one level."""
    pixels = np.broadcast_to(np.asarray(pixels, dtype=np.float64).reshape(8, 8, -1), (8, 8, 3))
    pixels = pixels @ [[0.299], [0.587], [0.114]] if channels == 1 else pixels
    return pixels.transpose(2, 0, 1)


def check(sample, pixels, channels):
    """A sample in [-1, 1] is of these pixel values: to the level, of greys made of colours to rounding."""
    found = (sample.double().numpy() + 1) * 127.5
    rounding = 1.0 if channels == 1 and np.asarray(pixels).ndim == 3 else 1e-3
    assert np.abs(found - in_channels(pixels, channels)).max() <= rounding


def write(folder, picture, suffix):
    folder.mkdir()
    path = folder / f"one.{suffix}"
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        transparent = picture.info.get("transparency")
        picture.save(path, **({} if transparent is None else {"transparency": transparent}))
    return path


def as_image(picture):
    return Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture.copy()


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*alpha channel")
        yield


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_every_mode_is_one_picture_for_data_sets_processors_and_pipelines(tmp_path, name, channels):
    picture, suffix, options, pixels = RIGHT[name]
    path = write(tmp_path / "data", picture, suffix)
    processor = ImageProcessor(channels=channels, **options)
    for cache_bytes in (2**20, 0):
        (item,) = load_images([path], channels=channels, cache_bytes=cache_bytes, **options)
        check(item["sample"], pixels, channels)
    for image in (Image.open(path), as_image(picture)):
        check(processor(image)[0], pixels, channels)
        check(read_pictures(image, channels, processor)[0], pixels, channels)


@pytest.mark.parametrize("name", REFUSED)
def test_a_mode_without_a_meaning_is_refused_by_all_of_them(tmp_path, name):
    picture, suffix, options, message = REFUSED[name]
    path = tmp_path / "data" / f"one.{suffix}"
    if name != "LAB":  # PIL writes it in a form of its own
        write(tmp_path / "data", picture, suffix)
        with pytest.raises(ValueError, match=f"{path}: .*{message}"):
            load_images([path], **options)
    with pytest.raises(ValueError, match=message):
        ImageProcessor(**options)(as_image(picture))
    if name != "8 bits of a wide range":
        with pytest.raises(ValueError, match=f"image: .*{message}"):
            read_pictures(as_image(picture), 3, ImageProcessor(**options))


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_and_tensors_of_integers_are_read_by_their_type(name):
    values, options, pixels = ARRAYS[name]
    processor = ImageProcessor(channels=1, **options)
    check(processor(values)[0], pixels, 1)
    if values.dtype.kind != "f" and values.dtype.isnative:
        check(processor(torch.from_numpy(values)[None])[0], pixels, 1)
    if name == "uint8 of a range":  # what a pipeline is given in 8 bits is a picture to look at
        pixels = values
    exact = (in_channels(values, 1) * 255) if values.dtype.kind == "f" else pixels
    exact = np.asarray(exact).reshape(8, 8)
    check(read_pictures(values, 1, processor)[0], exact, 1)
    if values.dtype.isnative:
        check(read_pictures(torch.from_numpy(values)[None, None], 1, processor)[0], exact, 1)


@pytest.mark.parametrize("name", REFUSED_ARRAYS)
def test_arrays_out_of_range_are_refused(name):
    values, options, message = REFUSED_ARRAYS[name]
    for read in (ImageProcessor(channels=1, **options), lambda one: read_pictures(one, 1, None)):
        with pytest.raises(ValueError, match=message):
            read(values)
    with pytest.raises(ValueError, match=message):
        read_pictures(torch.from_numpy(values)[None, None], 1, None)


@pytest.mark.parametrize(
    "mask",
    [
        BITS, BITS.astype(np.uint8), BITS.astype(np.int64), BITS.astype(np.uint8) * 255, BITS.astype(np.float64),
        BITS.astype(np.uint16) * np.uint16(65535), Image.fromarray(BITS), Image.fromarray(BITS.astype(np.uint8) * 255),
        torch.from_numpy(BITS)[None, None], torch.from_numpy(BITS)[None, None].float(),
    ],
)  # fmt: skip
def test_masks_of_any_type_are_one(mask):
    assert np.array_equal(read_masks(mask, 8, 8)[0, 0].numpy(), BITS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": (1, 1)}, r"value_range=\(1, 1\)"),
        ({"value_range": (0, float("nan"))}, r"value_range.* must be .*finite"),
        ({"value_range": [0]}, r"value_range=\[0\]"),
        ({"value_range": "01"}, r"value_range.*'01'"),
        ({"background": "wite"}, "background='wite'"),
        ({"background": "#ffffff00"}, "background="),
        ({"background": 3}, r"background.*3"),
    ],
)
def test_bad_options_are_named(options, message):
    for build in (ImageProcessor, lambda **options: load_images("digits", **options)):
        with pytest.raises(ValueError, match=message):
            build(**options)


def tiny(white=255):
    torch.manual_seed(0)
    model = VQVAE(in_channels=1, hidden_channels=8, codebook_size=64, codebook_dim=4, stage_channels=(8,))
    model.train()(torch.rand(16, 1, 8, 8) * 2 - 1)
    model.processor = ImageProcessor(size=(8, 8), resize="none", channels=1, white=white)
    return model.eval()


@pytest.mark.parametrize("name", ["RGBA", "I;16", "I"])
def test_commands_read_what_the_processor_reads_and_keep_its_range(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("hf_vq.cli.train_autoencoder.save_pictures", lambda *arguments: None)
    picture, suffix, options, pixels = RIGHT[name]
    path = write(tmp_path / "data", picture, suffix)
    flags = ["--value_range", *map(str, options["value_range"])] if options else []
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({
        "data": str(tmp_path / "data"), "validation_fraction": 0, "channels": 1, "max_steps": 1, "use_cpu": True,
        "disable_tqdm": True, "per_device_train_batch_size": 1,
        "model_config": {"hidden_channels": 8, "stage_channels": [8], "codebook_size": 64, "num_residual_layers": 0},
    }))  # fmt: skip
    assert hf_vq_cli.main(["train", "autoencoder", str(recipe), "--output", str(tmp_path / "m"), *flags]) == 0
    model = hf_vq.AutoVQModel.from_pretrained(tmp_path / "m").eval()
    assert model.processor.value_range == options.get("value_range")
    sample = model.processor(Image.open(path))
    check(sample[0], pixels, 1)
    again = hf_vq_cli.main(
        ["train", "autoencoder", str(tmp_path / "m" / "recipe.yaml"), "--output", str(tmp_path / "n")]
    )
    assert again == 0  # the recipe keeps the range

    folder, data = str(tmp_path / "m"), ["--data", str(tmp_path / "data"), "--validation_fraction", "0"]
    assert hf_vq_cli.main(["tokenize", folder, *data, "--output", str(tmp_path / "codes")]) == 0  # the model's range
    (row,) = load_codes(tmp_path / "codes", split="train")
    assert torch.equal(row["codes"], model.tokenize(sample)[0])
    figures = tmp_path / "figures.json"
    assert hf_vq_cli.main(["evaluate", folder, *data, "--split", "train", "--output", str(figures)]) == 0
    with torch.no_grad():
        error = torch.nn.functional.mse_loss(model(sample).sample, sample).item()
    assert json.loads(figures.read_text())["autoencoder"]["mse"] == pytest.approx(error, rel=1e-4)
    capsys.readouterr()
    assert hf_vq_cli.main(["reconstruct", folder, "--files", str(path), "--output", str(tmp_path / "r.png")]) == 0
    assert f"squared error {error:.5f}" in capsys.readouterr().out


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
def test_a_data_set_tells_how_many_images_have_alpha(tmp_path, cache_bytes):
    picture = RIGHT["RGBA"][0]
    paths = [
        write(tmp_path / str(one), picture.convert(mode), "png") for one, mode in enumerate(("RGB", "RGBA", "LA"))
    ]
    with pytest.warns(UserWarning, match="2 of 3 images have an alpha channel: .* on black"):
        load_images(paths, channels=3, background="black", cache_bytes=cache_bytes)


def test_a_command_names_file_type_and_option(tmp_path, capsys):
    path = write(tmp_path / "data", Image.fromarray(SIGNED), "tif")
    tiny().save_pretrained(tmp_path / "model")
    command = ["tokenize", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--validation_fraction", "0"]
    assert hf_vq_cli.main([*command, "--output", str(tmp_path / "codes")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(words in error for words in (str(path), "int32", str(SIGNED.min()), "value_range"))
    assert not (tmp_path / "codes").exists()


def test_a_pipeline_whose_data_had_a_white_of_their_own_takes_ordinary_pictures():
    model = tiny(white=16)
    config = PixelCNNConfig(codebook_size=64, num_classes=0, code_shape=(4, 4), hidden_channels=8, num_layers=2)
    pipe = VQPipeline(autoencoder=model, prior=PixelCNN(config).eval())
    pipe.set_progress_bar_config(disable=True)
    wanted = model.tokenize(torch.from_numpy(GREY)[None, None].float() * (2 / 255) - 1)
    mask = np.zeros((8, 8), dtype=bool)
    for image in (Image.fromarray(GREY), GREY, torch.from_numpy(GREY)[None, None], GREY / np.float32(255)):
        assert torch.equal(pipe(image=image, mask_image=mask, output_type="codes").images, wanted)

"""Facts about the processor of images: the numbers of training, whatever the form of a picture; saved for stock."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hf_vq import VQVAE, AutoVQModel, VQVAEForAutoModel
from hf_vq.data.images import load_images
from hf_vq.modalities import ImageProcessor

from .conftest import no_complaints
from .processes import in_a_process
from .stock_users import process_picture


def photo(size=(37, 23), channels=3, seed=0):
    """A PIL image that is smooth, as photos are."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
    return image if channels == 3 else image.convert("L")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [16, None])
def test_a_picture_gives_the_numbers_of_the_training_pipeline(tmp_path, channels, image_size):
    for index in range(3):
        photo(seed=index).save(tmp_path / f"{index}.png")
    dataset = load_images(tmp_path, image_size=image_size, channels=channels, validation_fraction=0)
    processor = ImageProcessor.from_dataset(dataset)
    rule = "center_crop" if image_size else "none"
    assert processor == ImageProcessor(dataset.sample_shape[1:], rule, channels, 255)
    wanted = torch.stack([item["sample"] for item in dataset])
    pictures = [Image.open(tmp_path / f"{index}.png") for index in range(3)]
    assert torch.equal(processor(pictures), wanted)
    assert torch.equal(processor(pictures[1]), wanted[1:2])

    grey = channels == 1
    arrays = np.stack([np.asarray(picture.convert("L" if grey else "RGB")) for picture in pictures])
    first = torch.from_numpy(arrays).unsqueeze(-1) if grey else torch.from_numpy(arrays)
    first = first.movedim(-1, 1)  # channels first
    for form in (
        arrays,
        list(arrays),
        first,
        list(first),
        first.numpy().transpose(0, 2, 3, 1),
        arrays / 255,
        (arrays / 255).astype(np.float32),
        [pictures[0], arrays[1], first[2]],
    ):
        assert torch.equal(processor(form), wanted)


def test_digits_keep_their_own_white(tmp_path):
    digits = load_images("digits")
    processor = ImageProcessor.from_dataset(digits)
    assert processor == ImageProcessor((8, 8), "none", 1, 16)
    with digits.source.open(4) as picture:
        assert torch.equal(processor(picture)[0], digits[4]["sample"])
    with pytest.raises(ValueError, match="white=16, got 255"):
        processor(Image.new("L", (8, 8), 255))


@pytest.mark.parametrize("channels", [2, 5])
def test_any_number_of_channels(channels):
    pixels = torch.randint(0, 256, (2, channels, 9, 12), dtype=torch.uint8)
    processor = ImageProcessor(size=(4, 4), channels=channels)
    wanted = [ImageProcessor(size=(4, 4), channels=1)(pixels[:, one : one + 1]) for one in range(channels)]
    assert torch.equal(processor(pixels), torch.cat(wanted, dim=1))
    with pytest.raises(ValueError, match=f"the model {channels}"):
        processor(photo())


BAD = {
    "float out of range": (np.array([[[0.0, 0.5, 1.5]]]), r"\[0, 1\], got 0.0 to 1.5"),
    "not a number": (np.full((4, 4, 3), np.nan), "NaN or infinity: nan"),
    "float tensor": (torch.zeros(3, 4, 4), "uint8, got torch.float32"),
    "integers": (np.zeros((4, 4, 3), dtype=np.int32), "int32 pixels.*value_range"),
    "channels last tensor": (torch.zeros(4, 4, 3, dtype=torch.uint8), r"3 channels, got shape \(4, 4, 3\)"),
    "grey array": (np.zeros((4, 4), dtype=np.uint8), r"3 channels, got shape \(4, 4\)"),
    "alpha": (np.zeros((4, 4, 4), dtype=np.uint8), r"3 channels, got shape \(4, 4, 4\)"),
    "sizes that differ": ([photo((4, 6)), photo((6, 4))], r"one size .* got \[\(4, 6\), \(6, 4\)\]"),
    "nothing": ([], "one or more"),
    "no pixels": (np.zeros((0, 4, 3), dtype=np.uint8), r"pixels, got shape \(0, 4, 3\)"),
    "a path": ("cat.png", "got str"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_named(case):
    images, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ImageProcessor()(images)


def told(value, message):
    """A value is in a message, or the item of it that is wrong."""
    assert any(repr(one) in message for one in (value, *(value if isinstance(value, tuple) else ())))


@pytest.mark.parametrize(
    "arguments",
    [{"size": 16}, {"size": (4,)}, {"size": (0, 0)}, {"resize": "pad"}, {"channels": 0}, {"white": 0}],
)
def test_bad_arguments_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=name) as error:
        ImageProcessor(**arguments)
    told(value, str(error.value))


def test_without_resizing_pictures_stay_as_they_come_but_the_size_is_known(tmp_path):
    processor = ImageProcessor(size=(4, 6), resize="none")
    assert processor(photo((6, 4))).shape == (1, 3, 4, 6)
    assert processor(photo((5, 7))).shape == (1, 3, 7, 5)
    processor.save_pretrained(tmp_path)
    stock = AutoImageProcessor.from_pretrained(tmp_path)
    assert (stock.size["height"], stock.size["width"]) == (4, 6)
    assert stock(photo((5, 7)), return_tensors="pt")["pixel_values"].shape == (1, 3, 7, 5)


@pytest.mark.parametrize(("white", "channels"), [(255, 1), (255, 3)])
def test_postprocessing_gives_the_pictures_back(white, channels):
    picture = photo(channels=channels)
    processor = ImageProcessor(channels=channels, white=white)
    sample = processor(picture)
    (shown,) = processor.postprocess(sample)
    assert np.array_equal(np.asarray(shown), np.asarray(picture))
    assert torch.equal(processor(processor.postprocess(sample, "np")), sample)
    assert processor.postprocess(sample, "pt").shape == sample.shape
    with pytest.raises(ValueError, match="output_type must be one of"):
        processor.postprocess(sample, "codes")


PROCESSORS = {
    "rgb": ImageProcessor(size=(16, 16)),
    "grey": ImageProcessor(size=(16, 16), channels=1),
    "as it comes": ImageProcessor(),
    "digits": ImageProcessor(channels=1, white=16),
    "of one size": ImageProcessor(size=(23, 37), resize="none"),
    "many channels": ImageProcessor(size=(8, 8), channels=5),
    "wide": ImageProcessor(size=(8, 12)),
    "padded": ImageProcessor(size=(8, 12), resize="pad", background="black"),
    "stretched": ImageProcessor(size=(8, 12), resize="stretch"),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_saved_processor_is_itself_again_also_where_stock_saved_it(tmp_path, name):
    PROCESSORS[name].save_pretrained(tmp_path / "ours")
    assert ImageProcessor.from_pretrained(tmp_path / "ours") == PROCESSORS[name]
    assert ImageProcessor.from_pretrained(tmp_path, subfolder="ours") == PROCESSORS[name]
    with no_complaints():
        stock = AutoImageProcessor.from_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    assert ImageProcessor.from_pretrained(tmp_path / "stock") == PROCESSORS[name]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "resize"), [((16, 16), "center_crop"), (None, "center_crop"), ((8, 12), "stretch")])
def test_stock_reads_size_channels_and_range_and_gives_our_samples(tmp_path, channels, size, resize):
    ours, picture = ImageProcessor(size=size, resize=resize, channels=channels), photo(channels=channels)
    ours.save_pretrained(tmp_path)
    stock = AutoImageProcessor.from_pretrained(tmp_path)
    assert len(stock.image_mean) == stock.num_channels == channels
    assert stock.rescale_factor == 1 / 255
    if size:
        assert (stock.size["height"], stock.size["width"]) == size
    found = stock(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, ours(picture), rtol=0, atol=1e-6)


def test_stock_reads_it_in_a_process_without_hf_vq(tmp_path):
    ours, picture = ImageProcessor(size=(16, 16)), photo()
    ours.save_pretrained(tmp_path)
    picture.save(tmp_path / "photo.png")
    shown = in_a_process(process_picture, tmp_path, tmp_path / "photo.png")
    torch.testing.assert_close(torch.tensor(shown), ours(picture), rtol=0, atol=1e-6)


def test_foreign_files_are_read_where_they_mean_what_ours_do(tmp_path):
    file, ours = tmp_path / "preprocessor_config.json", ImageProcessor(size=(16, 16))
    assert ImageProcessor.from_pretrained(tmp_path) is None
    stock = {name: v for name, v in ours.to_dict().items() if name not in ("num_channels", "resize_rule", "white")}
    file.write_text(json.dumps(stock))
    assert ImageProcessor.from_pretrained(tmp_path) == ours
    for change in (
        {"image_processor_type": "ViTImageProcessor"},  # squeezes instead of cropping
        {"resample": 3},
        {"do_center_crop": False},
        {"crop_size": {"height": 20, "width": 20}},
        {"size": {"shortest_edge": 16}},
        {"image_mean": [0.48, 0.46, 0.41]},
        {"do_normalize": False},
        {"do_rescale": False},
    ):
        file.write_text(json.dumps({**stock, **change}))
        assert ImageProcessor.from_pretrained(tmp_path) is None, change
    file.write_text(json.dumps({**stock, "do_resize": False, "do_center_crop": False}))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor()
    file.write_text("{}")
    assert ImageProcessor.from_pretrained(tmp_path) is None


@pytest.mark.parametrize("shape", [(8, 6, 2), (8, 6, 3), (8, 6, 4), (2, 8, 6, 3), (3, 3, 3)])
def test_a_picture_with_colours_is_no_batch_of_grey_ones(shape):
    array = np.zeros(shape, dtype=np.uint8)
    for form in (array, array / 255, torch.from_numpy(array).movedim(-1, -3), [array, array]):
        with pytest.raises(ValueError, match="must have 1 channel"):
            ImageProcessor(channels=1)(form)
    grey = np.random.default_rng(0).integers(0, 256, shape[:3], dtype=np.uint8)
    assert ImageProcessor(channels=1)(grey[..., None]).shape[1:] == (1, *shape[1:3])


SHAPES = {  # of an array (np) or tensor, channels of the model: how many pictures it is, None where it is refused
    "channels first to grey: three pictures": (np, (3, 9, 8), 1, 3),
    "one narrow picture or a line": (np, (1, 9, 3), 1, None),
    "batch of channels first to grey": (np, (2, 3, 9, 8), 1, None),
    "grey to rgb": (np, (9, 8), 3, None),
    "channels first to rgb": (np, (3, 9, 8), 3, None),
    "low rgb": (np, (3, 9, 3), 3, 1),
    "rgba to rgb": (np, (9, 8, 4), 3, None),
    "batch of channels first to rgb": (np, (2, 3, 9, 8), 3, None),
    "an axis": (np, (9,), 1, None),
    "a video": (np, (2, 2, 9, 8, 3), 3, None),
    "a number": (np, (), 1, None),
    "tensor, channels last, to grey": (torch, (9, 8, 3), 1, None),
    "tensor, batch without channels, to grey": (torch, (9, 8, 8), 1, None),
    "tensor, grey to rgb": (torch, (1, 9, 8), 3, None),
}


@pytest.mark.parametrize("case", SHAPES)
def test_no_shape_is_taken_for_another(case):
    library, shape, channels, count = SHAPES[case]
    images, processor = library.zeros(shape, dtype=library.uint8), ImageProcessor(channels=channels)
    if count is None:
        with pytest.raises(ValueError, match=rf"{channels} channel.*{re.escape(str(shape))}"):
            processor(images)
    else:
        assert processor(images).shape[:2] == (count, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_and_its_array_are_one(channels):
    picture, processor = photo(channels=channels), ImageProcessor(size=(8, 8), channels=channels)
    assert torch.equal(processor(np.asarray(picture)), processor(picture))


BAD_ARGUMENTS = [("size", value) for value in ((8.5, 8.5), ("8", "8"), (True, True), (8,), (8, None), float("nan"))]
BAD_ARGUMENTS += [("channels", value) for value in (3.0, "3", True, None, -1)]
BAD_ARGUMENTS += [("white", value) for value in (254.5, "255", 256, None, True)]


@pytest.mark.parametrize(("name", "value"), BAD_ARGUMENTS)
def test_arguments_of_a_wrong_type_are_named(name, value):
    with pytest.raises(ValueError, match=name) as error:
        ImageProcessor(**{name: value})
    told(value, str(error.value))


def test_data_of_another_white_are_told():
    digits = load_images("digits")
    assert ImageProcessor.from_dataset(digits).differences(digits) == []
    (line,) = ImageProcessor((8, 8), "none", 1, 255).differences(digits)
    assert line == "white is 16 in the images, 255 in those of the model"


def tiny(**options):
    return VQVAE(**{"in_channels": 1, "hidden_channels": 8, "codebook_size": 8, "codebook_dim": 4, **options})


@pytest.mark.parametrize("text", ["{bad", "[]", "3", '"text"', "", "\xff", '{"image_mean": 3}', '{"size": []}'])
def test_a_broken_file_is_told_and_the_model_loads(tmp_path, text):
    model = tiny()
    model.initialize_codebook(torch.rand(2, 1, 8, 8))
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    for load in (VQVAE, AutoVQModel, AutoModel):
        with pytest.warns(UserWarning, match=r"preprocessor_config.json says nothing that .* can do") as told:
            loaded = load.from_pretrained(tmp_path)
        assert [each.filename for each in told] == [__file__]
        sample = torch.zeros(1, 1, 8, 8)
        assert torch.equal(loaded.tokenize(sample), model.eval().tokenize(sample))


def test_a_processor_of_other_channels_is_refused_by_a_model_and_left_out_of_a_folder(tmp_path):
    model = tiny()
    with pytest.raises(ValueError, match=r"channels=3, but the model takes in_channels=1"):
        model.processor = ImageProcessor(channels=3)
    model.save_pretrained(tmp_path)
    ImageProcessor((8, 8)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="of another model: processor has channels=3"):
        assert VQVAE.from_pretrained(tmp_path).processor == ImageProcessor(channels=1)


def test_a_processor_stays_with_every_copy_of_its_model(tmp_path):
    model, processor = tiny(), ImageProcessor((8, 8), "none", 1, 16)
    model.processor = processor
    face = VQVAEForAutoModel.from_autoencoder(model)
    face.save_pretrained(tmp_path / "face")
    copies = [
        copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).half(), face.autoencoder,
        model.with_reconstruction_loss("logistic"), VQVAE.from_pretrained(tmp_path / "face"),
        AutoModel.from_pretrained(tmp_path / "face").autoencoder,
    ]  # fmt: skip
    assert [each.processor for each in copies] == [processor] * len(copies)


def test_a_folder_that_is_saved_again_keeps_no_processor_of_another_model(tmp_path):
    former = tiny()
    former.processor = ImageProcessor((8, 8), "none", 1)
    former.save_pretrained(tmp_path)
    tiny().save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    tiny().save_pretrained(tmp_path)  # not ours
    assert (tmp_path / "preprocessor_config.json").exists()

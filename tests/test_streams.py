"""Training on streams, and on items as image data sets of transformers have them."""

import datasets
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset, IterableDataset

from hf_vq.data.codes import load_codes
from hf_vq.data.padding import SampleCollator
from hf_vq.data.tokenizing import tokenize_dataset
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.autoencoder import train_autoencoder
from hf_vq.training.evaluation import evaluate_autoencoder
from hf_vq.training.reading import make_reader

from . import resume_runs
from .tiny_models import Images, tiny_autoencoder


class Stream(IterableDataset):
    """Images in their order, a new one for every pass; it has no state of its own."""

    def __init__(self, count=100, name="sample"):
        self.images, self.name, self.epoch = Images(count), name, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        count = len(self.images)
        for index in range(count):
            yield {self.name: self.images[(index + 3 * self.epoch) % count]["sample"]}


class Stateful(Stream):
    """The same, which goes on where its state says; it counts the items that it gives."""

    given = 0

    def __init__(self):
        super().__init__()
        self.start = self.index = 0

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.start = state["index"]

    def __iter__(self):
        self.index, self.start = self.start, 0
        for item in list(super().__iter__())[self.index :]:
            self.index += 1
            type(self).given += 1
            yield item


def of_datasets(shuffled=False):
    images = Images(100)

    def items(shards):
        for shard in shards:
            for index in range(shard, 100, 4):
                yield {"pixel_values": images[index]["sample"].numpy()}

    made = datasets.IterableDataset.from_generator(items, gen_kwargs={"shards": [0, 1, 2, 3]}).with_format("torch")
    return made.shuffle(seed=1, buffer_size=10) if shuffled else made


def buffered():
    return of_datasets(shuffled=True)


STREAMS = [Stream, Stateful, of_datasets, buffered]


def arguments(folder, resume=None, **options):
    options = {**resume_runs.OPTIONS, "max_steps": 15, "resume_from_checkpoint": resume, **options}
    return AutoencoderTrainingArguments(str(folder), **options)


def train(stream, args, **more):
    torch.manual_seed(0)
    return train_autoencoder(tiny_autoencoder(), stream, args, Images(20), **more)


class StopAfter:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize(("make", "workers"), [*((make, 0) for make in STREAMS), (Stateful, 1), (buffered, 1)])
def test_a_stream_resumes_where_it_was(make, workers, tmp_path):
    options = {"dataloader_num_workers": workers}
    whole = train(make(), arguments(tmp_path / "whole", **options))
    train(make(), arguments(tmp_path / "parts", **options), callbacks=[StopAfter(9)])  # of 16 samples: in pass two
    resumed = train(make(), arguments(tmp_path / "parts", resume=True, **options))
    assert resumed["metrics"] == whole["metrics"]
    assert {entry["epoch"] for entry in whole["history"]} == {0, 1, 2}
    name = "diffusion_pytorch_model.safetensors"
    expected, actual = load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_a_stream_with_a_state_is_not_read_again(tmp_path):
    train(Stateful(), arguments(tmp_path), callbacks=[StopAfter(9)])
    Stateful.given = 0
    train(Stateful(), arguments(tmp_path, resume=True))
    assert Stateful.given == 6 * 16 + 1  # six steps, and the look at whether there is anything


def test_a_stream_is_read_in_order_again_and_again_and_processes_share_every_step():
    args = arguments("unused", per_device_train_batch_size=3)
    alone = make_reader(Stream(20), SampleCollator(), arguments("unused", per_device_train_batch_size=6), 1, 0)
    steps = alone.steps(0, pin_memory=False)
    read = torch.cat([batch["sample"] for _ in range(3) for batch in next(steps)])
    images = Images(20).samples
    assert torch.equal(read[:20], images)
    assert torch.equal(read[20:36], images.roll(-3, 0)[:16])  # the second pass
    shares = [make_reader(Stream(20), SampleCollator(), args, 2, rank).steps(0, False) for rank in range(2)]
    for step in range(3):
        parts = [batch["sample"] for share in shares for batch in next(share)]
        assert torch.equal(torch.cat(parts), read[12 * step : 12 * (step + 1)])


@pytest.mark.parametrize(
    ("stream", "options", "words"),
    [
        (Stream(), {"max_steps": -1}, "max_steps=-1 must be positive"),
        (Stream(), {"dataloader_num_workers": 2}, "dataloader_num_workers=2 must be 0 or 1"),
        (Stream(0), {}, "train_dataset is empty"),
    ],
)
def test_a_stream_that_cannot_be_trained_on_is_refused_before_any_work(stream, options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train_autoencoder(tiny_autoencoder(), stream, arguments(tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


class Stock(Dataset):
    """Images as transformers' data sets have them, without anything that ours say of themselves."""

    def __init__(self, count):
        self.images = Images(count)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index]["sample"]}


def test_pixel_values_are_samples_in_training_evaluation_and_tokenizing(tmp_path):
    reports, models = [], []
    for name, dataset in (("ours", Images), ("stock", Stock)):
        torch.manual_seed(0)
        models.append(tiny_autoencoder())
        reports.append(train_autoencoder(models[-1], dataset(64), arguments(tmp_path / name), dataset(20)))
    assert reports[0]["metrics"] == reports[1]["metrics"]
    model = models[0]
    expected = evaluate_autoencoder(model, Images(20))
    assert evaluate_autoencoder(model, Stock(20)) == expected
    assert evaluate_autoencoder(model, Stream(20, "pixel_values")) == expected
    assert tokenize_dataset(model, Stock(20), tmp_path / "codes") == {"train": 20}
    codes = load_codes(tmp_path / "codes", "train")
    assert torch.equal(torch.stack([item["codes"] for item in codes]), model.eval().tokenize(Images(20).samples))
    with pytest.raises(ValueError, match=r"must have 'sample' or 'pixel_values', it has \['image'\]"):
        SampleCollator()([{"image": Images(1).samples[0]}])

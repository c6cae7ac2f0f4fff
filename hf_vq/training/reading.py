"""What a training reads, step by step, from data sets with an index and from streams; a resumed run goes on there."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from hf_vq.data.padding import is_stream
from hf_vq.training.arguments import AutoencoderTrainingArguments
from hf_vq.training.sampling import ShuffledStream

Batch = dict[str, Any]


def make_reader(
    dataset: Any,
    collate: Callable[[list], Batch],
    args: AutoencoderTrainingArguments,
    num_processes: int = 1,
    process_index: int = 0,
) -> "IndexedReader | StreamReader":
    """The reader of a training data set, see `IndexedReader` and `StreamReader`."""
    reader_class = StreamReader if is_stream(dataset) else IndexedReader
    return reader_class(dataset, collate, args, num_processes, process_index)


def check_readable(dataset: Any, args: AutoencoderTrainingArguments) -> None:
    """Raise a ValueError for a training data set that is empty, or a stream that the options do not fit."""
    if not is_stream(dataset):
        if len(dataset) == 0:
            raise ValueError("train_dataset is empty")
        return
    if args.max_steps <= 0:
        raise ValueError(f"max_steps={args.max_steps} must be positive: train_dataset is a stream without a length")
    if args.dataloader_num_workers > 1:
        raise ValueError(
            f"dataloader_num_workers={args.dataloader_num_workers} must be 0 or 1: train_dataset is a stream, which "
            "one process reads in order"
        )
    if next(iter(dataset), None) is None:
        raise ValueError("train_dataset is empty")


class IndexedReader:
    """Reads a map-style data set in the order of a `ShuffledStream`: its position is the step alone.

    One that `draws` gives its items by `draw(index, numpy generator)`, which may change them at random.

    Attributes:
        position: what a checkpoint must tell besides the step: nothing here.
    """

    position: dict[str, Any] | None = None

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list], Batch],
        args: AutoencoderTrainingArguments,
        num_processes: int,
        process_index: int,
    ):
        self.dataset, self.collate, self.args = dataset, collate, args
        self.stream = ShuffledStream(
            num_samples=len(dataset),
            batch_size=args.per_device_train_batch_size,
            batches_per_step=args.gradient_accumulation_steps,
            seed=args.seed,
            num_processes=num_processes,
            process_index=process_index,
        )
        self.identity, self.samples_per_step = self.stream.identity, self.stream.samples_per_step

    def epoch(self, step: int) -> float:
        """Passes over the data after so many steps."""
        return round(step * self.samples_per_step / len(self.dataset), 4)

    def first(self) -> Batch:
        """A batch of one sample, for its shape."""
        return self.collate([self.dataset[0]])

    def beginning(self, count: int) -> Batch:
        """This process's share of the first `count` samples, or of all where there are fewer, in one batch."""
        return self.collate([self.dataset[index] for index in self.beginning_rows(count)])

    def beginning_rows(self, count: int) -> list[int]:
        """Rows of the data set that `beginning` reads."""
        return self.stream.share(0, min(count, len(self.dataset)))

    def rows(self, step: int, place: int) -> list[int] | None:
        """Rows of the data set in a batch of a step; None where they are not known."""
        size = self.args.per_device_train_batch_size
        return self.stream.share(step * self.samples_per_step, self.samples_per_step)[place * size :][:size]

    def steps(self, step: int, pin_memory: bool) -> Iterator[list[Batch]]:
        """Endless lists of the batches of one optimizer step, of this process, from a step on."""
        draws = getattr(_innermost(self.dataset), "draws", False)
        loader: DataLoader = DataLoader(
            _Drawn(self.dataset, self.args.seed) if draws else self.dataset,
            batch_sampler=self.stream.places(step) if draws else self.stream.batches(step),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=pin_memory,
            collate_fn=self.collate,
            generator=torch.Generator().manual_seed(self.args.seed + step),
        )
        batches = iter(loader)
        while True:
            yield [next(batches) for _ in range(self.args.gradient_accumulation_steps)]


class _Drawn(Dataset):
    """Items as a data set draws them, by index and position in the stream: random numbers are those of the position.

    So a resumed run draws what it would have drawn, with any number of processes and workers.
    """

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        (index, position), dataset = place, self.dataset
        while isinstance(dataset, Subset):
            index, dataset = dataset.indices[index], dataset.dataset
        return dataset.draw(index, np.random.default_rng((self.seed, position)))


def _innermost(dataset):
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


class StreamReader:
    """Reads an `IterableDataset` in its own order, again from the start (`set_epoch`) where it ends.

    Every process reads the whole stream and keeps its part of each step, so that many train as one does. A resumed run
    takes the position up by the data set's `state_dict` and `load_state_dict`, else by skipping what was read in the
    last pass; also where the data set has a shuffle buffer, which its state does not hold. One that `draws` is read by
    `drawn(seed)`.

    Attributes:
        position: what has been given: `epoch`, `given` samples of it, and the data set's own `state`.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list], Batch],
        args: AutoencoderTrainingArguments,
        num_processes: int,
        process_index: int,
    ):
        self.dataset, self.collate, self.args = dataset, collate, args
        names = ("per_device_train_batch_size", "gradient_accumulation_steps")
        self.batch_size, self.batches_per_step = (getattr(args, name) for name in names)
        mine = self.batch_size * self.batches_per_step
        self.samples_per_step = mine * num_processes
        self.mine = slice(process_index * mine, (process_index + 1) * mine)
        self.identity = {
            "num_samples": None,
            "batch_size": self.batch_size,
            "batches_per_step": self.batches_per_step,
            "seed": args.seed,
            "num_processes": num_processes,
        }
        self.has_state = keeps_its_place(dataset)
        self.position: dict[str, Any] = {"epoch": 0, "given": 0, "state": None}

    def epoch(self, step: int) -> float:
        """Whole passes over the data behind the current position."""
        return self.position["epoch"]

    def first(self) -> Batch:
        """A batch of one sample, for its shape."""
        return self.collate([next(iter(self.dataset))])

    def beginning(self, count: int) -> Batch:
        """This process's share of the first `count` samples, or of all where there are fewer, in one batch."""
        items = list(itertools.islice(self.dataset, count))
        return self.collate([items[index] for index in self.beginning_rows(len(items))])

    def beginning_rows(self, count: int) -> list[int]:
        """Rows that `beginning` reads, of a stream that has so many."""
        parts = torch.arange(count).tensor_split(self.identity["num_processes"])
        return parts[self.mine.start // (self.mine.stop - self.mine.start)].tolist()

    def rows(self, step: int, place: int) -> list[int] | None:
        """Rows of the pass in a batch of the step that was read last; None where it began in an earlier pass."""
        first = self.position["given"] - self.samples_per_step + self.mine.start + place * self.batch_size
        return None if first < 0 else list(range(first, first + self.batch_size))

    def items(self, position: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Endless items from a position on, each with the position behind it."""
        epoch, given = position["epoch"], position["given"]
        while True:
            if hasattr(self.dataset, "set_epoch"):
                self.dataset.set_epoch(epoch)
            skipped = given if position["state"] is None else 0
            if position["state"] is not None:
                self.dataset.load_state_dict(position["state"])
            drawn = self.dataset.drawn(self.args.seed) if getattr(self.dataset, "draws", False) else self.dataset
            for item in itertools.islice(drawn, skipped, None):
                given += 1
                yield item, {"epoch": epoch, "given": given}
            if not given:
                raise ValueError(f"train_dataset gave nothing in pass {epoch + 1}: it must start anew when it ends")
            epoch, given, position = epoch + 1, 0, {**position, "state": None}

    def steps(self, step: int, pin_memory: bool) -> Iterator[list[Batch]]:
        """Endless lists of the batches of one optimizer step, of this process, from the current position on."""
        loader = DataLoader(
            _Steps(self),
            batch_size=None,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=pin_memory,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self.args.seed + step),
        )
        for batches, self.position in loader:
            yield batches


class _Steps(IterableDataset):
    """Steps of a `StreamReader`, each with the position behind it: what a worker process has read ahead counts not."""

    def __init__(self, reader: StreamReader):
        self.reader = reader

    def __iter__(self) -> Iterator[tuple[list[Batch], dict[str, Any]]]:
        reader = self.reader
        items = reader.items(reader.position)
        while True:
            read = list(itertools.islice(items, reader.samples_per_step))
            state = copy.deepcopy(reader.dataset.state_dict()) if reader.has_state else None
            position = {**read[-1][1], "state": state}
            mine = [item for item, _ in read[reader.mine]]
            starts = range(0, len(mine), reader.batch_size)
            yield [reader.collate(mine[start : start + reader.batch_size]) for start in starts], position


def _as_it_is(step: Any) -> Any:
    return step


def keeps_its_place(dataset: Any) -> bool:
    """Whether a stream's own state, as JSON, leads back to its exact position: a shuffle buffer is not in it."""
    if not (hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")):
        return False
    part = getattr(dataset, "_ex_iterable", None)  # of datasets: what it is made of, last step first
    while part is not None:
        if "Shuffle" in type(part).__name__ and "Buffer" in type(part).__name__:
            return False
        part = getattr(part, "ex_iterable", None)
    try:
        json.dumps(dataset.state_dict())
    except TypeError:
        return False
    return True

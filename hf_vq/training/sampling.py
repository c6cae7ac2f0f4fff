"""The order of the training data: a pure function of the step, so that a resumed run needs nothing but its step."""

from collections.abc import Iterator

import torch


class ShuffledStream:
    """An endless stream of sample indices, one fresh permutation of the data after the other, cut into equal batches.

    No batch is ever short and no sample is dropped: a batch may straddle two passes. All batches being equal, the mean
    over the batches of one optimizer step is the mean over its samples, on one process or many.

    Args:
        num_samples: size of the data set.
        batch_size: samples per process and forward.
        batches_per_step: forwards per optimizer step.
        seed: of the permutations.
        num_processes: processes that share each step's samples.
        process_index: which of them this one is.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        batches_per_step: int = 1,
        seed: int = 0,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.batches_per_step = batches_per_step
        self.num_processes, self.process_index = num_processes, process_index
        self._epoch: int | None = None
        self._order = torch.empty(0, dtype=torch.int64)  # the permutation in use

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer step, over all processes."""
        return self.batch_size * self.batches_per_step * self.num_processes

    @property
    def identity(self) -> dict[str, int]:
        """What must be equal for two streams to give the same samples at the same step."""
        names = ["num_samples", "batch_size", "batches_per_step", "seed", "num_processes"]
        return {name: getattr(self, name) for name in names}

    def indices(self, start: int, count: int) -> list[int]:
        """The `count` indices of the stream from position `start` on, a list of ints in [0, num_samples)."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), self.num_samples)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(self.seed + epoch)
                self._epoch, self._order = epoch, torch.randperm(self.num_samples, generator=generator)
            found.extend(self._order[offset : offset + count - len(found)].tolist())
        return found

    def share(self, start: int, count: int) -> list[int]:
        """This process's part of `indices(start, count)`: the parts of all processes, in order, are the whole."""
        parts = torch.tensor(self.indices(start, count)).tensor_split(self.num_processes)
        return parts[self.process_index].tolist()

    def batches(self, start_step: int = 0) -> Iterator[list[int]]:
        """Yield this process's batches of indices, from optimizer step `start_step` on, without end."""
        for batch in self.places(start_step):
            yield [index for index, _ in batch]

    def places(self, start_step: int = 0) -> Iterator[list[tuple[int, int]]]:
        """`batches` of indices with their positions in the stream, which no two samples of a run have in common."""
        step = start_step
        while True:
            start, count = step * self.samples_per_step, self.samples_per_step
            positions = torch.arange(start, start + count).tensor_split(self.num_processes)[self.process_index]
            mine = list(zip(self.share(start, count), positions.tolist(), strict=True))
            for first in range(0, len(mine), self.batch_size):
                yield mine[first : first + self.batch_size]
            step += 1

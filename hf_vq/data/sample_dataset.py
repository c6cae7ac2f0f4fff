"""A map-style data set of samples that are checked before any work: what images and sounds share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from hf_vq.data.kinds import FileKind
from hf_vq.data.sources import SampleSource
from hf_vq.quiet import is_quiet

CACHE_BYTES = 512 * 2**20


class MismatchError(ValueError):
    """A good sample that does not fit the others: none to skip, but options to change."""


class SampleDataset(Dataset):
    """Samples of a source, with what is known of each.

    Args:
        source: of the samples.
        kind: of their files.
        skip_bad: leave out those that cannot be read.

    Attributes:
        num_classes: 0 without labels.
        class_names: list of str, None without classes; those of the training split also where this one has no labels.
        labels: (len,) int64 tensor, None without labels.
        speaker_labels, speaker_names, num_speakers: the same of speakers.
        captions: list of str, None without captions.
        skipped: one line per bad sample that was left out, with the reason.
    """

    labels: torch.Tensor | None
    class_names: list[str] | None
    captions: list[str] | None
    num_classes: int
    speaker_labels: torch.Tensor | None
    speaker_names: list[str] | None
    num_speakers: int

    def __init__(self, source: SampleSource, kind: FileKind, skip_bad: bool):
        if len(source.names) == 0:
            raise ValueError(f"the data set has no {kind.plural}")
        self.source, self.kind, self.skip_bad = source, kind, skip_bad
        self.skipped: list[str] = []

    def __len__(self):
        return len(self.source.names)

    def without(self, other: "SampleDataset") -> np.ndarray:
        """Rows of this data set, int64, whose sample is not in another data set of the same source."""
        taken = set(other.source.names)
        return np.array([row for row, name in enumerate(self.source.names) if name not in taken], dtype=np.int64)

    def take_facts(self) -> None:
        """Take labels, classes, speakers and captions of the samples that are left of the source."""
        labels = self.source.labels
        self.labels = None if labels is None else torch.from_numpy(labels)
        self.class_names, self.captions = self.source.class_names, self.source.captions
        self.num_classes = 0 if labels is None else len(self.class_names or ())
        speakers, self.speaker_names = self.source.speaker_labels, self.source.speaker_names
        self.speaker_labels = None if speakers is None else torch.from_numpy(speakers)
        self.num_speakers = 0 if speakers is None else len(self.speaker_names or ())

    def with_facts(self, index: int, sample: torch.Tensor) -> dict[str, Any]:
        """The item of a sample (channels, *space)."""
        item: dict[str, Any] = {"sample": sample}
        if self.labels is not None:
            item["class_labels"] = self.labels[index]
        if self.speaker_labels is not None:
            item["speaker_labels"] = self.speaker_labels[index]
        if self.captions is not None:
            item["caption"] = self.captions[index]
        return item

    def read_each(
        self, source: SampleSource, read: Callable[[int], Any], title: str
    ) -> tuple[SampleSource, list[Any]]:
        """Call `read(index)` for all samples; the source without those that fail, and the results.

        Raises:
            ValueError: a bad sample, or with `skip_bad` nothing but such.
            MismatchError: one that does not fit the others.
        """
        kept, results = [], []
        for index in tqdm(range(len(source.names)), title, leave=False, disable=is_quiet() or None):
            try:
                results.append(read(index))
                kept.append(index)
            except MismatchError:
                raise
            except Exception as error:  # libraries raise all kinds on damaged bytes
                problem = self.kind.bad(source.names[index], error)
                if not self.skip_bad:
                    raise ValueError(f"{problem} (skip_bad leaves bad {self.kind.plural} out)") from error
                self.skipped.append(str(problem))
        if not kept:
            raise ValueError(f"no {self.kind.name} can be read: {self.skipped[0]}")
        return (source if len(kept) == len(source.names) else source.select(kept)), results

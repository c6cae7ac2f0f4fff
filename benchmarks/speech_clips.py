"""Spoken digits: single clips, and utterances of a speaker's ten digits with short gaps."""

import itertools
from dataclasses import dataclass

import numpy as np

from hf_vq.data.audio import load_audio

RATE = 8000
GAP = 0.1  # seconds of silence between digits


@dataclass(frozen=True)
class Clip:
    """A digit by a speaker; `sound` (length,) float64 in [-1, 1] at 8 kHz."""

    sound: np.ndarray
    digit: int
    speaker: int
    recording: int


@dataclass(frozen=True)
class Utterance:
    """Clips joined to one `sound` (length,); `spans` are where each starts and ends."""

    sound: np.ndarray
    clips: tuple[Clip, ...]
    spans: tuple[tuple[int, int], ...]


def load_clips(data: str, split: str) -> list[Clip]:
    """All clips of a split of a data set with columns `label`, `speaker` and `index`, the recording's number."""
    sounds = load_audio(data, split=f"{split}[:100%]", sampling_rate=RATE, channels=1, label_column="label")
    speakers, recordings = (
        load_audio(data, split=f"{split}[:100%]", sampling_rate=RATE, label_column=column, cache_bytes=0).labels
        for column in ("speaker", "index")
    )
    facts = zip(sounds.labels.tolist(), speakers.tolist(), recordings.tolist(), strict=True)
    return [Clip(item["sample"][0].double().numpy(), *fact) for item, fact in zip(sounds, facts, strict=True)]


def join(clips: list[Clip]) -> list[Utterance]:
    """One utterance of every recording of every speaker, its digits in order."""
    ordered = sorted(clips, key=lambda clip: (clip.speaker, clip.recording, clip.digit))
    gap, utterances = int(GAP * RATE), []
    for _, group in itertools.groupby(ordered, key=lambda clip: (clip.speaker, clip.recording)):
        parts = tuple(group)
        starts = [0, *itertools.accumulate(len(part.sound) + gap for part in parts)]
        spans = tuple((start, start + len(part.sound)) for start, part in zip(starts, parts, strict=False))
        sound = np.zeros(spans[-1][1])
        for (start, end), part in zip(spans, parts, strict=True):
            sound[start:end] = part.sound
        utterances.append(Utterance(sound, parts, spans))
    return utterances

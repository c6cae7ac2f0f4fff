"""Distances of signals by their spectra at several resolutions."""

from collections.abc import Sequence

import torch

from hf_vq.losses.spectra import SpectralDistance, mean_of_frames


class SpectralLoss(SpectralDistance):
    """Multi-resolution STFT loss (Parallel WaveGAN, https://arxiv.org/abs/1910.11480, eq. 3-6).

    With X and Y the magnitudes |STFT| of target and signal, and N how many there are, each resolution gives

        | X - Y |_F / | X |_F  +  1 / N x | log X - log Y |_1

    spectral convergence, which follows the loud parts, and the distance of logarithms, which follows the quiet ones.
    The loss is the mean over resolutions. Windows, ends and padding are as of `SpectralDistance`.

    Args:
        n_ffts: samples of the Fourier transform of each resolution; the defaults are the paper's.
        hop_lengths: samples from frame to frame; None: a quarter of the window.
        window_lengths: samples of the windows, at most those of the transforms; None: as many.
        floor: smallest magnitude, above 0. A full-scale sine has about a quarter of the window's samples.

    Raises:
        ValueError: lengths that do not fit, named with their values.
    """

    def __init__(
        self,
        n_ffts: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] | None = (120, 240, 50),
        window_lengths: Sequence[int] | None = (600, 1200, 240),
        floor: float = 1e-4,
    ):
        super().__init__(n_ffts, hop_lengths, window_lengths, floor)

    def distance(
        self, own: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor | None, resolution: int
    ) -> torch.Tensor:
        convergence = _length(wanted - own, real) / _length(wanted, real)
        return convergence + mean_of_frames((wanted.log() - own.log()).abs(), real)


def _length(magnitudes: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Frobenius norm of each item of a batch, (batch,)."""
    magnitudes = magnitudes if real is None else magnitudes * real
    return torch.linalg.vector_norm(magnitudes, dim=(1, 2, 3))

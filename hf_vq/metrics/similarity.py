"""How alike pictures look by their local means, contrasts and structures: SSIM and MS-SSIM, through torchmetrics."""

import math
from typing import Any, ClassVar

import torch
from torch import nn

from hf_vq.metrics.padding import real_parts
from hf_vq.modes import full_float32
from hf_vq.processes import sum_over_processes

WINDOW = "Gauss window of 11 pixels, sigma 1.5, float32, samples cut to [-1, 1]"


class StructuralSimilarity(nn.Module):
    """SSIM (https://doi.org/10.1109/TIP.2003.819861), the mean of single pictures' figures, summed in float64.

    The window of torchmetrics reaches over mirrored borders, which weigh in small pictures: scikit-image leaves them
    out, and gives other figures. Depends neither on the batch size nor on the number of processes.

    Args:
        strict: refuse pictures that are smaller than `smallest_size`; else the figure of them all is NaN.

    Attributes:
        name: of the figure.
        smallest_size: pixels of the shorter side of the smallest pictures that have one.
        cheap: whether it is computed where nothing is asked for.
        details: what sets its figures apart.
    """

    name: ClassVar[str] = "ssim"
    smallest_size: ClassVar[int] = 6
    cheap: ClassVar[bool] = True
    details: ClassVar[str] = "mirrored borders"
    sums: torch.Tensor

    def __init__(self, strict: bool = True):
        from torchmetrics import __version__  # the library takes a second to import
        from torchmetrics.functional.image import ssim

        super().__init__()
        self.strict = strict
        self.compare = self.pick(ssim)
        self._library = f"torchmetrics {__version__}"
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # pictures, similarities

    @staticmethod
    def pick(library: Any) -> Any:
        """The function of torchmetrics."""
        return library.structural_similarity_index_measure

    def reset(self) -> None:
        self.sums.zero_()

    @torch.no_grad()
    def update(
        self, samples: torch.Tensor, reconstructions: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> None:
        """Adds samples and their reconstructions, (batch, channels, height, width) float in [-1, 1] each.

        Args:
            padding_mask: (batch, height, width) bool, True = real: the rest does not count. None: all is real.

        Raises:
            ValueError: shapes differ, or are too small.
        """
        if samples.shape != reconstructions.shape:
            raise ValueError(
                f"samples {tuple(samples.shape)} and reconstructions {tuple(reconstructions.shape)} differ in shape"
            )
        for part, other in real_parts(padding_mask, samples, reconstructions):
            if min(part.shape[2:]) >= self.smallest_size:
                with full_float32(part.device):
                    pictures = [(x.float().clamp(-1, 1) + 1) / 2 for x in (other, part)]
                    found = self.compare(*pictures, data_range=1.0, reduction="none").double().reshape(-1)
            elif self.strict:
                raise ValueError(
                    f"{self.name} needs pictures of at least {self.smallest_size} x {self.smallest_size} pixels, got "
                    f"{' x '.join(map(str, part.shape[2:]))}"
                )
            else:
                found = torch.full((len(part),), math.nan, dtype=torch.float64)
            self.sums += torch.stack([torch.full_like(found, 1.0), found]).sum(dim=1).to(self.sums.device)

    @torch.no_grad()
    def compute(self) -> dict[str, float]:
        """The mean over everything added since `reset`, on all processes, by its name; NaN without pictures."""
        count, total = sum_over_processes(self.sums.clone()).tolist()
        return {self.name: total / count if count else math.nan}

    def describe(self) -> dict[str, dict[str, Any]]:
        """What figures are told apart by, by name."""
        return {self.name: {"implementation": f"{self._library}, {WINDOW}, {self.details}"}}


class MultiScaleSimilarity(StructuralSimilarity):
    """MS-SSIM (https://doi.org/10.1109/ACSSC.2003.1292216): SSIM at five sizes, each half of the one before.

    Args:
        strict: see `StructuralSimilarity`.
    """

    name = "ms_ssim"
    smallest_size = 176  # of a sixteenth, a window must leave something
    cheap = False
    details = "five sizes, contrasts below 0 count as 0"

    @staticmethod
    def pick(library: Any) -> Any:
        return library.multiscale_structural_similarity_index_measure

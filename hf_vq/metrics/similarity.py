"""How alike pictures look by their local means, contrasts and structures: SSIM and MS-SSIM, through torchmetrics."""

import math
from typing import Any, ClassVar

import torch

from hf_vq.metrics.means import MeanOfItems
from hf_vq.modes import full_float32

WINDOW = "Gauss window of 11 pixels, sigma 1.5, float32, samples cut to [-1, 1]"


class StructuralSimilarity(MeanOfItems):
    """SSIM (https://doi.org/10.1109/TIP.2003.819861), the mean of single pictures' figures, summed in float64.

    The window of torchmetrics reaches over mirrored borders, which weigh in small pictures: scikit-image leaves them
    out, and gives other figures. Depends neither on the batch size nor on the number of processes.

    Args:
        strict: refuse pictures that are smaller than `smallest_size`; else the figure of them all is NaN.

    Attributes:
        details: what sets its figures apart.
    """

    name = "ssim"
    smallest_size = 6
    details: ClassVar[str] = "mirrored borders"

    def __init__(self, strict: bool = True):
        from torchmetrics import __version__  # the library takes a second to import
        from torchmetrics.functional.image import ssim

        super().__init__()
        self.strict = strict
        self.compare = self.pick(ssim)
        self._library = f"torchmetrics {__version__}"

    @staticmethod
    def pick(library: Any) -> Any:
        """The function of torchmetrics."""
        return library.structural_similarity_index_measure

    def each(self, samples: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        if min(samples.shape[2:]) >= self.smallest_size:
            with full_float32(samples.device):
                pictures = [(x.float().clamp(-1, 1) + 1) / 2 for x in (reconstructions, samples)]
                return self.compare(*pictures, data_range=1.0, reduction="none").double().reshape(-1)
        if self.strict:
            raise ValueError(
                f"{self.name} needs pictures of at least {self.smallest_size} x {self.smallest_size} pixels, got "
                f"{' x '.join(map(str, samples.shape[2:]))}"
            )
        return torch.full((len(samples),), math.nan, dtype=torch.float64)

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

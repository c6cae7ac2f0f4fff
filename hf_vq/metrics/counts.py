"""How often codes occur, whatever the size of the codebook."""

import torch
from torch import nn

from hf_vq.processes import gather_rows, sum_over_processes

DENSE_CODES = 2**20  # up to so many codes, each has a counter; of more, only codes that occurred
GATHERED = 2**16  # codes that wait for being counted together, at the least


class CodeCounts(nn.Module):
    """Counts codes in [0, codebook_size). Memory grows with the codes that occur, not with the codebook.

    Args:
        codebook_size: number of codes. Lookup-free and finite scalar quantizers have 2^36 and more.
    """

    codes: torch.Tensor
    counts: torch.Tensor

    def __init__(self, codebook_size: int):
        super().__init__()
        self.codebook_size, self.dense = codebook_size, codebook_size <= DENSE_CODES
        self.register_buffer("codes", torch.zeros(0, dtype=torch.int64))  # sorted, of a large codebook
        self.register_buffer("counts", torch.zeros(codebook_size if self.dense else 0, dtype=torch.int64))
        self._waiting: list[torch.Tensor] = []

    def reset(self) -> None:
        self._waiting = []
        if self.dense:
            self.counts.zero_()
        else:
            self.codes, self.counts = self.codes[:0], self.counts[:0]

    def add(self, codes: torch.Tensor) -> None:
        """Counts codes (n,) int64.

        Raises:
            ValueError: codes outside [0, codebook_size).
        """
        if codes.numel() and (codes.min() < 0 or int(codes.max()) >= self.codebook_size):
            raise ValueError(
                f"codes must be in [0, {self.codebook_size}), got {codes.min().item()} to {codes.max().item()}"
            )
        if self.dense:
            self.counts += torch.bincount(codes, minlength=self.codebook_size).to(self.counts.device)
            return
        self._waiting.append(codes)
        if sum(map(len, self._waiting)) > max(GATHERED, len(self.codes)):  # sorting costs as much as it gains
            self._count_waiting()

    def compute(self) -> torch.Tensor:
        """Counts on all processes: (codebook_size,); of a large codebook those of codes that occurred, in order."""
        if self.dense:
            return sum_over_processes(self.counts.clone())
        self._count_waiting()
        return _merge(gather_rows(self.codes), gather_rows(self.counts))[1]

    def _count_waiting(self):
        found = torch.cat([self.codes, *(codes.to(self.codes.device) for codes in self._waiting)])
        counts = torch.cat([self.counts, found.new_ones(len(found) - len(self.codes))])
        self.codes, self.counts = _merge(found, counts)
        self._waiting = []


def _merge(codes, counts):
    """Each code once, sorted, and the sum of its counts."""
    codes, places = codes.unique(return_inverse=True)
    return codes, counts.new_zeros(len(codes)).index_add_(0, places, counts)

"""How well a prior predicts codes."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from hf_vq.grids import as_int64
from hf_vq.metrics.counts import CodeCounts
from hf_vq.processes import sum_over_processes


@dataclass
class CodeLikelihoodOutput:
    """Likelihood of a set of codes.

    Attributes:
        nats_per_code: mean negative log-likelihood of a code, in nats.
        unigram_entropy: entropy of the codes' own frequencies, in nats: what a prior without context reaches at best.
        ratio: `nats_per_code` over `unigram_entropy`; below 1 the context is used. NaN where all codes are equal.
        bits_per_code: the same in bits.
        bits_per_dim: bits that the codes of one item cost, over the dimensions of its sample; None without its shape.
    """

    nats_per_code: float
    unigram_entropy: float
    ratio: float
    bits_per_code: float
    bits_per_dim: float | None


class CodeLikelihood(nn.Module):
    """Sums log-likelihoods over an epoch, in float64; depends neither on the batch size nor on the processes.

    Args:
        codebook_size: number of codes.
        sample_shape: (channels, *space) of the samples behind the codes, for `bits_per_dim`.
    """

    sums: torch.Tensor

    def __init__(self, codebook_size: int, sample_shape: tuple[int, ...] | None = None):
        super().__init__()
        self.sample_shape = sample_shape
        self.counts = CodeCounts(codebook_size)
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # items (of a short one its share), nats

    def reset(self) -> None:
        self.counts.reset()
        self.sums.zero_()

    @torch.no_grad()
    def update(
        self, codes: torch.Tensor, log_prob: torch.Tensor, lengths: torch.Tensor | None = None, axis: int = 1
    ) -> None:
        """Adds codes and their log-likelihoods.

        Args:
            codes: (batch, *grid) of any integer type.
            log_prob: (batch,) nats.
            lengths: (batch,) int64, how many positions of an item are real; the others do not count. None: all.
            axis: of the codes, that the lengths are along.

        Raises:
            ValueError: codes outside [0, codebook_size), or not one log-likelihood or length an item.
        """
        codes = as_int64("codes", codes)
        if log_prob.shape != codes.shape[:1]:
            raise ValueError(f"log_prob must be ({codes.shape[0]},), one value an item, got {tuple(log_prob.shape)}")
        items: float = len(codes)
        if lengths is not None:
            if lengths.shape != codes.shape[:1]:
                raise ValueError(f"lengths must be ({items},), one an item, got {tuple(lengths.shape)}")
            places = torch.arange(codes.shape[axis], device=codes.device)
            items = lengths.sum().item() / codes.shape[axis]
            codes = codes.movedim(axis, 1)[places < lengths[:, None]]
        self.counts.add(codes.reshape(-1))
        nats = -log_prob.double().sum()
        self.sums += torch.stack([torch.full_like(nats, items), nats]).to(self.sums.device)

    @torch.no_grad()
    def compute(self) -> CodeLikelihoodOutput:
        """The likelihood of everything added since `reset`, on all processes.

        Raises:
            ValueError: nothing was added.
        """
        counts = self.counts.compute().double()
        items, nats = sum_over_processes(self.sums.clone()).tolist()
        if items == 0:
            raise ValueError("no codes were added")
        entropy = torch.special.entr(counts / counts.sum()).sum().item()
        nats_per_code = nats / counts.sum().item()
        bits = None
        if self.sample_shape is not None:
            bits = nats / (items * math.prod(self.sample_shape) * math.log(2))
        ratio = nats_per_code / entropy if entropy else math.nan
        return CodeLikelihoodOutput(nats_per_code, entropy, ratio, nats_per_code / math.log(2), bits)

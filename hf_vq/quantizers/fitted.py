"""Latents moved and scaled to where a fixed grid of codes lies."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_vq.processes import sum_over_processes
from hf_vq.quantizers.nearest import widest_float

_LEAST_VARIANCE = 1e-12  # of a channel that does not vary


class FittedLatents(nn.Module):
    """(rows - mean) x spread / deviation, channel by channel, with running moments of the latents.

    A grid of codes that does not adapt learns nothing from latents that all fall into one of its cells. The moments
    are those of the first training batch, then follow the latents as an EMA codebook does, summed over processes.
    A channel that does not vary in the first batch is moved alone.

    The moments undo a shift or a stretch that all rows of a channel have in common, so no gradient along these
    passes (`follow`), as in batch normalization (https://arxiv.org/abs/1502.03167): it would drive the latents away
    faster than moments follow, until all lie beyond the grid.

    Args:
        spreads: standard deviation that each channel gets, above 0.
        decay: of the running moments, in [0, 1]; latents of a young encoder move far within ten steps.

    Attributes:
        mean, variance: (channels,) running moments; before the start rows pass as they are.
        steps: how often the moments have moved, (); it is saved.
        started: whether they have.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    steps: torch.Tensor

    def __init__(self, spreads: Sequence[float], decay: float = 0.9):
        super().__init__()
        self.spreads, self.decay, self.started = tuple(spreads), decay, False
        self.register_buffer("mean", torch.zeros(len(self.spreads), dtype=torch.float32))
        self.register_buffer("variance", torch.tensor(self.spreads, dtype=torch.float32).square())
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._pending: torch.Tensor | None = None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, channels) with about zero mean and the standard deviations `spreads`."""
        return ((rows - self.mean.clone()) / self._unit()).to(rows.dtype)  # a clone, since updates are in place

    def inverse(self, rows: torch.Tensor) -> torch.Tensor:
        """Fitted rows (n, channels) back to where the latents are."""
        return (rows * self._unit() + self.mean.clone()).to(rows.dtype)

    def follow(self, rows: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
        """Rows (n, channels) as they are, without the gradient that moments which follow them undo.

        Args:
            rows: (n, channels) as they came in.
            counted: (n,) bool, rows that the moments follow; None: all.
        """
        return _Followed.apply(rows, rows.new_ones(rows.shape[0], dtype=torch.bool) if counted is None else counted)

    def _unit(self):
        """What 1 of the fitted rows is in the latents, (channels,)."""
        return self.variance.clamp_min(_LEAST_VARIANCE).sqrt() / self.variance.new_tensor(self.spreads)

    @torch.no_grad()
    def start(self, rows: torch.Tensor) -> bool:
        """Takes the moments of these rows (n, channels) of all processes; False where there are none."""
        count, total = self._sums(rows, None)[:2]
        if self.started or count[0] == 0:
            return False
        self.mean.copy_(total / count)
        count, total, squares = self._sums(rows, None)
        self._move(count, total, squares, 1.0)
        spreads = self.variance.new_tensor(self.spreads)
        self.variance.copy_(torch.where(self.variance > _LEAST_VARIANCE, self.variance, spreads.square()))
        self.started = True
        return True

    @torch.no_grad()
    def record(self, rows: torch.Tensor, counted: torch.Tensor | None, deferred: bool) -> None:
        """Moves the moments by the rows of a step, or gathers them until `update`.

        Args:
            rows: (n, channels) as they came in.
            counted: (n,) bool, rows that count; None: all.
            deferred: gather.
        """
        sums = self._sums(rows, counted)
        self._pending = sums if self._pending is None else self._pending + sums
        if not deferred:
            self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the moments by what was gathered."""
        if self._pending is not None:
            (count, total, squares), self._pending = self._pending, None
            self._move(count, total, squares, 1 - self.decay)

    def finish_loading(self) -> None:
        """Called after a checkpoint was loaded."""
        self.started, self._pending = bool(self.steps > 0), None

    def _sums(self, rows, counted):
        """How many rows count, their sum and that of their squares, both about `mean`: (3, channels)."""
        rows = rows.detach().to(widest_float(rows.device)) - self.mean
        ones = rows.new_ones(rows.shape) if counted is None else counted[:, None].to(rows.dtype).expand_as(rows)
        if counted is not None:
            rows = torch.where(counted[:, None], rows, 0)
        return sum_over_processes(torch.stack([ones.sum(dim=0), rows.sum(dim=0), rows.square().sum(dim=0)]))

    def _move(self, count, total, squares, share):
        share = torch.where(count > 0, share, 0.0)  # a step of nothing but padding moves nothing
        step = total / count.clamp_min(1)
        variance = squares / count.clamp_min(1) - step.square()
        mixed = (1 - share) * self.variance + share * variance + share * (1 - share) * step.square()
        self.mean.copy_(self.mean + share * step)
        self.variance.copy_(mixed.clamp_min(0))
        self.steps += (count > 0).any()

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.finish_loading()

    def extra_repr(self) -> str:
        return f"spreads={self.spreads}"


class _Followed(torch.autograd.Function):
    """The rows; of their gradient what is left without its mean and its part along the centred rows.

    Means are over the counted rows of all processes. Of few rows, whose own mean and spread say little of moments to
    come, less is taken: of two rows nothing.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, counted)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        rows, counted = ctx.saved_tensors
        both = torch.stack([rows, gradient]).to(widest_float(rows.device))  # (2, n, channels)
        count = sum_over_processes(counted.sum(dtype=both.dtype))
        means = sum_over_processes(torch.where(counted[:, None], both, 0).sum(dim=1)) / count.clamp_min(1)
        centred = torch.where(counted[:, None], both - means[:, None], 0)
        products = sum_over_processes((centred * centred[0]).sum(dim=1))
        slope = products[1] / products[0].clamp_min(_LEAST_VARIANCE)
        undone = (1 - 2 / count).clamp_min(0) * (means[1] + slope * centred[0])
        return gradient - torch.where(counted[:, None], undone, 0).to(gradient.dtype), None

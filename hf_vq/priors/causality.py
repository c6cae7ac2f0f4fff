"""Whether a network predicts codes without having seen them: of one that has, the sum of logits is no likelihood."""

import contextlib
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_vq.priors.embedding import HALF
from hf_vq.priors.inputs import IGNORED, map_tensors
from hf_vq.priors.tokens import IMPOSSIBLE

CUTS = 3  # steps of the drawing order that one pass looks at
THOROUGH_CUTS = 24  # steps that a thorough check looks at
PLAIN = bool | int | float | str | None  # types of attributes that a change of is noticed
GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, never leave a large gap


def check_causality(
    prior: Any, codes: torch.Tensor, labels: torch.Tensor | None, conditions: dict, thorough: bool = False
) -> None:
    """Raise a `ValueError` where logits of a code depend on that code or on one drawn later.

    A pass looks at one item four times: as it is, and with the codes from one of three steps of the drawing order on
    replaced by others. Up to that step, the distributions must be those of the item as it is. One pass is made for
    each state of the weights, the modules' plain attributes and the grid, since a network that ignores its input at
    first may copy it after training; of weights that are not here to be looked at, for each call. A thorough check is
    always made, of all steps up to `THOROUGH_CUTS`, or of as many spread over a longer order: the next takes others.

    What it cannot find: a leak at one step of a long order, until its turn comes; one that this item and its
    conditions do not show; one so much smaller than the logits of codes that are possible (a mask or an offset aside)
    that rounding hides it; and a change of what no attribute that is a number, a flag or text tells of. What rounding
    in half precision could explain is looked at again with the weights in float32, but for weights that accelerate
    offloads and networks that compute in half precision alone: there such rounding may hide it.

    Args:
        prior: an `AutoregressivePrior` in eval mode, without gradients.
        codes, labels, conditions: as `check_inputs` gave them.
        thorough: look at more steps, whatever was looked at before.
    """
    if torch.compiler.is_compiling():
        return
    code_shape = tuple(codes.shape[1:])
    state = (code_shape, *_state(prior))
    seen, checked = (0, None) if prior.causal_state is None else prior.causal_state
    if not thorough and checked == state and not any(weight.is_meta for weight in prior.parameters()):
        return
    places, row = prior.drawing_places(code_shape).to(codes.device), 0
    if labels is not None:  # padding is not drawn
        real = (labels != IGNORED).flatten(1)
        row = int(real.sum(1).argmax())
        places = places[real[row, places]]
    count = len(places)
    wanted = min(count, THOROUGH_CUTS if thorough else CUTS)
    if wanted == count:
        cuts = list(range(count))
    else:
        ends = [0, count - 1] if thorough else []  # where a beginning or an end is dealt with by itself
        drawn = wanted - len(ends)
        cuts = ends + [int((seen + index + 1) * GOLDEN % 1 * count) for index in range(drawn)]
        seen += drawn
    item = codes[row : row + 1].flatten(1).repeat(1 + CUTS, 1)
    repeated = {
        name: map_tensors(lambda tensor: tensor[row : row + 1].repeat(1 + CUTS, *[1] * (tensor.ndim - 1)), value)
        for name, value in conditions.items()
    }
    for first in range(0, wanted, CUTS):
        chosen = (cuts[first : first + CUTS] * CUTS)[:CUTS]
        _check_cuts(prior, item, code_shape, repeated, places, chosen)
    prior.causal_state = (seen, state)


def _check_cuts(prior, item, code_shape, conditions, places, cuts):
    """One pass over four copies (4, codes) of an item, the first as it is; another where only rounding may be seen."""
    steps = torch.tensor([len(places), *cuts], device=item.device)[:, None]
    step = torch.arange(len(places), device=item.device)[None]
    grids, own = item.clone(), item[:, places]
    grids[:, places] = torch.where(step >= steps, prior.tokens.others(own), own)

    def measure(predict, conditions):
        accelerators = [item.device] if item.device.type == "cuda" else []
        with torch.random.fork_rng(accelerators), torch.autocast(item.device.type, enabled=False):
            logits = predict(grids.view(-1, *code_shape), **conditions)
        return _measure(prior, logits.flatten(1, -2)[:, places], (step <= steps)[..., None])

    found = measure(prior.predict, conditions)
    dtypes = {found.dtype, *(weight.dtype for weight in prior.parameters())}
    leaks = found.is_beyond(dtypes)
    if not leaks and found.is_beyond({torch.float32}):  # hidden by rounding in half precision, or made by it
        wide = {name: map_tensors(_widened, value) for name, value in conditions.items()}
        with contextlib.suppress(NoFloat32):
            found = measure(_in_float32(prior), wide)
            leaks = found.is_beyond({found.dtype})
    if leaks:
        raise ValueError(
            f"{type(prior).__name__} has logits that depend on the very codes they are of, or on codes drawn later: "
            f"they moved by {found.moved:.3g}. Its log_prob is no likelihood; predict must not let a code see itself "
            "or what follows in code_order"
        )


class Movement(NamedTuple):
    """How far logits move that must not, and what tells how far rounding may move them.

    Attributes:
        moved: the largest movement of a log-probability.
        spread: how much the log-probabilities of one code vary.
        largest: the largest logit.
        rated: the largest log-probability.
        dtype: of the logits.
    """

    moved: float
    spread: float
    largest: float
    rated: float
    dtype: torch.dtype

    def is_beyond(self, dtypes: Iterable[torch.dtype]) -> bool:
        """Whether rounding in these dtypes does not explain it.

        A part of a network may compute in float32 whatever its weights are, and the log-softmax rounds as well.
        """
        fine = torch.finfo(torch.float32).eps
        eps = max(fine, *(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point))
        return self.moved > eps**0.5 * self.spread + 8 * (eps * self.largest + fine * self.rated)


def _measure(prior, logits, compared):
    """The movement of logits (4, steps, ...) from those of the first row, where (4, steps, 1) bool says."""
    values = prior.tokens.comparable(logits)
    if (values.isnan() & compared).any():
        raise ValueError(
            f"{type(prior).__name__} has logits that are NaN or infinity: no likelihood follows from them"
        )
    moved = (values[1:] - values[:1]).abs().masked_fill(~compared[1:], 0)
    # Rounding may differ between the rows of a batch; what a network reads moves logits by as much as they vary.
    # What is impossible whatever the input, such as a masked code, says nothing of how much that is.
    possible = (values > IMPOSSIBLE) & compared
    mean = values.masked_fill(~possible, 0).sum(-1, keepdim=True) / possible.sum(-1, keepdim=True).clamp(min=1)
    sizes = (values - mean, logits.to(values.dtype), values)
    spread, largest, rated = (size.abs().masked_fill(~possible, 0).max().item() for size in sizes)
    return Movement(moved.max().item(), spread, largest, rated, logits.dtype)


class NoFloat32(Exception):
    """A network that does not compute in float32."""


def _in_float32(prior):
    """`prior.predict` with weights and buffers of half precision in float32; the prior's own stay as they are."""
    own = dict(chain(prior.named_parameters(), prior.named_buffers()))
    if any(hasattr(module, "_hf_hook") for module in prior.modules()) or any(each.is_meta for each in own.values()):
        raise NoFloat32  # accelerate brings the weights, in their own precision
    wide = {f"prior.{name}": _widened(tensor) for name, tensor in own.items()}

    def predict(grids, **conditions):
        try:
            return torch.func.functional_call(Predicting(prior), wide, (grids,), conditions)
        except RuntimeError as error:  # such as a kernel that knows half precision alone
            raise NoFloat32 from error

    return predict


class Predicting(nn.Module):
    """A prior's `predict` as a forward."""

    def __init__(self, prior: nn.Module):
        super().__init__()
        self.prior = prior

    def forward(self, grids: torch.Tensor, **conditions: Any) -> torch.Tensor:
        predict: Any = self.prior.predict
        return predict(grids, **conditions)


def _widened(value):
    """A tensor of half precision in float32; all else as it is."""
    half = torch.is_tensor(value) and value.dtype in HALF
    return value.float() if half else value


def _state(prior):
    """The plain attributes of the modules and the config, and the norms of the weights and buffers that are here."""
    attributes = [
        (type(owner), *((name, value) for name, value in vars(owner).items() if isinstance(value, PLAIN)))
        for owner in (*prior.modules(), prior.config)
    ]
    # by the norms of the weights: fused optimizers, which Trainer takes, leave their `_version` as it is
    norms = [_norm(tensor) for tensor in (*prior.parameters(), *prior.buffers()) if not tensor.is_meta]
    return attributes, torch.stack([norm.to(norms[0].device) for norm in norms]).tolist() if norms else []


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.linalg.vector_norm(tensor if tensor.is_floating_point() else tensor.to(dtype), dtype=dtype).float()

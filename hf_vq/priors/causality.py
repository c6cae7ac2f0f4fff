"""Whether a network predicts codes without having seen them: of one that has, the sum of logits is no likelihood."""

from typing import Any

import torch

from hf_vq.priors.inputs import IGNORED, map_tensors


def check_causality(prior: Any, codes: torch.Tensor, labels: torch.Tensor | None, conditions: dict) -> None:
    """Raise a `ValueError` where logits of a code depend on that code or on one drawn later.

    Looks at one item four times in one pass: as it is, and with the codes from one of three steps of the drawing order
    on replaced by others. Up to that step, logits must be those of the item as it is. It does so once for each state
    of the weights and grid, as a network that ignores its input at first may copy it after training.

    Args:
        prior: an `AutoregressivePrior` in eval mode, without gradients.
        codes, labels, conditions: as `check_inputs` gave them.
    """
    if torch.compiler.is_compiling():
        return
    code_shape = tuple(codes.shape[1:])
    # by the norms of the weights: fused optimizers, which Trainer takes, leave their `_version` as it is
    norms = [_norm(weight).to(prior.device) for weight in prior.parameters() if not weight.is_meta]
    state = (code_shape, torch.stack(norms).tolist())
    if state == prior.causal_state:
        return
    places, row = prior.drawing_places(code_shape).to(codes.device), 0
    if labels is not None:  # padding is not drawn
        real = (labels != IGNORED).flatten(1)
        row = int(real.sum(1).argmax())
        places = places[real[row, places]]
    count = len(places)
    steps = torch.tensor([count, min(1, count - 1), count // 2, count - 1], device=codes.device)[:, None]
    step = torch.arange(count, device=codes.device)[None]
    grids = codes[row : row + 1].flatten(1).repeat(4, 1)
    own = grids[:, places]
    grids[:, places] = torch.where(step >= steps, prior.tokens.others(own), own)
    repeated = {
        name: map_tensors(lambda tensor: tensor[row : row + 1].repeat(4, *[1] * (tensor.ndim - 1)), value)
        for name, value in conditions.items()
    }
    accelerators = [prior.device] if prior.device.type == "cuda" else []
    with torch.random.fork_rng(accelerators), torch.autocast(prior.device.type, enabled=False):
        logits = prior.predict(grids.view(4, *code_shape), **repeated)
    logits = logits.flatten(1, -2)[:, places]  # (4, steps, ...)
    moved = (logits[1:] - logits[:1]).abs().amax(-1)[step <= steps[1:]].max()
    # rounding may differ between the rows of a batch; what a network reads moves logits by as much as they vary
    if moved > torch.finfo(logits.dtype).eps ** 0.5 * logits.abs().max():
        raise ValueError(
            f"{type(prior).__name__} has logits that depend on the very codes they are of, or on codes drawn later: "
            f"they moved by {moved.item():.3g}. Its log_prob is no likelihood; predict must not let a code see itself "
            "or what follows in code_order"
        )
    prior.causal_state = state


def _norm(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(weight, dtype=torch.promote_types(weight.dtype, torch.float32)).float()

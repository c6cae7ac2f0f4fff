"""Whether a network predicts codes without having seen them: of one that has, the sum of logits is no likelihood."""

import torch

from hf_vq.priors.inputs import IGNORED, map_tensors


def check_causality(prior, codes: torch.Tensor, labels: torch.Tensor | None, conditions: dict) -> None:
    """Raise a `ValueError` where logits of a code depend on that code or on one drawn later.

    Looks at the first item four times in one pass: as it is, and with the codes from one of three steps of the drawing
    order on replaced by others. Up to that step, logits must be those of the item as it is. It does so once for each
    state of the weights, as a network that ignores its input at first may copy it after training.

    Args:
        prior: an `AutoregressivePrior` in eval mode, without gradients.
        codes, labels, conditions: as `check_inputs` gave them.
    """
    if torch.compiler.is_compiling():
        return
    state = [(id(weight), 0 if weight.is_inference() else weight._version) for weight in prior.parameters()]
    if state == prior.causal_state:
        return
    places = prior.drawing_places(tuple(codes.shape[1:])).to(codes.device)
    if labels is not None:
        places = places[labels[0].flatten()[places] != IGNORED]  # padding is not drawn
    count = len(places)
    steps = torch.tensor([count, min(1, count - 1), count // 2, count - 1], device=codes.device)[:, None]
    step = torch.arange(count, device=codes.device)[None]
    grids = codes[:1].flatten(1).repeat(4, 1)
    own = grids[:, places]
    grids[:, places] = torch.where(step >= steps, prior.tokens.others(own), own)
    repeated = {
        name: map_tensors(lambda tensor: tensor[:1].repeat(4, *[1] * (tensor.ndim - 1)), value)
        for name, value in conditions.items()
    }
    accelerators = [prior.device] if prior.device.type == "cuda" else []
    with torch.random.fork_rng(accelerators), torch.autocast(prior.device.type, enabled=False):
        logits = prior.predict(grids.view(4, *codes.shape[1:]), **repeated)
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

"""What the sampling benchmarks share: seconds of a call, and codes drawn again from full forwards."""

import time

import torch

from hf_vq.priors.sampling import sample_codes


def timed(function, *arguments):
    """Seconds that a call takes on the default device, and its result."""
    _wait()
    start = time.perf_counter()
    result = function(*arguments)
    _wait()
    return time.perf_counter() - start, result


def _wait():
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def recompute(prior, codes, uniforms, positions):
    """Draw the codes at some positions of a finished grid again, each from a full forward; how many come out equal."""
    width, equal = codes.shape[2], 0
    for position in positions:
        row, column = divmod(position, width)
        logits = prior(codes, return_loss=False).logits[:, row, column]
        equal += int((sample_codes(logits, uniforms[position]) == codes[:, row, column]).sum())
    return equal

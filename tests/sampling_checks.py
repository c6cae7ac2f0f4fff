"""What a prior's sampling state gives, for comparison with the logits of whole grids."""

import torch


def code_order(prior, codes):
    """Places of the codes in the order in which they are drawn."""
    return prior.drawing_places(tuple(codes.shape[1:]))


def cached_logits(prior, codes, **conditions):
    """Logits (batch, *grid, codebook_size) from the state of sampling, code by code."""
    order = code_order(prior, codes)
    logits = logits_after(prior, codes, order, 0, **conditions)
    return logits[:, order.argsort()].view(*codes.shape, -1)


def logits_after(prior, codes, order, known, **conditions):
    """Logits (batch, codes - known, codebook_size) in drawing order, where the first `known` were taken at once."""
    shape = tuple(codes.shape[1:])
    conditions = prior.check_conditions(conditions, len(codes), shape)
    state, logits = prior.start_sampling(len(codes), shape, **conditions), []
    codes = codes.flatten(1)[:, order]
    if known:
        state.prefill(codes[:, :known])
    for column in codes[:, known:].unbind(1):
        logits.append(state.next_logits().clone())
        state.append(column)
    return torch.stack(logits, dim=1)

"""A model in another state for a while: in evaluation mode, with all its weights in place."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn


@contextmanager
def fetched(model: nn.Module) -> Iterator[None]:
    """Fetch the weights that accelerate keeps elsewhere: some are read without their module being called."""
    if torch.compiler.is_compiling() or not hasattr(model, "_hf_hook"):  # accelerate hooks the model itself, too
        yield
        return
    with ExitStack() as stack:
        for module in filter(has_offloaded_params, model.modules()):
            stack.enter_context(align_module_device(module))
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and afterwards each of its modules back in the mode it had.

    Each for itself: its owner may have frozen a part, say the batch norm of a finished autoencoder, in eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with fetched(model):
            yield
    finally:
        for module, training in modes:
            module.training = training

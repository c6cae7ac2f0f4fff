"""A model in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and afterwards each of its modules back in the mode it had.

    Each for itself: its owner may have frozen a part, say the batch norm of a finished autoencoder, in eval mode.
    Weights that accelerate keeps elsewhere are fetched for as long: some are read without their module being called.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with ExitStack() as fetched:
            for module in filter(has_offloaded_params, model.modules()):
                fetched.enter_context(align_module_device(module))
            yield
    finally:
        for module, training in modes:
            module.training = training

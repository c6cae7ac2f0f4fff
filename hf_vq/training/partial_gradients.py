"""What compiled code does not do by itself: the gradient of one weight alone, and a gradient of a gradient."""

import contextlib
from types import MethodType

import torch
from torch import nn
from torch._functorch import config as compiled_gradients


class PartialGradients:
    """Makes the gradient of one weight of a model that will be compiled cost no more than it does in plain code.

    A compiled graph goes backward as a whole, through the entire model for its last layer too. So the weight's layer
    runs outside of compiled code: it parts the graph in what lies before it, which its gradient does not need, and
    what comes after.

    Args:
        model: not yet compiled.
        weight: a parameter of one of its modules.
    """

    def __init__(self, model: nn.Module, weight: torch.Tensor):
        self.layer = next(
            layer for layer in model.modules() if any(each is weight for each in layer.parameters(recurse=False))
        )
        plain = torch.compiler.disable(type(self.layer).forward, reason="its gradient is asked for alone")
        self.layer.forward = MethodType(plain, self.layer)  # a method: copies of the layer have one of their own

    def undo(self) -> None:
        """The layer is as it was."""
        del self.layer.forward


def several_gradients() -> contextlib.AbstractContextManager:
    """Code that is compiled within the `with` block can be gone backward through more than once."""
    return compiled_gradients.patch(donated_buffer=False)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped, or itself: compiled code has no gradient of its gradient."""
    return module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module
